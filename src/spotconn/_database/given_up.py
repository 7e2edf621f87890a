"""Sessions that are given up: what runs in them is cancelled on the server before the pool opens others in their place.

A server does not notice that a client is gone while a statement waits: for a lock, for a synchronous standby, in a
function that sleeps. Its session stays there, and each one that takes its place may come to wait as well.
"""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from contextvars import Context
from typing import Any, TypeAlias, cast

import asyncpg

from spotconn._database.idle_sessions import Session

HOLD = 2.0
"""Seconds that a session given up keeps its place in the pool, unless the server ends it before."""
LAST = 30.0
"""Seconds after that in which its cancel request may still reach a server that does not answer."""

_FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
_Tasks: TypeAlias = "set[asyncio.Task[Any]]"


class GivenUp:
    """The sessions of one pool that are being ended.

    Each has one task, which cancels its statement, waits for the server's answer and closes it. So a call that gives up
    a session does not wait for that, and the pool has no place for another until it is over, or `HOLD` seconds have
    passed.
    """

    def __init__(self) -> None:
        self._holding: _Tasks = set()
        self._requesting: _Tasks = set()
        self._closed = False

    def add(self, session: "Session | asyncpg.Connection") -> None:
        """Cancel what runs in a session, and close it."""
        connection = _connection(session)
        if connection is None:
            return
        if connection.is_closed():  # asyncpg may not have told the pool
            connection.terminate()
        else:
            self._start(self._holding, self._end(connection))

    async def settle(self, pool: asyncpg.Pool, session: Session) -> None:
        """Wait until the statement of a cancelled caller has ended, and release its session or end it.

        asyncpg parses a statement and runs it in two steps. Cancelled between them, it does not send Sync (PostgreSQL,
        "Extended Query"). The transaction would stay open until the next statement, and would occupy a session of a
        transaction pooler.

        Args:
            pool: of the session.
            session: to release. That goes on where the caller is cancelled again.
        """
        await asyncio.shield(self._start(self._holding, self._settle(pool, session)))

    async def aclose(self) -> None:
        """Wait for the sessions, `HOLD` seconds or little more, and drop the requests that no server has answered."""
        try:
            if self._holding:
                await asyncio.wait(self._holding, timeout=2 * HOLD)
        finally:
            self._closed = True
            late = [*self._holding, *self._requesting]
            for task in late:
                task.cancel()
        if late:
            await asyncio.wait(late, timeout=HOLD)

    def _start(self, tasks: _Tasks, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        # In a context of its own: it outlives the call, and is no part of its trace.
        task = asyncio.create_task(work, name="spotconn-give-up", context=Context())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task

    async def _settle(self, pool: asyncpg.Pool, session: Session) -> None:
        with suppress(*_FAILURES):
            async with asyncio.timeout(HOLD):  # the timeout of asyncpg 0.30 leaves out its wait for the cancel request
                await session.execute("select")
            if is_reusable(session):
                await pool.release(session, timeout=HOLD)
                return
        if (connection := _connection(session)) is not None:
            self._cut(connection, _requests(connection))

    async def _end(self, connection: asyncpg.Connection) -> None:
        """Close a connection, which cancels its statement first; cut it where that takes too long."""
        requests = _requests(connection)
        closing = asyncio.create_task(connection.close(), name="spotconn-close")
        try:
            await asyncio.wait([closing], timeout=HOLD)
        finally:
            self._cut(connection, requests | _requests(connection))
            closing.cancel()
        with suppress(Exception, asyncio.CancelledError):
            await closing

    def _cut(self, connection: asyncpg.Connection, requests: _Tasks) -> None:
        """Close a connection at once, and let its cancel requests go on, without a place in the pool."""
        # asyncpg has no public API for it, and 0.30 leaves it open where a close is under way.
        transport: asyncio.Transport | None = getattr(connection, "_transport", None)
        connection.terminate()
        if transport is not None:
            transport.abort()
        pending = {request for request in requests if not request.done()}
        if self._closed:  # nothing may outlive that
            for request in pending:
                request.cancel()
        elif pending:
            self._start(self._requesting, _finish(pending))


def is_reusable(session: Session) -> bool:
    """Return whether a session has ended its statement and its transaction."""
    connection = _connection(session)
    if connection is None or connection.is_closed():
        return False
    return not _is_cancelling(connection) and not connection.is_in_transaction()


def _is_cancelling(connection: asyncpg.Connection) -> bool:
    """Return whether a statement of a connection was cancelled and has not ended yet, as far as is known."""
    # asyncpg has no public API for it.
    protocol = getattr(connection, "_protocol", None)
    return bool(getattr(protocol, "_is_cancelling", bool)())


async def end_all(pool: asyncpg.Pool) -> None:
    """End all connections of a pool, also those in use. It takes `HOLD` seconds at most."""
    given_up = GivenUp()
    # asyncpg has no public API for them.
    for holder in getattr(pool, "_holders", ()):
        if (connection := getattr(holder, "_con", None)) is not None:
            given_up.add(connection)
    await given_up.aclose()


async def _finish(requests: _Tasks) -> None:
    """Wait for the requests to cancel of a connection that has been cut."""
    try:
        await asyncio.wait(requests, timeout=LAST)
    finally:
        for request in requests:
            request.cancel()


def _connection(session: "Session | asyncpg.Connection") -> asyncpg.Connection | None:
    """Return the connection of a session; None if the pool has it back."""
    # asyncpg has no public API for it.
    return cast("asyncpg.Connection | None", getattr(session, "_con", session))


def _requests(connection: asyncpg.Connection) -> _Tasks:
    """Return the tasks with asyncpg's requests to cancel, which it would stop with the connection."""
    # asyncpg has no public API for them.
    tasks: _Tasks = getattr(connection, "_cancellations", set())
    taken = set(tasks)
    tasks.clear()
    return taken
