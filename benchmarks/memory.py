"""What a remembered user takes of a process's memory."""

import asyncio
import gc
import sys
import tracemalloc
from collections.abc import Iterable
from uuid import UUID

from benchmarks.place import connected, managing, new_database, stored_users
from benchmarks.rounds import Figure
from benchmarks.sizes import Size
from spotconn import TokenManager
from spotconn.testing import EmbeddedPostgres
from support.bulk import add_connections

FIRST = 100
"""Users asked for before the count, so that what there is once for all of them exists already."""
CALLERS = 20
SCOPE = "playlist-modify-private playlist-read-private user-read-email user-read-private"
"""What each user has granted."""


async def measure(server: EmbeddedPostgres, size: Size) -> list[Figure]:
    """Bytes of Python's own for each remembered user, without those of the access token."""
    database = await new_database(server, "memory")
    async with connected(database.admin_dsn) as admin:
        await admin.execute(f"alter table public.spotify_connections alter scope set default '{SCOPE}'")
        await add_connections(admin, FIRST + size.cached_users)
    users = await stored_users(database)
    async with managing(database.dsn(), cache_size=2 * len(users)) as tokens:
        tracemalloc.start()
        try:
            await _ask(tokens, users[:FIRST])
            before = _held()
            await _ask(tokens, users[FIRST:])
            grown = _held() - before
        finally:
            tracemalloc.stop()
        token = sys.getsizeof(await tokens.get_valid_token(users[0]))
    return [Figure("bytes_per_cached_user", grown / size.cached_users - token), Figure("bytes_of_the_token", token)]


async def _ask(tokens: TokenManager, users: Iterable[UUID]) -> None:
    queue = iter(users)

    async def work() -> None:
        for user in queue:
            # A key of its own, down to its number, as a request brings it.
            await tokens.get_valid_token(UUID(bytes=user.bytes))

    await asyncio.gather(*[work() for _ in range(CALLERS)])


def _held() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]
