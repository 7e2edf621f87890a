"""Which Spotify account a row is of, and `save` with `same_account`, which lets no other one take its place."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import asyncpg
import pytest

from spotconn import (
    AesGcmSivCipher,
    ConnectFailed,
    ConnectionAdmin,
    ConnectionStore,
    NotConnected,
    Profile,
    StatementRefused,
)
from spotconn.testing import apply_schema
from support.connections import grant, rows, stored_state
from support.database import Database, Dsn
from support.lock_waits import until_waiting
from support.schema_state import Rows, schema_state

ANN = Profile(spotify_user_id="ann", account_id="A1")
RENAMED = Profile(spotify_user_id="ann-new", account_id="A1")
NAMESAKE = Profile(spotify_user_id="ann", account_id="B2")
BOB = Profile(spotify_user_id="bob", account_id="B2")
ANN_WITHOUT_ID, BOB_WITHOUT_ID = Profile(spotify_user_id="ann"), Profile(spotify_user_id="bob")
BY_ANOTHER = """
insert into public.spotify_connections (user_id, spotify_user_id, access_token, refresh_token, expires_at)
values ($1, 'bob', 'a', 'r', now()) on conflict do nothing
"""


@dataclass(frozen=True)
class Case:
    """What is stored, what another writer changes in it, and who connects."""

    stored: Profile
    connects: Profile
    same: bool
    changes: str = "select"


CASES = {
    "the same": Case(ANN, ANN, same=True),
    "another": Case(ANN, BOB, same=False),
    "renamed at Spotify": Case(ANN, RENAMED, same=True),
    "another of the same name": Case(ANN, NAMESAKE, same=False),
    "stored without the lasting id": Case(ANN_WITHOUT_ID, ANN, same=True),
    "stored without the lasting id, another": Case(ANN_WITHOUT_ID, BOB, same=False),
    "connects without the lasting id": Case(ANN, ANN_WITHOUT_ID, same=True),
    "connects without the lasting id, another": Case(ANN, BOB_WITHOUT_ID, same=False),
    "renamed by another writer": Case(ANN, ANN, same=True, changes="{} set spotify_user_id = 'x'"),
    "tokens of another writer": Case(ANN, NAMESAKE, same=True, changes="{} set refresh_token = 'foreign'"),
    "tokens and account of another writer": Case(
        ANN, ANN, same=False, changes="{} set refresh_token = 'foreign', spotify_user_id = 'bob'"
    ),
    "no state": Case(ANN, NAMESAKE, same=True, changes="delete from spotconn.refresh_state"),
    "no state, another": Case(ANN, BOB, same=False, changes="delete from spotconn.refresh_state"),
    "migrated without an account": Case(
        ANN, BOB, same=True, changes="{} set refresh_token = 'foreign', spotify_user_id = ''"
    ),
    "row of another writer": Case(ANN, ANN, same=False, changes="delete from public.spotify_connections"),
}


@pytest.fixture(params=["plain text", "encrypted"])
async def either(request: pytest.FixtureRequest, database: Database) -> AsyncIterator[ConnectionStore]:
    """A store without and with a cipher, under which no text is stored twice."""
    cipher = AesGcmSivCipher([AesGcmSivCipher.generate_key()]) if request.param == "encrypted" else None
    async with ConnectionStore.open(database.dsn, cipher=cipher) as store:
        yield store


@pytest.mark.parametrize("name", CASES)
async def test_another_account_is_refused_and_the_stored_one_stays(
    either: ConnectionStore, admin: asyncpg.Connection, user: UUID, name: str
) -> None:
    """Accounts are compared by the lasting id where it is known of both, else by the id in the row."""
    case = CASES[name]
    await either.save(user, grant("old"), case.stored)
    await admin.execute(case.changes.format("update public.spotify_connections"))
    await admin.execute(BY_ANOTHER, user)
    before = await rows(admin), await admin.fetch("select * from spotconn.refresh_state")
    if case.same:
        saved = await either.save(user, grant("new"), case.connects, same_account=True)
        assert (saved.refresh_token, saved.account_id) == ("refresh-new", case.connects.account_id)
    else:
        with pytest.raises(ConnectFailed, match="sign in to that one at Spotify") as refused:
            await either.save(user, grant("new"), case.connects, same_account=True)
        assert refused.value.reason == "other_account"
        assert (await rows(admin), await admin.fetch("select * from spotconn.refresh_state")) == before
        # Without the demand it takes the place, as ever.
        assert (await either.save(user, grant("new"), case.connects)).refresh_token == "refresh-new"


async def test_who_has_no_connection_may_connect_any_account(store: ConnectionStore, user: UUID) -> None:
    """Also after a disconnect, which forgets the account; and the connection says which account was there before."""
    first = await store.save(user, grant("a"), ANN, same_account=True)
    again = await store.save(user, grant("b"), ANN, same_account=True)
    await store.delete(user)
    other = await store.save(user, grant("c"), BOB, same_account=True)
    replaced = await store.save(user, grant("d"), ANN)
    assert [one.previous_spotify_user_id for one in (first, again, other, replaced)] == [None, "ann", None, "bob"]
    assert (await store.get(user)).previous_spotify_user_id is None
    assert await store.get(user) == replaced


async def test_of_two_accounts_that_connect_at_once_one_is_refused(
    store: ConnectionStore, database: Database, admin: asyncpg.Connection, user: UUID
) -> None:
    """The second waits for the row of the first, also where there was none when both began, and compares with it."""
    async with ConnectionStore.open(database.dsn) as other:
        for profiles in ((ANN, BOB), (BOB, ANN)):
            holder = await asyncpg.connect(database.dsn)
            try:
                async with holder.transaction():
                    await _save(holder, user, profiles[0])
                    second = asyncio.create_task(other.save(user, grant("second"), profiles[1], same_account=True))
                    await until_waiting(admin, *await _sessions(admin))
                with pytest.raises(ConnectFailed) as refused:
                    await second
            finally:
                await holder.close()
            assert refused.value.reason == "other_account"
            assert (await store.get(user)).spotify_user_id == profiles[0].spotify_user_id
            await store.delete(user)


async def _sessions(admin: asyncpg.Connection) -> list[int]:
    found = await admin.fetch("select pid from pg_stat_activity where datname = current_database()")
    return [row["pid"] for row in found]


async def _save(session: asyncpg.Connection, user: UUID, profile: Profile) -> None:
    await session.fetch(
        "select from spotconn.save_connection($1, $2, 'a', 'first', now() + interval '1 hour', null, null, null, "
        "p_account_id => $3)",
        user,
        profile.spotify_user_id,
        profile.account_id,
    )


async def test_the_lasting_id_goes_with_the_refresh_token(
    database: Database, operator: str, admin: asyncpg.Connection, users: list[UUID]
) -> None:
    """A refresh, a rekey, a move and an assigned app carry it over; what another writer stores has none."""
    old, new = AesGcmSivCipher.generate_key(), AesGcmSivCipher.generate_key()
    first, second = users[:2]
    async with (
        ConnectionStore.open(database.dsn, cipher=AesGcmSivCipher([old])) as store,
        ConnectionAdmin.open(operator, cipher=AesGcmSivCipher([new, old])) as house,
    ):
        stored = await store.save(first, grant("a", minutes=-1), ANN)
        turn = await store.begin_refresh(first, seen=stored.fingerprint)
        refreshed = await store.finish_refresh(turn, grant("b"))
        await house.assign_app("app")
        await house.rekey()
        await house.move(first, second)
        moved = (await stored_state(admin, second))["account_id"]
        overview = await admin.fetchval("select account_id from spotconn.connection_overview")
        await admin.execute("update public.spotify_connections set refresh_token = 'foreign'")
        foreign = await admin.fetchval("select account_id from spotconn.connection_overview")
        await house.assign_app("app")
    assert refreshed is not None
    assert (refreshed.account_id, moved, overview, foreign) == ("A1", "A1", "A1", None)
    assert (await stored_state(admin, second))["account_id"] is None


async def test_a_unique_index_of_the_project_is_named_to_the_second_user(
    store: ConnectionStore, admin: asyncpg.Connection, users: list[UUID]
) -> None:
    """Where one account may be connected by one user alone, the other hears of the index, and keeps what they had."""
    await store.save(users[0], grant("a"), ANN)
    await store.save(users[1], grant("b"), BOB)
    await admin.execute("create unique index one_user_each on public.spotify_connections (spotify_user_id)")
    try:
        with pytest.raises(StatementRefused, match=r"constraint one_user_each.*disconnect it first") as refused:
            await store.save(users[1], grant("c"), ANN)
        assert refused.value.sqlstate == "23505"
        assert (await store.get(users[1])).refresh_token == "refresh-b"
        await store.delete(users[0])
        assert (await store.save(users[1], grant("d"), ANN)).spotify_user_id == "ann"
    finally:
        await admin.execute("drop index public.one_user_each")
    with pytest.raises(NotConnected):
        await store.get(users[0])


async def test_an_earlier_form_of_version_3_gets_the_column_and_keeps_its_states(
    dsn: Dsn, scratch: asyncpg.Connection
) -> None:
    """The rows stay as they are, and the database is what a new one is."""
    await apply_schema(dsn())
    wanted = await _shape(scratch)
    user = await scratch.fetchval("insert into auth.users (email) values ('a') returning id")
    async with ConnectionStore.open(dsn()) as store:
        await store.save(user, grant("a"), ANN, connected_at=datetime(2026, 7, 1, tzinfo=UTC), client_id="app")
    await scratch.execute(
        """
        drop view spotconn.connection_overview;
        drop function spotconn.save_connection;
        alter table spotconn.refresh_state drop column account_id;
        alter type spotconn.connection drop attribute account_id, drop attribute previous_spotify_user_id;
        """
    )
    before = [dict(row) for row in await scratch.fetch("select * from spotconn.refresh_state")]
    await apply_schema(dsn())
    after = [dict(row) for row in await scratch.fetch("select * from spotconn.refresh_state")]
    assert [row | {"account_id": None} for row in before] == after
    assert await _shape(scratch) == wanted
    async with ConnectionStore.open(dsn()) as store:
        assert (await store.save(user, grant("b"), RENAMED)).account_id == "A1"


async def _shape(session: asyncpg.Connection) -> Rows:
    """The schema without what is there of columns that were dropped."""
    shape = await schema_state(session)
    return shape | {"columns": [column for column in shape["columns"] if "pg.dropped" not in column[1]]}
