"""Browsers that write the table through PostgREST: what becomes of the user's token."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore, NotConnected, ReauthorizationRequired, SpotifyAccounts, TokenManager
from spotconn.testing import FakeSpotify
from support.connections import connect, rows, stored_state
from support.database import Database
from support.listening import passed, trusted
from support.postgrest import REFUSED, RestClient, outcome


async def delete_and_insert(client: RestClient, user: UUID, row: dict[str, Any]) -> None:
    await client.delete(user)
    await client.insert(row)


Write = Callable[[RestClient, UUID, dict[str, Any]], Awaitable[object]]
WHOLE_ROW: dict[str, Write] = {
    "an upsert": lambda client, _, row: client.upsert(row),
    "an upsert that returns the row": lambda client, _, row: client.upsert(row, select=True),
    "an upsert on the primary key": lambda client, _, row: client.upsert(row, on="id"),
    "an update": lambda client, user, row: client.update(user, row),
    "a deletion and an insert": delete_and_insert,
}


@pytest.mark.parametrize("write", WHOLE_ROW)
async def test_a_whole_row_read_before_a_refresh_is_mended_by_the_process_that_refreshed(
    store: ConnectionStore, spotify: FakeSpotify, uncached: TokenManager, browser: RestClient, user: UUID, write: str
) -> None:
    """The refresh token that was replaced comes back; its successor is saved again, and Spotify is not asked."""
    await connect(store, spotify, user, ttl=-1)
    before = await browser.read(user)
    token = await uncached.get_valid_token(user)
    await WHOLE_ROW[write](browser, user, before | {"display_name": "Alice"})
    stale = await store.get(user)
    assert not spotify.accepts_refresh(stale.refresh_token)
    assert await uncached.get_valid_token(user) == token
    mended = await store.get(user)
    assert spotify.accepts_refresh(mended.refresh_token)
    assert (mended.display_name, mended.client_id, mended.failure) == ("Alice", "demo-client", None)
    assert spotify.token_calls == 1


async def test_a_process_that_listens_mends_it_before_others_ask(
    database: Database, accounts: SpotifyAccounts, spotify: FakeSpotify, uncached: TokenManager, store: ConnectionStore,
    browser: RestClient, user: UUID,
) -> None:  # fmt: skip
    """The one that refreshed hears of the upsert; one that knows nothing of the grant is served what it saves again."""
    await connect(store, spotify, user, ttl=-1)
    before = await browser.read(user)
    async with (
        ConnectionStore.open(database.dsn, max_size=2) as listening,
        TokenManager(listening, accounts) as tokens,
    ):
        token = await tokens.get_valid_token(user)
        await trusted(tokens, user)
        await browser.upsert(before)
        await passed(tokens)
        comparing = tokens._source.refresher.saved._comparing
        assert comparing is not None
        await comparing
        assert await uncached.get_valid_token(user) == token
    assert spotify.token_calls == 1


@pytest.mark.parametrize("digits", [0, 3])
async def test_so_is_one_whose_times_have_lost_digits(
    store: ConnectionStore, spotify: FakeSpotify, uncached: TokenManager, browser: RestClient, user: UUID, digits: int
) -> None:
    """A Date of JavaScript holds milliseconds, other clients hold seconds: it is the same authorization."""
    await connect(store, spotify, user, ttl=-1)
    before = await browser.read(user)
    token = await uncached.get_valid_token(user)
    for column in ("connected_at", "expires_at"):
        moment = datetime.fromisoformat(before[column])
        before[column] = moment.isoformat(timespec="milliseconds" if digits else "seconds")
    await browser.upsert(before)
    assert await uncached.get_valid_token(user) == token
    assert spotify.accepts_refresh((await store.get(user)).refresh_token)


async def test_where_no_process_knows_better_the_user_has_to_connect(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, browser: RestClient, users: list[UUID]
) -> None:
    """The user's own loss: one true error, which a connect ends, and no other user's."""
    for one in users[:2]:
        await connect(store, spotify, one, account=str(one), ttl=-1)
    before = await browser.read(users[0])
    async with TokenManager(store, accounts, cache_ttl=0) as former:
        await former.get_valid_token(users[0])
    await browser.upsert(before)
    async with TokenManager(store, accounts, cache_ttl=0) as tokens:
        with pytest.raises(ReauthorizationRequired):
            await tokens.get_valid_token(users[0])
        assert spotify.accepts(await tokens.get_valid_token(users[1]))
        again = await connect(store, spotify, users[0], account=str(users[0]))
        assert await tokens.get_valid_token(users[0]) == again.access_token


async def test_an_update_without_the_token_columns_changes_nothing_else(
    store: ConnectionStore, spotify: FakeSpotify, uncached: TokenManager, browser: RestClient, user: UUID,
    admin: asyncpg.Connection,
) -> None:  # fmt: skip
    """As the page advises: what was refreshed meanwhile stays, and what is known of it."""
    await connect(store, spotify, user, ttl=-1)
    await browser.read(user)
    token = await uncached.get_valid_token(user)
    (row,), state = await rows(admin), await stored_state(admin, user)
    assert len(await browser.update(user, {"display_name": "Alice", "email": "alice@example.com"})) == 1
    (after,) = await rows(admin)
    assert {name for name, value in after.items() if value != row[name]} == {"display_name", "email"}
    assert await stored_state(admin, user) == state
    assert await uncached.get_valid_token(user) == token


async def test_an_upsert_cannot_leave_the_tokens_out(
    store: ConnectionStore, spotify: FakeSpotify, browser: RestClient, user: UUID, admin: asyncpg.Connection
) -> None:
    """Postgres looks at NOT NULL before it finds the row that is there, so a change of a name is an update."""
    await connect(store, spotify, user)
    before = await rows(admin)
    assert await outcome(browser.upsert({"user_id": str(user), "display_name": "Alice"})) == "23502"
    assert await rows(admin) == before


async def test_an_upsert_of_a_new_row_has_to_name_the_user_as_its_key(
    store: ConnectionStore, spotify: FakeSpotify, browser: RestClient, user: UUID
) -> None:
    """Without `onConflict` it goes by the primary key, which a new row does not share with the one that is there."""
    await connect(store, spotify, user)
    row = await browser.read(user, "user_id", "spotify_user_id", "expires_at") | {
        "access_token": "a",
        "refresh_token": "r",
    }
    assert await outcome(browser.upsert(row | {"id": str(user)}, on="id")) == "23505"
    assert await outcome(browser.upsert(row)) == 1


async def test_a_token_of_the_browsers_is_refreshed_with_the_apps_of_the_process(
    store: ConnectionStore, spotify: FakeSpotify, uncached: TokenManager, browser: RestClient, user: UUID
) -> None:
    """Neither the app nor the failure of the former refresh token counts for it, and a date that is left out stays. A
    refresh finds out its app.
    """
    stored = await connect(store, spotify, user, ttl=-1)
    spotify.revoke("alice")
    with pytest.raises(ReauthorizationRequired):
        await uncached.get_valid_token(user)
    granted = spotify.authorize("alice")
    row = {"user_id": str(user), "spotify_user_id": "alice", "access_token": granted.access_token}
    ended = (datetime.now(UTC) - timedelta(minutes=1)).isoformat()
    await browser.upsert(row | {"refresh_token": granted.refresh_token, "expires_at": ended})
    written = await store.get(user)
    assert (written.client_id, written.failure, written.connected_at) == (None, None, stored.connected_at)
    assert spotify.accepts(await uncached.get_valid_token(user))
    assert (await store.get(user)).client_id == "demo-client"


async def test_the_date_of_a_browsers_authorization_is_not_taken_from_the_row(
    store: ConnectionStore, spotify: FakeSpotify, uncached: TokenManager, browser: RestClient, user: UUID
) -> None:
    """A refusal of a refresh token that another writer stored is not final for a `connected_at` of before."""
    await connect(store, spotify, user, ttl=-1)
    half_a_year = (datetime.now(UTC) - timedelta(days=200)).isoformat()
    await browser.update(user, {"refresh_token": "unknown", "connected_at": half_a_year})
    with pytest.raises(ReauthorizationRequired) as raised:
        await uncached.get_valid_token(user)
    assert raised.value.reason != "expired"
    failure = (await store.get(user)).failure
    assert failure is not None
    assert failure.retry_at is not None


@pytest.mark.parametrize("write", WHOLE_ROW)
async def test_processes_that_cache_hear_of_each_write(
    database: Database, accounts: SpotifyAccounts, spotify: FakeSpotify, store: ConnectionStore, browser: RestClient,
    user: UUID, write: str,
) -> None:  # fmt: skip
    """Once the transaction has ended, the token that was written is served, not the cached one."""
    await connect(store, spotify, user)
    async with (
        ConnectionStore.open(database.dsn, max_size=2) as listening,
        TokenManager(listening, accounts) as tokens,
    ):
        await trusted(tokens, user)
        granted = spotify.authorize("alice")
        row = await browser.read(user)
        row |= {"access_token": granted.access_token, "refresh_token": granted.refresh_token}
        await WHOLE_ROW[write](browser, user, row)
        await passed(tokens)
        assert await tokens.get_valid_token(user) == granted.access_token
        await browser.delete(user)
        await passed(tokens)
        with pytest.raises(NotConnected):
            await tokens.get_valid_token(user)


async def test_a_row_read_during_a_refresh_and_written_back_after_it(
    store: ConnectionStore, spotify: FakeSpotify, uncached: TokenManager, browser: RestClient, user: UUID
) -> None:
    """An upsert while Spotify is being asked keeps the lease, and the grant is saved; one after it is mended."""
    await connect(store, spotify, user, ttl=-1)
    with spotify.hold() as held:
        waiting = asyncio.create_task(uncached.get_valid_token(user))
        await held.reached()
        before = await browser.read(user)
        await browser.upsert(before)
    token = await waiting
    assert spotify.accepts_refresh((await store.get(user)).refresh_token)
    await browser.upsert(before)
    assert await uncached.get_valid_token(user) == token
    assert spotify.accepts_refresh((await store.get(user)).refresh_token)
    assert spotify.token_calls == 1


async def test_a_row_deleted_during_a_refresh_and_inserted_after_it(
    store: ConnectionStore, spotify: FakeSpotify, uncached: TokenManager, browser: RestClient, user: UUID
) -> None:
    """The grant met no row, and is not lost for the one that comes back with the refresh token it has replaced."""
    await connect(store, spotify, user, ttl=-1)
    before = await browser.read(user)
    with spotify.hold() as held:
        waiting = asyncio.create_task(uncached.get_valid_token(user))
        await held.reached()
        await browser.delete(user)
    with pytest.raises(NotConnected):
        await waiting
    await browser.insert(before)
    assert spotify.accepts(await uncached.get_valid_token(user))
    assert spotify.accepts_refresh((await store.get(user)).refresh_token)
    assert spotify.token_calls == 1


FOREIGN: dict[str, Write] = {
    "an upsert": lambda client, _, row: client.upsert(row),
    "an upsert on the primary key": lambda client, _, row: client.upsert(row, on="id"),
    "an insert": lambda client, _, row: client.insert(row),
    "an update of the own row": lambda client, user, row: client.update(user, row),
}


@pytest.mark.parametrize("write", FOREIGN)
async def test_no_request_writes_a_row_of_another_user(
    store: ConnectionStore, spotify: FakeSpotify, uncached: TokenManager, browser: RestClient, users: list[UUID],
    admin: asyncpg.Connection, write: str,
) -> None:  # fmt: skip
    """Whole rows with the id of another user are refused, and each user keeps the own token."""
    stored = {one: await connect(store, spotify, one, account=str(one)) for one in users[:2]}
    before = await rows(admin)
    row = await browser.read(users[0]) | {"user_id": str(users[1]), "access_token": "planted"}
    refused: Any = FOREIGN[write](browser, users[0], row)
    assert await outcome(refused) in {REFUSED, "23505"}
    assert await rows(admin) == before
    for one in users[:2]:
        assert await uncached.get_valid_token(one) == stored[one].access_token
