"""Who was asked to connect again is remembered for that authorization, and asked once by however many jobs."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from spotconn import (
    AesGcmSivCipher,
    ConnectionAdmin,
    ConnectionOverview,
    ConnectionStore,
    NotConnected,
    Profile,
    RefreshFailure,
    SchemaMismatch,
)
from spotconn._database import reminders
from spotconn.models import fingerprint
from spotconn.testing import apply_schema
from support.connections import grant
from support.database import Database
from support.database_clock import database_clock
from support.scratch import scratch_database

ALICE = Profile(spotify_user_id="alice")
MONTH = timedelta(days=30)
AGE = "update public.spotify_connections set connected_at = now() - interval '170 days' where user_id = any($1)"
REMINDERS = "select user_id, connected_at, asked_at from spotconn.reminder order by user_id"


@pytest.fixture
async def house(operator: str) -> AsyncIterator[ConnectionAdmin]:
    async with ConnectionAdmin.open(operator) as opened:
        yield opened


@pytest.fixture
async def due(store: ConnectionStore, users: list[UUID], admin: asyncpg.Connection) -> list[UUID]:
    """Three users whose connections end within ten days or so, in the order of their ids."""
    for user in users:
        await store.save(user, grant("a", minutes=-1), ALICE)
    await admin.execute(AGE, users)
    return sorted(users)


async def listed(house: ConnectionAdmin, since: datetime | None = None) -> list[ConnectionOverview]:
    return [one async for one in house.expiring(within=MONTH, not_asked_since=since)]


async def test_who_was_asked_is_left_out_until_then(
    house: ConnectionAdmin, due: list[UUID], admin: asyncpg.Connection
) -> None:
    """The list leaves out those asked since a moment, and without one has all, with the time of each."""
    before = datetime.now(UTC) - timedelta(hours=1)
    assert await house.mark_asked([due[0], str(due[1]), due[0], uuid4()]) == 2
    first, second, third = await listed(house)
    assert first.asked_at is not None
    assert abs(first.asked_at - datetime.now(UTC)) < timedelta(minutes=10)
    assert (second.asked_at is None, third.asked_at) == (False, None)
    assert [one.user_id for one in await listed(house, before)] == due[2:]
    assert [one.user_id for one in await listed(house, first.asked_at + timedelta(seconds=60))] == due
    async with database_clock(admin) as clock:
        await clock.set_offset(timedelta(days=3).total_seconds())
        assert await house.mark_asked(due) == 3
        assert await house.mark_asked([]) == 0
    assert await admin.fetchval("select min(asked_at) > now() + interval '2 days' from spotconn.reminder")


async def test_it_outlasts_a_refresh_and_a_rekey_and_no_reconnect(
    store: ConnectionStore, house: ConnectionAdmin, operator: str, due: list[UUID], admin: asyncpg.Connection
) -> None:
    """Tokens are replaced and encrypted anew without a further letter; who connects again is asked in half a year."""
    await house.mark_asked(due)
    for user in due[1:]:
        turn = await store.begin_refresh(user, seen=fingerprint("access-a"))
        await store.finish_refresh(turn, grant("b"))
    async with ConnectionAdmin.open(operator, cipher=AesGcmSivCipher([AesGcmSivCipher.generate_key()])) as other:
        assert (await other.rekey()).done == 3
    assert all(one.asked_at for one in await listed(house))
    await store.save(due[2], grant("c"), ALICE)
    async with database_clock(admin) as clock:
        await clock.set_offset(timedelta(days=170).total_seconds())
        assert [one.asked_at is None for one in await listed(house)] == [False, False, True]


async def test_a_writer_that_loses_digits_of_the_date_ends_no_mark(
    house: ConnectionAdmin, due: list[UUID], admin: asyncpg.Connection
) -> None:
    """A Date of JavaScript holds milliseconds: the row that it writes back is of the same authorization. Any date that
    can be stored is compared.
    """
    since = datetime.now(UTC) - timedelta(days=1)
    for user, date in zip(due[1:], ("infinity", "294276-12-31 23:59:59.5+00"), strict=True):
        await admin.execute(f"update public.spotify_connections set connected_at = '{date}' where user_id = $1", user)
    assert await house.mark_asked(due) == 3
    loses = "set connected_at = date_trunc('milliseconds', connected_at - interval '1 us')"
    await admin.execute(f"update public.spotify_connections {loses}")
    assert await house.mark_asked(due, not_asked_since=since) == 0
    assert [one.asked_at is None for one in await listed(house)] == [False]
    assert await listed(house, since) == []


@pytest.mark.parametrize("hosts", [2, 6])
async def test_hosts_that_mark_at_once_share_the_users(
    operator: str, due: list[UUID], admin: asyncpg.Connection, hosts: int
) -> None:
    """Each user is marked by one of them, and the moment before which nobody was asked is the one of the call."""
    since = datetime.now(UTC) - timedelta(days=7)
    pool = await asyncpg.create_pool(operator, min_size=hosts, max_size=hosts)
    async with pool:
        house = ConnectionAdmin(pool)
        for n in range(3):
            marks = [house.mark_asked([user], not_asked_since=since) for _ in range(hosts) for user in due]
            assert sum(await asyncio.gather(*marks)) == (0 if n else 3)
        await admin.execute("update spotconn.reminder set asked_at = asked_at - interval '8 days'")
        marks = [house.mark_asked(due, not_asked_since=since) for _ in range(hosts)]
        assert sorted(await asyncio.gather(*marks)) == [*[0] * (hosts - 1), 3]


async def test_who_has_connected_since_is_not_asked(
    store: ConnectionStore, house: ConnectionAdmin, due: list[UUID], admin: asyncpg.Connection
) -> None:
    """One who comes back between the list and the letter is left out, and so is one who has left."""
    since = datetime.now(UTC) - timedelta(days=7)
    await store.save(due[0], grant("new"), ALICE)
    await store.delete(due[1])
    assert await house.mark_asked(due, not_asked_since=since) == 1
    assert [row["user_id"] for row in await admin.fetch(REMINDERS)] == due[2:]


async def test_users_who_are_deleted_meanwhile_cost_the_others_nothing(
    house: ConnectionAdmin, due: list[UUID], admin: asyncpg.Connection, database: Database
) -> None:
    """The mark waits for the deletion, and records all but that user."""
    other = await asyncpg.connect(database.admin_dsn)
    try:
        async with other.transaction():
            await other.execute("delete from auth.users where id = $1", due[1])
            marking = asyncio.create_task(house.mark_asked(due))
            await waiting_mark(admin)
        assert await marking == 2
    finally:
        await other.close()
    assert [row["user_id"] for row in await admin.fetch(REMINDERS)] == [due[0], due[2]]


async def test_a_mark_gives_way_to_a_deletion(
    house: ConnectionAdmin, due: list[UUID], admin: asyncpg.Connection, database: Database
) -> None:
    """It waits for one of two users who are deleted at once, and holds what is recorded of the other: the deletion goes
    on, and nobody is the victim of a deadlock.
    """
    await house.mark_asked(due[:1])
    early = {"deadlock_timeout": "1ms"}  # it looks once, when it begins to wait
    async with ConnectionAdmin.open(database.admin_dsn, max_size=1, server_settings=early) as waiting:
        other = await asyncpg.connect(database.admin_dsn, server_settings={"deadlock_timeout": "5s"})
        try:
            async with other.transaction():
                await other.execute("delete from auth.users where id = $1", due[1])
                marking = asyncio.create_task(waiting.mark_asked(due))
                await waiting_mark(admin)
                await other.execute("delete from auth.users where id = $1", due[0])
            assert await marking == 1
        finally:
            await other.close()


async def waiting_mark(admin: asyncpg.Connection) -> None:
    """Return once a mark waits for a lock."""
    query = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%reminder%'"
    async with asyncio.timeout(20):
        while not await admin.fetchval(query):
            await asyncio.sleep(0.01)


async def test_many_are_marked_in_batches(
    house: ConnectionAdmin, due: list[UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No statement has more users than a batch."""
    monkeypatch.setattr(reminders, "BATCH", 2)
    assert await house.mark_asked(iter(due)) == 3


