"""Dumps and restores: what comes back, what is lost, and that applying the schema again mends it."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore, NotConnected, Outcome, Profile, RefreshFailure, RowSecurityError, UnknownUser
from spotconn._command.finding import Finding
from spotconn._database.schema import read_sql
from spotconn.models import fingerprint
from spotconn.testing import EmbeddedPostgres, apply_schema
from support.connections import grant
from support.database import Database, Dsn
from support.doctor import look
from support.dumps import OLD_PRIVILEGES, dump, has_tools, restore
from support.schema_state import stored_rows
from support.scratch import scratch_database

TABLES = ("--table=auth.users", "--table=public.spotify_connections", "--table=spotconn.refresh_state")
SEEN = fingerprint("access-a")
APP = "0123456789abcdef" * 2


def name_of(dsn: str) -> str:
    return dsn.rpartition("/")[2]


async def faults(dsn: str) -> dict[str, Finding]:
    """The failed findings of the doctor."""
    return {subject: one for subject, one in (await look(dsn)).items() if one.state == "fail"}


@pytest.fixture
def server(prepared: Database) -> EmbeddedPostgres:
    """The server, where it comes with its tools."""
    if not has_tools(prepared.server):
        pytest.skip("the binaries of this server lack pg_dump")
    return prepared.server


@pytest.fixture
async def source(dsn: Dsn, scratch: asyncpg.Connection) -> list[UUID]:
    """A database that is locked down, with a connected user, one whose refresh is under way, and one refused."""
    await apply_schema(dsn())
    await scratch.execute(read_sql("lock_down.sql"))
    added = await scratch.fetch(
        "insert into auth.users (id) select gen_random_uuid() from generate_series(1, 3) returning id"
    )
    users = [row["id"] for row in added]
    async with ConnectionStore.open(dsn("app"), max_size=1) as store:
        for user in users:
            await store.save(user, grant("a", -1), Profile(spotify_user_id="alice"), client_id=APP)
        assert (await store.begin_refresh(users[1], seen=SEEN, lease=60)).outcome is Outcome.GRANTED
        turn = await store.begin_refresh(users[2], seen=SEEN)
        await store.fail_refresh(turn, RefreshFailure(reason="refused"))
    return users


@pytest.fixture
async def target(server: EmbeddedPostgres, prepared: Database) -> AsyncIterator[Dsn]:
    """Another database on the same server, without anything."""
    async with scratch_database(prepared) as of:
        yield of


async def state_is_kept(dsn: str, users: list[UUID]) -> None:
    """The app is known, the lease of another process still runs, and the refusal counts."""
    async with ConnectionStore.open(dsn, max_size=1) as store:
        assert {(await store.get(user)).client_id for user in users} == {APP}
        outcomes = [(await store.begin_refresh(user, seen=SEEN)).outcome for user in users]
    assert outcomes == [Outcome.GRANTED, Outcome.BUSY, Outcome.REFUSED]


@pytest.mark.parametrize("old_privileges", [False, True])
async def test_a_whole_dump(
    server: EmbeddedPostgres,
    dsn: Dsn,
    target: Dsn,
    scratch: asyncpg.Connection,
    source: list[UUID],
    *,
    old_privileges: bool,
) -> None:
    """All rows come back, and with new default privileges the lock-down; older ones give the tokens back to clients,
    which the doctor names, and applying the schema again mends.
    """
    before = await stored_rows(scratch)
    copy = await asyncpg.connect(target())
    try:
        if old_privileges:
            await copy.execute(OLD_PRIVILEGES)
        assert restore(server, name_of(target()), dump(server, name_of(dsn()))) == 0
        assert await stored_rows(copy) == before
        found = await faults(target("app"))
        assert set(found) == ({"catalog", "clients"} if old_privileges else set())
        if old_privileges:
            said = "anon, authenticated may more than that, as after a restore: they read and write tokens"
            assert said in found["clients"].text
            assert "spotconn schema --apply" in str(found["clients"].remedy)
        await apply_schema(target(), plain_postgres=False)
        assert await faults(target("app")) == {}
        assert await copy.fetchval("select spotconn.locked_down()")
    finally:
        await copy.close()
    await state_is_kept(target("app"), source)


@pytest.mark.parametrize("replica_mode", [False, True])
async def test_the_data_alone(
    server: EmbeddedPostgres,
    dsn: Dsn,
    target: Dsn,
    scratch: asyncpg.Connection,
    source: list[UUID],
    *,
    replica_mode: bool,
) -> None:
    """Over schema.sql as the migration the rows come back unaltered, with or without triggers, no right too many."""
    before = await stored_rows(scratch)
    await apply_schema(target())
    archive = dump(server, name_of(dsn()), "--data-only", *TABLES)
    assert restore(server, name_of(target()), archive, "--data-only", replica_mode=replica_mode) == 0
    copy = await asyncpg.connect(target())
    assert await stored_rows(copy) == before
    await copy.close()
    assert await faults(target("app")) == {}
    await state_is_kept(target("app"), source)


async def test_the_table_without_the_state(server: EmbeddedPostgres, dsn: Dsn, target: Dsn, source: list[UUID]) -> None:
    """Where the schema spotconn is left out, no app, lease or failure is known: each refresh token may be tried."""
    await apply_schema(target())
    archive = dump(server, name_of(dsn()), "--data-only", *TABLES[:2])
    assert restore(server, name_of(target()), archive, "--data-only") == 0
    async with ConnectionStore.open(target("app"), max_size=1) as store:
        for user in source:
            assert ((await store.get(user)).client_id, (await store.get(user)).failure) == (None, None)
            assert (await store.begin_refresh(user, seen=SEEN)).outcome is Outcome.GRANTED


async def test_rows_without_their_users(server: EmbeddedPostgres, dsn: Dsn, target: Dsn, source: list[UUID]) -> None:
    """In replica mode no foreign key is looked at: a row whose user is missing is readable and cannot be saved to."""
    await apply_schema(target())
    archive = dump(server, name_of(dsn()), "--data-only", TABLES[1])
    assert restore(server, name_of(target()), archive, "--data-only", replica_mode=True) == 0
    async with ConnectionStore.open(target("app"), max_size=1) as store:
        assert (await store.get(source[0])).access_token == "access-a"
        with pytest.raises(UnknownUser, match="no such user"):
            await store.save(source[0], grant("b"), Profile(spotify_user_id="alice"))


@pytest.mark.long
async def test_a_server_without_the_roles(server: EmbeddedPostgres, dsn: Dsn, source: list[UUID]) -> None:
    """There a restore stops at the first policy, or goes on without; the doctor names what is missing, and applying the
    schema makes the roles. The service's login needs its membership again, and says so.
    """
    archive = dump(server, name_of(dsn()))
    with EmbeddedPostgres(binaries=server._binaries) as other:
        admin = await asyncpg.connect(other.dsn())
        try:
            await admin.execute("create database project")
            assert restore(other, "project", archive, "--exit-on-error") == 1
            await admin.execute("drop database project")
            await admin.execute("create database project")
            assert restore(other, "project", archive) > 5
            found = await faults(other.dsn("project"))
            assert {"isolation", "catalog"} <= set(found)
            assert "spotconn schema --apply" in found["isolation"].text
            await apply_schema(other.dsn("project"))
            assert await faults(other.dsn("project")) == {}
            await admin.execute("create role app login password 'app'")
            service = other.dsn("project", user="app", password="app")
            with pytest.raises(RowSecurityError, match="GRANT spotconn TO it"):
                async with ConnectionStore.open(service, max_size=1):
                    pass
            assert "GRANT spotconn TO it" in (await faults(service))["schema"].text
            await admin.execute("grant spotconn to app")
            assert await faults(service) == {}
            await state_is_kept(service, source)
            await admin.execute("alter role app password null")
            assert "28P01" in (await faults(service))["database"].text
        finally:
            await admin.close()


async def test_a_login_that_the_policies_bind_dumps_nothing(
    server: EmbeddedPostgres, dsn: Dsn, source: list[UUID]
) -> None:
    """pg_dump refuses it, and with --enable-row-security gives an archive without a row."""
    table = "--table=public.spotify_connections"
    with pytest.raises(subprocess.CalledProcessError) as raised:
        dump(server, name_of(dsn()), table, user="app")
    assert b"row-level security" in raised.value.stderr
    whole = dump(server, name_of(dsn()), table, "--data-only", "--compress=0")
    bound = dump(server, name_of(dsn()), table, "--data-only", "--compress=0", "--enable-row-security", user="app")
    assert (b"refresh-a" in whole, b"refresh-a" in bound) == (True, False)


async def all_has_arrived(first: asyncpg.Connection, second: asyncpg.Connection) -> None:
    """Wait until what was committed on the primary before is on the replica: it comes in the order of the commits."""
    last = await first.fetchval(ADD_USER)
    async with asyncio.timeout(30):
        while not await second.fetchval("select exists (select from auth.users where id = $1)", last):
            await asyncio.sleep(0.02)


REPLICATED = {False: "public.spotify_connections, auth.users"}
REPLICATED[True] = f"{REPLICATED[False]}, spotconn.refresh_state"
ADD_USER = "insert into auth.users (id) values (gen_random_uuid()) returning id"


@pytest.mark.long
@pytest.mark.parametrize("with_state", [True, pytest.param(False, marks=pytest.mark.long)])
async def test_a_logical_replica_that_is_promoted(server: EmbeddedPostgres, *, with_state: bool) -> None:
    """With the tables of both schemas published it goes on where the primary ended; with the table alone no app and no
    failure is known. Connections made and ended at the primary have arrived.
    """
    with EmbeddedPostgres(binaries=server._binaries, settings={"wal_level": "logical"}) as both:
        admin = await asyncpg.connect(both.dsn())
        try:
            for name in ("first", "second"):
                await admin.execute(f"create database {name}")
                await apply_schema(both.dsn(name))
            await admin.execute("create role app login password 'app' in role spotconn")
            first, second = [await asyncpg.connect(both.dsn(name)) for name in ("first", "second")]
            await first.execute(f"create publication moving for table {REPLICATED[with_state]}")
            await first.execute("select pg_create_logical_replication_slot('moving', 'pgoutput')")
            await second.execute(
                f"create subscription moving connection '{both.dsn('first')}' publication moving "
                "with (create_slot = false, copy_data = false, slot_name = 'moving')"
            )
            users = [await first.fetchval(ADD_USER) for _ in "ab"]
            app = {name: both.dsn(name, user="app", password="app") for name in ("first", "second")}
            async with ConnectionStore.open(app["first"], max_size=1) as store:
                for user in users:
                    await store.save(user, grant("a", -1), Profile(spotify_user_id="alice"), client_id=APP)
                turn = await store.begin_refresh(users[0], seen=SEEN)
                await store.fail_refresh(turn, RefreshFailure(reason="refused"))
                await store.delete(users[1])
            await all_has_arrived(first, second)
            await second.execute("alter subscription moving disable")
            await second.execute("alter subscription moving set (slot_name = none); drop subscription moving")
            assert await faults(app["second"]) == {}
            async with ConnectionStore.open(app["second"], max_size=1) as store:
                stored = await store.get(users[0])
                assert (stored.client_id, stored.failure is not None) == ((APP, True) if with_state else (None, False))
                with pytest.raises(NotConnected):
                    await store.get(users[1])
                if not with_state:
                    turn = await store.begin_refresh(users[0], seen=SEEN, lease=1)
                    assert await store.finish_refresh(turn, grant("b")) is not None
            await first.close()
            await second.close()
        finally:
            await admin.close()
