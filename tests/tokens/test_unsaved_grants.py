"""Grants that are not saved yet: each user's for itself, and none over what came after it."""

import asyncio
import logging
from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore, DatabaseUnavailable, SpotifyAccounts, TokenManager
from spotconn._stopwatch import Stopwatch
from spotconn._tokens import source
from spotconn._tokens.stored_token import StoredToken
from spotconn._tokens.unsaved_grants import UnsavedGrant
from spotconn.models import TokenGrant
from spotconn.testing import FakeSpotify
from spotconn.turns import Outcome, RefreshTurn
from support.connections import connect
from support.database import Database
from support.fault_proxy import FaultProxy
from support.listening import until


@pytest.fixture
async def behind(database: Database, proxy: FaultProxy) -> AsyncIterator[ConnectionStore]:
    """A store that hears soon that the database is away, and does not listen."""
    async with ConnectionStore.open(proxy.dsn(database.dsn), timeout=0.5, max_size=4) as store:
        store.changes = None
        yield store


@pytest.fixture
async def tokens(behind: ConnectionStore, accounts: SpotifyAccounts) -> AsyncIterator[TokenManager]:
    async with TokenManager(behind, accounts, cache_ttl=0) as manager:
        yield manager


async def granted_unsaved(
    tokens: TokenManager, spotify: FakeSpotify, proxy: FaultProxy, users: list[UUID]
) -> list[str]:
    """Let Spotify grant tokens that the database cannot take."""
    calls = spotify.token_calls
    with spotify.hold() as held:
        callers = [asyncio.create_task(tokens.get_valid_token(user)) for user in users]
        await until(lambda: spotify.token_calls == calls + len(users))
        proxy.refuses = True
        proxy.cut()
        held.release()
        return list(await asyncio.gather(*callers))


async def test_a_locked_row_holds_up_no_other_user(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, proxy: FaultProxy, database: Database,
    admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """At the last chance five grants are saved; the one whose row is locked is lost, and logged as critical."""
    monkeypatch.setattr(source, "SAVE_TIMEOUT", 2)
    found = await admin.fetch("insert into auth.users (email) select n from generate_series(1, 6) n returning id")
    users = [row["id"] for row in found]
    for user in users:
        await connect(store, spotify, user, account=str(user), ttl=-1)
    granted = await granted_unsaved(tokens, spotify, proxy, users)
    locking = await asyncpg.connect(database.admin_dsn)
    async with locking.transaction():
        await locking.execute("select from public.spotify_connections where user_id = $1 for update", users[0])
        proxy.heal()
        await tokens.aclose()
        stored = [(await store.get(user)).access_token for user in users]
    await locking.close()
    assert stored[1:] == granted[1:]
    assert stored[0] != granted[0]
    critical = [record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL]
    assert len(critical) == 1
    assert str(users[0]) in critical[0]


async def test_a_rejected_unsaved_grant_is_replaced(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, proxy: FaultProxy, user: UUID
) -> None:
    """It is not handed out again: not now while it cannot be saved, and then another one is granted."""
    await connect(store, spotify, user, ttl=-1)
    (rejected,) = await granted_unsaved(tokens, spotify, proxy, [user])
    with pytest.raises(DatabaseUnavailable):
        await tokens.replace_rejected(user, rejected)
    assert spotify.token_calls == 1
    proxy.heal()
    other = await tokens.replace_rejected(user, rejected)
    after = await store.get(user)
    assert other == after.access_token != rejected
    assert spotify.accepts_refresh(after.refresh_token)
    assert spotify.token_calls == 2


@pytest.mark.parametrize("late", [False, True])
async def test_of_two_grants_the_one_asked_for_later_stays(
    tokens: TokenManager,
    store: ConnectionStore,
    spotify: FakeSpotify,
    user: UUID,
    late: bool,  # noqa: FBT001
) -> None:
    """In whichever sequence Spotify has answered."""
    before = await connect(store, spotify, user, ttl=-1)
    turn = RefreshTurn(outcome=Outcome.BUSY, user_id=user, connection=before)
    grants = [
        TokenGrant(access_token=text, refresh_token=text, expires_at=before.expires_at) for text in ("first", "second")
    ]
    first, second = (
        UnsavedGrant(turn, grant, "app", Stopwatch(), StoredToken(grant.access_token, b"", 0.0, None))
        for grant in grants
    )
    unsaved = tokens._source.refresher.unsaved
    for grant in (second, first) if late else (first, second):
        unsaved.add(grant)
    kept = unsaved.get(user)
    assert kept is not None
    assert kept.access_token == "second"
    unsaved.clear()


async def test_a_reconnect_through_the_same_process_is_stronger(
    tokens: TokenManager, behind: ConnectionStore, spotify: FakeSpotify, proxy: FaultProxy, user: UUID
) -> None:
    """The grant of the old authorization is neither served after it nor saved over it."""
    await connect(behind, spotify, user, ttl=-1)
    (old,) = await granted_unsaved(tokens, spotify, proxy, [user])
    with proxy.hold(b"finish_refresh") as held:
        proxy.heal()
        await held.reached()
        reconnecting = asyncio.create_task(connect(behind, spotify, user, account="bob"))  # after the write under way
        await asyncio.sleep(0)
    reconnected = await reconnecting
    assert await tokens.get_valid_token(user) == reconnected.access_token != old
    await until(lambda: not tokens._source.refresher.unsaved._unsaved)
    after = await behind.get(user)
    assert (after.access_token, after.spotify_user_id) == (reconnected.access_token, "bob")
    assert after.refresh_token == reconnected.refresh_token


async def test_a_batch_has_the_grants_that_are_not_saved_yet(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, proxy: FaultProxy, users: list[UUID],
    database: Database,
) -> None:  # fmt: skip
    """Also while the database is away, and where the row still holds the token before."""
    for user in users:
        await connect(store, spotify, user, account=str(user), ttl=-1)
    granted = dict(zip(users, await granted_unsaved(tokens, spotify, proxy, users), strict=True))
    assert {user: answer async for user, answer in tokens.get_valid_tokens(users)} == granted
    locking = await asyncpg.connect(database.admin_dsn)
    async with locking.transaction():
        await locking.execute("select from public.spotify_connections for update")
        proxy.heal()
        assert {user: answer async for user, answer in tokens.get_valid_tokens(users)} == granted
    await locking.close()
