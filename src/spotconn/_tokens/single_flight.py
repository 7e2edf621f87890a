"""Work that is shared by all in this process who ask for it while it is under way."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Hashable, Iterable
from typing import Any, Generic, TypeVar

from spotconn._tracebacks import Failure

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

_log = logging.getLogger("spotconn")

STOP_TIMEOUT = 1.0
"""Seconds that a task has to end once it is cancelled."""


class Flight(Generic[T]):
    """Work under way.

    Attributes:
        outcome: what it ends in, as a value; nothing is ever raised from this future.
        task: runs the work.
    """

    task: asyncio.Task[None]

    def __init__(self) -> None:
        self.outcome: asyncio.Future[T | Failure] = asyncio.get_running_loop().create_future()


class SingleFlight(Generic[K, T]):
    """Runs one task for each key, owned here, which outlives all who wait for it.

    A flight leaves the table in the step in which its outcome is set, so nobody meets one that is over.

    Args:
        name: of the tasks.
        owner: the class of the object that owns them, for the error of those who wait when it is closed.
    """

    def __init__(self, name: str, owner: str) -> None:
        self._name = name
        self._owner = owner
        self._flights: dict[K, Flight[T]] = {}

    def __contains__(self, key: K) -> bool:
        """Return whether work for this key is under way."""
        return key in self._flights

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        """The tasks under way."""
        return {flight.task for flight in self._flights.values()}

    async def join(self, key: K, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Wait for the flight of this key, or for a new one.

        A caller that is cancelled does not stop it, so nothing is lost between Spotify and the database.

        Args:
            key: what the flight is about.
            work: makes the coroutine of a new flight.

        Raises:
            RuntimeError: the flight was cut off by `cut_off`.
            Exception: one of the caller's own, like the one that the work has raised.
        """
        flight = self._flights.get(key) or self.begin(key, work)
        outcome = await asyncio.shield(flight.outcome)
        if isinstance(outcome, Failure):
            raise outcome.renewed()
        return outcome

    def begin(self, key: K, work: Callable[[], Coroutine[Any, Any, T]]) -> Flight[T]:
        """Start the flight of a key that has none, whether or not anybody waits for it."""
        flight = self._flights[key] = Flight[T]()
        flight.task = asyncio.create_task(self._run(key, flight, work), name=self._name)
        # A task that is cancelled before its first step never enters its coroutine.
        flight.task.add_done_callback(lambda _: self._land(key, flight, None))
        return flight

    def cut_off(self) -> None:
        """End the waiting for what is still under way."""
        for key, flight in list(self._flights.items()):
            self._land(key, flight, None)

    async def _run(self, key: K, flight: Flight[T], work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        outcome: T | Failure | None = None
        try:
            outcome = await work()
        except Exception as error:  # noqa: BLE001  whatever it is, those who wait have it
            outcome = Failure(error)
        finally:
            self._land(key, flight, outcome)

    def _land(self, key: K, flight: Flight[T], outcome: T | Failure | None) -> None:
        """Take a flight off the table and set its outcome; None if it was cut off."""
        if flight.outcome.done():
            return
        if self._flights.get(key) is flight:
            del self._flights[key]
        flight.outcome.set_result(
            Failure(RuntimeError(f"this {self._owner} is closed")) if outcome is None else outcome
        )


async def finish(tasks: Iterable[asyncio.Task[None]], *, seconds: float, what: str) -> None:
    """Wait for tasks that are to end by themselves; cancel those that take longer than `seconds`.

    Args:
        tasks: to wait for.
        seconds: in all.
        what: the tasks are, in the plural, for the log.
    """
    running = set(tasks)
    if not running:
        return
    _, late = await asyncio.wait(running, timeout=seconds)
    if late:  # this process may have stood still: what has arrived is read first
        _, late = await asyncio.wait(late, timeout=STOP_TIMEOUT)
    for task in late:
        task.cancel()
    if late:
        _log.error("%s were cut off at shutdown: %d", what, len(late))
        await asyncio.wait(late, timeout=STOP_TIMEOUT)
