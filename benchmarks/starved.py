"""Reads while many refreshes hang: no connection to Postgres may be held while Spotify thinks."""

import asyncio
import random
import statistics
from collections.abc import Sequence
from uuid import UUID

from benchmarks.crowd import gathered
from benchmarks.place import managing
from benchmarks.rounds import Figure
from benchmarks.sizes import Size
from spotconn import TokenManager
from spotconn.testing import EmbeddedPostgres

LATENCY = 0.2
"""Seconds that Spotify thinks."""
CONNECTIONS = 2
INTERVAL = 0.005
"""Seconds between two reads, which come whether or not those before have been answered."""


async def measure(server: EmbeddedPostgres, size: Size) -> list[Figure]:
    """The 99th percentile and the median of the reads that were due while refreshes were under way."""
    number = size.starved_refreshes
    taken: list[float] = []
    async with gathered(server, "starved", 2 * number, latency=LATENCY) as crowd:
        fresh, expired = crowd.users[:number], crowd.users[number:]
        dsn = crowd.database.dsn()
        async with managing(dsn, spotify=crowd.url, connections=CONNECTIONS, cache_ttl=0) as tokens:
            for burst in range(size.starved_rounds + 1):
                await crowd.expire(expired)
                reads = await _during(tokens, expired, fresh)
                taken += reads if burst else []  # the first one opens the connections
    return [
        Figure("starved_read_p99_ms", statistics.quantiles(taken, n=100, method="inclusive")[-1] * 1e3),
        Figure("starved_read_median_ms", statistics.median(taken) * 1e3),
    ]


async def _during(tokens: TokenManager, expired: Sequence[UUID], fresh: Sequence[UUID]) -> list[float]:
    """Seconds from the moment that each read was due to its answer."""
    loop = asyncio.get_running_loop()

    async def read(due: float) -> float:
        await tokens.get_valid_token(random.choice(fresh))
        return loop.time() - due

    refreshes = asyncio.gather(*[tokens.get_valid_token(user) for user in expired])
    reads = []
    due = loop.time()
    while not refreshes.done():
        reads.append(asyncio.create_task(read(due)))
        due += INTERVAL
        await asyncio.sleep(due - loop.time())
    await refreshes
    return await asyncio.gather(*reads)
