"""How fast one process refreshes, against bare POSTs of httpx to the same simulated Spotify."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import httpx

from benchmarks.crowd import Crowd, gathered
from benchmarks.place import managing
from benchmarks.rounds import Figure, interleaved
from benchmarks.sizes import Size
from spotconn import TokenManager
from spotconn.testing import EmbeddedPostgres

CONCURRENCY = 100
"""Calls under way at once, of httpx and of the manager; an AsyncClient has no more connections."""

T = TypeVar("T")


async def measure(server: EmbeddedPostgres, size: Size) -> list[Figure]:
    """The ratio, both paces, and how busy Spotify's process was with the bare POSTs: at 1 it set their pace."""
    async with (
        gathered(server, "pace", size.storm_users) as crowd,
        httpx.AsyncClient(auth=("demo-client", "demo-secret")) as client,
        managing(crowd.database.dsn(), spotify=crowd.url, cache_ttl=0) as tokens,
    ):
        busy: list[float] = []
        rounds = await interleaved(
            {"post": lambda: _posts(client, crowd, busy), "refresh": lambda: _refreshes(tokens, crowd)},
            size.storm_rounds,
        )
    return [
        Figure("storm_vs_httpx", rounds.ratio("post", "refresh")),
        Figure("storm_spotify_busy", statistics.median(busy)),
        *rounds.figures(),
    ]


async def _refreshes(tokens: TokenManager, crowd: Crowd) -> float:
    await crowd.expire(crowd.users)
    return await _together(tokens.get_valid_token, crowd.users)


async def _posts(client: httpx.AsyncClient, crowd: Crowd, busy: list[float]) -> float:
    async def post(refresh_token: str) -> None:
        form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
        answer = await client.post(f"{crowd.url}/api/token", data=form)
        answer.raise_for_status().json()

    before = await crowd.process.request("how busy?")
    seconds = await _together(post, crowd.refresh_tokens)
    worked = await crowd.process.request("how busy?") - before
    busy.append(worked / (seconds * len(crowd.refresh_tokens)))
    return seconds


async def _together(call: Callable[[T], Awaitable[object]], arguments: Sequence[T]) -> float:
    """Make all calls, so many at once; seconds per call."""
    queue = iter(arguments)

    async def work() -> None:
        for argument in queue:
            await call(argument)

    begun = time.perf_counter()
    await asyncio.gather(*[work() for _ in range(CONCURRENCY)])
    return (time.perf_counter() - begun) / len(arguments)
