"""Reads of access tokens that callers share: who comes while one is under way is in the next, with all who wait.

No timer delays a read, and nothing is shared that one caller could spoil for another: a caller that finds a free lane
reads by itself, and what fails for several is repeated for each alone.
"""

import asyncio
import math
from collections.abc import Iterable
from contextvars import Context
from itertools import islice
from typing import NamedTuple
from uuid import UUID

import asyncpg

from spotconn._database import statements
from spotconn._database.bound_pool import BoundPool
from spotconn._database.idle_sessions import Session
from spotconn._tracebacks import Failure
from spotconn.errors import DatabaseUnavailable

LANES = 2
"""Statements at once: beside one that is slow, others are served."""
PATIENCE = 0.25
"""Seconds to wait for a lane. Who has waited so long, because both are slow, reads alone."""
MOST_USERS = 50
"""Users in one statement: a crowd is read in both lanes, so that this process and Postgres work at the same time."""


class _Alone:
    """Tells a caller that waits to read alone."""


_ALONE = _Alone()
Answer = asyncpg.Record | Failure | _Alone | None


class _Caller(NamedTuple):
    """Who waits: for which user, since when by the clock of the event loop, and for what."""

    user_id: UUID
    since: float
    outcome: "asyncio.Future[Answer]"

    def settle(self, outcome: Answer) -> None:
        if not self.outcome.done():  # it may be cancelled
            self.outcome.set_result(outcome)


class SharedReads:
    """Reads access tokens with one or two connections, however many callers there are, unless the database is slow.

    Args:
        pool: of the store.
    """

    def __init__(self, pool: BoundPool) -> None:
        self._pool = pool
        self._lanes = 0
        self._waiting: list[_Caller] = []
        self._reading: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def row(self, user_id: UUID) -> asyncpg.Record | None:
        """Return user id, access token, seconds left and scope of a user, or None without a connection.

        Raises:
            SpotconnError: as `BoundPool.rows_of`.
        """
        self._pool.affinity.check()
        if self._lanes < LANES:
            self._lanes += 1
            try:
                return await self._alone(user_id)
            finally:
                self._free_lane()
        outcome = await self._wait(user_id)
        if isinstance(outcome, _Alone):
            return await self._alone(user_id)
        if isinstance(outcome, Failure):
            raise outcome.renewed()
        return outcome

    async def _alone(self, user_id: UUID) -> asyncpg.Record | None:
        rows = await self._pool.rows_of([user_id], statements.GET_ACCESS_TOKENS, reuse=True)
        return rows[0] if rows else None

    def _free_lane(self, _reader: object = None) -> None:
        """Give a lane that has ended to those who wait."""
        if self._have_callers() and not self._pool.affinity.closed:
            # In a context of its own: it is no part of the trace of the caller that has just read.
            reader = asyncio.create_task(self._read(), name="spotconn-read", context=Context())
            self._reading.add(reader)
            reader.add_done_callback(self._reading.discard)
            reader.add_done_callback(self._free_lane)  # also of one that is cancelled before its first step
            return
        self._lanes -= 1
        _settle(self._take(came_by=math.inf), _ALONE)  # the pool is closed, as each of them hears

    async def _wait(self, user_id: UUID) -> Answer:
        """Wait for a lane."""
        loop = asyncio.get_running_loop()
        caller = _Caller(user_id, loop.time(), loop.create_future())
        self._waiting.append(caller)
        if self._timer is None:
            self._timer = loop.call_later(PATIENCE, self._expire, loop, context=Context())
        return await caller.outcome

    async def _read(self) -> None:
        """Read for all who wait, until nobody does."""
        while self._have_callers():
            began = asyncio.get_running_loop().time()
            callers: list[_Caller] = []

            async def read(session: Session, callers: list[_Caller] = callers) -> None:
                # Also those who came while there was no connection; on another connection the same again.
                callers += () if callers else self._next_callers()
                await self._read_for(session, callers)

            try:
                await self._pool.read(read, reuse=True)
            except Exception as error:  # noqa: BLE001  whatever it is, those who wait have it
                if callers:
                    self._fail(callers, error)
                else:
                    _settle(self._take(came_by=began), Failure(error))
            finally:
                _settle(callers, _ALONE)  # of a task that is cancelled

    async def _read_for(self, session: Session, callers: list[_Caller]) -> None:
        user_ids = list({caller.user_id for caller in callers})
        rows = await self._pool.fetch(session, statements.GET_ACCESS_TOKENS, user_ids) if user_ids else []
        found = {row["user_id"]: row for row in rows}
        for caller in callers:
            caller.settle(found.get(caller.user_id))

    def _have_callers(self) -> bool:
        """Return whether somebody waits, and forget those who have left."""
        self._waiting = [caller for caller in self._waiting if not caller.outcome.done()]
        return bool(self._waiting)

    def _next_callers(self) -> list[_Caller]:
        """Take those whom the next statement is for."""
        self._have_callers()  # some may have left while a connection was waited for
        user_ids = set(islice(dict.fromkeys(caller.user_id for caller in self._waiting), MOST_USERS))
        callers = [caller for caller in self._waiting if caller.user_id in user_ids]
        self._waiting = [caller for caller in self._waiting if caller.user_id not in user_ids]
        return callers

    def _fail(self, callers: list[_Caller], error: Exception) -> None:
        """Let each caller repeat what Postgres has refused for several, while its time lasts; else it has the error."""
        since = asyncio.get_running_loop().time() - self._pool.timeout
        failure, repeated = Failure(error), _is_repeated(error)
        for caller in callers:
            caller.settle(_ALONE if repeated and caller.since > since else failure)

    def _take(self, *, came_by: float) -> list[_Caller]:
        """Take those who came by some time."""
        came = [caller for caller in self._waiting if caller.since <= came_by]
        self._waiting = self._waiting[len(came) :]
        return came

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let those read alone who have waited for long enough."""
        _settle(self._take(came_by=loop.time() - PATIENCE), _ALONE)
        self._timer = None
        if self._waiting:
            self._timer = loop.call_at(self._waiting[0].since + PATIENCE, self._expire, loop, context=Context())


def _settle(callers: Iterable[_Caller], outcome: Answer) -> None:
    for caller in callers:
        caller.settle(outcome)


def _is_repeated(error: Exception) -> bool:
    """Return whether an error may be that of one user: the database has answered with it."""
    return not isinstance(error, DatabaseUnavailable) or error.answered
