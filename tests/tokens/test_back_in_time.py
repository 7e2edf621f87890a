"""A row that goes back in time, as after a failover: the process that saved its successor saves that again."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from uuid import UUID

import asyncpg
import pytest

from spotconn import (
    ConnectionStore,
    NotConnected,
    ReauthorizationRequired,
    SpotifyAccounts,
    SpotifyUnavailable,
    TokenManager,
    events,
)
from spotconn._tokens import saved_grants
from spotconn.testing import FakeSpotify
from support.backups import refreshed
from support.connections import connect
from support.database import Database
from support.fault_proxy import FaultProxy
from support.invariants import stored_row
from support.listening import SOON, trusted, until


@pytest.fixture
async def tokens(database: Database, proxy: FaultProxy, accounts: SpotifyAccounts) -> AsyncIterator[TokenManager]:
    """One that caches nothing and does not listen."""
    async with (
        ConnectionStore.open(proxy.dsn(database.dsn), timeout=2) as store,
        TokenManager(store, accounts, cache_ttl=0) as manager,
    ):
        yield manager


async def test_what_was_saved_is_saved_again(
    store: ConnectionStore, tokens: TokenManager, spotify: FakeSpotify, admin: asyncpg.Connection, user: UUID
) -> None:
    """The user is served without a call of Spotify, whose refresh token is stored again, and refreshed later."""
    before, token = await refreshed(store, tokens, spotify, admin, user)
    await before.restore(admin)
    assert not spotify.accepts_refresh((await store.get(user)).refresh_token)
    assert await tokens.get_valid_token(user) == token
    after = await store.get(user)
    assert after.access_token == token
    assert spotify.accepts_refresh(after.refresh_token)
    assert spotify.token_calls == 1
    assert spotify.accepts(await tokens.replace_rejected(user, "another"))


@pytest.mark.parametrize("change", ["disconnect", "reconnect"])
async def test_it_is_never_saved_over_what_the_user_did(
    store: ConnectionStore, tokens: TokenManager, spotify: FakeSpotify, admin: asyncpg.Connection, user: UUID,
    change: str,
) -> None:  # fmt: skip
    """A disconnect or a reconnect through another process stays."""
    await refreshed(store, tokens, spotify, admin, user)
    if change == "disconnect":
        await store.delete(user)
        with pytest.raises(NotConnected):
            await tokens.get_valid_token(user)
        assert await admin.fetchval("select count(*) from public.spotify_connections") == 0
    else:
        again = await connect(store, spotify, user, account=str(user))
        assert await tokens.get_valid_token(user) == again.access_token
        assert (await store.get(user)).refresh_token == again.refresh_token


@pytest.mark.parametrize("compared", [True, False], ids=["compared", "asked for"])
async def test_of_two_that_save_again_the_later_grant_stays(
    store: ConnectionStore, tokens: TokenManager, accounts: SpotifyAccounts, spotify: FakeSpotify, proxy: FaultProxy,
    admin: asyncpg.Connection, user: UUID, compared: bool,  # noqa: FBT001
) -> None:  # fmt: skip
    """Another process comes first with an earlier grant: the row is compared once more."""
    async with TokenManager(store, accounts, cache_ttl=0) as earlier:
        before, _ = await refreshed(store, earlier, spotify, admin, user)
        await admin.execute("update public.spotify_connections set expires_at = now() - interval '1 second'")
        token = await tokens.get_valid_token(user)
        await before.restore(admin)
        with proxy.hold(b"finish_refresh") as held:
            restoring: Coroutine[None, None, object] = (
                tokens._source.refresher.saved._restore_all([user]) if compared else tokens.get_valid_token(user)
            )
            task = asyncio.create_task(restoring)
            await held.reached()
            await earlier._source.refresher.saved._restore_all([user])
            assert (await store.get(user)).access_token not in {token, None}
        await task
    after = await store.get(user)
    assert after.access_token == token
    assert spotify.accepts_refresh(after.refresh_token)
    assert spotify.token_calls == 2


async def test_the_rows_are_compared_after_the_database_was_away(
    store: ConnectionStore, tokens: TokenManager, spotify: FakeSpotify, proxy: FaultProxy, admin: asyncpg.Connection,
    users: list[UUID],
) -> None:  # fmt: skip
    """All of them, with the first answer of the database, whoever it is for."""
    saved = [await refreshed(store, tokens, spotify, admin, user) for user in users[:2]]
    await connect(store, spotify, users[2])
    proxy.refuses = True
    proxy.cut()
    with pytest.raises(Exception, match="database"):
        await tokens.get_valid_token(users[2])
    for before, _ in saved:
        await before.restore(admin)
    proxy.heal()
    await tokens.get_valid_token(users[2])
    comparing = tokens._source.refresher.saved._comparing
    assert comparing is not None
    await comparing
    assert [(await store.get(user)).access_token for user in users[:2]] == [token for _, token in saved]
    assert spotify.token_calls == 2


async def test_closing_compares_once_the_database_is_back(
    store: ConnectionStore, tokens: TokenManager, spotify: FakeSpotify, proxy: FaultProxy, admin: asyncpg.Connection,
    user: UUID,
) -> None:  # fmt: skip
    """It does not give up at the first answer that the database is away."""
    before, token = await refreshed(store, tokens, spotify, admin, user)
    proxy.refuses = True
    proxy.cut()
    with pytest.raises(Exception, match="database"):
        await tokens.get_valid_token(user)
    await before.restore(admin)
    saved = tokens._source.refresher.saved
    closing = asyncio.create_task(tokens.aclose())
    async with asyncio.timeout(SOON):
        while saved._comparing is None or saved._due:  # until an attempt is under way
            await asyncio.sleep(0)
    await until(lambda: bool(saved._due))  # and has failed
    proxy.heal()
    await closing
    assert (await store.get(user)).access_token == token


async def test_the_rows_are_compared_when_a_new_session_listens(
    database: Database, store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, proxy: FaultProxy,
    admin: asyncpg.Connection, users: list[UUID],
) -> None:  # fmt: skip
    """The server that it reaches may be another one."""
    async with (
        ConnectionStore.open(database.dsn, listen_dsn=proxy.dsn(database.dsn)) as listening,
        TokenManager(listening, accounts) as tokens,
    ):
        await connect(store, spotify, users[2])
        await trusted(tokens, users[2])
        before, token = await refreshed(store, tokens, spotify, admin, users[0])
        proxy.refuses = True
        proxy.cut()
        await until(lambda: not tokens._cache.trusted)
        await before.restore(admin)
        proxy.heal()
        await until(lambda: tokens._cache.trusted)
        comparing = tokens._source.refresher.saved._comparing
        assert comparing is not None
        await comparing
        assert (await store.get(users[0])).access_token == token
    assert spotify.token_calls == 1


async def test_a_row_that_goes_back_during_a_refresh_gets_its_grant(
    store: ConnectionStore, tokens: TokenManager, accounts: SpotifyAccounts, spotify: FakeSpotify,
    admin: asyncpg.Connection, user: UUID,
) -> None:  # fmt: skip
    """Between the lease and the save: the lease is lost, the row is earlier than the one that was sent to Spotify."""
    async with TokenManager(store, accounts, cache_ttl=0) as other:
        before, _ = await refreshed(store, other, spotify, admin, user)
    await admin.execute("update public.spotify_connections set expires_at = now() - interval '1 second'")
    with spotify.hold() as held:
        asking = asyncio.create_task(tokens.get_valid_token(user))
        await held.reached()
        await before.restore(admin)
        held.release()
        token = await asking
    after = await store.get(user)
    assert after.access_token == token
    assert spotify.accepts_refresh(after.refresh_token)
    assert spotify.token_calls == 2


async def test_of_two_that_send_one_refresh_token_neither_asks_the_user(
    store: ConnectionStore, tokens: TokenManager, accounts: SpotifyAccounts, spotify: FakeSpotify, proxy: FaultProxy,
    admin: asyncpg.Connection, user: UUID,
) -> None:  # fmt: skip
    """A failover loses a lease: another process has its own, and is refused what the first has been granted."""
    await connect(store, spotify, user, account=str(user), ttl=-1)
    async with TokenManager(store, accounts, cache_ttl=0) as second:
        second._source.refresher.watch._life = "another"  # it has seen another server before
        with proxy.hold(b"finish_refresh") as held:
            first = asyncio.create_task(tokens.get_valid_token(user))
            await held.reached()
            await admin.execute(
                "update spotconn.refresh_state set lease_id = null, leased_at = null, lease_until = null"
            )
            with pytest.raises(SpotifyUnavailable, match="another server"):
                await second.get_valid_token(user)
            assert (await store.get(user)).failure is None
        token = await first
        async with asyncio.timeout(SOON):
            while True:
                try:
                    assert await second.get_valid_token(user) == token
                    break
                except SpotifyUnavailable:
                    await asyncio.sleep(0.05)


async def test_one_warning_tells_how_many_and_an_event_whose(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, admin: asyncpg.Connection,
    users: list[UUID], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The first row that is asked for has all others compared."""
    told: list[events.Event] = []
    async with TokenManager(store, accounts, cache_ttl=0, on_event=told.append) as tokens:
        backups = [(await refreshed(store, tokens, spotify, admin, user))[0] for user in users]
        for before in backups:
            await before.restore(admin)
        await tokens.get_valid_token(users[0])
        await until(lambda: "gone back in time" in caplog.text)
    assert [record.getMessage() for record in caplog.records if "gone back" in record.getMessage()] == [
        saved_grants._RESTORED % len(users)
    ]
    restored = [event for event in told if isinstance(event, events.ConnectionRestored)]
    assert sorted(event.user_id for event in restored) == sorted(users)
    assert {event.client_id for event in restored} == {"demo-client"}


