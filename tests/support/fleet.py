"""A fleet of real processes over one database, and a crowd of connected users for it."""

import asyncio
import hashlib
import json
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import asyncpg

from spotconn.testing import FakeSpotify

WORKER = Path(__file__).parent / "fleet_worker.py"

APP = "demo-client:demo-secret"

Answers = list[str]
"""For each user, the digest of a token or the name of an error."""


@dataclass(frozen=True)
class Fleet:
    processes: Sequence[asyncio.subprocess.Process]

    async def ask(self, users: Sequence[UUID]) -> list[Answers]:
        """Let every process ask for every user at once."""
        order = json.dumps([str(user) for user in users]).encode() + b"\n"
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(order)
        return await asyncio.gather(*[self._answer(process) for process in self.processes])

    async def _answer(self, process: asyncio.subprocess.Process) -> Answers:
        assert process.stdout is not None
        answers: Answers = json.loads(await process.stdout.readline())
        return answers


@asynccontextmanager
async def fleet(
    dsn: str,
    url: str,
    *,
    processes: int = 0,
    apps: Sequence[str] = (),
    connections: int = 4,
    patience: float = 0.0,
    lease: float = 15.0,
) -> AsyncGenerator[Fleet]:
    """Real processes that ask for tokens; they end with the block, and with the process that runs the tests.

    There are `processes` of them with the app of the fake or, with `apps`, one with each of these: `id:secret`, or
    several of them separated by commas.
    """
    arguments = (sys.executable, str(WORKER), dsn, url, str(connections), str(patience), str(lease))
    pipe = asyncio.subprocess.PIPE
    started = [
        await asyncio.create_subprocess_exec(*arguments, one, stdin=pipe, stdout=pipe, limit=1 << 24)
        for one in (apps or [APP] * processes)
    ]
    try:
        for process in started:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"ready\n"
        yield Fleet(started)
    finally:
        for process in started:
            assert process.stdin is not None
            process.stdin.close()
        await asyncio.gather(*[process.wait() for process in started])


async def connect_crowd(admin: asyncpg.Connection, spotify: FakeSpotify, number: int) -> list[UUID]:
    """Users connected to an account each, whose tokens have run out."""
    rows = await admin.fetch(
        "insert into auth.users (email) select n from generate_series(1, $1) as n returning id", number
    )
    users: list[UUID] = [row["id"] for row in rows]
    ended = datetime.now(UTC) - timedelta(seconds=60)
    rights: list[tuple[object, ...]] = []
    for user in users:
        spotify.add_account(str(user))
        grant = spotify.authorize(str(user))
        rights.append((user, str(user), grant.access_token, grant.refresh_token, ended))
    await admin.executemany(
        "insert into public.spotify_connections (user_id, spotify_user_id, access_token, refresh_token, expires_at) "
        "values ($1, $2, $3, $4, $5)",
        rights,
    )
    return users


async def valid_digests(admin: asyncpg.Connection, spotify: FakeSpotify, users: Sequence[UUID]) -> Answers:
    """The digest of each user's stored token; of one that Spotify does not accept, an empty text."""
    rows = await admin.fetch("select user_id, access_token, refresh_token from public.spotify_connections")
    digests = {
        row["user_id"]: hashlib.sha256(row["access_token"].encode()).hexdigest()
        for row in rows
        if spotify.accepts(row["access_token"]) and spotify.accepts_refresh(row["refresh_token"])
    }
    return [digests.get(user, "") for user in users]
