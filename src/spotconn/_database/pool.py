"""Open pools, detect a pooler in between, and close pools."""

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import asyncpg

from spotconn._database.acquire import TIMEOUT, acquire
from spotconn._database.errors import map_errors
from spotconn.errors import ConfigurationError

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

_NO_STATEMENTS = {"statement_cache_size": 0}
_STATEMENTS = {"statement_cache_size": 100}
"""As asyncpg has it by itself."""
_OF_THE_POOL = {"init", "init_size", "max_size", "min_size", "reset", "setup"}


async def open_pool(dsn: str, options: dict[str, Any], *, seconds: float = TIMEOUT) -> asyncpg.Pool:
    """A connected pool; behind a transaction pooler, without prepared statements.

    Args:
        dsn: a postgresql:// URL.
        options: of `asyncpg.create_pool`; they win over the defaults given here. With `statement_cache_size` among
            them nobody looks for a pooler.
        seconds: to wait for a connection, and before that for one that looks for a pooler.

    Raises:
        ConfigurationError: the DSN or an option is malformed, or the login is refused.
        DatabaseUnavailable: no connection in time.
    """
    return await _open(dsn, await detect_pooler(dsn, options, seconds=seconds), seconds)


async def detect_pooler(dsn: str, options: dict[str, Any], *, seconds: float = TIMEOUT) -> dict[str, Any]:
    """The options of a pool with a `statement_cache_size` among them: 0 behind a transaction pooler.

    Args:
        dsn: a postgresql:// URL.
        options: of `asyncpg.create_pool`. With `statement_cache_size` among them nobody looks for a pooler.
        seconds: to wait for a connection.

    Raises:
        ConfigurationError, DatabaseUnavailable: as `open_pool`.
    """
    if "statement_cache_size" in options:
        return options
    pool = await open_single(dsn, options, seconds=seconds)
    try:
        async with acquire(pool, seconds=seconds) as connection:
            pooled = await is_pooled(connection, seconds=seconds)
    finally:
        await close_pool(pool, seconds=seconds)
    return options | (_NO_STATEMENTS if pooled else _STATEMENTS)


async def open_single(dsn: str, options: dict[str, Any], *, seconds: float = TIMEOUT) -> asyncpg.Pool:
    """A pool of one connection, without prepared statements, that works through whatever pooler there may be.

    Args:
        dsn: a postgresql:// URL.
        options: of `asyncpg.create_pool`. The hooks are left out: what they prepare would not survive a pooler, and
            stay behind on its server.
        seconds: to wait for the connection.

    Raises:
        ConfigurationError, DatabaseUnavailable: as `open_pool`.
    """
    plain = {name: value for name, value in options.items() if name not in _OF_THE_POOL}
    return await _open(dsn, plain | {"min_size": 1, "max_size": 1} | _NO_STATEMENTS, seconds)


async def is_pooled(connection: "asyncpg.Connection | PoolConnectionProxy[asyncpg.Record]", *, seconds: float) -> bool:
    """Whether a pooler is in between: it answers a login with a process id of its own making.

    Args:
        connection: one without a statement cache.
        seconds: for the answer.
    """
    backend = await map_errors(connection.fetchval("select pg_catalog.pg_backend_pid()", timeout=seconds))
    return bool(backend != connection.get_server_pid())


async def _open(dsn: str, options: dict[str, Any], seconds: float) -> asyncpg.Pool:
    # Nothing that the store runs outlives its transaction, so a released connection needs no reset: it would cost
    # every call a second round trip.
    defaults: dict[str, Any] = {"min_size": 1, "max_size": 10, "timeout": seconds, "reset": _no_reset}
    malformed = ConfigurationError(
        "the DSN or an option of the pool is malformed; expected postgresql://user@host/name"
    )
    pool: asyncpg.Pool | None = None
    with suppress(ValueError, TypeError, asyncpg.InterfaceError):
        pool = asyncpg.create_pool(dsn, **(defaults | options))
    if pool is None:
        raise malformed
    connected = False
    try:
        connected = await map_errors(_connected(pool, seconds))
    finally:
        if not connected:
            pool.terminate()
    if not connected:
        raise malformed
    return pool


async def _connected(pool: asyncpg.Pool, seconds: float) -> bool:
    """Connect; False where asyncpg finds only now that it cannot read the DSN or an option."""
    with suppress(asyncpg.ClientConfigurationError, ValueError, TypeError):
        async with asyncio.timeout(seconds):
            await pool
        return True
    return False


async def close_pool(pool: asyncpg.Pool, *, seconds: float = TIMEOUT) -> None:
    """Close a pool; connections still in use after the given time are cut."""
    try:
        async with asyncio.timeout(seconds):
            await pool.close()
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        pool.terminate()


async def _no_reset(_connection: asyncpg.Connection) -> None:
    """Leave a released connection as it is."""
