"""A process that refreshes, or sends bare POSTs, with one of the two HTTP libraries.

Arguments: httpx or httpx2, and uvloop or anything else for the event loop. The first line of its standard input is
JSON: DSN, URL of Spotify, users, refresh tokens. For each further one, "post" or "refresh", it prints the seconds per
call.
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any
from uuid import UUID

import uvloop

from benchmarks.rounds import together

CONCURRENCY = 100
"""Calls under way at once, of the HTTP library and of the manager; an AsyncClient has no more connections."""


async def main(name: str) -> None:
    """Answer until the standard input ends."""
    # Only now: what they import settles which HTTP library spotconn uses.
    place, worker = import_module("benchmarks.place"), import_module("support.fleet_worker")
    lines = worker.lines()
    dsn, url, users, refresh_tokens = json.loads(await anext(lines))
    users = [UUID(user) for user in users]
    async with (
        import_module(name).AsyncClient(auth=("demo-client", "demo-secret")) as client,
        place.managing(dsn, spotify=url, cache_ttl=0) as tokens,
    ):
        print("true", flush=True)
        async for line in lines:
            if line.strip() == "post":
                seconds = await _posts(client, f"{url}/api/token", refresh_tokens)
            else:
                seconds = await together(tokens.get_valid_token, users, CONCURRENCY)
            print(seconds, flush=True)


async def _posts(client: Any, url: str, refresh_tokens: Sequence[str]) -> float:
    async def post(refresh_token: str) -> None:
        answer = await client.post(url, data={"grant_type": "refresh_token", "refresh_token": refresh_token})
        answer.raise_for_status().json()

    return await together(post, refresh_tokens, CONCURRENCY)


if __name__ == "__main__":
    library, loop = sys.argv[1:]
    if library == "httpx":
        sys.modules["httpx2"] = None  # type: ignore[assignment]  # pyright: ignore[reportArgumentType]  as if not installed
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else None) as runner:
        runner.run(main(library))
