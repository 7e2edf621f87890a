"""How fast one process refreshes, against bare POSTs by the same HTTP library to the same simulated Spotify.

With httpx and with httpx2, each in a process of its own: which one the library uses is settled when it is imported.
"""

import asyncio
import json
import statistics
from functools import partial

from benchmarks.children import Child, child
from benchmarks.crowd import Crowd, gathered
from benchmarks.rounds import Figure, interleaved
from benchmarks.sizes import Size
from spotconn.testing import EmbeddedPostgres


async def measure(server: EmbeddedPostgres, size: Size) -> list[Figure]:
    """The ratios, all paces, and how busy Spotify's process was with the bare POSTs: at 1 it set their pace."""
    loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
    async with (
        gathered(server, "pace", size.storm_users) as crowd,
        child("pacing", "httpx", loop) as httpx,
        child("pacing", "httpx2", loop) as httpx2,
    ):
        for each in (httpx, httpx2):
            users = [str(user) for user in crowd.users]
            await each.request(json.dumps([crowd.database.dsn(), crowd.url, users, crowd.refresh_tokens]))
        busy: list[float] = []
        rounds = await interleaved(
            {
                "post": partial(_posts, httpx, crowd, busy),
                "refresh": partial(_refreshes, httpx, crowd),
                "post_httpx2": partial(_posts, httpx2, crowd, busy),
                "refresh_httpx2": partial(_refreshes, httpx2, crowd),
            },
            size.storm_rounds,
        )
    return [
        Figure("storm_vs_httpx", rounds.ratio("post", "refresh")),
        Figure("storm_vs_httpx2", rounds.ratio("post_httpx2", "refresh_httpx2")),
        Figure("storm_spotify_busy", statistics.median(busy)),
        *rounds.figures(),
    ]


async def _refreshes(process: Child, crowd: Crowd) -> float:
    await crowd.expire(crowd.users)
    return float(await process.request("refresh"))


async def _posts(process: Child, crowd: Crowd, busy: list[float]) -> float:
    before = await crowd.process.request("how busy?")
    seconds = float(await process.request("post"))
    worked = await crowd.process.request("how busy?") - before
    busy.append(worked / (seconds * len(crowd.refresh_tokens)))
    return seconds
