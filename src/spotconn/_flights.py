"""One read or refresh per user and process, shared by all who wait for it."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from spotconn._observer import NOBODY
from spotconn.errors import SpotconnError
from spotconn.models import Connection

_log = logging.getLogger("spotconn")


@dataclass(frozen=True)
class _Flight:
    """A read or refresh under way for one user."""

    seen: datetime
    task: asyncio.Task[Connection]


class Flights:
    """Single flight by user; the tasks are owned here and outlive every caller.

    Args:
        fly: makes the coroutine that gets a connection newer than a moment.

    Attributes:
        closed: whether `close` was called.
        observer: is told who waits.
    """

    def __init__(self, fly: Callable[[UUID, datetime], Coroutine[Any, Any, Connection]]) -> None:
        self._fly = fly
        self._flights: dict[UUID, _Flight] = {}
        self.closed = False
        self.observer = NOBODY

    async def join(self, user_id: UUID, seen: datetime) -> Connection:
        """A connection newer than `seen`, by the flight of this user or a new one.

        A caller that goes away does not stop the flight, so a refresh is never lost between Spotify and the database.
        A flight that served a weaker demand is followed by another.

        Raises:
            RuntimeError: the flights are closed.
            SpotconnError: what the flight raised.
        """
        with self.observer.waiting(user_id):
            return await self._join(user_id, seen)

    async def _join(self, user_id: UUID, seen: datetime) -> Connection:
        while True:
            self.check_open()
            flight = self._flights.get(user_id) or self._start(user_id, seen)
            try:
                connection = await asyncio.shield(flight.task)
            except SpotconnError:
                if flight.seen <= seen:
                    raise
            except asyncio.CancelledError:
                if not flight.task.cancelled():
                    raise
                # It is not the caller that was cancelled: `close` has cut the flight off.
                self.check_open()
                raise
            else:
                if flight.seen >= seen or connection.expires_at > seen:
                    return connection

    def check_open(self) -> None:
        """Raise RuntimeError once closed."""
        if self.closed:
            raise RuntimeError("this TokenManager is closed")

    async def close(self, *, seconds: float, others: set[asyncio.Task[Any]]) -> None:
        """Refuse new flights and wait for those under way and for other tasks; cut off what takes longer."""
        self.closed = True
        running = {flight.task for flight in self._flights.values()} | others
        if not running:
            return
        _, late = await asyncio.wait(running, timeout=seconds)
        for task in late:
            task.cancel()
        if late:
            _log.error("%d refreshes were cut off at shutdown", len(late))
            await asyncio.wait(late, timeout=1)

    def _start(self, user_id: UUID, seen: datetime) -> _Flight:
        task = asyncio.create_task(self._fly(user_id, seen), name="spotconn-flight")
        flight = self._flights[user_id] = _Flight(seen, task)
        task.add_done_callback(lambda done: self._landed(user_id, done))
        return flight

    def _landed(self, user_id: UUID, task: asyncio.Task[Connection]) -> None:
        del self._flights[user_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            # Its waiters have the error; they may all have gone.
            _log.debug("a flight ended with %s: %s", type(error).__name__, error)
