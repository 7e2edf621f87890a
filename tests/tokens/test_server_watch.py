"""Whether the server is another one: who tells, who asks, and for how long."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore, SpotifyAccounts, TokenManager
from spotconn._tokens import server_watch
from spotconn.testing import FakeSpotify
from support.backups import refreshed
from support.connections import connect
from support.database import Database
from support.fault_proxy import FaultProxy
from support.listening import SOON, feed_of, trusted, until

LIFE = b"select spotconn.server_life()"


@pytest.fixture
async def tokens(database: Database, proxy: FaultProxy, accounts: SpotifyAccounts) -> AsyncIterator[TokenManager]:
    """One that caches nothing and does not listen."""
    async with (
        ConnectionStore.open(proxy.dsn(database.dsn), timeout=2) as store,
        TokenManager(store, accounts, cache_ttl=0) as manager,
    ):
        yield manager


async def test_a_heartbeat_of_another_server_has_the_rows_compared(
    database: Database, store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify,
    admin: asyncpg.Connection, users: list[UUID], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A process that listens asks nothing besides, and is not asked for anything."""
    monkeypatch.setattr(server_watch, "INTERVAL", 1000.0)
    async with (
        ConnectionStore.open(database.dsn) as listening,
        TokenManager(listening, accounts, cache_ttl=0.6) as tokens,
    ):
        await connect(store, spotify, users[2])
        await trusted(tokens, users[2])
        before, token = await refreshed(store, tokens, spotify, admin, users[0])
        watch = tokens._source.refresher.watch
        await until(lambda: not watch._look_again)  # what the first heartbeats have compared
        await before.restore(admin)
        subscription = feed_of(tokens)._subscription
        watch._life = "another"
        async with asyncio.timeout(SOON):
            while (await store.get(users[0])).access_token != token:
                await asyncio.sleep(0.05)
        assert await watch.changed_lately()
        assert feed_of(tokens)._subscription is subscription
    assert spotify.token_calls == 1


async def test_without_a_listener_the_server_is_asked_along_with_calls(
    store: ConnectionStore, tokens: TokenManager, spotify: FakeSpotify, proxy: FaultProxy, admin: asyncpg.Connection,
    users: list[UUID], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Some time after the last one no more, so that a server may sleep; the next call has it asked at once."""
    monkeypatch.setattr(server_watch, "INTERVAL", 0.05)
    monkeypatch.setattr(server_watch, "LASTING", 0.5)
    await connect(store, spotify, users[1])
    before, token = await refreshed(store, tokens, spotify, admin, users[0])
    watch = tokens._source.refresher.watch
    await until(lambda: proxy.executed.count(LIFE) > 2)
    await until(lambda: watch._task is not None and watch._task.done())
    await before.restore(admin)
    watch._life = "another"
    asked = proxy.executed.count(LIFE)
    await tokens.get_valid_token(users[1])
    async with asyncio.timeout(SOON):
        while (await store.get(users[0])).access_token != token:
            await asyncio.sleep(0.05)
    assert proxy.executed.count(LIFE) > asked
    assert spotify.token_calls == 1
