"""Leave a server that takes no writes, with all sessions that a pool has there.

After a failover the address of the database leads to another server, and sessions that are open still lead to the old
one, which may answer for as long as it runs.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import asyncpg

from spotconn._database.idle_sessions import IdleSessions
from spotconn._database.sqlstates import READ_ONLY
from spotconn.errors import DatabaseUnavailable

_T = TypeVar("_T")

INTERVAL = 1.0
"""Seconds between two departures at least: a database may stay read-only, and each costs it the log-ins of a pool."""


class ServerLeaving:
    """Leaves the server of a pool, so that the next statement has a new connection, wherever that leads.

    Args:
        pool: whose sessions.
        idle: those of them that wait for the next read.
        on_leave: called after a server was left.

    Attributes:
        generation: how often a server was left. A session that was acquired in an earlier one is not used again.
    """

    def __init__(self, pool: asyncpg.Pool, idle: IdleSessions, on_leave: Callable[[], None]) -> None:
        self._pool = pool
        self._idle = idle
        self._on_leave = on_leave
        self._departed_at = -math.inf
        self.generation: int = 0

    async def leave(self) -> None:
        """Close all sessions that nobody uses, and let those in use be closed by the end of their use."""
        self.generation += 1
        self._departed_at = asyncio.get_running_loop().time()
        self._idle.leave()
        # asyncpg has no public API for them. It would close each only when it is acquired, without a limit of time.
        holders: tuple[Any, ...] = tuple(getattr(self._pool, "_holders", ()))
        for holder in holders:
            if getattr(holder, "_proxy", None) is None:
                holder.terminate()
        with suppress(asyncpg.InterfaceError):  # the pool is closed
            await self._pool.expire_connections()
        self._on_leave()

    async def handle(self, error: BaseException, generation: int) -> None:
        """Leave the server if it has answered that it takes no writes.

        One that shuts down ends all its sessions by itself, and the pool replaces those that are closed.

        Args:
            error: of a statement of the library.
            generation: of the session that it ran on.
        """
        if not isinstance(error, DatabaseUnavailable) or error.sqlstate != READ_ONLY:
            return
        if generation == self.generation and asyncio.get_running_loop().time() - self._departed_at >= INTERVAL:
            await self.leave()

    async def repeated(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """Return the result of an attempt, made once more if it found its server read-only, which then was left.

        Postgres has rolled back what it refuses so, so that it is safe to repeat, also a write.

        Args:
            attempt: acquires a session of the pool, and releases it.
        """
        generation = self.generation
        try:
            return await attempt()
        except DatabaseUnavailable as error:
            if error.sqlstate != READ_ONLY or generation == self.generation:
                raise
        return await attempt()
