"""An access token with its end and its scopes: always of one and the same token."""

import asyncio
import pickle
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from spotconn import AccessToken, ConnectionStore, MissingScope, NotConnected, SpotifyAccounts, TokenManager
from spotconn.testing import FakeSpotify
from support.connections import connect

EARLIER = frozenset({"user-read-email"})
HOUR = timedelta(hours=1)


@pytest.fixture
async def tokens(store: ConnectionStore, accounts: SpotifyAccounts) -> AsyncIterator[TokenManager]:
    async with TokenManager(store, accounts) as manager:
        yield manager


async def test_end_and_scopes_are_those_of_the_token(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """As read, from the cache, where a cached one does not last for `min_ttl`, and after a refresh, whose answer may
    name other scopes.
    """
    before = await connect(store, spotify, user, ttl=1000, scope=EARLIER)
    for _ in range(2):
        found = await tokens.get_access_token(user, scopes=EARLIER, min_ttl=900)
        assert (found.value, found.scope) == (before.access_token, EARLIER)
        assert abs(found.expires_at - before.expires_at) < HOUR / 60
    assert spotify.token_calls == 0
    refreshed = await tokens.get_access_token(user, scopes=EARLIER, min_ttl=1100)
    after = await store.get(user)
    assert (refreshed.value, refreshed.scope) == (after.access_token, after.scope)
    assert refreshed.value != before.access_token
    assert abs(refreshed.expires_at - after.expires_at) < HOUR / 60
    assert refreshed == await tokens.get_access_token(user)
    assert refreshed.value == await tokens.get_valid_token(user)


async def test_a_connect_meanwhile_changes_all_three_together(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """Callers beside one that connects again and again get each token with its own scopes and its own end."""
    grants = dict[str, tuple[frozenset[str] | None, datetime]]()
    found = list[AccessToken]()
    over = asyncio.Event()

    async def ask() -> None:
        while not over.is_set():
            found.append(await tokens.get_access_token(user))
            await asyncio.sleep(0)

    async def reconnect(number: int) -> None:
        stored = await connect(store, spotify, user, ttl=1000 + 100 * number, scope=frozenset({f"scope-{number}"}))
        grants[stored.access_token] = stored.scope, stored.expires_at

    await reconnect(0)
    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(ask())
        async with asyncio.timeout(60):
            for number in range(1, 9):
                await reconnect(number)
                while found[-1:] == [] or found[-1].value != list(grants)[-1]:
                    await asyncio.sleep(0)
        over.set()
    assert {one.value for one in found} >= set(list(grants)[1:])
    for one in found:
        scope, expires_at = grants[one.value]
        assert one.scope == scope
        assert abs(one.expires_at - expires_at) < timedelta(seconds=50)


async def test_the_end_is_by_the_clock_of_the_host(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID
) -> None:
    """On a host whose clock is hours ahead of the database's, the end lies as far ahead: what is left is the same."""
    offset = 5000.0
    async with TokenManager(store, accounts, clock=lambda: time.time() + offset) as tokens:
        stored = await connect(store, spotify, user, ttl=1000)
        begun = time.time()
        for _ in range(2):  # read, and from the cache
            found = await tokens.get_access_token(user)
            took = time.time() - begun
            ahead = (found.expires_at - stored.expires_at).total_seconds()
            assert offset - took - 1 < ahead < offset + 1
            assert found.expires_at.tzinfo is UTC


async def test_scopes_that_were_never_recorded_are_none(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """A row from before scopes were recorded is served, and does not say that none were granted."""
    await connect(store, spotify, user, scope=None)
    assert (await tokens.get_access_token(user, scopes=["user-top-read"])).scope is None


async def test_errors_are_those_of_the_token(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """Malformed arguments, a missing scope, no connection; a cached token makes no difference."""
    await connect(store, spotify, user, scope=EARLIER)
    await tokens.get_access_token(user)
    with pytest.raises(ValueError, match=r"^user_id: "):
        await tokens.get_access_token("no-uuid")
    with pytest.raises(ValueError, match=r"^min_ttl: "):
        await tokens.get_access_token(user, min_ttl=3001)
    with pytest.raises(MissingScope):
        await tokens.get_access_token(user, scopes=["streaming"])
    await tokens.disconnect(user)
    with pytest.raises(NotConnected):
        await tokens.get_access_token(user)


def test_the_token_is_shown_nowhere() -> None:
    """Neither in the repr nor in a dump; a pickle, which goes from process to process, has it."""
    found = AccessToken(value="marked-token", expires_at=datetime.now(UTC), scope=None)
    assert "marked" not in f"{found!r} {found} {found.model_dump()} {found.model_dump_json()} {dict(found)}"
    assert pickle.loads(pickle.dumps(found)).value == "marked-token"
