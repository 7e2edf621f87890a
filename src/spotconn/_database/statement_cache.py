"""How connections execute the statements of the library again: named at the server itself, described behind a pooler.

A named statement belongs to one connection of the server. Behind a transaction pooler the next transaction may have
another, so nothing may be named there. asyncpg then describes a statement before each execution, to learn the types of
its arguments and columns: a round trip more. Those are the same on every connection of the server. So the description
is remembered, and Parse, Bind, Execute and Sync go in one message: safe through any pooler, since nothing stays on the
server. pgx calls that `QueryExecModeCacheDescribe`.

The statements of the library name the types of their arguments and columns, or call its functions, whose types a later
schema leaves as they are. asyncpg forgets a description after five minutes, and with the codecs that it was made for.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import asyncpg

from spotconn._database.idle_sessions import Session
from spotconn._database.protected_loop import Connect

_T = TypeVar("_T")

SIZE = 100
"""Statements that a connection remembers: the default of asyncpg."""


def execute(
    session: Session, query: str, call: Callable[[float], Awaitable[_T]], remaining: Callable[[], float]
) -> Awaitable[_T]:
    """Execute a statement, in one round trip where the connection has done so before.

    Args:
        session: on which it runs, in no transaction.
        query: the statement.
        call: executes it, in so many seconds.
        remaining: returns the seconds that are left.
    """
    # asyncpg has no public API for it. A connection that was aborted has no protocol any more, and refuses the call.
    if getattr(session, "_stmt_cache_enabled", True) or getattr(session, "_protocol", None) is None:
        return call(remaining())
    return _execute_described(session, query, call, remaining)


async def _execute_described(
    session: Session, query: str, call: Callable[[float], Awaitable[_T]], remaining: Callable[[], float]
) -> _T:
    description = await _description(session, query, remaining())
    try:
        return await call(remaining())
    except (AssertionError, BufferError):
        pass  # a value is longer or shorter than its type
    except Exception:
        description.mark_closed()  # it may be the cause: asyncpg describes the statement again then
        raise
    raise asyncpg.OutdatedSchemaCacheError("a column has another type than described")


async def _description(session: Session, query: str, seconds: float) -> Any:
    """Return the description of a statement, which asyncpg finds from then on."""
    # asyncpg has no public API for them. It looks into its cache also where it puts nothing there.
    cache, protocol = getattr(session, "_stmt_cache"), getattr(session, "_protocol")  # noqa: B009
    key = (query, protocol.get_record_class(), False)
    found = cache.get(key)
    if found is None:
        statement = await session.prepare(query, name="", timeout=seconds)  # asyncpg 0.30 names it otherwise
        found = getattr(statement, "_state")  # noqa: B009
        cache.set_max_size(SIZE)
        cache.put(key, found)
    return found


class StatementCache:
    """Whether the connections of a pool name statements. Until it is known whether a pooler is in between, none does.

    Args:
        options: of `asyncpg.create_pool`. With `statement_cache_size` among them it is known.

    Attributes:
        size: of the caches of new connections, 0 for no named statements; None while it is not known.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.size: int | None = options.get("statement_cache_size")

    def sized(self, connect: Connect) -> Connect:
        """Return a function like `asyncpg.connect` for the option `connect` of the pool."""

        async def connect_sized(*args: Any, **options: Any) -> asyncpg.Connection:
            return await connect(*args, **options | {"statement_cache_size": self.size or 0})

        return connect_sized

    def decide(self, pool: asyncpg.Pool, *, pooled: bool) -> None:
        """Let the connections name statements unless a pooler is in between, also those that are open.

        Args:
            pool: whose connections. None of them is executing anything.
            pooled: whether a pooler is in between.
        """
        if self.size is None:
            self.size = 0 if pooled else SIZE
            if self.size:
                _name_statements(pool)


def _name_statements(pool: asyncpg.Pool) -> None:
    """Let the open connections of a pool name statements."""
    # asyncpg has no public API for it. A connection where this fails goes on with descriptions.
    for holder in getattr(pool, "_holders", ()):
        connection = getattr(holder, "_con", None)
        if (cache := getattr(connection, "_stmt_cache", None)) is not None:
            cache.clear()
            cache.set_max_size(SIZE)
            setattr(connection, "_stmt_cache_enabled", True)  # noqa: B010
