"""The plan of a run: every fault and every call with its time, all from one seed."""

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

STORE_TIMEOUT, REFRESH_TIMEOUT, LEASE = 1.0, 2.0, 4.0
"""Seconds, as given to every store and manager."""
MARGIN, WINDOW = 2.5, 4.0
"""Seconds before its end in which a token is not served, or is refreshed: more than the store takes to save one."""
MINUTE = 1.5
"""Seconds for which a new access token is not replaced, in place of a minute: tokens live for seconds here."""
MANAGERS = 2
"""Managers of each process."""
FAULTS_EACH_SECOND, CALLS_EACH_SECOND = 1.6, 15.0
"""Of faults in all, and of calls in each process."""
FIRST_FAULT = 0.3


@dataclass(frozen=True)
class Action:
    """What happens at a time.

    Attributes:
        at: seconds from the start.
        kind: of a fault or of a call.
        args: of it.
    """

    at: float
    kind: str
    args: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Plan:
    """Everything that is random in a run.

    Attributes:
        ttls: seconds that the access tokens live which Spotify grants, one after the other.
        latencies: seconds that Spotify takes for its answers, one after the other.
        faults: in the order of their times.
        calls: of each process, in the order of their times.
    """

    seed: int
    seconds: float
    users: int
    ttls: tuple[int, ...]
    latencies: tuple[float, ...]
    faults: tuple[Action, ...]
    calls: tuple[tuple[Action, ...], ...]

    @classmethod
    def of(cls, seed: int, seconds: float, *, users: int = 12, processes: int = 3) -> "Plan":
        """Return the plan of a seed."""
        draw = random.Random(seed)
        ttls = tuple(draw.choices((6, 7, 8, 10, 90), (4, 4, 3, 2, 1), k=50))
        latencies = tuple(draw.choice((0.0, 0.01, 0.05, 0.2, 0.4)) for _ in range(50))
        faults = _actions(draw, _FAULTS, FAULTS_EACH_SECOND, (FIRST_FAULT, seconds), (users, processes))
        calls = tuple(
            _actions(draw, _CALLS, CALLS_EACH_SECOND, (0.0, seconds), (users, processes)) for _ in range(processes)
        )
        return cls(seed, seconds, users, ttls, latencies, faults, calls)

    def as_json(self) -> dict[str, Any]:
        """Return what two runs of one seed must have in common."""
        return asdict(self)


_Made = Callable[[random.Random, int, int], dict[str, Any]]


def _actions(
    draw: random.Random,
    kinds: dict[str, tuple[float, _Made]],
    rate: float,
    span: tuple[float, float],
    sizes: tuple[int, int],
) -> tuple[Action, ...]:
    actions: list[Action] = []
    at = span[0]
    weights = [weight for weight, _ in kinds.values()]
    while (at := at + draw.expovariate(rate)) < span[1]:
        (kind,) = draw.choices(list(kinds), weights)
        actions.append(Action(at, kind, kinds[kind][1](draw, *sizes)))
    return tuple(actions)


def _nothing(_draw: random.Random, _users: int, _processes: int) -> dict[str, Any]:
    return {}


def _lasting(least: float, most: float) -> _Made:
    return lambda draw, _users, _processes: {"seconds": draw.uniform(least, most)}


def _foreign(draw: random.Random, users: int, _processes: int) -> dict[str, Any]:
    """In most cases in the middle of a refresh."""
    return {"user": draw.randrange(users), "seconds": draw.choice((0.0, 4.0, 4.0))}


def _of_user_lasting(draw: random.Random, users: int, _processes: int) -> dict[str, Any]:
    return {"user": draw.randrange(users), "seconds": draw.uniform(0.2, 2.5)}


def _ways(draw: random.Random, _users: int, _processes: int) -> dict[str, Any]:
    requests = draw.random() < 0.5
    return {"seconds": draw.uniform(0.2, 2.0), "requests": requests, "answers": not requests or draw.random() < 0.5}


