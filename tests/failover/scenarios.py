"""What happens to the servers, in terms of the steps of a world."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from failover.timing import Timing
from failover.world import World


@dataclass(frozen=True)
class Scenario:
    """A scenario.

    Attributes:
        name: in the table.
        step: of the world, that it needs.
        play: does it to a world.
        synchronous: whether commits wait for a standby.
        clients: processes of each way, which share its users; a failed call of one is one of the way.
        hangs: whether sessions that stand get no answer: a statement must time out before another server is asked.
        loses_commits: whether tokens outlive the outage: a process remembers what it has saved for as long as they.
        long: left out of the short form.
    """

    name: str
    step: str
    play: Callable[[World, Timing], Coroutine[Any, Any, None]]
    synchronous: bool = True
    clients: int = 1
    loses_commits: bool = False
    hangs: bool = False
    long: bool = False


SCENARIOS = (
    Scenario("planned", "switch", lambda world, _: world.switch()),
    Scenario("killed", "kill", lambda world, _: world.kill()),
    Scenario("hung", "freeze", lambda world, _: world.freeze(), hangs=True),
    Scenario("woken", "wake", lambda world, timing: world.wake(timing.asleep), hangs=True, loses_commits=True),
    Scenario("isolated", "isolate", lambda world, _: world.isolate()),
    Scenario("split", "split", lambda world, _: world.split(), synchronous=False, loses_commits=True),
    Scenario("restarted", "restart", lambda world, _: world.restart(), long=True),
    Scenario("read-only", "turn_read_only", lambda world, _: world.turn_read_only()),
    Scenario("demoted", "demote", lambda world, _: world.demote(), long=True),
    Scenario(
        "commits lost",
        "lose_commits",
        lambda world, timing: world.lose_commits(timing.unreplicated),
        synchronous=False,
        clients=2,
        loses_commits=True,
    ),
    Scenario("standby away", "delay_commits", lambda world, timing: world.delay_commits(timing.delayed)),
    Scenario("away", "take_away", lambda world, timing: world.take_away(timing.away), long=True),
)