async def test_a_locked_row_holds_up_no_other_that_is_saved_again(
    database: Database, store: ConnectionStore, tokens: TokenManager, spotify: FakeSpotify, admin: asyncpg.Connection,
    users: list[UUID],
) -> None:  # fmt: skip
    """It is saved again once it is free."""
    saved = [await refreshed(store, tokens, spotify, admin, user) for user in users]
    for before, _ in saved:
        await before.restore(admin)
    locking = await asyncpg.connect(database.admin_dsn)
    try:
        async with locking.transaction():
            await locking.execute("select from public.spotify_connections where user_id = $1 for update", users[0])
            tokens._source.refresher.saved.compare()
            async with asyncio.timeout(SOON):
                while [(await store.get(user)).access_token for user in users[1:]] != [token for _, token in saved[1:]]:
                    await asyncio.sleep(0.05)
            assert (await store.get(users[0])).access_token != saved[0][1]
    finally:
        await locking.close()
    async with asyncio.timeout(SOON):
        while (await store.get(users[0])).access_token != saved[0][1]:
            await asyncio.sleep(0.05)


async def test_a_grant_of_a_user_who_has_disconnected_here_is_not_saved_again(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, admin: asyncpg.Connection, user: UUID
) -> None:
    """Where a failover loses the disconnect, too, the row that is back gets no token that works."""
    before, _ = await refreshed(store, tokens, spotify, admin, user)
    await tokens.disconnect(user)
    await before.restore(admin)
    earlier = await stored_row(admin, user)
    with pytest.raises(ReauthorizationRequired):
        await tokens.get_valid_token(user)
    assert await stored_row(admin, user) == earlier
