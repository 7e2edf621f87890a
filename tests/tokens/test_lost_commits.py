"""Commits that a failover loses, on real servers: no user is lost while a process lives that refreshed."""

import asyncio
import logging
import shutil
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore, SpotconnError, SpotifyAccounts, TokenManager, events
from spotconn._tokens import saved_grants, server_watch
from spotconn.errors import TryLater
from spotconn.testing import FakeSpotify
from support.connections import connect
from support.fault_proxy import FaultProxy
from support.listening import until
from support.postgres_server import Server
from support.replication import Pair, replicated

PATIENCE = 60.0
"""Seconds in which every user has to be served."""
BATCH = 20
"""Users whose rows are compared in one statement: fewer than each process has refreshed."""


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """For the whole module: each test promotes the other one."""
    with replicated() as servers:
        yield servers


class Fleet:
    """Managers over one address, which leads to the primary.

    Attributes:
        managers: each with a pool of its own.
        restored: the users of the events of each that tell of a connection saved again.
    """

    def __init__(self, pair: Pair, proxy: FaultProxy) -> None:
        self._pair = pair
        self._proxy = proxy
        self.managers: list[TokenManager] = []
        self.restored: list[UUID] = []

    def store(self) -> ConnectionStore:
        return self.managers[0].store

    def record(self, event: events.Event) -> None:
        if isinstance(event, events.ConnectionRestored):
            self.restored.append(event.user_id)

    async def add_users(self, spotify: FakeSpotify, count: int) -> list[UUID]:
        """Connect users whose access tokens have ended; the standby has that."""
        admin = await asyncpg.connect(self._pair.primary.admin_dsn)
        query = "insert into auth.users (email) select gen_random_uuid() from generate_series(1, $1) returning id"
        users = [row["id"] for row in await admin.fetch(query, count)]
        await admin.close()
        for user in users:
            await connect(self.store(), spotify, user, account=str(user), ttl=-1)
        await asyncio.to_thread(self._pair.wait_until_replayed)
        return users

    async def fail_over(self) -> None:
        """Kill the primary, and let the standby, which lacks its last commits, take its place and its address."""
        await asyncio.to_thread(self._pair.primary.kill)
        self._proxy.cut()
        await asyncio.to_thread(self._pair.promote)
        self.lead_to(self._pair.primary)

    def lead_to(self, server: Server) -> None:
        self._proxy._target = server.port

    async def lost(self, users: list[UUID], spotify: FakeSpotify) -> list[UUID]:
        """Return the users whose stored refresh token Spotify does not accept."""
        stored = await self.store().get_many(users)
        return [
            user
            for user, row in stored.items()
            if isinstance(row, SpotconnError) or not spotify.accepts_refresh(row.refresh_token)
        ]


@pytest.fixture
async def fleet(pair: Pair, spotify: FakeSpotify, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fleet]:
    """Two managers that cache nothing and do not listen: they learn of a failover from what they ask."""
    monkeypatch.setattr(server_watch, "INTERVAL", 0.5)
    monkeypatch.setattr(saved_grants, "BATCH", BATCH)
    if not pair.standby.runs:
        await asyncio.to_thread(pair.rejoin)
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(FaultProxy(pair.primary.port).serve())
        fleet = Fleet(pair, proxy)
        url = await stack.enter_async_context(spotify.serve())
        for _ in range(2):
            accounts = await stack.enter_async_context(
                SpotifyAccounts("demo-client", "demo-secret", accounts_url=url, api_url=url)
            )
            dsn = proxy.dsn(pair.primary.dsn())
            store = await stack.enter_async_context(ConnectionStore.open(dsn, timeout=2, max_size=4))
            manager = TokenManager(store, accounts, cache_ttl=0, on_event=fleet.record)
            fleet.managers.append(await stack.enter_async_context(manager))
        yield fleet


async def served(manager: TokenManager, user: UUID, errors: Counter[str]) -> str:
    """Return the token of a user, asking again where that is the answer."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await manager.get_valid_token(user)
            except TryLater as error:
                await asyncio.sleep(error.retry_after or 0.5)
            except SpotconnError as error:
                errors[type(error).__name__] += 1
                await asyncio.sleep(0.2)


def incidents(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged of rows that have gone back in time."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and "gone back in time" in record.getMessage()
    ]


@pytest.mark.long
@pytest.mark.parametrize("many", [60, pytest.param(200, marks=pytest.mark.long)])
async def test_nobody_is_lost_and_nobody_has_to_connect_again(
    fleet: Fleet, pair: Pair, spotify: FakeSpotify, caplog: pytest.LogCaptureFixture, many: int
) -> None:
    """Each user asks the process that did not refresh, from the moment of the failover on: later, and served."""
    users = await fleet.add_users(spotify, many)
    await asyncio.to_thread(pair.pause_replication)
    halves = dict(zip(fleet.managers, (users[::2], users[1::2]), strict=True))
    for manager, some in halves.items():
        for user in some:
            await manager.get_valid_token(user)
    await until(lambda: all(manager._source.refresher.watch._life for manager in fleet.managers))
    await fleet.fail_over()
    errors = Counter[str]()
    asked = zip(reversed(halves), halves.values(), strict=True)
    calls = [served(manager, user, errors) for manager, some in asked for user in some]
    tokens = await asyncio.gather(*calls)
    assert errors == {}
    assert all(spotify.accepts(token) for token in tokens)
    assert await fleet.lost(users, spotify) == []
    await until(lambda: sorted(fleet.restored) == sorted(users))  # each once
    await until(lambda: len(incidents(caplog)) >= len(fleet.managers))
    assert len(incidents(caplog)) <= 2 * len(fleet.managers)


async def test_a_process_that_was_idle_meets_no_error_and_saves_again(
    fleet: Fleet, pair: Pair, spotify: FakeSpotify
) -> None:
    """It is not asked for anything, and its pool opens lost sessions again by itself."""
    users = await fleet.add_users(spotify, 20)
    await asyncio.to_thread(pair.pause_replication)
    for user in users:
        await fleet.managers[1].get_valid_token(user)
    await until(lambda: fleet.managers[1]._source.refresher.watch._life is not None)
    await fleet.fail_over()
    async with asyncio.timeout(PATIENCE):
        while await fleet.lost(users, spotify):
            await asyncio.sleep(0.1)
    assert sorted(fleet.restored) == sorted(users)


@pytest.mark.long
async def test_so_it_does_where_the_same_server_comes_back_with_earlier_data(
    fleet: Fleet, pair: Pair, spotify: FakeSpotify
) -> None:
    """As Patroni rewinds a server, or a backup is restored: the address stays the same."""
    users = await fleet.add_users(spotify, 20)
    server = pair.primary
    backup = server.data.with_name("backup")
    await asyncio.to_thread(pair.standby.kill)
    await asyncio.to_thread(server.stop)
    await asyncio.to_thread(copy_folder, server.data, backup)
    await asyncio.to_thread(server.start)
    for user in users:
        await served(fleet.managers[0], user, Counter())
    await until(lambda: fleet.managers[0]._source.refresher.watch._life is not None)
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(shutil.rmtree, server.data)
    await asyncio.to_thread(backup.rename, server.data)
    await asyncio.to_thread(server.start)
    async with asyncio.timeout(PATIENCE):
        while await fleet.lost(users, spotify):
            await asyncio.sleep(0.1)
    assert sorted(fleet.restored) == sorted(users)


def copy_folder(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", str(source), str(target)], check=True, timeout=60)
