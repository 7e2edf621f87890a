"""How fast one process refreshes, against bare POSTs of httpx to the same simulated Spotify."""

import statistics

import httpx

from benchmarks.crowd import Crowd, gathered
from benchmarks.place import managing
from benchmarks.rounds import Figure, interleaved, together
from benchmarks.sizes import Size
from spotconn import TokenManager
from spotconn.testing import EmbeddedPostgres

CONCURRENCY = 100
"""Calls under way at once, of httpx and of the manager; an AsyncClient has no more connections."""


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
    return await together(tokens.get_valid_token, crowd.users, CONCURRENCY)


async def _posts(client: httpx.AsyncClient, crowd: Crowd, busy: list[float]) -> float:
    async def post(refresh_token: str) -> None:
        form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
        answer = await client.post(f"{crowd.url}/api/token", data=form)
        answer.raise_for_status().json()

    before = await crowd.process.request("how busy?")
    seconds = await together(post, crowd.refresh_tokens, CONCURRENCY)
    worked = await crowd.process.request("how busy?") - before
    busy.append(worked / (seconds * len(crowd.refresh_tokens)))
    return seconds
