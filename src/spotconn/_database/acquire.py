"""Acquire and release connections in bounded time, also when the caller fails or is cancelled."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from types import TracebackType
from typing import TypeVar

import asyncpg

from spotconn._database.errors import map_all_errors
from spotconn._database.given_up import GivenUp, is_reusable
from spotconn._database.idle_sessions import IdleSessions, Session
from spotconn._database.repetition import is_lost
from spotconn._database.server_leaving import ServerLeaving
from spotconn._database.sqlstates import READ_ONLY
from spotconn._observer import NOBODY, Observer
from spotconn.errors import DatabaseUnavailable

_T = TypeVar("_T")

TIMEOUT = 5.0
"""Seconds to wait for a connection, free or new, and again for the answer to a statement."""


class acquire(AbstractAsyncContextManager[Session]):  # noqa: N801  used as a function
    """Context manager: acquire a connection and release it at the end of the block.

    Args:
        pool: whose connection.
        seconds: to wait for it, and again for its release.
        observer: is notified of the wait.
        idle: connections to take first.
        reuse: whether to keep it there at the end of a block that has not failed.
        leaving: takes errors of the block, and says whether the server of the connection was left meanwhile.
        check: awaited with the connection before the block; what it raises ends the entry.
        given_up: takes a session whose block has failed; without it the exit waits for its end.
        once: whether to end it after the block, however that ends.

    Raises:
        DatabaseUnavailable: none was free, or could be opened, in time.
    """

    _session: Session

    def __init__(
        self,
        pool: asyncpg.Pool,
        *,
        seconds: float = TIMEOUT,
        observer: Observer = NOBODY,
        idle: IdleSessions | None = None,
        reuse: bool = False,
        leaving: ServerLeaving | None = None,
        check: Callable[[Session], Awaitable[None]] | None = None,
        given_up: GivenUp | None = None,
        once: bool = False,
    ) -> None:
        self._pool = pool
        self._seconds = seconds
        self._observer = observer
        self._idle = idle
        self._reuse = reuse
        self._leaving = leaving
        self._generation = 0
        self._check = check
        self._alone = given_up is None
        self._given_up = given_up or GivenUp()
        self._once = once

    async def __aenter__(self) -> Session:
        """Return the connection."""
        session = self._idle.take() if self._idle else None
        if session is None:
            with self._observer.acquiring(), self._idle.awaited() if self._idle else nullcontext():
                session = await map_all_errors(_free_connection(self._pool, self._seconds))
        self._session = session
        self._generation = self._leaving.generation if self._leaving else 0
        if self._check is not None:
            try:
                await self._check(session)
            except BaseException as error:
                await self.__aexit__(type(error), error, None)
                raise
        return session

    async def __aexit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Release it, or keep it, or give it up."""
        session = self._session
        stale = await self._is_stale(error)
        if self._idle:
            if self._reuse and error is None and not stale and self._idle.put(session):
                return
            self._idle.forget(session)
        if self._once:
            self._given_up.add(session)
        elif isinstance(error, asyncio.CancelledError):
            await self._given_up.settle(self._pool, session)
        elif stale or (error is not None and _is_spent(session, error)):
            self._given_up.add(session)
        else:
            await _release(self._pool, session, self._seconds)
        if self._alone:
            await self._given_up.aclose()

    async def _is_stale(self, error: BaseException | None) -> bool:
        """Return whether the server of the connection was left, perhaps for this very error."""
        if self._leaving is None:
            return False
        if error is not None:
            await self._leaving.handle(error, self._generation)
        return self._generation != self._leaving.generation


def _is_spent(session: Session, error: BaseException) -> bool:
    """Return whether a session is not fit for another block, after one that has failed.

    It may be cut, half-open or in the middle of an answer; asyncpg may not know that it has ended.
    """
    if isinstance(error, DatabaseUnavailable) and (error.locked or error.sqlstate == READ_ONLY):
        return not is_reusable(session)  # one that is read-only is as good as before, for reads
    return isinstance(error, DatabaseUnavailable | asyncpg.InternalClientError) or not is_reusable(session)


async def _free_connection(pool: asyncpg.Pool, seconds: float) -> Session:
    """Return a connection of a pool.

    Raises:
        DatabaseUnavailable: all are in use by others.
    """
    with suppress(TimeoutError):
        session = await pool.acquire(timeout=seconds)
        if not pool.is_closing():
            return session
        session.terminate()  # a pool that closes does not wait for what is being opened
        raise asyncpg.InterfaceError("pool is closing")
    # One that is being opened for this call is not among those that are open.
    if pool.get_size() < pool.get_max_size() or pool.get_idle_size():
        raise TimeoutError
    raise DatabaseUnavailable(
        f"no connection of the pool was free within {seconds:g} s: raise max_size, which is {pool.get_max_size()}, or "
        "release connections sooner; no token can be had within a block of as_user with a pool of one"
    )


async def _release(pool: asyncpg.Pool, connection: Session, seconds: float) -> None:
    async def release() -> None:
        try:
            await pool.release(connection, timeout=seconds)
        except Exception as error:
            if not is_lost(error):  # else what was answered before stands, and the pool opens another
                raise

    await map_all_errors(release())


async def within(call: Awaitable[_T], *, seconds: float) -> _T:
    """Await a call of asyncpg that has no timeout, or whose timeout leaves out a part of the wait.

    Raises:
        TimeoutError: there was no result in time.
    """
    async with asyncio.timeout(seconds):
        return await call
