"""The view without tokens is for a role that the operator names: no client and no member of spotconn reads it."""

from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore, Profile, RefreshFailure
from spotconn.models import fingerprint
from spotconn.testing import apply_schema
from support.connections import grant
from support.database import Database
from support.doctor import look
from support.scratch import scratch_database
from support.tenant import Tenant

TABLE = "public.spotify_connections"
VIEW = "spotconn.connection_overview"
READ = f"select * from {VIEW}"
REPORTING = f"grant usage on schema spotconn to reporting; grant select on {VIEW} to reporting"


@pytest.fixture
async def connected(store: ConnectionStore, users: list[UUID]) -> list[UUID]:
    """Two connected users, of whom one was refused, and a third."""
    for user in users[:2]:
        await store.save(user, grant("a"), Profile(spotify_user_id="alice"), client_id="f" * 32)
    turn = await store.begin_refresh(users[1], seen=fingerprint("access-a"))
    await store.fail_refresh(turn, RefreshFailure(reason="refused"))
    return users


@pytest.fixture
async def reporting(admin: asyncpg.Connection) -> AsyncIterator[str]:
    """A login with the grants of the guide."""
    await admin.execute("create role reporting login password 'reporting'; " + REPORTING)
    yield "reporting"
    await admin.execute("drop owned by reporting; drop role reporting")


@pytest.mark.parametrize("role", ["anon", "authenticated", "authenticator", "spotconn", "app", "app_bypass"])
async def test_no_client_and_no_member_reads_it(admin: asyncpg.Connection, connected: list[UUID], role: str) -> None:
    """It is refused to each, also to those who have USAGE on the schema, and to a user with claims."""
    async with admin.transaction():
        await admin.execute("grant usage on schema spotconn to anon, authenticated, authenticator")
        await admin.execute(f"set local role {role}")
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="view connection_overview"):
            async with admin.transaction():
                await admin.fetch(READ)
        await admin.execute("reset role; revoke usage on schema spotconn from anon, authenticated, authenticator")
    assert await Tenant(admin, connected[0]).send(READ) == "42501"


async def test_the_callers_own_sql_does_not_reach_it(store: ConnectionStore, connected: list[UUID]) -> None:
    """Within `as_user` it is refused like the rows of others."""
    async with store.as_user(connected[0]) as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with connection.transaction():
                await connection.fetch(READ)


async def test_who_is_granted_it_sees_all_without_tokens(
    database: Database, admin: asyncpg.Connection, connected: list[UUID], reporting: str
) -> None:
    """The guide's role sees every connection and no token in any form, and the doctor has no objection."""
    session = await asyncpg.connect(database.login_dsn(reporting))
    try:
        rows = {row["user_id"]: row for row in await session.fetch(READ)}
        for table in ("public.spotify_connections", "spotconn.refresh_state"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await session.fetch(f"select from {table}")
    finally:
        await session.close()
    assert set(rows) == set(connected[:2])
    assert not any(word in str(row) for row in rows.values() for word in ("access-a", "refresh-a"))
    first, second = (rows[user] for user in connected[:2])
    assert (first["client_id"], first["failure"], second["failure"]) == ("f" * 32, None, "revoked")
    assert first["reauthorize_by"] > first["connected_at"]
    assert (await look(database.admin_dsn))["catalog"].state == "ok"


async def test_a_date_out_of_range_breaks_no_report(admin: asyncpg.Connection, connected: list[UUID]) -> None:
    """A row may hold any date; of one that cannot be counted on from, there is no end."""
    for moment in ("infinity", "-infinity", "294276-12-31 00:00+00"):
        await admin.execute(f"update public.spotify_connections set connected_at = '{moment}', expires_at = '{moment}'")
        assert await admin.fetchval(f"select count(*) from {VIEW} where reauthorize_by is null") == 2


async def test_where_row_security_is_forced_it_shows_nothing(prepared: Database) -> None:
    """FORCE ROW LEVEL SECURITY binds an owner without BYPASSRLS, and the view reads as that one."""
    async with scratch_database(prepared) as dsn:
        await apply_schema(dsn())
        admin = await asyncpg.connect(dsn())
        transaction = admin.transaction()
        await transaction.start()
        try:
            await admin.execute(
                f"create role plain_owner; grant usage on schema public, spotconn, auth to plain_owner; "
                f"alter table {TABLE} owner to plain_owner; "
                f"alter table spotconn.refresh_state owner to plain_owner; alter view {VIEW} owner to plain_owner; "
                "insert into auth.users (id) values (gen_random_uuid()); "
                f"insert into {TABLE} (user_id, spotify_user_id, access_token, refresh_token, expires_at) "
                "select id, 'alice', 'a', 'r', now() from auth.users"
            )
            assert await admin.fetchval(f"select count(*) from {VIEW}") == 1
            await admin.execute(f"alter table {TABLE} force row level security")
            assert await admin.fetchval(f"select count(*) from {VIEW}") == 0
        finally:
            await transaction.rollback()
            await admin.close()


async def test_what_sees_past_policies_shows_the_own_row_alone(
    admin: asyncpg.Connection, store: ConnectionStore, connected: list[UUID]
) -> None:
    """It tells a user no more than whether one has a connection; also to a condition that reports what it meets, and to
    a role with all rights to it, as after a restore.
    """
    own = "spotconn.own_row"
    assert await admin.fetchval(
        f"select has_table_privilege('spotconn', '{own}', 'select') and not has_any_column_privilege('authenticated', "
        f"'{own}', 'select, insert, update, references') and not has_table_privilege('spotconn', '{own}', 'delete')"
    )
    async with admin.transaction():
        await admin.execute(
            f"grant all on {own} to spotconn; "
            "create function public.met(uuid) returns boolean language plpgsql cost 1e-9 "
            "as $$begin perform set_config('spotconn.met', concat(current_setting('spotconn.met', true), $1), true); "
            "return true; end$$"
        )
        await admin.execute("select spotconn.act_as($1)", connected[0])
        assert await admin.fetchval(f"select array_agg(user_id) from {own} where public.met(user_id)") == connected[:1]
        assert await admin.fetchval("select current_setting('spotconn.met')") == str(connected[0])
        for change in (f"delete from {own}", f"update {own} set user_id = '{connected[1]}'"):
            with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
                async with admin.transaction():
                    await admin.execute(change)
        await admin.execute("reset role; drop function public.met(uuid); revoke all on spotconn.own_row from spotconn")
        await admin.execute(f"grant select on {own} to spotconn")
    assert len(await store.get_many(connected)) == 2
