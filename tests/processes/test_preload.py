"""A real `gunicorn --preload`, whose workers inherit an open manager."""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest

from spotconn.testing import FakeSpotify
from support.bulk import connect_many
from support.database import Database

STARTS, SOME, REQUESTS, WORKERS = 5, 2, 40, 3
TESTS = Path(__file__).parents[1]


@asynccontextmanager
async def preloaded(socket: Path, **settings: str) -> AsyncGenerator[httpx.AsyncClient]:
    """Context manager: gunicorn with the application, and a client for it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *["-m", "gunicorn", "--preload", "--workers", str(WORKERS), "--bind", f"unix:{socket}", "--no-control-socket"],
        *["--log-level", "error", "support.preloaded_app:app"],
        env=os.environ | settings | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
        stderr=asyncio.subprocess.DEVNULL,  # nothing is closed at the end of a worker, and Python says so
    )
    try:
        while not socket.exists():
            assert process.returncode is None
            await asyncio.sleep(0.02)
        transport = httpx.AsyncHTTPTransport(uds=str(socket))
        async with httpx.AsyncClient(transport=transport, base_url="http://preloaded", timeout=20) as client:
            yield client
    finally:
        if process.returncode is None:
            process.terminate()
        assert await asyncio.wait_for(process.wait(), 20) == 0


@pytest.mark.long
@pytest.mark.parametrize(
    "start", [*range(SOME), *(pytest.param(n, marks=pytest.mark.long) for n in range(SOME, STARTS))]
)
async def test_no_worker_hands_out_another_users_token(
    database: Database, admin: asyncpg.Connection, spotify: FakeSpotify, open_folder: Path, start: int
) -> None:
    """Each request has its user's token from the worker's own manager, and the way out from the inherited one."""
    users = await connect_many(admin, spotify, [3600 if n % 2 else -5 for n in range(10)])
    async with spotify.serve() as url:
        settings = {"DATABASE_URL": database.dsn, "SPOTIFY_URL": url, "WARM_UP": str(users[0])}
        async with preloaded(open_folder / "socket", **settings) as client:
            asked = [users[n % len(users)] for n in range(REQUESTS)]
            answers: list[dict[str, Any]] = [
                answer.json() for answer in await asyncio.gather(*[client.get(f"/{user}") for user in asked])
            ]
        async with httpx.AsyncClient(base_url=url) as web:
            for user, answer in zip(asked, answers, strict=True):
                assert answer["own"].keys() == {"token"}, answer
                assert await _owner(web, answer["own"]["token"]) == _account(users, user)
    assert {answer["pid"] for answer in answers} - {answers[0]["master"]}
    assert all(_names_the_way_out(answer["inherited"]) for answer in answers)
    stored = await admin.fetch("select refresh_token from public.spotify_connections")
    assert all(spotify.accepts_refresh(row["refresh_token"]) for row in stored)
    assert set(spotify.refreshes.values()) == {1}


def _account(users: list[UUID], user: UUID) -> str:
    return f"account-{users.index(user)}"


def _names_the_way_out(answer: dict[str, str]) -> bool:
    text = answer.get("error", "")
    return text.startswith("RuntimeError: this TokenManager was made before a fork") and "gunicorn" in text


async def _owner(web: httpx.AsyncClient, token: str) -> str:
    answer = await web.get("/v1/me", headers={"Authorization": f"Bearer {token}"})
    owner: str = answer.json()["id"]
    return owner
