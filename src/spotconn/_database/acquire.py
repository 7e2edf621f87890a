"""Acquire and release connections in bounded time, also when the caller fails or is cancelled."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import asyncpg

from spotconn._database.errors import map_errors
from spotconn._observer import NOBODY, Observer
from spotconn.errors import DatabaseUnavailable, SpotconnError

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

_T = TypeVar("_T")
Session: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"

TIMEOUT = 5.0
"""Seconds to wait for a connection, free or new, and again for the answer to a statement."""


@asynccontextmanager
async def acquire(
    pool: asyncpg.Pool, *, seconds: float = TIMEOUT, observer: Observer = NOBODY
) -> AsyncGenerator[Session]:
    """Context manager: acquire a connection and release it at the end of the block.

    Raises:
        DatabaseUnavailable: none was free, or could be opened, in time.
    """
    with observer.acquiring():
        connection = await map_errors(pool.acquire(timeout=seconds))
    release = _release
    try:
        yield connection
    except asyncio.CancelledError:
        release = _release_after_cancellation
        raise
    except (DatabaseUnavailable, asyncpg.InternalClientError):
        # It may be cut, half-open or in the middle of an answer; asyncpg may not know that it has ended. The pool
        # replaces a closed connection.
        with suppress(asyncpg.InterfaceError):
            connection.terminate()
        raise
    finally:
        await release(pool, connection, seconds)


async def _release(pool: asyncpg.Pool, connection: Session, seconds: float) -> None:
    await map_errors(pool.release(connection, timeout=seconds))


async def _release_after_cancellation(pool: asyncpg.Pool, connection: Session, seconds: float) -> None:
    """End the cancelled statement and release the connection, shielded from further cancellations.

    asyncpg parses a statement and runs it in two steps. Cancelled between them, it does not send Sync (PostgreSQL,
    "Extended Query"). The transaction would stay open until the next statement, and would occupy a session of a
    transaction pooler.
    """

    async def end() -> None:
        with suppress(SpotconnError, asyncpg.InterfaceError), terminate_on_error(connection):
            # The timeout of asyncpg 0.30 leaves out its wait for the cancel request.
            await map_errors(within(connection.execute("select"), seconds=seconds))
        with suppress(SpotconnError):
            await _release(pool, connection, seconds)

    await asyncio.shield(end())


@contextmanager
def terminate_on_error(connection: Session) -> Generator[None]:
    """Context manager: close the connection if the block fails or is cancelled.

    In the middle of a statement it must return neither to the pool nor to a pooler.
    """
    try:
        yield
    except BaseException:
        with suppress(asyncpg.InterfaceError):
            connection.terminate()
        raise


async def within(call: Awaitable[_T], *, seconds: float) -> _T:
    """Await a call of asyncpg that has no timeout, or whose timeout leaves out a part of the wait.

    Raises:
        TimeoutError: there was no result in time.
    """
    async with asyncio.timeout(seconds):
        return await call
