"""Two managers over one database and one Spotify, and what must hold of them whatever happens."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg

from spotconn import (
    AskUser,
    ConnectionStore,
    NotConnected,
    Profile,
    ReauthorizationRequired,
    SpotifyAccounts,
    TokenManager,
    TryLater,
)
from spotconn.testing import FakeSpotify
from support.database import Database
from support.database_clock import DatabaseClock

ACCOUNTS = ("alice", "bob", "carol")
CACHE_TTLS = (0.0, 30.0)
"""Of the two managers: one asks the database each time."""


@dataclass
class Expected:
    """What the row of a user must be."""

    account: str | None = None
    revoked: bool = False
    past: list[tuple[float, str | None]] = field(default_factory=list[tuple[float, str | None]])


class StateHarness:
    def __init__(self, database: Database) -> None:
        self.database = database
        self.offset = 0.0
        self.spotify = FakeSpotify(rotation=True, clock=self.clock)
        self.expected: dict[UUID, Expected] = {}
        self.admin: asyncpg.Connection
        self.stores: list[ConnectionStore] = []
        self.managers: list[TokenManager] = []
        self.rejected: set[str] = set()
        self._stack = AsyncExitStack()
        self._looking = asyncio.Lock()  # of self.admin, where calls run beside each other
        self._url = ""

    def clock(self) -> float:
        return time.time() + self.offset

    async def open(self) -> None:
        for account in ACCOUNTS:
            self.spotify.add_account(account)
        self.admin = await asyncpg.connect(self.database.admin_dsn)
        self._stack.push_async_callback(self.admin.close)
        await self.admin.execute("delete from auth.users")
        rows = await self.admin.fetch("insert into auth.users (email) values ('a'), ('b') returning id")
        self.expected = {row["id"]: Expected() for row in rows}
        self._url = await self._stack.enter_async_context(self.spotify.serve())
        for ttl in CACHE_TTLS:
            opening = ConnectionStore.open(self.database.dsn, min_size=1, max_size=2)
            store = await self._stack.enter_async_context(opening)
            self.stores.append(store)
            self.managers.append(self._manager(store, ttl))

    def _manager(self, store: ConnectionStore, ttl: float) -> TokenManager:
        accounts = SpotifyAccounts("demo-client", "demo-secret", accounts_url=self._url, clock=self.clock)
        return TokenManager(store, accounts, refresh_timeout=4, lease=6, cache_ttl=ttl, clock=self.clock)

    async def pass_time(self, seconds: float) -> None:
        """Set the clock of all forward, that of the database, too."""
        self.offset += seconds
        await DatabaseClock(self.admin).set_offset(self.offset)

    async def reopen(self, which: int) -> None:
        """Another manager in the place of one: what it remembered and paused for is gone."""
        old = self.managers[which]
        await old.aclose()
        await old.accounts.aclose()
        self.managers[which] = self._manager(self.stores[which], CACHE_TTLS[which])

    async def close(self) -> None:
        for manager in self.managers:
            await manager.aclose()
            await manager.accounts.aclose()
        await DatabaseClock(self.admin).restore()
        await self._stack.aclose()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others, "a task was left"

    def holds(self, user: UUID, account: str | None) -> None:
        """From now on the row of a user is to this account."""
        expected = self.expected[user]
        expected.past.append((self.clock(), expected.account))
        expected.account, expected.revoked = account, False

    async def reconnect(self, user: UUID, account: str, which: int) -> None:
        grant = self.spotify.authorize(account)
        await self.stores[which].save(user, grant, Profile(spotify_user_id=account))
        self.holds(user, account)

    async def foreign_write(self, user: UUID, account: str) -> None:
        """What a client does that has never heard of this library: it writes as the user, under row level security."""
        grant = self.spotify.authorize(account)
        async with self.stores[0].as_user(user) as connection:
            await connection.execute(
                "insert into public.spotify_connections as stored "
                "(user_id, spotify_user_id, access_token, refresh_token, expires_at) values ($1, $2, $3, $4, $5) "
                "on conflict (user_id) do update set spotify_user_id = excluded.spotify_user_id, access_token = "
                "excluded.access_token, refresh_token = excluded.refresh_token, expires_at = excluded.expires_at",
                user, account, grant.access_token, grant.refresh_token, grant.expires_at,
            )  # fmt: skip
        self.holds(user, account)

    async def expire(self, user: UUID) -> None:
        ended = datetime.fromtimestamp(self.clock(), UTC) - timedelta(seconds=1)
        await self.admin.execute(
            "update public.spotify_connections set expires_at = $2 where user_id = $1", user, ended
        )

    async def let_pauses_pass(self) -> None:
        await self.admin.execute(
            "update spotconn.refresh_state set leased_at = leased_at - interval '1 hour', "
            "lease_until = lease_until - interval '1 hour', paused_at = paused_at - interval '2 days', "
            "retry_at = retry_at - interval '2 days', granted_at = granted_at - interval '1 hour'"
        )

    async def terminate(self) -> None:
        async with self._looking:
            await self.admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'")

    async def check_answer(self, user: UUID, which: int, call: Awaitable[str]) -> None:
        """Check that a call gives a good token of the right account, or an error that is true."""
        try:
            token = await call
        except NotConnected:
            assert None in self._possible(user, which)
        except ReauthorizationRequired:
            row = await self._row(user)
            assert row is not None
            assert not self.spotify.accepts_refresh(row["refresh_token"]), "declared dead, but Spotify accepts it"
        except TryLater:
            pass
        except AskUser as error:  # pragma: no cover
            raise AssertionError(f"unexpected {type(error).__name__}") from error
        else:
            if token in self.rejected:  # a manager that has not had the 401 cannot know
                return
            consent, ends = self.spotify._tokens.access[token]
            assert ends > self.clock(), "an expired token was served"
            assert consent.account.spotify_user_id in self._possible(user, which), "a crossed token was served"

    def _possible(self, user: UUID, which: int) -> set[str | None]:
        """Return the accounts that a manager may still have in its cache."""
        expected, since = self.expected[user], self.clock() - CACHE_TTLS[which] - 1
        cached = {account for ended, account in expected.past if CACHE_TTLS[which] and ended >= since}
        return cached | {expected.account}

    async def settle(self) -> None:
        """Wait for what goes on by itself: background refreshes, and the saving and comparing of grants."""
        while tasks := [task for manager in self.managers for task in self._tasks(manager)]:
            await asyncio.wait(tasks, timeout=30)

    def _tasks(self, manager: TokenManager) -> list[asyncio.Task[object]]:
        refresher = manager._source.refresher
        flights = manager._source.refreshes.tasks
        comparing = refresher.saved._comparing
        others = [*refresher.unsaved._savers.values(), *([comparing] if comparing else [])]
        return [*flights, *(task for task in others if not task.done())]

    async def _row(self, user: UUID) -> asyncpg.Record | None:
        async with self._looking:
            return await self.admin.fetchrow(
                "select *, spotconn.now() as now from public.spotify_connections left join "
                "(select user_id, fingerprint, lease_until, failure, retry_at from spotconn.refresh_state) as state "
                "using (user_id) where user_id = $1",
                user,
            )

    async def check(self) -> None:
        """What must hold between two steps."""
        await self.settle()
        for store in self.stores:
            await _answering(store)
        for user, expected in self.expected.items():
            row = await self._row(user)
            assert (row is not None) == (expected.account is not None), "a row came back, or is lost"
            if row is None:
                continue
            assert row["spotify_user_id"] == expected.account
            assert self.spotify.accepts_refresh(row["refresh_token"]) or expected.revoked, "the refresh token is lost"
            recorded = row["fingerprint"] == hashlib.sha256(row["refresh_token"].encode()).digest()
            if recorded and row["failure"] in {"expired", "revoked", "invalid"}:
                assert expected.revoked, "a connection is recorded as dead that Spotify accepts"
            assert row["lease_until"] is None or row["lease_until"] - row["now"] <= timedelta(seconds=6)


async def _answering(store: ConnectionStore) -> None:
    """Use up the connections whose backends were terminated."""
    good = 0
    while good < 2:
        try:
            await asyncio.gather(store.verify(), store.verify())
        except TryLater:
            good = 0
        else:
            good += 1
