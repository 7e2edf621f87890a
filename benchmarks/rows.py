"""A token from tables of several sizes, another user's at each call: what a call costs must not grow."""

from contextlib import AsyncExitStack

from benchmarks.place import drawing, managing, new_database, stored_users
from benchmarks.rounds import Figure, Round, each, interleaved
from benchmarks.sizes import Size
from spotconn.testing import EmbeddedPostgres

NAMES = ("1k", "100k", "1m")


async def measure(server: EmbeddedPostgres, size: Size) -> list[Figure]:
    """Ratios of the larger tables to the smallest, and what each takes."""
    contenders: dict[str, Round] = {}
    async with AsyncExitStack() as stack:
        for name, number in zip(NAMES, size.rows, strict=True):
            database = await new_database(server, f"rows_{name}", rows=number)
            users = await stored_users(database)
            tokens = await stack.enter_async_context(managing(database.dsn(), cache_ttl=0))
            contenders[f"rows_{name}"] = each(tokens.get_valid_token, drawing(users, size.cold_calls))
        rounds = await interleaved(contenders, size.rounds)
    return [
        Figure("rows_1m_vs_1k", rounds.ratio("rows_1m", "rows_1k")),
        Figure("rows_100k_vs_1k", rounds.ratio("rows_100k", "rows_1k")),
        *rounds.figures(),
    ]