async def test_a_connection_without_a_date_is_asked_once_for_its_retired_app(
    store: ConnectionStore, house: ConnectionAdmin, user: UUID, admin: asyncpg.Connection
) -> None:
    """A missing date is an authorization like any other: it is marked, and a connect ends it."""
    await store.save(user, grant("a"), ALICE, client_id="gone")
    await admin.execute("update public.spotify_connections set connected_at = null")
    since = datetime.now(UTC) - timedelta(days=1)

    async def asked() -> list[bool]:
        found = house.expiring(within=MONTH, retired_client_ids=["gone"], not_asked_since=since)
        return [one.asked_at is not None async for one in found]

    assert await asked() == [False]
    assert [await house.mark_asked([user], not_asked_since=since) for _ in range(2)] == [1, 0]
    assert await asked() == []
    await store.save(user, grant("b"), ALICE, client_id="gone")
    assert await asked() == [False]


async def test_a_disconnect_and_the_end_of_a_user_take_it_along(
    store: ConnectionStore, house: ConnectionAdmin, due: list[UUID], admin: asyncpg.Connection
) -> None:
    """Nothing of it stays of those who go, and it follows a user whose id changes."""
    await house.mark_asked(due)
    assert await store.delete(due[0])
    await admin.execute("delete from auth.users where id = $1", due[1])
    (stored,) = await admin.fetch(REMINDERS)
    new = uuid4()
    await admin.execute("delete from public.spotify_connections")
    await admin.execute("update auth.users set id = $2 where id = $1", due[2], new)
    assert [tuple(row) for row in await admin.fetch(REMINDERS)] == [(new, stored["connected_at"], stored["asked_at"])]


