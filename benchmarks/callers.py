"""Tokens from the database for many callers at once, against asyncpg's pool with as many callers of the same rows."""

import time
from collections.abc import Awaitable, Callable
from uuid import UUID

import asyncpg

from benchmarks.cold import SELECT
from benchmarks.place import in_turn, managing, new_database, stored_users
from benchmarks.rounds import Figure, Rounds, at_once, interleaved, noting
from benchmarks.sizes import Size
from spotconn.testing import EmbeddedPostgres

USERS = 1000
CROWD, FEW = 100, 10
Read = Callable[[UUID], Awaitable[object]]


class NoReset(asyncpg.Connection):
    """A connection that goes back to its pool without the round trip that cleans it."""

    def get_reset_query(self) -> str:
        """No query."""
        return ""


async def measure(server: EmbeddedPostgres, size: Size) -> list[Figure]:
    """Ratios to the pool as it comes and to one without reset, and what each takes of time and of the processor."""
    database = await new_database(server, "callers", rows=USERS)
    users = in_turn(await stored_users(database), size.crowd_calls)
    async with (
        managing(database.dsn(), cache_ttl=0) as tokens,
        asyncpg.create_pool(database.admin_dsn) as pool,
        asyncpg.create_pool(database.admin_dsn, connection_class=NoReset) as noreset,
    ):
        contenders: dict[str, tuple[Read, int]] = {
            "crowd_100": (tokens.get_valid_token, CROWD),
            "crowd_100_fetchrow": (lambda user: pool.fetchrow(SELECT, user), CROWD),
            "crowd_100_noreset": (lambda user: noreset.fetchrow(SELECT, user), CROWD),
            "crowd_10": (tokens.get_valid_token, FEW),
            "crowd_10_fetchrow": (lambda user: pool.fetchrow(SELECT, user), FEW),
        }
        rounds = await _timed(contenders, users, size)
    return [
        Figure("crowd_100_vs_pool_fetchrow", rounds.ratio("crowd_100_fetchrow", "crowd_100")),
        Figure("crowd_10_vs_pool_fetchrow", rounds.ratio("crowd_10_fetchrow", "crowd_10")),
        Figure("crowd_100_vs_noreset_fetchrow", rounds.ratio("crowd_100_noreset", "crowd_100")),
        Figure("crowd_cpu_vs_fetchrow", rounds.ratio("crowd_100_cpu", "crowd_100_fetchrow_cpu")),
        *rounds.figures(),
    ]


async def _timed(contenders: dict[str, tuple[Read, int]], users: Callable[[], list[UUID]], size: Size) -> Rounds:
    """Time the contenders by two clocks: that on the wall and, under names with _cpu, that of the process."""
    processor: dict[str, list[float]] = {name: [] for name in contenders}
    rounds = await interleaved(
        {
            name: noting(at_once(read, users, callers), time.process_time, processor[name], calls=size.crowd_calls)
            for name, (read, callers) in contenders.items()
        },
        size.rounds,
    )
    for name, noted in processor.items():
        rounds.add(f"{name}_cpu", noted)
    return rounds
