"""Interleaved rounds: contenders take turns, so that a slow moment of the machine meets all of them alike."""

import asyncio
import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")

Round = Callable[[], Awaitable[float]]
"""Runs one round; gives seconds per call."""


class Figure(NamedTuple):
    """One number of a run.

    Attributes:
        key: in results.json.
        value: in the unit that the key or its goal names.
    """

    key: str
    value: float


class Rounds:
    """What each contender took, round by round.

    Args:
        seconds: per call; the lists belong together round by round.
    """

    def __init__(self, seconds: Mapping[str, Sequence[float]]) -> None:
        self.seconds = seconds

    def ratio(self, one: str, other: str) -> float:
        """How many times as long `one` takes as `other`: the median of the ratios within the rounds."""
        pairs = zip(self.seconds[one], self.seconds[other], strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)

    def add(self, name: str, noted: Sequence[float]) -> None:
        """Add what was noted beside the rounds by `noting`, without that of the first round, which does not count."""
        self.seconds = {**self.seconds, name: noted[1:]}

    def figures(self) -> list[Figure]:
        """The median of each contender in microseconds per call."""
        return [Figure(f"{name}_us", statistics.median(taken) * 1e6) for name, taken in self.seconds.items()]


async def interleaved(contenders: Mapping[str, Round], rounds: int) -> Rounds:
    """Let the contenders take turns, each time beginning with another one; a first round does not count."""
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            taken = await contenders[name]()
            if number:
                seconds[name].append(taken)
    return Rounds(seconds)


def each(call: Callable[[T], Awaitable[object]], draw: Callable[[], Sequence[T]]) -> Round:
    """A round of one call after the other.

    Args:
        call: is timed.
        draw: gives the arguments of a round, untimed.
    """

    async def run() -> float:
        arguments = draw()
        begun = time.perf_counter()
        for argument in arguments:
            await call(argument)
        return (time.perf_counter() - begun) / len(arguments)

    return run


def at_once(call: Callable[[T], Awaitable[object]], draw: Callable[[], Sequence[T]], callers: int) -> Round:
    """A round of calls by so many callers at once.

    Args:
        call: is timed.
        draw: gives the arguments of a round, untimed.
        callers: each makes one call after the other.
    """

    async def run() -> float:
        return await together(call, draw(), callers)

    return run


async def together(call: Callable[[T], Awaitable[object]], arguments: Sequence[T], callers: int) -> float:
    """Make all calls, so many at once; seconds per call."""
    queue = iter(arguments)

    async def work() -> None:
        for argument in queue:
            await call(argument)

    begun = time.perf_counter()
    await asyncio.gather(*[work() for _ in range(callers)])
    return (time.perf_counter() - begun) / len(arguments)


def noting(run: Round, clock: Callable[[], float], noted: list[float], *, calls: int) -> Round:
    """The same round, which also notes its seconds per call by another clock.

    Args:
        run: is timed.
        clock: gives seconds.
        noted: where they are added.
        calls: in one round.
    """

    async def both() -> float:
        before = clock()
        taken = await run()
        noted.append((clock() - before) / calls)
        return taken

    return both