async def test_a_move_takes_it_along(
    store: ConnectionStore, house: ConnectionAdmin, users: list[UUID], admin: asyncpg.Connection
) -> None:
    """It is about the authorization: it takes the place of what is recorded of an earlier one of the new user."""
    old, new, _ = users
    for user in (new, old):
        await store.save(user, grant("a"), ALICE)
        await house.mark_asked([user])
    await admin.execute("delete from public.spotify_connections where user_id = $1", new)
    before = (await admin.fetchrow(REMINDERS + " limit 1 offset $1", int(old > new)) or [None] * 3)[1:]
    assert await house.move(old, new)
    assert [tuple(row) for row in await admin.fetch(REMINDERS)] == [(new, *before)]


async def test_failures_since_a_moment(
    store: ConnectionStore, house: ConnectionAdmin, due: list[UUID], admin: asyncpg.Connection
) -> None:
    """Those that began then or later are listed, also who was asked; without a moment all are."""
    for user in due[:2]:
        turn = await store.begin_refresh(user, seen=fingerprint("access-a"))
        await store.fail_refresh(turn, RefreshFailure(reason="refused"))
    await admin.execute(
        "update spotconn.refresh_state set failed_at = failed_at - interval '2 days' where user_id = $1", due[0]
    )
    await house.mark_asked(due[:1])
    failing = [one async for one in house.failing()]
    assert [(one.user_id, one.asked_at is None) for one in failing] == [(due[0], False), (due[1], True)]
    assert failing[1].failure is not None
    assert [one.user_id async for one in house.failing(since=failing[1].failure.since)] == due[1:2]
    assert [one async for one in house.failing(since=datetime.now(UTC) + timedelta(hours=1))] == []


async def test_bad_arguments_are_named(house: ConnectionAdmin) -> None:
    """A single id, one that is none, and times without a zone, before any query."""
    naive = datetime(2026, 1, 1)  # noqa: DTZ001  the point
    for single in (str(uuid4()), uuid4()):
        with pytest.raises(ValueError, match=r"^user_ids: expected an iterable of user ids$"):
            await house.mark_asked(single)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"^user_ids\[1\]: expected a UUID or an integer id"):
        await house.mark_asked([uuid4(), "marked"])
    with pytest.raises(ValueError, match=r"^not_asked_since: expected a time with a time zone"):
        await house.mark_asked([], not_asked_since=naive)
    with pytest.raises(ValueError, match=r"^not_asked_since: expected a time with a time zone"):
        house.expiring(within=MONTH, not_asked_since=naive)
    with pytest.raises(ValueError, match=r"^since: expected a time with a time zone"):
        house.failing(since=naive)


@pytest.mark.parametrize("role", ["anon", "authenticated", "spotconn"])
async def test_no_client_and_no_service_reads_or_writes_it(
    house: ConnectionAdmin, due: list[UUID], admin: asyncpg.Connection, role: str
) -> None:
    """Also where clients may use the schema. The library's role sees that its user has one, and may delete that one."""
    await house.mark_asked(due)
    own, refused = role == "spotconn", "42501"
    claims = json.dumps({"sub": str(due[0])})

    async def send(statement: str) -> str | None:
        try:
            async with admin.transaction():
                await admin.execute("grant usage on schema spotconn to anon, authenticated")
                await admin.execute(
                    "select set_config('role', $1, true), set_config('request.jwt.claims', $2, true)", role, claims
                )
                return await admin.execute(statement)
        except asyncpg.PostgresError as error:
            return error.sqlstate

    try:
        for statement, answer in {
            "select asked_at from spotconn.reminder": refused,
            "insert into spotconn.reminder (user_id, asked_at) values (gen_random_uuid(), now())": refused,
            "update spotconn.reminder set asked_at = now()": refused,
            "select user_id from spotconn.reminder": "SELECT 1" if own else refused,
            "delete from spotconn.reminder": "DELETE 1" if own else refused,
        }.items():
            assert await send(statement) == answer
    finally:
        await admin.execute("revoke usage on schema spotconn from anon, authenticated")


EARLIER_3 = """
drop table spotconn.reminder;
create or replace function spotconn.delete_connection(p_user_id uuid) returns boolean
    language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform spotconn.act_as(p_user_id);
    delete from public.spotify_connections as stored where stored.user_id = p_user_id;
    return found;
end
$$;
"""


async def test_an_earlier_version_3_gets_it(prepared: Database) -> None:
    """A database of this version that lacks the table is named, and the schema adds it beside what is stored."""
    async with scratch_database(prepared) as dsn:
        await apply_schema(dsn())
        admin = await asyncpg.connect(dsn())
        try:
            user = await admin.fetchval("insert into auth.users (id) values (gen_random_uuid()) returning id")
            await admin.execute(EARLIER_3)
            async with ConnectionAdmin.open(dsn()) as house:
                with pytest.raises(SchemaMismatch, match="spotconn schema --apply"):
                    await house.mark_asked([user])
                await apply_schema(dsn(), plain_postgres=False)
                async with ConnectionStore.open(dsn("app"), max_size=1) as store:
                    await store.save(user, grant("a"), ALICE)
                    assert await house.mark_asked([user]) == 1
                    assert await store.delete(user)
                    with pytest.raises(NotConnected):
                        await store.get(user)
            assert await admin.fetch(REMINDERS) == []
        finally:
            await admin.close()
