"""Connections that wait for the next read instead of going back to the pool, for as long as there is demand."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager, suppress
from contextvars import Context
from typing import TYPE_CHECKING, TypeAlias

import asyncpg

from spotconn._database.errors import map_all_errors
from spotconn.errors import SpotconnError

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

Session: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"

HOLD = 0.05
"""Seconds that a connection waits while nobody uses it."""
TURN = 0.1
"""Seconds after which it goes back to the pool also while it is in use, so that others get it."""


class IdleSessions:
    """Keeps connections whose last statement has left nothing behind, and gives them back soon.

    Args:
        pool: that they belong to.
        timeout: seconds to give one back.
    """

    def __init__(self, pool: asyncpg.Pool, *, timeout: float) -> None:
        self._pool = pool
        self._timeout = timeout
        self._free: list[tuple[Session, float]] = []
        self._since: dict[Session, float] = {}
        self._waiting = 0
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self) -> "Session | None":
        """Return a connection that is still open, if there is one."""
        while self._free:
            session, _ = self._free.pop()
            if is_open(session):
                return session
            self._give_back([session])
        return None

    @contextmanager
    def awaited(self) -> Generator[None]:
        """Context manager: somebody waits for a connection of the pool, so none is kept."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    def put(self, session: Session) -> bool:
        """Keep a connection, unless it has been kept for long enough or somebody may need it: the last of the pool."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if self._closed or self._waiting or now - self._since.setdefault(session, now) > TURN or self._is_last():
            return False
        self._free.append((session, now))
        if self._timer is None:
            self._timer = loop.call_later(HOLD, self._expire, loop, context=Context())
        return True

    def forget(self, session: Session) -> None:
        """Handle that a connection goes back to the pool."""
        self._since.pop(session, None)

    def leave(self) -> None:
        """Close all and give them back: they lead to a server that is left."""
        sessions = [session for session, _ in self._free]
        self._free.clear()
        for session in sessions:
            with suppress(asyncpg.InterfaceError):
                session.terminate()
        self._give_back(sessions)

    async def aclose(self) -> None:
        """Give all back, and keep none any more: a read under way may end later."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._give_back([session for session, _ in self._free])
        self._free.clear()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give back those that nobody has used meanwhile."""
        idle_since = loop.time() - HOLD
        self._give_back([session for session, since in self._free if since <= idle_since])
        self._free = [(session, since) for session, since in self._free if since > idle_since]
        first = min((since for _, since in self._free), default=None)
        self._timer = None if first is None else loop.call_at(first + HOLD, self._expire, loop, context=Context())

    def _is_last(self) -> bool:
        """Return whether the pool has no other connection for those who wait past this library."""
        return not self._pool.get_idle_size() and self._pool.get_size() >= self._pool.get_max_size()

    def _give_back(self, sessions: list[Session]) -> None:
        for session in sessions:
            self.forget(session)
            # In a context of its own, as the timers: others have used it since the call that has opened it.
            task = asyncio.create_task(self._release(session), name="spotconn-release", context=Context())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _release(self, session: Session) -> None:
        with suppress(SpotconnError):
            await map_all_errors(self._pool.release(session, timeout=self._timeout))


def is_open(session: Session) -> bool:
    """Return whether a connection is open, as far as is known."""
    with suppress(asyncpg.InterfaceError):  # it was lost, and the pool has taken it back
        return not session.is_closed()
    return False
