"""`python -m chaos --seconds 60 --seed 1`: one run; fails if a rule is broken."""

import argparse
import sys

from chaos import trace
from chaos.plan import Plan
from chaos.run import run


def main() -> int:
    """Run one plan."""
    parser = argparse.ArgumentParser(prog="chaos")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}, {arguments.seconds:g} seconds", flush=True)
    plan = Plan.of(arguments.seed, arguments.seconds)
    print(f"plan: {len(plan.faults)} faults, {sum(map(len, plan.calls))} calls", flush=True)
    verdict = run(plan)
    verdict.print()
    if verdict.violations:
        head = [f"seed {arguments.seed}, {arguments.seconds:g} seconds", *verdict.violations, *verdict.excused]
        print(f"everything that happened: {trace.write(verdict.history, head, str(arguments.seed))}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
