"""Acquire and release connections in bounded time, also when the caller fails or is cancelled."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import asyncpg

from spotconn._affinity import keep_from_children
from spotconn._database.errors import map_errors
from spotconn._observer import NOBODY, Observer
from spotconn.errors import DatabaseUnavailable, SpotconnError

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

_T = TypeVar("_T")
Session: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"

TIMEOUT = 5.0
"""Seconds to wait for a connection, be it a free or a new one, and again for the answer to a statement."""


@asynccontextmanager
async def acquire(
    pool: asyncpg.Pool, *, seconds: float = TIMEOUT, observer: Observer = NOBODY
) -> AsyncGenerator[Session]:
    """A connection of the pool.

    Raises:
        DatabaseUnavailable: none was free, or could be made, in time.
    """
    with observer.acquiring():
        connection = await map_errors(pool.acquire(timeout=seconds))
    shield_from_children(connection)
    release = _release
    try:
        yield connection
    except asyncio.CancelledError:
        release = _release_after_cancellation
        raise
    except DatabaseUnavailable:
        # It may be cut, half-open or in the middle of an answer: the pool makes another in its place.
        with suppress(asyncpg.InterfaceError):
            connection.terminate()
        raise
    finally:
        await release(pool, connection, seconds)


def shield_from_children(connection: Session) -> None:
    """Keep the socket of a connection from each child of fork, also that of a pool of the caller's own."""
    # asyncpg has no public way to it.
    transport = getattr(getattr(connection, "_con", None), "_transport", None)
    if transport is not None:
        keep_from_children(transport)


async def _release(pool: asyncpg.Pool, connection: Session, seconds: float) -> None:
    await map_errors(pool.release(connection, timeout=seconds))


async def _release_after_cancellation(pool: asyncpg.Pool, connection: Session, seconds: float) -> None:
    """Release a connection once nothing of a cancelled call is left on it; shielded from further cancellations.

    asyncpg parses a statement and runs it in two steps. Cancelled just between them, it never tells the server that
    the statement is over (PostgreSQL, "Extended Query": Sync): the transaction would stay open until the next
    statement, and behind a transaction pooler keep one of the pooler's sessions.
    """

    async def end() -> None:
        with suppress(SpotconnError, asyncpg.InterfaceError), terminate_on_error(connection):
            # asyncpg 0.30 does not count the wait for the cancellation itself.
            await map_errors(within(connection.execute("select"), seconds=seconds))
        with suppress(SpotconnError):
            await _release(pool, connection, seconds)

    await asyncio.shield(end())


@contextmanager
def terminate_on_error(connection: Session) -> Generator[None]:
    """Also when it is cancelled: a connection in the middle of it must not go back to the pool, nor to a pooler's."""
    try:
        yield
    except BaseException:
        with suppress(asyncpg.InterfaceError):
            connection.terminate()
        raise


async def within(call: Awaitable[_T], *, seconds: float) -> _T:
    """Await a call of asyncpg that takes no timeout, or does not count all of its waiting.

    Raises:
        TimeoutError: not in time.
    """
    async with asyncio.timeout(seconds):
        return await call
