"""What a call costs on the wire, counted by a proxy before Postgres."""

from collections.abc import AsyncIterator
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID

import pytest

from conftest import Database
from helpers import connect
from proxy import CountingProxy
from spotconn import ConnectionStore, SpotifyAccounts, TokenManager
from spotconn.testing import FakeSpotify


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


async def test_a_read_is_one_round_trip_and_a_refresh_two(
    proxied: ConnectionStore,
    proxy: CountingProxy,
    store: ConnectionStore,
    accounts: SpotifyAccounts,
    spotify: FakeSpotify,
    user: UUID,
) -> None:
    """On a warm pool: none from the cache, one for a read, two for a refresh."""
    async with TokenManager(proxied, accounts, cache_ttl=0) as tokens:
        costs: list[int] = []
        for ttl in (-1, 3600, -1, 3600):
            await connect(store, spotify, user, ttl=ttl)
            before = proxy.round_trips
            await tokens.get_valid_token(user)
            costs.append(proxy.round_trips - before)
    assert costs[2:] == [2, 1]
    async with TokenManager(proxied, accounts) as tokens:
        await tokens.get_valid_token(user)
        before = proxy.round_trips
        await tokens.get_valid_token(user)
        assert proxy.round_trips == before


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
