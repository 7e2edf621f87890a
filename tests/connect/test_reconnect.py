"""A connect over an earlier connection, and what waits in the database until a connect is finished."""

import asyncio
from uuid import UUID

import asyncpg
import pytest

from spotconn import (
    ConnectFlow,
    ConnectionStore,
    RowSecurityError,
    SpotifyAccounts,
    TokenManager,
)
from spotconn.testing import FakeSpotify
from support.connections import connect, rows
from support.consent import REDIRECT_URI, SCOPES, agree, pending, refused, state_of, waiting
from support.database import Database

RECORD_UPDATES = """
create table public.updates as select * from public.spotify_connections with no data;
create function public.record_update() returns trigger language plpgsql security definer as
    'begin insert into public.updates select new.*; return null; end';
create trigger record_update after update on public.spotify_connections
    for each row execute function public.record_update();
"""
RECORD_NO_MORE = """
drop trigger record_update on public.spotify_connections;
drop function public.record_update;
drop table public.updates;
"""


async def test_a_reconnect_replaces_account_tokens_and_moment_in_one_statement(
    flow: ConnectFlow, store: ConnectionStore, admin: asyncpg.Connection, user: UUID, spotify: FakeSpotify
) -> None:
    """Another account takes over the whole row with a single update, and a recorded failure is void."""
    await flow.finish(user, await agree(await flow.start(user), "alice"))
    (old,) = await rows(admin)
    spotify.revoke("alice")
    await admin.execute(
        "update spotconn.refresh_state set failure = 'revoked', failed_at = now() where user_id = $1", user
    )
    assert (await store.get(user)).reauthorization == "revoked"

    await admin.execute(RECORD_UPDATES)
    try:
        await flow.finish(user, await agree(await flow.start(user), "bob"))
        updates = await admin.fetch("select * from public.updates")
    finally:
        await admin.execute(RECORD_NO_MORE)
    (new,) = await rows(admin)
    assert updates == [new]
    assert new["id"] == old["id"]
    assert (new["spotify_user_id"], new["display_name"], new["email"]) == ("bob", "Bob", None)
    assert all(new[column] != old[column] for column in ("access_token", "refresh_token", "expires_at"))
    assert new["connected_at"] > old["connected_at"]
    assert (await store.get(user)).failure is None


async def test_a_refresh_under_way_does_not_bring_the_old_account_back(
    flow: ConnectFlow, store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID
) -> None:
    """A refresh that ends after the reconnect is dropped, and its callers get the new account's token."""
    await connect(store, spotify, user, account="alice", ttl=-1)
    callback = await agree(await flow.start(user), "bob")
    async with TokenManager(store, accounts) as tokens:
        with spotify.hold(calls=1) as hold:
            waiting = asyncio.create_task(tokens.get_valid_token(user))
            await hold.reached()
            connection = await flow.finish(user, callback)
            hold.release()
            assert await waiting == connection.access_token
        assert await tokens.get_valid_token(user) == connection.access_token
    stored = await store.get(user)
    assert (stored.spotify_user_id, stored.access_token) == ("bob", connection.access_token)


async def test_a_cached_token_of_the_old_account_is_not_served_again(
    flow: ConnectFlow, store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID
) -> None:
    """What the process remembered goes with the reconnect, and with a disconnect."""
    await connect(store, spotify, user, account="alice")
    async with TokenManager(store, accounts, cache_ttl=1000) as tokens:
        old = await tokens.get_valid_token(user)
        connection = await flow.finish(user, await agree(await flow.start(user), "bob"))
        assert await tokens.get_valid_token(user) == connection.access_token != old
        await store.delete(user)
        assert not (await tokens.status(user)).connected
        assert not tokens._cache.entries
    await tokens.aclose()
    assert not store._watchers


async def test_deleting_the_user_deletes_the_connection(
    flow: ConnectFlow, admin: asyncpg.Connection, user: UUID
) -> None:
    """The cascade from auth.users leaves no row."""
    await flow.finish(user, await agree(await flow.start(user)))
    await flow.start(user)
    await admin.execute("delete from auth.users where id = $1", user)
    assert await rows(admin) == []
    assert await pending(admin) == 0


async def test_what_waits_in_the_database_is_hashed_and_ends(
    flow: ConnectFlow, admin: asyncpg.Connection, user: UUID
) -> None:
    """Of the state only a hash is stored, with an end ten minutes from now by the database's clock."""
    state = state_of(await flow.start(user))
    row = await admin.fetchrow("select *, expires_at - now() as life from spotconn.pending_connect")
    assert row is not None
    assert row["user_id"] == user
    assert state not in str(row)
    assert state.encode() not in row["state_hash"]
    assert 590 < row["life"].total_seconds() <= 601


async def test_expired_attempts_are_cleared_away_and_still_named(
    store: ConnectionStore, accounts: SpotifyAccounts, flow: ConnectFlow, admin: asyncpg.Connection, users: list[UUID]
) -> None:
    """The next start, by anybody, clears what has expired; its callback is still told that it came too late."""
    past = ConnectFlow(store, accounts, redirect_uri=REDIRECT_URI, scopes=SCOPES, clock=lambda: 1e9)
    callback = await agree(await past.start(users[0]))
    await admin.execute("update spotconn.pending_connect set expires_at = now()")
    alive = await flow.start(users[1])
    assert await waiting(admin) == [users[1]]
    assert await refused(flow, users[0], callback) == "state_expired"
    await flow.finish(users[1], await agree(alive))


async def test_a_pending_attempt_is_under_row_security(
    flow: ConnectFlow, store: ConnectionStore, users: list[UUID], admin: asyncpg.Connection
) -> None:
    """Without a filter a user sees and spends their own attempts only, and gives none to another."""
    await flow.start(users[0])
    await flow.start(users[1])
    async with store.as_user(users[0]) as connection:
        assert await waiting(connection) == [users[0]]
        assert await connection.fetch("select * from spotconn.pending_connect where user_id = $1", users[1]) == []
    for statement in (
        "update spotconn.pending_connect set user_id = $1",
        "insert into spotconn.pending_connect values ('x', $1, 'v', now() + interval '1 h')",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with store.as_user(users[0]) as connection:
                await connection.execute(statement, users[1])
    async with store.as_user(users[0]) as connection:
        assert await connection.execute("delete from spotconn.pending_connect") == "DELETE 1"
    assert await waiting(admin) == [users[1]]


async def test_without_row_security_on_pending_attempts_no_store_opens(
    database: Database, admin: asyncpg.Connection
) -> None:
    """The check at open covers this table as well."""
    await admin.execute("alter table spotconn.pending_connect disable row level security")
    try:
        with pytest.raises(RowSecurityError):
            async with ConnectionStore.open(database.dsn):
                pass
    finally:
        await admin.execute("alter table spotconn.pending_connect enable row level security")
