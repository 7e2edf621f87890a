"""What happened in one scenario to one way of connecting. Times are seconds since the epoch, all of one host."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from failover.timing import PERIOD, SLOW

CLOSE = 3.0
"""Seconds between two calls that were not served, and belong together: a later one is an outage of its own."""


@dataclass(frozen=True)
class Call:
    """A call of a client, a write of a bare pool, or a new connection with its write.

    Attributes:
        error: name of the class of the error; "" if there was none.
        passing: whether the error asks to try later.
        user: of the client's call.
        text: of the error.
    """

    began: float
    ended: float
    error: str = ""
    passing: bool = True
    user: int = -1
    text: str = ""

    @property
    def bad(self) -> bool:
        """Whether whoever called was not served, or had to wait for it."""
        return bool(self.error) or self.ended - self.began > SLOW


@dataclass
class History:
    """A client with its users, and what stood beside it.

    Attributes:
        synchronous: whether commits wait for a standby.
        hangs: whether sessions that stand get no answer.
        began: when the first thing was done to the servers.
        calls: how many the client made.
        bad: those that were not served.
        slowest: seconds of the longest call.
        hung: calls that had not ended long after the last was made.
        pool: writes of the bare pool, each as soon as a period is over.
        fresh: new connections with a write.
        late: seconds that the machine let the client, or the process beside it, wait, at most.
        disconnected: the victims, with the time.
        served: the time of the last call of each user that gave a token.
        connected_again: victims whose row came back.
        clients: processes that made the calls.
        lost: users who have to connect again, with what was said.
        sessions: of all clients on one server, at most.
        logged: warnings and worse.
        problems: of the run itself, such as a process that ended.
    """

    scenario: str
    way: str
    synchronous: bool
    hangs: bool = False
    began: float = 0.0
    calls: int = 0
    bad: list[Call] = field(default_factory=list[Call])
    slowest: float = 0.0
    hung: int = 0
    pool: list[Call] = field(default_factory=list[Call])
    fresh: list[Call] = field(default_factory=list[Call])
    late: float = 0.0
    disconnected: dict[int, float] = field(default_factory=dict[int, float])
    served: dict[int, float] = field(default_factory=dict[int, float])
    connected_again: list[int] = field(default_factory=list[int])
    lost: dict[int, str] = field(default_factory=dict[int, str])
    clients: int = 1
    sessions: int = 0
    logged: list[str] = field(default_factory=list[str])
    problems: list[str] = field(default_factory=list[str])

    def add(self, result: dict[str, Any]) -> None:
        """Add what a client reports of itself."""
        self.calls += result["calls"]
        self.bad += [Call(**call) for call in result["bad"]]
        self.slowest = max(self.slowest, result["slowest"])
        self.late = max(self.late, result["late"])
        self.hung += result["hung"]
        for user, at in result["served"].items():
            self.served[int(user)] = max(at, self.served.get(int(user), 0.0))
        self.logged += result["logged"]

    def outage(self, calls: Iterable[Call]) -> float:
        """Return the seconds in which calls that were not served began, those between two that are close included."""
        bad = sorted(max(call.began, self.began) for call in calls if call.bad and call.ended > self.began)
        gaps = [later - earlier for earlier, later in pairwise(bad)]
        return sum(gap if gap <= CLOSE else PERIOD for gap in gaps) + PERIOD if bad else 0.0

    @property
    def without_service(self) -> float:
        """Seconds of the client."""
        return self.outage(call for call in self.bad if not self.explained(call))

    @property
    def failed(self) -> Counter[str]:
        """Failed calls by the class of their error, without those that a disconnect explains."""
        return Counter(call.error for call in self.bad if call.error and not self.explained(call))

    def explained(self, call: Call) -> bool:
        """Return whether a call failed because its user was disconnected."""
        return call.error == "NotConnected" and call.ended >= self.disconnected.get(call.user, call.ended + 1)

    @property
    def served_after_disconnect(self) -> float:
        """Seconds for which a token of a victim was served, at most."""
        return max([0.0, *(self.served.get(user, at) - at for user, at in self.disconnected.items())])
