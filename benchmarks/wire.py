"""Round trips to Postgres, counted by a proxy in front of it."""

import statistics
import tempfile
from pathlib import Path

from benchmarks.crowd import Crowd, gathered
from benchmarks.place import Database, managing, new_database, stored_users
from benchmarks.rounds import Figure
from benchmarks.sizes import Size
from spotconn.testing import EmbeddedPostgres
from support.counting_proxy import CountingProxy
from support.first_token import extra_round_trips
from support.pgbouncer import pgbouncer
from support.tls import certificate, tls_front

TIMES = 5


async def measure(server: EmbeddedPostgres, _size: Size) -> list[Figure]:
    """Round trips of a read and of a refresh, and from the environment to a first token; also behind PgBouncer."""
    with pgbouncer(server.port) as bouncer:
        async with gathered(server, "wire", 1) as crowd:
            direct, pooled = await _calls(crowd, server.port), await _calls(crowd, bouncer.port)
        database = await new_database(server, "opening", rows=1)
        first = {
            "": await _first_token(database, server.port),
            "_pooled": await _first_token(database, bouncer.port),
            "_tls": await _first_token_over_tls(database),
        }
    return [
        Figure("round_trips_read", direct["read"]),
        Figure("round_trips_refresh", direct["refresh"]),
        Figure("round_trips_read_pooled", pooled["read"]),
        Figure("round_trips_refresh_pooled", pooled["refresh"]),
        *(Figure(f"first_token_round_trips{way}", count) for way, count in first.items()),
    ]


async def _calls(crowd: Crowd, port: int) -> dict[str, float]:
    """The median of some, once everything is connected and prepared."""
    costs: dict[str, list[int]] = {"refresh": [], "read": []}
    async with CountingProxy(port).serve() as proxy:
        dsn = crowd.database.dsn(port=proxy.port)
        async with managing(dsn, spotify=crowd.url, connections=1, cache_ttl=0) as tokens:
            for _ in range(TIMES):
                await crowd.expire(crowd.users)
                for cost in costs.values():
                    before = proxy.round_trips
                    await tokens.get_valid_token(crowd.users[0])
                    cost.append(proxy.round_trips - before)
    return {name: statistics.median(cost) for name, cost in costs.items()}


async def _first_token(database: Database, port: int, parameters: str = "") -> int:
    """Round trips beyond those of a bare connection and its first query."""
    (user,) = await stored_users(database)
    return await extra_round_trips(port, lambda port: database.dsn(port=port) + parameters, user)


async def _first_token_over_tls(database: Database) -> int:
    with tempfile.TemporaryDirectory() as folder:
        pem = certificate(Path(folder))
        async with tls_front(database.server.port, pem) as front:
            parameters = f"?sslmode=verify-full&sslrootcert={pem}&sslnegotiation=direct"
            return await _first_token(database, front, parameters)
