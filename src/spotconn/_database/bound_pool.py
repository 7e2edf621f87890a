"""Statements on a pool, in bounded time and only in the process and event loop that the pool belongs to."""

from contextlib import AbstractAsyncContextManager
from typing import Any
from uuid import UUID

import asyncpg

from spotconn._affinity import Affinity
from spotconn._database.acquire import TIMEOUT, acquire
from spotconn._database.errors import map_errors
from spotconn._database.idle_sessions import IdleSessions, Session
from spotconn._database.pool import close_pool
from spotconn._observer import NOBODY, Observer
from spotconn._stopwatch import Stopwatch
from spotconn.errors import RowSecurityError

_ANOTHER_USER = (
    "the database answered with the row of another user: a connection is used by two processes or event loops at once, "
    "or a pooler in between mixes up its sessions; the connection was closed, and nothing of that row was used"
)


class BoundPool:
    """The pool of one object of the library, in its own process and event loop and in bounded time.

    Args:
        pool: closed by `close` only.
        name: of the object, for errors.
        timeout: seconds to wait for a connection, and again for the answer to a statement.

    Attributes:
        timeout: as given.
        affinity: the process and the event loop that the pool belongs to.
        observer: is notified of waits for a connection.
    """

    def __init__(self, pool: asyncpg.Pool, *, name: str, timeout: float = TIMEOUT) -> None:
        self._pool = pool
        self.timeout: float = timeout
        # asyncpg has no public API for the event loop of a pool.
        loop = getattr(pool, "_loop", None)
        self.affinity: Affinity = Affinity(name, loop=loop, transports=self._transports, after_fork=self.terminate)
        self.observer: Observer = NOBODY
        self._idle = IdleSessions(pool, timeout=timeout)

    def acquire(self, *, reuse: bool = False) -> AbstractAsyncContextManager[Session]:
        """Context manager: acquire a connection and release it at the end of the block.

        Args:
            reuse: whether the next block may have it first. Nothing may be left behind in it.

        Raises:
            RuntimeError: in another process or event loop.
            DatabaseUnavailable: none was free, or could be opened, in time.
        """
        self.affinity.check()
        return acquire(self._pool, seconds=self.timeout, observer=self.observer, idle=self._idle, reuse=reuse)

    async def value(self, query: str) -> Any:
        """Return the first value of the first row of a statement."""
        async with self.acquire() as connection:
            return await map_errors(connection.fetchval(query, timeout=self.timeout))

    async def row_of(self, user_id: UUID, query: str, *args: object) -> asyncpg.Record | None:
        """Return the first row of a statement about one user, who is its first argument and its column `user_id`.

        A stopwatch among the arguments is read once a connection has been acquired.

        Raises:
            RowSecurityError: the row belongs to another user.
        """
        async with self.acquire() as connection:
            values = [arg.elapsed if isinstance(arg, Stopwatch) else arg for arg in args]
            row = await map_errors(connection.fetchrow(query, user_id, *values, timeout=self.timeout))
            if row is not None:
                check_users(connection, {row["user_id"]} <= {user_id, None})
        return row

    async def rows_of(self, user_ids: list[UUID], query: str) -> list[asyncpg.Record]:
        """Return the rows of a statement about several users, who are its argument and its column `user_id`.

        Raises:
            RowSecurityError: a row belongs to another user.
        """
        async with self.acquire() as session:
            return await self.fetch(session, query, user_ids)

    async def fetch(self, session: Session, query: str, user_ids: list[UUID]) -> list[asyncpg.Record]:
        """Return the same as `rows_of`, through a session of this pool."""
        rows = await map_errors(session.fetch(query, user_ids, timeout=self.timeout))
        check_users(session, {row["user_id"] for row in rows} <= set(user_ids))
        return rows

    def terminate(self) -> None:
        """Close all connections at once, and open no new ones. In a child of fork this does not reach the parent's."""
        self._pool.terminate()

    async def close(self) -> None:
        """Close the pool. In a child of fork do nothing: the connections are the parent's.

        Raises:
            RuntimeError: in another event loop.
        """
        if self.affinity.close():
            await self._idle.aclose()
            await close_pool(self._pool, seconds=self.timeout)

    def _transports(self) -> list[Any]:
        """Return the transports of all connections, also where the caller made the pool."""
        # asyncpg has no public API for them.
        sessions = [getattr(holder, "_con", None) for holder in getattr(self._pool, "_holders", ())]
        return [getattr(session, "_transport", None) for session in sessions]


def check_users(connection: Session, right: bool) -> None:  # noqa: FBT001  the condition is the point
    """Close a connection that has returned the row of another user than the one it was asked for.

    Args:
        connection: to close.
        right: whether the rows belong to the users asked for.

    Raises:
        RowSecurityError: they do not.
    """
    if not right:
        connection.terminate()
        raise RowSecurityError(_ANOTHER_USER)