def _held(draw: random.Random, _users: int, _processes: int) -> dict[str, Any]:
    statement = draw.choice(("begin_refresh", "finish_refresh", "fail_refresh", "get_access_tokens"))
    return {"statement": statement, "seconds": draw.uniform(0.2, 2.0), "answer": draw.random() < 0.6}


def _spotify(draw: random.Random, _users: int, _processes: int) -> dict[str, Any]:
    modes = {"unavailable": 2, "limited": 1, "hang": 1, "refused": 1, "cut": 2, "slow": 2, "late": 4, "garbage": 1}
    (mode,) = draw.choices(list(modes), list(modes.values()))
    return {"mode": mode, "seconds": draw.uniform(0.2, 1.5), "delay": draw.uniform(0.3, 1.5)}


def _aged(draw: random.Random, users: int, _processes: int) -> dict[str, Any]:
    return {"user": draw.randrange(users), "left": draw.choice((-5.0, 0.5, 3.5))}


def _failed_over(draw: random.Random, users: int, _processes: int) -> dict[str, Any]:
    """Some refreshes are lost, at times with the process that knew of the last."""
    return {"user": draw.randrange(users), "refreshes": draw.choice((1, 1, 2)), "kills": draw.random() < 0.2}


def _process(least: float, most: float) -> _Made:
    return lambda draw, _users, processes: {
        "process": draw.randrange(processes),
        "seconds": draw.uniform(least, most),
    }


_FAULTS: dict[str, tuple[float, _Made]] = {
    "cut": (2, _nothing),
    "refuse": (2, _lasting(0.2, 2.0)),
    "freeze_network": (2, _ways),
    "slow_network": (
        2,
        lambda draw, _users, _processes: {"seconds": draw.uniform(0.3, 2), "delay": draw.uniform(0.01, 0.2)},
    ),
    "hold": (5, _held),
    "terminate": (2, _nothing),
    "restart": (0.3, _nothing),
    "lock_row": (2, _of_user_lasting),
    "spotify": (9, _spotify),
    "lose_answer": (0.8, _nothing),
    "foreign_same_end": (2, _foreign),
    "foreign_names": (3, _foreign),
    "foreign_stale_row": (2, _of_user_lasting),
    "foreign_refresh_token": (1.5, _foreign),
    "age": (16, _aged),
    "step_clock": (1.5, lambda draw, _users, _processes: {"offset": draw.choice((10, 10, 0.6)) * draw.uniform(-1, 1)}),
    "fail_over": (2, _failed_over),
    "rekey": (1.5, lambda draw, _users, _processes: {"ring": draw.randrange(2)}),
    "freeze": (2.5, _process(0.3, LEASE + 2)),
    "kill": (1.5, _process(0.0, 3.0)),
}


def _get(draw: random.Random, users: int, _processes: int) -> dict[str, Any]:
    return {"manager": draw.randrange(MANAGERS), "user": draw.randrange(users)}


def _with(**more: Callable[[random.Random], Any]) -> _Made:
    return lambda draw, users, processes: (
        _get(draw, users, processes) | {name: made(draw) for name, made in more.items()}
    )


_CALLS: dict[str, tuple[float, _Made]] = {
    "get": (30, _get),
    "get_while_handling": (10, _get),
    "get_min_ttl": (8, _with(min_ttl=lambda draw: draw.choice((2.0, 10.0, 600.0)))),
    "get_cancelled": (12, _with(after=lambda draw: draw.choice((0.0, 0.01, 0.1, 0.5, 1.5)))),
    "get_burst": (4, _with(callers=lambda draw: draw.randrange(5, 25))),
    "replace_rejected": (5, _with(really=lambda draw: draw.random() < 0.7)),
    "many": (3, _with(concurrency=lambda draw: draw.choice((1, 4, 20)), leave=lambda draw: draw.random() < 0.3)),
    "status": (3, _get),
    "disconnect": (0.15, _get),
    "reconnect": (0.6, _get),
    "block": (0.35, _with(seconds=lambda draw: draw.uniform(0.3, LEASE + 1))),
}
