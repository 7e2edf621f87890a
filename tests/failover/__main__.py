"""`python -m failover`: the scenarios by each way of connecting; fails if a goal is missed."""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from failover import oracle, table
from failover.clusters import cluster_world
from failover.history import History
from failover.run import Run
from failover.scenarios import SCENARIOS, Scenario
from failover.timing import FULL, SHORT
from failover.two_servers import two_servers
from failover.world import Missing, World

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
WORLDS: dict[str, Callable[[], AbstractAsyncContextManager[World]]] = {
    "two-servers": two_servers,
    "patroni": cluster_world,
}


async def play(arguments: argparse.Namespace, world: World) -> list[History]:
    """Play what was chosen on one world."""
    timing = SHORT if arguments.short else FULL
    histories: list[History] = []
    ways = [way for way in world.ways if way.name in arguments.ways or not (way.long and arguments.short)]
    ways = [way for way in ways if not arguments.ways or way.name in arguments.ways]
    for scenario in _chosen(arguments):
        if not world.can(scenario.step):
            continue
        played = await Run(world, scenario, ways, timing).run()
        texts = [f"MISSED {text}\n" for history in played for text in oracle.violations(history, timing)]
        print(f"{table.plain(played)}\n{''.join(texts)}", flush=True)
        histories += played
    return histories


def _chosen(arguments: argparse.Namespace) -> list[Scenario]:
    if arguments.scenarios:
        return [scenario for scenario in SCENARIOS if scenario.name in arguments.scenarios]
    return [scenario for scenario in SCENARIOS if not (scenario.long and arguments.short)]


async def run(arguments: argparse.Namespace) -> list[str]:
    """Play everything, print and write the tables, and return the goals that were missed."""
    missed: list[str] = []
    skipped: list[str] = []
    for name in arguments.worlds or WORLDS:
        try:
            async with WORLDS[name]() as world:
                histories = await play(arguments, world)
        except Missing as absent:
            skipped.append(f"{name}: not on this system: {absent}")
            continue
        missed += [text for one in histories for text in oracle.violations(one, SHORT if arguments.short else FULL)]
        print(f"{world.name}\n\n{table.plain(histories)}\n", flush=True)
        _log(name, histories)
        if arguments.write:
            table.write(PAGE, name, histories)
    for text in skipped:
        print(f"skipped {text}", flush=True)
    return missed


def _log(world: str, histories: list[History]) -> None:
    """Leave the warnings and the calls that failed in a file, for whoever looks for a cause."""
    with tempfile.NamedTemporaryFile("w", prefix=f"failover-{world}-", suffix=".txt", delete=False) as file:
        for one in histories:
            events = [(call.began, f"call {call}") for call in one.bad]
            for kind, calls in (("pool", one.pool), ("fresh", one.fresh)):
                events += [(call.began, f"{kind} {call}") for call in calls if call.bad]
            events += [(float(line.split()[0]), f"log {line}") for line in one.logged]
            events += [(at, f"disconnected user={user}") for user, at in one.disconnected.items()]
            file.writelines(f"{one.scenario} {one.way} {at:.3f} {text}\n" for at, text in sorted(events))
    print(f"warnings and failed calls: {file.name}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="failover")
    parser.add_argument("--short", action="store_true", help="shorter timeouts and fewer scenarios")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/operations.md")
    parser.add_argument("--worlds", nargs="*", choices=list(WORLDS), default=[])
    parser.add_argument("--scenarios", nargs="*", choices=[scenario.name for scenario in SCENARIOS], default=[])
    parser.add_argument("--ways", nargs="*", default=[])
    missed = asyncio.run(run(parser.parse_args()))
    for text in missed:
        print(f"MISSED {text}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
