"""Round trips to Postgres, counted by a proxy in front of it."""

import statistics

from benchmarks.crowd import gathered
from benchmarks.place import managing
from benchmarks.rounds import Figure
from benchmarks.sizes import Size
from spotconn.testing import EmbeddedPostgres
from support.counting_proxy import CountingProxy

TIMES = 5


async def measure(server: EmbeddedPostgres, _size: Size) -> list[Figure]:
    """Round trips of a read and of a refresh; the median of some, once everything is connected and prepared."""
    costs: dict[str, list[int]] = {"refresh": [], "read": []}
    async with gathered(server, "wire", 1) as crowd, CountingProxy(server.port).serve() as proxy:
        dsn = crowd.database.dsn(port=proxy.port)
        async with managing(dsn, spotify=crowd.url, connections=1, cache_ttl=0) as tokens:
            for _ in range(TIMES):
                await crowd.expire(crowd.users)
                for cost in costs.values():
                    before = proxy.round_trips
                    await tokens.get_valid_token(crowd.users[0])
                    cost.append(proxy.round_trips - before)
    return [
        Figure("round_trips_read", statistics.median(costs["read"])),
        Figure("round_trips_refresh", statistics.median(costs["refresh"])),
    ]
