"""Reads while many refreshes hang: no connection to Postgres may be held while Spotify thinks."""

import asyncio
import random
import statistics
from collections.abc import Awaitable, Callable, Sequence
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
"""Seconds between two reads that come whether or not those before have been answered."""

Read = Callable[[float], Awaitable[float]]
"""Reads another user's token; gives the seconds since the moment it was due."""
Reader = Callable[[Read, "asyncio.Future[list[str]]"], Awaitable[list[float]]]
"""Reads until the refreshes are done."""


async def measure(server: EmbeddedPostgres, size: Size) -> list[Figure]:
    """What reads take from the moment that many refreshes begin until the last has ended."""
    number = size.starved_refreshes
    one_caller: list[float] = []
    all_due: list[float] = []
    async with gathered(server, "starved", 2 * number, latency=LATENCY) as crowd:
        fresh, expired = crowd.users[:number], crowd.users[number:]
        dsn = crowd.database.dsn()
        async with managing(dsn, spotify=crowd.url, connections=CONNECTIONS, cache_ttl=0) as tokens:
            for burst in range(size.starved_rounds + 1):
                for reader, taken in ((_one_caller, one_caller), (_as_due, all_due)):
                    await crowd.expire(expired)
                    reads = await _during(tokens, expired, fresh, reader)
                    if burst:  # the first one opens the connections
                        taken.extend(reads)
    return [
        Figure("starved_read_p99_ms", _percentile_99(one_caller) * 1e3),
        Figure("starved_read_median_ms", statistics.median(one_caller) * 1e3),
        Figure("starved_due_p99_ms", _percentile_99(all_due) * 1e3),
        Figure("starved_due_median_ms", statistics.median(all_due) * 1e3),
    ]


def _percentile_99(seconds: Sequence[float]) -> float:
    return statistics.quantiles(seconds, n=100, method="inclusive")[-1]


async def _during(tokens: TokenManager, expired: Sequence[UUID], fresh: Sequence[UUID], reader: Reader) -> list[float]:
    loop = asyncio.get_running_loop()

    async def read(due: float) -> float:
        await tokens.get_valid_token(random.choice(fresh))
        return loop.time() - due

    refreshes = asyncio.gather(*[tokens.get_valid_token(user) for user in expired])
    taken = await reader(read, refreshes)
    await refreshes
    return taken


async def _one_caller(read: Read, refreshes: "asyncio.Future[list[str]]") -> list[float]:
    """One read after the other."""
    loop = asyncio.get_running_loop()
    taken: list[float] = []
    while not refreshes.done():
        taken.append(await read(loop.time()))
    return taken


async def _as_due(read: Read, refreshes: "asyncio.Future[list[str]]") -> list[float]:
    """A read at every interval: the busier the process is, the more of them wait."""
    loop = asyncio.get_running_loop()
    reads: list[asyncio.Future[float]] = []
    due = loop.time()
    while not refreshes.done():
        reads.append(asyncio.ensure_future(read(due)))
        due += INTERVAL
        await asyncio.sleep(due - loop.time())
    return await asyncio.gather(*reads)
