"""The users of a scenario, at the simulated Spotify and in the database."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

import asyncpg

from failover.client import open_manager
from failover.timing import LASTING_TTL, PERIOD, USERS, VICTIMS, Timing
from failover.ways import Way
from spotconn import ConnectionStore, Profile, TryLater
from spotconn.testing import FakeSpotify

ADMIN_TIMEOUT = 20.0
JUDGES = 30.0
"""Seconds for users to be refreshed at the end; whose answer is to try later are asked again."""
_AGE = "update public.spotify_connections set expires_at = spotconn.now() - interval '1 minute'"


class Users:
    """Users of each way: `USERS` whose tokens are short-lived, and after them `VICTIMS` whose tokens are not.

    Args:
        spotify: strictly rotating.
        ways: those of the scenario.
        ttl: seconds that an access token lives.
    """

    def __init__(self, spotify: FakeSpotify, ways: Sequence[Way], ttl: int) -> None:
        self._spotify = spotify
        self._ttl = ttl
        self.of: dict[str, list[UUID]] = {way.name: [] for way in ways}

    async def connect_all(self, dsn: str) -> None:
        """Replace all users of a database by these."""
        async with ConnectionStore.open(dsn, timeout=ADMIN_TIMEOUT, max_size=4) as store, store.pool.acquire() as admin:
            await admin.execute("delete from auth.users")
            for users in self.of.values():
                rows = (
                    "insert into auth.users (id) select gen_random_uuid() from generate_series(1, $1::int) returning id"
                )
                users.extend([row["id"] for row in await admin.fetch(rows, USERS + VICTIMS)])
        async with ConnectionStore.open(dsn, timeout=ADMIN_TIMEOUT, max_size=4) as store:
            numbered = [one for users in self.of.values() for one in enumerate(users)]
            await asyncio.gather(*[self._connect(store, user, number) for number, user in numbered])

    async def _connect(self, store: ConnectionStore, user: UUID, number: int) -> None:
        account = str(user)
        self._spotify.add_account(account)
        ttl = self._ttl + number if number < USERS else LASTING_TTL  # so that not all are refreshed at once
        self._spotify._token_ttl = self._spotify._tokens._token_ttl = ttl
        grant = self._spotify.authorize(account)
        self._spotify._token_ttl = self._spotify._tokens._token_ttl = self._ttl
        await store.save(user, grant, Profile(spotify_user_id=account))

    async def disconnect_victims(self, dsn: str) -> dict[str, dict[int, float]]:
        """Delete the rows of the victims, and return the times by way and number."""
        admin = await asyncpg.connect(dsn, timeout=ADMIN_TIMEOUT, command_timeout=ADMIN_TIMEOUT)
        try:
            times: dict[str, dict[int, float]] = {}
            for name, users in self.of.items():
                await admin.execute("delete from public.spotify_connections where user_id = any($1)", users[USERS:])
                times[name] = dict.fromkeys(range(USERS, USERS + VICTIMS), time.time())
            return times
        finally:
            await admin.close()

    async def refresh_all(self, dsn: str, url: str, timing: Timing) -> dict[str, dict[int, str]]:
        """Refresh every user by a process that knows nothing, and return those who must connect again."""
        admin = await asyncpg.connect(dsn, timeout=ADMIN_TIMEOUT, command_timeout=ADMIN_TIMEOUT)
        await admin.execute(_AGE)
        await admin.close()
        settings: dict[str, Any] = {"dsn": dsn, "listen_dsn": None, "url": url}
        async with AsyncExitStack() as stack:
            tokens = await open_manager(stack, settings, timing)
            asked, answers = [user for users in self.of.values() for user in users], dict[UUID, Any]()
            end = time.monotonic() + JUDGES
            while asked and time.monotonic() < end:
                answers |= {user: answer async for user, answer in tokens.get_valid_tokens(asked)}
                asked = [user for user in asked if isinstance(answers[user], TryLater)]
                await asyncio.sleep(PERIOD if asked else 0)
        return {
            name: {n: str(answers[user]) for n, user in enumerate(users) if not isinstance(answers[user], str)}
            for name, users in self.of.items()
        }
