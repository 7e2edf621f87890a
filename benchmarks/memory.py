"""What a remembered user takes of a process's memory, and what a cache of very many takes of its time."""

import asyncio
import gc
import random
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable
from uuid import UUID

from benchmarks.place import Database, connected, drawing, managing, new_database, stored_users
from benchmarks.rounds import Figure, each, interleaved
from benchmarks.sizes import Size
from spotconn import TokenManager
from spotconn._tokens.cache import ConnectionCache
from spotconn._tokens.stored_token import StoredToken
from spotconn.testing import EmbeddedPostgres
from support.bulk import add_connections

FIRST = 100
"""Users asked for before the count, so that what there is once for all of them exists already."""
CALLERS = 20
FEW = 1_000
"""Users of the small cache that a large one is compared with."""
SCOPE = "playlist-modify-private playlist-read-private user-read-email user-read-private"
"""What each user has granted."""


async def measure(server: EmbeddedPostgres, size: Size) -> list[Figure]:
    """Bytes for each remembered user, and the look-up and the longest step of a cache of very many."""
    database = await new_database(server, "memory")
    async with connected(database.admin_dsn) as admin:
        await admin.execute(f"alter table public.spotify_connections alter scope set default '{SCOPE}'")
        await add_connections(admin, FIRST + size.cached_users)
    return [*await _bytes(database, size), *await _large_cache(database, size)]


async def _bytes(database: Database, size: Size) -> list[Figure]:
    """Bytes of Python's own for each remembered user, without those of the access token."""
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


async def _large_cache(database: Database, size: Size) -> list[Figure]:
    """A look-up beside that in a small cache, and the longest step and collection of garbage."""
    async with (
        managing(database.dsn(), cache_ttl=3600, cache_size=size.large_cache) as tokens,
        managing(database.dsn(), cache_ttl=3600) as small,
    ):
        users = [_cache(tokens) for _ in range(size.large_cache)]
        few = [_cache(small) for _ in range(min(FEW, size.large_cache))]
        rounds = await interleaved(
            {
                "warm_large": each(tokens.get_valid_token, drawing(users, size.warm_calls)),
                "warm_small": each(small.get_valid_token, drawing(few, size.warm_calls)),
            },
            size.rounds,
        )
        return [
            Figure("warm_1m_vs_1k", rounds.ratio("warm_large", "warm_small")),
            *rounds.figures(),
            *_steps(tokens, size.large_cache),
        ]


def _cache(tokens: TokenManager) -> UUID:
    """Cache the token of another user, as a read does that is trusted, and return who it is."""
    user, now = UUID(int=random.getrandbits(128)), time.time()
    stored = StoredToken("BQ" + user.hex * 6, user.bytes * 2, now + 3600, None)
    cache = _cache_of(tokens)
    with cache.reading(user) as pending:
        cache.put(stored, pending, now=now, stale_at=now + 3300)
    return user


def _cache_of(tokens: TokenManager) -> ConnectionCache:
    cache: ConnectionCache = vars(tokens)["_cache"]  # to fill it from the database would take minutes
    return cache


def _steps(tokens: TokenManager, number: int) -> list[Figure]:
    """Milliseconds of the longest step of a full cache, and of a collection of garbage, which is Python's own."""
    cache = _cache_of(tokens)
    collected = _seconds(gc.collect)
    gc.disable()
    try:
        steps = [_seconds(lambda: _cache(tokens)) for _ in range(number // 4)]
        cache.trust(time.time() + 30)
        steps += [_seconds(cache.distrust), _seconds(cache.clear)]
        while len(cache):
            steps.append(_seconds(cache.sweep))
    finally:
        gc.enable()
    return [Figure("cache_1m_step_ms", max(steps) * 1e3), Figure("cache_1m_collection_ms", collected * 1e3)]


def _seconds(step: Callable[[], object]) -> float:
    """Processor time of this thread: another process that is given the processor is no part of the step."""
    begun = time.thread_time()
    step()
    return time.thread_time() - begun
