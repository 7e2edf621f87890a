"""Open pools, find a pooler in between, and close pools."""

import asyncio
import inspect
import socket
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from typing import TYPE_CHECKING, Any

import asyncpg

from spotconn._database.acquire import TIMEOUT, acquire
from spotconn._database.caller_hooks import mapped_hooks
from spotconn._database.dsn import prepare
from spotconn._database.errors import map_errors
from spotconn._database.given_up import end_all
from spotconn._database.host_search import search_hosts
from spotconn._database.named_hosts import named_hosts, named_target
from spotconn._database.protected_loop import protected
from spotconn._database.statement_cache import StatementCache
from spotconn._database.unreachable import MALFORMED, UNKNOWN_HOST, is_unknown_host
from spotconn.errors import ConfigurationError, DatabaseUnavailable

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

_NO_STATEMENTS = {"statement_cache_size": 0}
_CONVERTING = {"connect", "connection_class", "init", "record_class", "reset", "setup"}
_OF_THE_POOL = {"init", "init_size", "max_size", "min_size", "reset", "setup"}


def keywords(function: Callable[..., object]) -> set[str]:
    """Return the names of the keyword arguments of a function."""
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def pool_keywords() -> set[str]:
    """Return the names of the options of a pool: those of asyncpg, without the event loop."""
    return (keywords(asyncpg.create_pool) | keywords(asyncpg.connect)) - {"loop"}


async def open_pool(dsn: str, options: dict[str, Any], *, seconds: float | None = None) -> asyncpg.Pool:
    """Open a pool and connect; behind a pooler, without named statements.

    Args:
        dsn: a postgresql:// URL.
        options: of `asyncpg.create_pool`; they override the defaults here. With `statement_cache_size` among them,
            a pooler is not looked for.
        seconds: to wait for a connection, and for the answer to whether a pooler is in between; None for the option
            `timeout`, or else 5.

    Raises:
        ConfigurationError: the DSN or an option is malformed, or the login is refused.
        DatabaseUnavailable: no connection in time, or no answer.
    """
    wait: float = options.get("timeout") or TIMEOUT if seconds is None else seconds
    statements = StatementCache(options)
    pool = await connect_pool(dsn, options, statements, seconds=wait)
    if statements.size is None:
        try:
            async with acquire(pool, seconds=wait) as connection:
                pooled = await is_pooled(connection, seconds=wait)
        except BaseException:
            pool.terminate()
            raise
        statements.decide(pool, pooled=pooled)
    return pool


async def open_single(dsn: str, options: dict[str, Any], *, seconds: float = TIMEOUT) -> asyncpg.Pool:
    """Open a pool of one connection without prepared statements, so that it works through any pooler.

    Args:
        dsn: a postgresql:// URL.
        options: of `asyncpg.create_pool`. The hooks are left out: behind a pooler what they set up would be
            lost to this client and stay with the server.
        seconds: to wait for the connection.

    Raises:
        ConfigurationError, DatabaseUnavailable: as `open_pool`.
    """
    plain = {name: value for name, value in options.items() if name not in _OF_THE_POOL}
    plain |= {"min_size": 1, "max_size": 1} | _NO_STATEMENTS
    return await connect_pool(dsn, plain, StatementCache(plain), seconds=seconds)


def may_convert(options: dict[str, Any]) -> bool:
    """Return whether connections of a pool with these options may have codecs or a record class of the caller's."""
    return not _CONVERTING.isdisjoint(options)


async def is_pooled(connection: "asyncpg.Connection | PoolConnectionProxy[asyncpg.Record]", *, seconds: float) -> bool:
    """Return whether a pooler is in between.

    Args:
        connection: one without a statement cache.
        seconds: for the answer.
    """
    backend = await map_errors(connection.fetchval("select pg_catalog.pg_backend_pid()", timeout=seconds))
    return is_behind_pooler(connection, backend)


def is_behind_pooler(
    connection: "asyncpg.Connection | PoolConnectionProxy[asyncpg.Record]", backend: int | None
) -> bool:
    """Return whether a pooler is in between: it answers a login with a process id that it made up.

    Args:
        connection: to the pooler, or to the server itself.
        backend: the process id that the server has answered with.
    """
    return bool(backend != connection.get_server_pid())


async def connect_pool(
    dsn: str, options: dict[str, Any], statements: StatementCache, *, seconds: float
) -> asyncpg.Pool:
    """Open a pool and connect. A pooler is not looked for.

    Args:
        dsn: a postgresql:// URL.
        options: of `asyncpg.create_pool`; they override the defaults here.
        statements: whether connections name statements.
        seconds: to wait for a connection.

    Raises:
        ConfigurationError, DatabaseUnavailable: as `open_pool`.
    """
    # No state outlives the store's transactions, so a released connection needs no reset, which would cost every
    # call a second round trip.
    defaults: dict[str, Any] = {"min_size": 1, "max_size": 10, "timeout": seconds, "reset": _no_reset}
    dsn, options = prepare(dsn, options)
    options = defaults | mapped_hooks(options)
    connect = protected(options.get("connect", asyncpg.connect))
    hosts = await named_hosts(dsn, options, keywords(asyncpg.connect))
    if hosts:
        connect = search_hosts(connect, hosts, named_target(dsn, options), seconds=seconds)
    options["connect"] = statements.sized(connect)
    pool: asyncpg.Pool | None = None
    with suppress(ValueError, TypeError, asyncpg.InterfaceError):
        pool = asyncpg.create_pool(dsn, **options)
    if pool is None:
        raise ConfigurationError(MALFORMED)
    problem: str | None = MALFORMED
    try:
        problem = await map_errors(_connect(pool, seconds))
    finally:
        if problem:
            pool.terminate()
    if problem:
        raise ConfigurationError(problem)
    return pool


async def _connect(pool: asyncpg.Pool, seconds: float) -> str | None:
    """Connect, and return what is wrong with the settings if asyncpg finds it only now.

    Raises:
        DatabaseUnavailable: there was no connection in time.
    """
    try:
        async with asyncio.timeout(seconds):
            await pool
    except (asyncpg.ClientConfigurationError, ValueError, TypeError) as error:
        if isinstance(error, OSError):  # a certificate that does not verify
            raise
        return MALFORMED
    except socket.gaierror as error:
        # Later, once it was known, the name service itself is at fault.
        if not is_unknown_host(error):
            raise
        return UNKNOWN_HOST
    except TimeoutError:
        pass
    else:
        return None
    raise DatabaseUnavailable(
        f"no connection to the database within {seconds:g} s: nothing answers at host and port of the database URL, as "
        "behind a firewall, or the server is slow, as one that wakes up; try again later, or give it more time "
        "(timeout, SPOTCONN_TIMEOUT)"
    )


async def close_pool(pool: asyncpg.Pool, *, seconds: float = TIMEOUT) -> None:
    """Close a pool. Connections still in use after `seconds` are given up, which takes `HOLD` seconds at most."""
    closing = asyncio.create_task(pool.close(), name="spotconn-close-pool", context=Context())
    try:
        await asyncio.wait([closing], timeout=seconds)
        if not closing.done():
            await end_all(pool)
    finally:
        pool.terminate()
        closing.cancel()
    await asyncio.wait([closing])
    if not closing.cancelled():
        closing.exception()  # the pool was terminated then


async def _no_reset(_connection: asyncpg.Connection) -> None:
    """Leave a released connection as it is."""
