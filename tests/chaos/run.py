"""One run of a plan, from the servers to the verdict."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from chaos import audit, oracle
from chaos.ending import end
from chaos.faults import Faults
from chaos.history import History
from chaos.plan import Plan
from chaos.world import World, summary, world_of
from support.database import Database, serving


@dataclass(frozen=True)
class Verdict:
    """How a run ended.

    Attributes:
        violations: what broke a rule.
        excused: users lost to strict rotation, with the evidence.
        figures: of the run.
    """

    history: History
    violations: list[str]
    excused: list[str]
    figures: dict[str, Any]

    def print(self) -> None:
        print(json.dumps(self.figures, sort_keys=True))
        for text in self.excused:
            print(f"excused: {text}")
        for text in self.violations:
            print(f"VIOLATION {text}")


def run(plan: Plan) -> Verdict:
    """Run a plan on servers of its own, and judge it."""
    # Commits survive a restart as after a crash.
    with serving(synchronous_commit="on") as database:
        return asyncio.run(_run(plan, database))


async def _run(plan: Plan, database: Database) -> Verdict:
    async with world_of(plan, database) as world:
        await _play(world)
        history = world.history
    return Verdict(history, oracle.violations(history), oracle.excused(history), summary(history))


async def _play(world: World) -> None:
    faults = Faults(world)
    await faults.run()
    await end(world, faults)
    async with world.session("audit") as admin:
        await audit.collect(admin, world.history, world.users, world.cipher)
