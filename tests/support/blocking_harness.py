"""A Spotify on an event loop of its own, for tests of code that does not await."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg

from spotconn import ConnectionStore, SpotifyAccounts, TokenManager
from spotconn.blocking import BlockingTokens
from spotconn.testing import FakeSpotify
from support.bulk import connect_many
from support.database import Database
from support.loops import LoopThread

Make = Callable[..., BlockingTokens]


class Harness:
    """The servers, and what opens a manager on them.

    Attributes:
        opened: how often a manager was opened.
    """

    def __init__(self, loop: LoopThread, database: Database, spotify: FakeSpotify, url: str) -> None:
        self.loop = loop
        self.dsn = database.dsn
        self.spotify = spotify
        self.url = url
        self.opened = 0
        self._admin_dsn = database.admin_dsn

    @asynccontextmanager
    async def open(self, **options: Any) -> AsyncGenerator[TokenManager]:
        """Open a manager in the running loop."""
        self.opened += 1
        async with (
            SpotifyAccounts("demo-client", "demo-secret", accounts_url=self.url, api_url=self.url) as accounts,
            ConnectionStore.open(self.dsn, min_size=1, max_size=4) as store,
            TokenManager(store, accounts, **options) as tokens,
        ):
            yield tokens

    def connect(self, *ttls: float) -> list[UUID]:
        """New users whose access tokens end so many seconds from now; no other user is there."""
        return self.loop.run(self._connect(ttls))

    def sql(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        """Run a statement as a superuser."""
        return self.loop.run(self._sql(statement, *arguments))

    def stored(self, user: UUID) -> asyncpg.Record:
        """The row of a user."""
        [row] = self.sql("select * from public.spotify_connections where user_id = $1", user)
        return row

    async def _connect(self, ttls: Sequence[float]) -> list[UUID]:
        admin = await asyncpg.connect(self._admin_dsn)
        try:
            await admin.execute("delete from auth.users")
            return await connect_many(admin, self.spotify, ttls)
        finally:
            await admin.close()

    async def _sql(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        admin = await asyncpg.connect(self._admin_dsn)
        try:
            return await admin.fetch(statement, *arguments)
        finally:
            await admin.close()
