"""The pool under the store: opening, acquiring and closing it in bounded time, its errors made the library's own."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import asyncpg

from spotconn._affinity import Affinity
from spotconn._observer import NOBODY, Observer
from spotconn.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    RowSecurityError,
    SchemaMismatch,
    SpotconnError,
)

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

_T = TypeVar("_T")

TIMEOUT = 5.0
"""Seconds to wait for a connection, be it a free or a new one, and again for the answer to a statement."""

APPLY_SCHEMA = 'apply the schema of this version of spotconn: psql "$DATABASE_URL" -f sql/schema.sql'

# SQLSTATE, or its first two characters, to what it means for the caller (PostgreSQL, appendix A).
_UNAVAILABLE = {"08", "25", "40", "53", "55", "57", "58"}
_NO_SCHEMA = {"3F000", "42883", "42P01", "42703", "42704", "42846", "42804"}
_NO_LOGIN = {"28", "3D"}
_BAD_INPUT = {
    "23503": "user_id: no such user in auth.users",
    "SC001": "connected_at: lies in the future, by the clock of the database",  # from spotconn.save_connection
}

# PgBouncer has one SQLSTATE for whatever keeps it from serving.
_POOLER_REFUSES = "or a pooler refuses user, password, database or a setting of the session: its log says which"

_ANOTHER_USER = (
    "the database answered with the row of another user: a connection is used by two processes or event loops at once, "
    "or a pooler in between mixes up its sessions; the connection was closed, and nothing of that row was used"
)

_NO_STATEMENTS = {"statement_cache_size": 0}
_STATEMENTS = {"statement_cache_size": 100}
"""As asyncpg has it by itself."""
_OF_THE_POOL = {"init", "init_size", "max_size", "min_size", "reset", "setup"}


class BoundPool:
    """A pool as one object of the library uses it: in its own process and event loop, and in bounded time.

    Args:
        pool: to use; it is not closed here.
        name: what the object is called in errors.
        timeout: seconds to wait for a connection, and again for the answer to a statement.

    Attributes:
        timeout: as given.
        affinity: the process and the event loop that the pool belongs to.
        observer: is told of waits for a connection.
    """

    def __init__(self, pool: asyncpg.Pool, *, name: str, timeout: float = TIMEOUT) -> None:
        self._pool = pool
        self.timeout = timeout
        # A pool has no public way to tell its event loop.
        loop = getattr(pool, "_loop", None)
        self.affinity = Affinity(name, loop=loop, transports=self._transports, after_fork=self.terminate)
        self.observer = NOBODY

    def acquire(self) -> "AbstractAsyncContextManager[PoolConnectionProxy[asyncpg.Record]]":
        """Context manager: acquire a connection and release it at the end of the block.

        Raises:
            RuntimeError: in another process or event loop.
            DatabaseUnavailable: none was free, or could be made, in time.
        """
        self.affinity.check()
        return acquire(self._pool, seconds=self.timeout, observer=self.observer)

    async def row(self, query: str, *args: object) -> asyncpg.Record | None:
        """Return the first row of a statement."""
        async with self.acquire() as connection:
            return await map_errors(connection.fetchrow(query, *args, timeout=self.timeout))

    async def row_of(self, user_id: UUID, query: str, *args: object) -> asyncpg.Record | None:
        """Return the first row of a statement about one user, who is its first argument and its column `user_id`.

        Raises:
            RowSecurityError: it is the row of another user.
        """
        async with self.acquire() as connection:
            row = await map_errors(connection.fetchrow(query, user_id, *args, timeout=self.timeout))
            if row is not None:
                check_users(connection, {row["user_id"]} <= {user_id, None})
        return row

    def _transports(self) -> list[Any]:
        """Return the transports of all connections, also of a pool of the caller's own."""
        # asyncpg has no public way to them.
        sessions = [getattr(holder, "_con", None) for holder in getattr(self._pool, "_holders", ())]
        return [getattr(session, "_transport", None) for session in sessions]

    def terminate(self) -> None:
        """Close all connections at once, and make no new ones. In a child of fork this does not reach the parent's."""
        self._pool.terminate()

    async def close(self) -> None:
        """Close the pool, unless it is the parent's: in a child of fork nothing is left of it to close.

        Raises:
            RuntimeError: in another event loop.
        """
        self.affinity.close()
        if not self.affinity.forked:
            self.affinity.check_home()
            await close_pool(self._pool, seconds=self.timeout)


def check_users(connection: "PoolConnectionProxy[asyncpg.Record]", right: bool) -> None:  # noqa: FBT001  the condition is the point
    """Close a connection that has answered with the row of another user than the one asked for.

    Raises:
        RowSecurityError: it has.
    """
    if not right:
        connection.terminate()
        raise RowSecurityError(_ANOTHER_USER)


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


@asynccontextmanager
async def acquire(
    pool: asyncpg.Pool, *, seconds: float = TIMEOUT, observer: Observer = NOBODY
) -> "AsyncGenerator[PoolConnectionProxy[asyncpg.Record]]":
    """A connection of the pool.

    Raises:
        DatabaseUnavailable: none was free, or could be made, in time.
    """
    with observer.acquiring():
        connection = await map_errors(pool.acquire(timeout=seconds))
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


async def _release(pool: asyncpg.Pool, connection: "PoolConnectionProxy[asyncpg.Record]", seconds: float) -> None:
    await map_errors(pool.release(connection, timeout=seconds))


async def _release_after_cancellation(
    pool: asyncpg.Pool, connection: "PoolConnectionProxy[asyncpg.Record]", seconds: float
) -> None:
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
def terminate_on_error(connection: "PoolConnectionProxy[asyncpg.Record]") -> Generator[None]:
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


async def map_errors(call: Awaitable[_T]) -> _T:
    """Await a call of asyncpg, and raise the library's own errors for its.

    The original is neither the cause nor the context: its text and its detail may repeat a row or an argument.
    """
    failure: SpotconnError | ValueError
    try:
        return await call
    except asyncpg.PostgresError as error:
        failure = _meaning(error)
    # InternalClientError: a backend that was terminated had its last word while the call began.
    except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError) as error:
        failure = DatabaseUnavailable(f"the database cannot be reached ({type(error).__name__}); try again later")
    raise failure


def _meaning(error: asyncpg.PostgresError) -> SpotconnError | ValueError:
    state = error.sqlstate or "?????"
    name = type(error).__name__
    if state == "42501":
        return RowSecurityError(
            "the login role may not act under row level security: GRANT spotconn TO it (with INHERIT), or "
            + APPLY_SCHEMA
        )
    if state in _BAD_INPUT:
        return ValueError(_BAD_INPUT[state])
    if state in _NO_SCHEMA:
        return SchemaMismatch(f"the database lacks what this library needs ({name}): {APPLY_SCHEMA}")
    if state[:2] in _NO_LOGIN:
        return ConfigurationError(f"the database refused the login ({name}): check user, password and database name")
    if state[:2] in _UNAVAILABLE:
        advice = _POOLER_REFUSES if state == "08P01" else "try again later"
        return DatabaseUnavailable(f"the database cannot serve now ({name}, SQLSTATE {state}); {advice}")
    return SchemaMismatch(f"the database refused the statement ({name}, SQLSTATE {state}): {APPLY_SCHEMA}")


async def _no_reset(_connection: asyncpg.Connection) -> None:
    """Leave a released connection as it is."""
