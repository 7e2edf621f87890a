"""What a process that lives for one call pays on the wire for its first token."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from uuid import UUID

import asyncpg

from spotconn import TokenManager
from support.counting_proxy import CountingProxy

TIMES = 3
"""Over TLS, what the server sends by itself may cut a burst of the client in two."""
_READ = "select user_id, access_token from public.spotify_connections where user_id = $1"

Way = Callable[[str, UUID], AbstractAsyncContextManager[None]]


async def extra_round_trips(port: int, dsn: Callable[[int], str], user: UUID) -> int:
    """Return the round trips from `from_env` to a first token, less those of a bare connection and its first query.

    Args:
        port: of the server, or of what is before it.
        dsn: returns a DSN for another port.
        user: whose stored token is good.
    """
    least = [min([await _counted(way, port, dsn, user) for _ in range(TIMES)]) for way in (_token, _row)]
    return least[0] - least[1]


async def _counted(way: Way, port: int, dsn: Callable[[int], str], user: UUID) -> int:
    async with CountingProxy(port).serve() as proxy, way(dsn(proxy.port), user):
        return proxy.round_trips


@asynccontextmanager
async def _token(dsn: str, user: UUID) -> AsyncGenerator[None]:
    # It reads each token once: what caches nothing does not listen for changes.
    environ = {"DATABASE_URL": dsn, "SPOTIFY_CLIENT_ID": "democlient"}
    async with TokenManager.from_env(environ=environ, cache_size=0) as tokens:
        await tokens.get_valid_token(user)
        yield


@asynccontextmanager
async def _row(dsn: str, user: UUID) -> AsyncGenerator[None]:
    connection = await asyncpg.connect(dsn, statement_cache_size=0)
    try:
        await connection.fetchrow(_READ, user)
        yield
    finally:
        await connection.close()
