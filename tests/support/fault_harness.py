"""A manager between a Postgres behind a proxy and a Spotify that all can be broken, and what must hold in the end."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from spotconn import ConnectionStore, SpotifyAccounts, TokenManager, TryLater
from spotconn.testing import FakeSpotify
from support.connections import connect
from support.database import Database
from support.fault_proxy import FaultProxy
from support.invariants import check_lease, check_row, recorded, stored_row
from support.times import set_times

LEASE = 4.0
STORE_TIMEOUT = 5.0
REFRESH_TIMEOUT = 2.5
"""Seconds that nothing needs but what a fault stops. The lease leaves a second and a half to the database's answer."""
SHORT_STORE_TIMEOUT = 0.4
SHORT_REFRESH_TIMEOUT = 2.0
"""Seconds for what a test waits out."""
SETTLES = 10.0
"""Seconds after which what waits for the end of a fault has failed: far more than is needed."""
LONGEST_WAIT = LEASE
"""Seconds that a caller is told to wait at most: for a lease, or for a pause."""
SERVED = 15.0
"""Seconds within which a caller who tries again is served: a wait, some work, and far more for a slow machine."""

_BACKENDS = "select count(*) from pg_stat_activity where usename = 'app'"


@dataclass(frozen=True)
class FaultHarness:
    database: Database
    proxy: FaultProxy
    spotify: FakeSpotify
    store: ConnectionStore
    tokens: TokenManager
    url: str
    user: UUID
    before: asyncpg.Record

    def accounts(self) -> SpotifyAccounts:
        """Another process's way to Spotify."""
        return SpotifyAccounts("demo-client", "demo-secret", accounts_url=self.url)

    def hurry_database(self, seconds: float = SHORT_STORE_TIMEOUT) -> None:
        """Give each statement that begins from now on little time."""
        self.store.pool.timeout = seconds

    def hurry_spotify(self) -> None:
        """Give each refresh that begins from now on little time at Spotify."""
        set_times(self.tokens, timeout=SHORT_REFRESH_TIMEOUT)

    def give_time(self) -> None:
        """End what was hurried."""
        self.store.pool.timeout = STORE_TIMEOUT
        set_times(self.tokens, timeout=REFRESH_TIMEOUT)

    @asynccontextmanager
    async def admin(self) -> AsyncGenerator[asyncpg.Connection]:
        """A superuser's connection past the proxy, made anew: the server may have restarted."""
        async with superuser(self.database) as connection:
            yield connection

    async def ask_until_served(self) -> str:
        """The token that a caller gets who tries again later when told so."""
        return await ask_until_served(self.tokens, self.user)

    async def saved(self) -> None:
        """Wait until nothing that Spotify granted is left to be saved."""
        if saver := self.tokens._source.refresher.unsaved._savers.get(self.user):
            await asyncio.wait_for(asyncio.shield(saver), SETTLES)
        assert self.tokens._source.refresher.unsaved.get(self.user) is None

    async def check(self) -> None:
        """The row is consistent, Spotify accepts its refresh token, and no lease is left beyond its time."""
        async with self.admin() as admin:
            await check_row(admin, self.spotify, self.user, self.before, lease=LEASE)

    async def check_lease(self) -> None:
        """No lease is left beyond its time."""
        async with self.admin() as admin:
            await check_lease(admin, self.user, lease=LEASE)

    async def row(self) -> asyncpg.Record:
        async with self.admin() as admin:
            return await stored_row(admin, self.user)

    async def lease_and_failure(self) -> tuple[bool, str | None]:
        """Whether somebody has the lease, and the failure recorded."""
        async with self.admin() as admin:
            state = await recorded(admin, self.user)
        return (False, None) if state is None else (state["leased"], state["failure"])


async def ask_until_served(tokens: TokenManager, user: UUID) -> str:
    async with asyncio.timeout(SERVED):
        while True:
            try:
                return await tokens.get_valid_token(user)
            except TryLater as error:
                wait = error.retry_after or 0.05
            assert wait <= LONGEST_WAIT
            await asyncio.sleep(wait)


@asynccontextmanager
async def superuser(database: Database) -> AsyncGenerator[asyncpg.Connection]:
    connection = await asyncpg.connect(database.admin_dsn)
    try:
        yield connection
    finally:
        await connection.close()


def manager(store: ConnectionStore, accounts: SpotifyAccounts, *, cache_ttl: float) -> TokenManager:
    """With a lease that a test can wait out, and a cache that the loss of a listener does not empty."""
    store.changes = None
    return TokenManager(store, accounts, refresh_timeout=REFRESH_TIMEOUT, lease=LEASE, cache_ttl=cache_ttl)


@asynccontextmanager
async def fault_harness(
    database: Database,
    *,
    ttl: float = -1,
    rotation: bool = True,
    cache_ttl: float = 0,
) -> AsyncGenerator[FaultHarness]:
    """A connected user whose token ends in `ttl` seconds; in the end no task and no backend may be left."""
    tasks = asyncio.all_tasks()
    spotify = FakeSpotify(rotation=rotation)
    async with spotify.serve() as url, FaultProxy(database.server.port).serve() as proxy:
        async with superuser(database) as admin:
            user = await admin.fetchval("insert into auth.users (email) values ('a') returning id")
        async with (
            ConnectionStore.open(proxy.dsn(database.dsn), timeout=STORE_TIMEOUT, max_size=2) as store,
            SpotifyAccounts("demo-client", "demo-secret", accounts_url=url) as accounts,
            manager(store, accounts, cache_ttl=cache_ttl) as tokens,
        ):
            await connect(store, spotify, user, ttl=ttl)
            async with superuser(database) as admin:
                before = await stored_row(admin, user)
            yield FaultHarness(database, proxy, spotify, store, tokens, url, user, before)
    assert asyncio.all_tasks() == tasks
    async with superuser(database) as admin, asyncio.timeout(SETTLES):
        while await admin.fetchval(_BACKENDS):
            await asyncio.sleep(0.01)
