"""What happened in a run: the oracle judges it afterwards. Times are seconds since the epoch, all of one host."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


def digest(token: str) -> str:
    """Return the name of a token; tokens themselves are kept nowhere."""
    return hashlib.sha256(token.encode()).hexdigest()[:16]


@dataclass
class Call:
    """A caller's call that has ended, or was still under way at the end.

    Attributes:
        process: name of the process, such as "w1.0".
        manager: of the process.
        result: digest of the token, if there was one.
        error: name of the class of the error, if there was one.
        text: of an error that no call may raise.
        closed: the coroutine of the caller was closed, or cancelled by somebody else.
        hung: it never ended.
        disturbed: the error that the caller was handling was altered.
        rejected: digest of the token that was said to be rejected.
    """

    process: str
    manager: int
    user: int
    kind: str
    began: float
    ended: float
    result: str | None = None
    error: str | None = None
    text: str = ""
    closed: bool = False
    hung: bool = False
    disturbed: bool = False
    rejected: str | None = None


@dataclass
class Token:
    """An access token that Spotify has granted."""

    user: int
    issued: float
    ends: float
    refused_from: float | None = None


@dataclass
class Request:
    """A refresh that Spotify was asked for.

    Attributes:
        owner: process and manager, such as "w1.0/1".
        token: digest of the refresh token.
        outcome: "granted", "refused", or the fault that was answered.
        ended: when it was answered or the client left.
        granted: digest of the new refresh token.
        access: digest of the new access token.
        lost: its answer was cut, or the client had left before: Spotify may have acted on it.
        left: the client had left before.
    """

    owner: str
    token: str
    began: float
    outcome: str = ""
    ended: float | None = None
    user: int = -1
    granted: str | None = None
    lost: bool = False
    left: bool = False
    access: str = ""

    @property
    def process(self) -> str:
        return self.owner.partition("/")[0]


@dataclass
class Write:
    """A change of a row, as a trigger has recorded it.

    Attributes:
        writer: application_name of the session: an owner, or "foreign", "rekey", "failover".
        refresh: digest of the refresh token that the row has from then on; None once it is deleted.
    """

    at: float
    user: int
    operation: str
    writer: str
    refresh: str | None


@dataclass
class Lease:
    """A lease that the database has granted: for which refresh token, to whom, until when.

    Attributes:
        until: unless the clock of the database is set.
        offset: of that clock when it was granted.
    """

    began: float
    until: float
    user: int
    token: str
    owner: str
    offset: float = 0.0


@dataclass
class Beat:
    """A heartbeat that came late.

    Attributes:
        late: seconds, without those that the machine or chaos itself took from the process.
    """

    process: str
    at: float
    late: float


@dataclass
class Step:
    """The clock of the database was set; from some time between `began` and `ended` on, it is ahead by `offset`."""

    began: float
    ended: float
    offset: float


@dataclass
class Fault:
    """A fault that was done; `vain` if others were in its way."""

    kind: str
    args: dict[str, Any]
    began: float
    ended: float
    vain: bool = False


@dataclass
class Ending:
    """How a user ended: whether it can be refreshed, and with which refresh token in the row."""

    user: int
    connected: bool
    refreshed: bool
    refresh: str | None = None
    error: str = ""


@dataclass
class History:
    """All of it.

    Attributes:
        stalls: of each process, when chaos itself kept it from running.
        kills: when each killed process died.
        closings: when each process was told to close.
        problems: lines of logs that may not be, and what was left over.
        logs: when which process has logged what.
    """

    users: int = 0
    calls: list[Call] = field(default_factory=list[Call])
    tokens: dict[str, Token] = field(default_factory=dict[str, Token])
    requests: list[Request] = field(default_factory=list[Request])
    writes: list[Write] = field(default_factory=list[Write])
    leases: list[Lease] = field(default_factory=list[Lease])
    beats: list[Beat] = field(default_factory=list[Beat])
    steps: list[Step] = field(default_factory=list[Step])
    endings: list[Ending] = field(default_factory=list[Ending])
    stalls: dict[str, list[tuple[float, float]]] = field(default_factory=dict[str, list[tuple[float, float]]])
    kills: dict[str, float] = field(default_factory=dict[str, float])
    closings: dict[str, float] = field(default_factory=dict[str, float])
    problems: list[str] = field(default_factory=list[str])
    faults: list[Fault] = field(default_factory=list[Fault])
    logs: list[tuple[float, str, str]] = field(default_factory=list[tuple[float, str, str]])

    def stalled(self, process: str, began: float, ended: float) -> float:
        """Return the seconds of a time in which chaos kept a process from running."""
        return overlap(self.stalls.get(process, ()), began, ended)

    def offsets(self, began: float, ended: float) -> list[float]:
        """Return how far the clock of the database may have been ahead in a time, one after the other."""
        standing = [0.0, *[step.offset for step in self.steps if step.ended < began]][-1]
        return [standing, *[step.offset for step in self.steps if step.began <= ended and step.ended >= began]]

    def set_back(self, began: float, ended: float) -> float:
        """Return the most seconds that the clock of the database lay back behind itself in a time."""
        offsets = self.offsets(began, ended)
        return max(before - after for number, before in enumerate(offsets) for after in offsets[number:])

    def writes_of(self, user: int) -> list[Write]:
        return [write for write in self.writes if write.user == user]

    def record(self, event: dict[str, Any]) -> None:
        """Add what a worker process has reported."""
        match event.pop("event"):
            case "call":
                self.calls.append(Call(**event))
            case "beat":
                self.beats.append(Beat(**event))
            case "stall":
                self.stalls.setdefault(event["process"], []).append((event["began"], event["ended"]))
            case "problem":
                self.problems.append(f"{event['process']}: {event['text']}")
            case _:
                raise ValueError("event: unknown")


def overlap(spans: Iterable[tuple[float, float]], began: float, ended: float) -> float:
    """Return the seconds that spans have in common with a time."""
    return sum(max(0.0, min(ended, end) - max(began, start)) for start, end in spans)
