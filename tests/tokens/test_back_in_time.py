"""A row that goes back in time, as after a failover: the process that saved its successor saves that again."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore, NotConnected, SpotifyAccounts, TokenManager
from spotconn.testing import FakeSpotify
from support.connections import connect
from support.database import Database
from support.fault_proxy import FaultProxy
from support.invariants import stored_row
from support.listening import trusted, until

_STATE = "select * from spotconn.refresh_state where user_id = $1"


class Backup:
    """The row of a user and what is recorded of it, as they were."""

    def __init__(self, row: asyncpg.Record, state: asyncpg.Record) -> None:
        self._row = row
        self._state = state

    @classmethod
    async def of(cls, admin: asyncpg.Connection, user: UUID) -> "Backup":
        state = await admin.fetchrow(_STATE, user)
        assert state is not None
        return cls(await stored_row(admin, user), state)

    async def restore(self, admin: asyncpg.Connection) -> None:
        """Put both back, as a server does that has lost commits: nobody is notified."""
        async with admin.transaction():
            await admin.execute("set local session_replication_role = replica")
            await admin.execute("alter table public.spotify_connections disable trigger spotconn_notify_change")
            for table, record in (("public.spotify_connections", self._row), ("spotconn.refresh_state", self._state)):
                columns = list(record.keys())
                values = ", ".join(f"${n}" for n in range(1, len(columns) + 1))
                await admin.execute(f"delete from {table} where user_id = $1", record["user_id"])
                await admin.execute(f"insert into {table} ({', '.join(columns)}) values ({values})", *record.values())
            await admin.execute("alter table public.spotify_connections enable always trigger spotconn_notify_change")


@pytest.fixture
async def proxy(database: Database) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(database.server.port).serve() as serving:
        yield serving


@pytest.fixture
async def tokens(database: Database, proxy: FaultProxy, accounts: SpotifyAccounts) -> AsyncIterator[TokenManager]:
    """One that caches nothing and does not listen."""
    async with (
        ConnectionStore.open(proxy.dsn(database.dsn), timeout=2) as store,
        TokenManager(store, accounts, cache_ttl=0) as manager,
    ):
        yield manager


async def refreshed(store: ConnectionStore, tokens: TokenManager, spotify: FakeSpotify, admin: asyncpg.Connection,
                    user: UUID) -> tuple[Backup, str]:  # fmt: skip
    """Connect a user and refresh; what was stored before, and the token."""
    await connect(store, spotify, user, account=str(user), ttl=-1)
    before = await Backup.of(admin, user)
    return before, await tokens.get_valid_token(user)


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
    await until(lambda: saved._comparing is not None and saved._comparing.done())
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
