"""A cached token for code that does not await, beside an awaited one and the cheapest call into an event loop."""

import asyncio
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from typing import TypeVar

from benchmarks.place import managing, new_database, stored_users
from benchmarks.rounds import Figure, Round, each, interleaved
from benchmarks.sizes import Size
from spotconn.blocking import BlockingTokens
from spotconn.testing import EmbeddedPostgres

USERS = 100
T = TypeVar("T")


async def measure(server: EmbeddedPostgres, size: Size) -> list[Figure]:
    """Ratios to the awaited token, and what each takes."""
    database = await new_database(server, "blocking", rows=USERS)
    users = await stored_users(database)
    calls = list(islice(cycle(users), size.warm_calls))
    loop = asyncio.get_running_loop()

    async def nothing() -> None:
        """The least that an event loop can be asked for."""

    async with managing(database.dsn(), cache_ttl=3600) as tokens:
        with BlockingTokens(lambda: managing(database.dsn(), cache_ttl=3600)) as blocking:
            rounds = await interleaved(
                {
                    "awaited": each(tokens.get_valid_token, lambda: calls),
                    "blocking": in_thread(blocking.get_valid_token, calls),
                    "threadsafe": in_thread(
                        lambda _: asyncio.run_coroutine_threadsafe(nothing(), loop).result(), range(size.cold_calls)
                    ),
                },
                size.rounds,
            )
    return [
        Figure("blocking_vs_awaited", rounds.ratio("blocking", "awaited")),
        Figure("threadsafe_vs_awaited", rounds.ratio("threadsafe", "awaited")),
        *rounds.figures(),
    ]


def in_thread(call: Callable[[T], object], arguments: Sequence[T]) -> Round:
    """A round of one call after the other in a thread without an event loop."""

    def work() -> float:
        begun = time.perf_counter()
        for argument in arguments:
            call(argument)
        return (time.perf_counter() - begun) / len(arguments)

    async def run() -> float:
        return await asyncio.to_thread(work)

    return run
