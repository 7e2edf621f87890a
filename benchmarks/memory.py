"""What a remembered user takes of a process's memory."""

import asyncio
import gc
import sys
import tracemalloc
from collections.abc import Iterable
from uuid import UUID

from benchmarks.place import managing, new_database, stored_users
from benchmarks.rounds import Figure
from benchmarks.sizes import Size
from spotconn import TokenManager
from spotconn.testing import EmbeddedPostgres

FIRST = 100
"""Users asked for before the count, so that what there is once for all of them exists already."""
CALLERS = 20


async def measure(server: EmbeddedPostgres, size: Size) -> list[Figure]:
    """Bytes of Python's own for each remembered user, without those of the access token."""
    database = await new_database(server, "memory", rows=FIRST + size.cached_users)
    users = await stored_users(database)
    async with managing(database.dsn(), cache_ttl=3600, cache_size=2 * len(users)) as tokens:
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
            # A key of its own, as a request brings it.
            await tokens.get_valid_token(UUID(int=user.int))

    await asyncio.gather(*[work() for _ in range(CALLERS)])


def _held() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]
