"""Refreshes that meet a database which takes no writes: callers try later, nobody is refused, nothing is lost."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import asyncpg
import pytest

from spotconn import ConnectionStore, DatabaseUnavailable, NotConnected, SpotifyAccounts, TokenManager
from spotconn._database.server_leaving import INTERVAL
from spotconn.testing import FakeSpotify
from support.connections import connect, stored_state
from support.database import Database
from support.listening import feed_of, until
from support.read_only import read_only


@pytest.fixture
async def tokens(store: ConnectionStore, accounts: SpotifyAccounts) -> AsyncIterator[TokenManager]:
    """A manager that caches nothing."""
    async with TokenManager(store, accounts, cache_ttl=0) as manager:
        yield manager


async def test_a_refresh_does_not_begin(
    tokens: TokenManager,
    store: ConnectionStore,
    spotify: FakeSpotify,
    database: Database,
    admin: asyncpg.Connection,
    user: UUID,
) -> None:
    """Spotify is not asked, so no token is spent, and nothing is recorded of the user; afterwards it is refreshed."""
    await connect(store, spotify, user, ttl=-1)
    async with read_only(database):
        for _ in range(3):
            with pytest.raises(DatabaseUnavailable, match="read-only"):
                await tokens.get_valid_token(user)
        assert spotify.token_calls == 0
        state = await stored_state(admin, user)
        assert (state["failure"], state["lease_until"]) == (None, None)
        status = await tokens.status(user)
        assert status.connected
        assert status.reauthorization is None
    assert spotify.accepts(await tokens.get_valid_token(user))


async def test_what_was_granted_is_saved_once_the_database_takes_it(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, database: Database, user: UUID
) -> None:
    """A database that turns read-only between the request and its answer: the caller has the token all the same."""
    await connect(store, spotify, user, ttl=-1)
    with spotify.hold() as held:
        caller = asyncio.create_task(tokens.get_valid_token(user))
        await held.reached()
        async with read_only(database):
            held.release()
            granted = await caller
            assert await tokens.get_valid_token(user) == granted
            assert (await store.get(user)).access_token != granted
    await asyncio.sleep(INTERVAL)
    assert await tokens.get_valid_token(user) == granted
    stored = await store.get(user)
    assert stored.access_token == granted
    assert stored.failure is None
    assert spotify.token_calls == 1


async def test_a_disconnect_and_a_reconnect_are_not_carried_out(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, database: Database, user: UUID
) -> None:
    """Their callers hear so, and what was stored stays."""
    before = await connect(store, spotify, user)
    async with read_only(database):
        with pytest.raises(DatabaseUnavailable, match="read-only"):
            await tokens.disconnect(user)
        with pytest.raises(DatabaseUnavailable, match="read-only"):
            await tokens.replace_rejected(user, before.access_token)
        assert await tokens.get_valid_token(user) == before.access_token
    assert (await store.get(user)).failure is None


async def test_the_listener_stays_where_its_server_is_the_only_one(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, database: Database, user: UUID
) -> None:
    """The pool leaves its sessions again and again; the one that listens is at the same server and goes on."""
    await connect(store, spotify, user, ttl=-1)
    async with TokenManager(store, accounts) as tokens:
        with pytest.raises(NotConnected):
            await tokens.get_valid_token(uuid4())
        await until(lambda: tokens._cache.trusted)
        listening = feed_of(tokens)._subscription
        async with read_only(database):
            async with asyncio.timeout(30):
                while store.pool.leaving.generation < 3:
                    with pytest.raises(DatabaseUnavailable):
                        await tokens.get_valid_token(user)
                    await asyncio.sleep(0.05)
            assert feed_of(tokens)._subscription is listening
            assert tokens._cache.trusted
