"""What a call costs on the wire, counted by a proxy before Postgres."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore, ReauthorizationRequired, SpotifyAccounts, TokenManager
from spotconn.testing import FakeSpotify
from support.bulk import connect_many
from support.connections import connect
from support.counting_proxy import CountingProxy
from support.database import Database


@pytest.fixture
async def proxy(database: Database) -> AsyncIterator[CountingProxy]:
    async with CountingProxy(database.server.port).serve() as serving:
        yield serving


@pytest.fixture
async def proxied(proxy: CountingProxy, database: Database, user: UUID) -> AsyncIterator[ConnectionStore]:
    """A store through the proxy, its one connection warm."""
    parts = urlsplit(database.dsn)
    netloc = parts.netloc.replace(f":{database.server.port}", f":{proxy.port}")
    async with ConnectionStore.open(urlunsplit(parts._replace(netloc=netloc)), max_size=1) as store:
        yield store


async def test_a_read_is_one_round_trip_and_a_refresh_two_more(
    proxied: ConnectionStore,
    proxy: CountingProxy,
    store: ConnectionStore,
    accounts: SpotifyAccounts,
    spotify: FakeSpotify,
    user: UUID,
) -> None:
    """On a warm pool: none from the cache, one for a read, two for a refresh of a row that was read before."""
    async with TokenManager(proxied, accounts, cache_ttl=0) as tokens:
        costs: list[int] = []
        for ttl in (-1, 3600, -1, 3600):
            await connect(store, spotify, user, ttl=ttl)
            before = proxy.round_trips
            await tokens.get_valid_token(user)
            costs.append(proxy.round_trips - before)
    assert costs[2:] == [3, 1]
    async with TokenManager(proxied, accounts) as tokens:
        await tokens.get_valid_token(user)
        before = proxy.round_trips
        await tokens.get_valid_token(user)
        assert proxy.round_trips == before
        await tokens.get_valid_token(user, min_ttl=3000)
        assert proxy.round_trips == before
    await connect(store, spotify, user, ttl=1000)
    async with TokenManager(proxied, accounts) as tokens:
        await tokens.get_valid_token(user)
        async with asyncio.timeout(10):
            while not tokens._cache.trusted:  # the listener speaks through the proxy, too
                await asyncio.sleep(0.01)
        before = proxy.round_trips
        await tokens.get_valid_token(user, min_ttl=3000)
        assert proxy.round_trips - before == 2


async def test_many_cost_one_round_trip_for_two_hundred(
    proxied: ConnectionStore,
    proxy: CountingProxy,
    accounts: SpotifyAccounts,
    spotify: FakeSpotify,
    admin: asyncpg.Connection,
) -> None:
    """1,000 fresh users are five round trips; each refresh adds two, and one that Spotify has refused adds one: the
    database knows whether a second opinion is due.
    """
    fresh = await connect_many(admin, spotify, [3600] * 1000)
    mixed = await connect_many(admin, spotify, [-1] * 8 + [3600] * 992)
    spotify.revoke("account-7")
    costs: list[int] = []
    answers: list[object] = []
    async with TokenManager(proxied, accounts, cache_ttl=0) as tokens:
        for user in mixed[:8]:
            with suppress(ReauthorizationRequired):
                await tokens.get_valid_token(user)
        await admin.execute(
            "update public.spotify_connections set expires_at = now() - interval '1 second' "
            "where user_id = any($1::uuid[])",
            mixed[:7],
        )
        for users in (fresh, fresh, mixed):
            before = proxy.round_trips
            answers = [answer async for _, answer in tokens.get_valid_tokens(users)]
            assert len(answers) == 1000
            costs.append(proxy.round_trips - before)
    assert sum(isinstance(answer, ReauthorizationRequired) for answer in answers) == 1
    assert costs[1:] == [5, 5 + 2 * 7 + 1]


async def test_every_operation_is_one_round_trip(
    proxied: ConnectionStore, proxy: CountingProxy, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """Get, save and delete are one round trip each, once prepared."""
    costs: dict[str, int] = {}
    for _ in range(2):
        before = proxy.round_trips
        await connect(proxied, spotify, user)
        costs["save"], before = proxy.round_trips - before, proxy.round_trips
        await proxied.get(user)
        costs["get"], before = proxy.round_trips - before, proxy.round_trips
        await proxied.delete(user)
        costs["delete"] = proxy.round_trips - before
    assert costs == {"save": 1, "get": 1, "delete": 1}
