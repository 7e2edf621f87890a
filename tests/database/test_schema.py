"""The SQL files: the table to the letter, applied again, over an older database, and by a login as on Supabase."""

import asyncio
import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from spotconn import ConnectionStore, Outcome, Profile, RowSecurityError, SchemaMismatch, TokenGrant
from spotconn._database.schema import read_sql
from spotconn._database.schema_version import SCHEMA_VERSION
from spotconn.models import fingerprint
from spotconn.testing import EmbeddedPostgres, apply_schema
from support.connections import content
from support.database import Database, Dsn
from support.documented_table import create_documented_table

ALICE = Profile(spotify_user_id="alice")
GRANT = TokenGrant(access_token="access", refresh_token="refresh", expires_at=datetime(2026, 11, 24, tzinfo=UTC))

TABLE = "'public.spotify_connections'::regclass"
DESCRIPTION = {
    "columns": "select attname, format_type(atttypid, atttypmod), attnotnull, pg_get_expr(adbin, adrelid) "
    f"from pg_attribute left join pg_attrdef on adrelid = attrelid and adnum = attnum where attrelid = {TABLE} "
    "and attnum > 0 order by attnum",
    "constraints": "select conname::text, pg_get_constraintdef(oid) from pg_constraint "
    f"where conrelid = {TABLE} order by 1",
    "indexes": f"select pg_get_indexdef(indexrelid) from pg_index where indrelid = {TABLE} order by 1",
    "security": f"select relrowsecurity, relforcerowsecurity from pg_class where oid = {TABLE}",
    "policies": "select polname::text, polcmd::text, polpermissive, polroles::text, pg_get_expr(polqual, polrelid), "
    f"pg_get_expr(polwithcheck, polrelid) from pg_policy where polrelid = {TABLE} order by 1",
}
GRANTS = (
    "select coalesce(rolname::text, 'public'), string_agg(privilege_type, ' ' order by privilege_type) "
    "from pg_class, aclexplode(relacl) left join pg_roles on pg_roles.oid = grantee "
    f"where pg_class.oid = {TABLE} and grantee <> relowner group by 1"
)


async def describe(connection: asyncpg.Connection) -> dict[str, list[tuple[Any, ...]]]:
    return {name: [tuple(row) for row in await connection.fetch(query)] for name, query in DESCRIPTION.items()}


async def grants(connection: asyncpg.Connection) -> dict[str, str]:
    return {row[0]: row[1] for row in await connection.fetch(GRANTS)}


async def test_the_table_is_the_documented_one_and_scope(
    admin: asyncpg.Connection, scratch: asyncpg.Connection
) -> None:
    """Columns, constraints, indexes and policies are those of the documented SQL, and `scope text` is all there is
    besides; only the call of auth.uid() in the policies is wrapped.
    """
    await create_documented_table(scratch)
    documented, ours = await describe(scratch), await describe(admin)
    assert ours["columns"].pop() == ("scope", "text", False, None)
    ours["policies"] = [
        tuple(
            part.replace("( SELECT auth.uid() AS uid)", "auth.uid()") if isinstance(part, str) else part for part in row
        )
        for row in ours["policies"]
    ]
    assert ours == documented
    assert len(ours["policies"]) == 4
    assert ours["security"] == [(True, False)]


async def test_every_policy_asks_for_the_user_once(admin: asyncpg.Connection) -> None:
    """Each expression of a policy holds the wrapped call that is evaluated once per statement."""
    for *_, using, check in (await describe(admin))["policies"]:
        for expression in filter(None, (using, check)):
            assert expression == "(( SELECT auth.uid() AS uid) = user_id)"


async def test_an_older_database_is_upgraded(dsn: Dsn, scratch: asyncpg.Connection, admin: asyncpg.Connection) -> None:
    """Applied over the documented table every row stays, the grants are tightened, and a refresh works at once."""
    await create_documented_table(scratch)
    rows = await scratch.fetch("select * from spotify_connections order by id")
    assert "TRUNCATE" in (await grants(scratch))["anon"]
    await apply_schema(dsn(), plain_postgres=False)
    kept = await scratch.fetch("select * from spotify_connections order by id")
    assert [tuple(row) for row in kept] == [(*row, None) for row in rows]
    assert await describe(scratch) == await describe(admin)
    crud = "DELETE INSERT SELECT UPDATE"
    assert await grants(scratch) == {"authenticated": crud, "service_role": crud, "spotconn": crud}
    await _no_function_is_open(scratch)
    async with ConnectionStore.open(dsn("app"), max_size=1) as store:
        turn = await store.begin_refresh(rows[0]["user_id"], seen=fingerprint(rows[0]["access_token"]))
        assert (turn.outcome, turn.connection and turn.connection.scope) == (Outcome.GRANTED, None)


async def test_the_files_may_be_applied_again_and_at_once(
    dsn: Dsn, scratch: asyncpg.Connection, admin: asyncpg.Connection
) -> None:
    """Four processes that apply each file together, and one more later, end with the same database and all rows."""
    for name in ("plain_postgres.sql", "schema.sql", "schema.sql"):
        connections = [await asyncpg.connect(dsn()) for _ in range(4)]
        await asyncio.gather(*(connection.execute(read_sql(name)) for connection in connections))
        await asyncio.gather(*(connection.close() for connection in connections))
    user = await scratch.fetchval("insert into auth.users (email) values ('a') returning id")
    async with ConnectionStore.open(dsn("app"), max_size=1) as store:
        saved = await store.save(user, GRANT, ALICE)
        await store.begin_refresh(user, seen=saved.fingerprint)
        state = await scratch.fetch("select * from spotconn.refresh_state")
        await apply_schema(dsn())
        assert content(await store.get(user)) == content(saved)
    assert len(state) == 1
    assert await scratch.fetch("select * from spotconn.refresh_state") == state
    assert await describe(scratch) == await describe(admin)


OLD_SAVE = """
create function spotconn.save_connection(
    p_user_id uuid, p_spotify_user_id text, p_access_token text, p_refresh_token text, p_expires_at timestamptz,
    p_scope text, p_display_name text, p_email text
) returns setof spotconn.connection language sql as 'select * from spotconn.connections(p_user_id)'
"""


async def test_a_function_of_before_does_not_stay_beside_its_successor(dsn: Dsn, scratch: asyncpg.Connection) -> None:
    """`save_connection` without the moment of the authorization is replaced, and a call in the old form still works."""
    await apply_schema(dsn())
    await scratch.execute("drop function spotconn.save_connection")
    await scratch.execute(OLD_SAVE)
    await apply_schema(dsn())
    count = "select count(*) from pg_proc where proname = 'save_connection'"
    assert await scratch.fetchval(count) == 1
    await _no_function_is_open(scratch)
    user = await scratch.fetchval("insert into auth.users (email) values ('a') returning id")
    saved = await scratch.fetchrow(
        "select * from spotconn.save_connection($1, 'alice', 'access', 'refresh', now(), null, null, null)", user
    )
    assert saved is not None
    assert saved["user_id"] == user
    assert await scratch.fetchval(
        "select $1::timestamptz between now() - interval '5 s' and now()", saved["connected_at"]
    )


async def test_a_refused_file_leaves_nothing(scratch: asyncpg.Connection) -> None:
    """Without the schema auth the file fails as a whole and says which file to apply first."""
    with pytest.raises(asyncpg.PostgresError, match="schema auth is missing") as raised:
        await scratch.execute(read_sql("schema.sql"))
    assert "plain_postgres.sql first" in str(raised.value.hint)
    await scratch.execute("rollback")
    assert await scratch.fetchval("select to_regnamespace('spotconn')") is None


async def test_the_login_of_supabase_may_apply_and_use_it(prepared: Database) -> None:
    """The owner of the database without SUPERUSER but with CREATEROLE and BYPASSRLS, as `postgres` is on Supabase,
    applies the file twice and is then a login of the store.
    """
    with EmbeddedPostgres(binaries=prepared.server._binaries) as server:
        admin = await asyncpg.connect(server.dsn())
        await admin.execute("create role supabase login createrole createdb bypassrls password 'supabase'")
        await admin.execute("create database project owner supabase")
        await admin.close()
        admin = await asyncpg.connect(server.dsn("project"))
        await admin.execute(read_sql("plain_postgres.sql"))
        await admin.execute("grant usage on schema auth to supabase; grant all on auth.users to supabase")
        user = await admin.fetchval("insert into auth.users (email) values ('a') returning id")
        await admin.close()
        dsn = server.dsn("project", user="supabase", password="supabase")
        for _ in range(2):
            await apply_schema(dsn, plain_postgres=False)
        async with ConnectionStore.open(dsn, max_size=1) as store:
            assert content(await store.save(user, GRANT, ALICE)) == content(await store.get(user))
            async with store.as_user(uuid4()) as connection:
                assert await connection.fetchval("select count(*) from public.spotify_connections") == 0
            assert await store.delete(user)


A, B = UUID(int=10), UUID(int=11)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (None, None, None)),
        ({"claim.sub": "", "claim.role": "", "claims": ""}, (None, None, None)),
        ({"claims": f'{{"sub": "{A}", "role": "authenticated"}}'}, (A, "authenticated", {"sub", "role"})),
        (
            {"claims": f'{{"sub": "{A}", "role": "x"}}', "claim.sub": str(B), "claim.role": "y"},
            (B, "y", {"sub", "role"}),
        ),
        ({"claims": f'{{"sub": "{A}"}}', "claim.sub": ""}, (A, None, {"sub"})),
        ({"claims": f'{{"sub": "{A}"}}', "claim": '{"old": 1}'}, (A, None, {"old"})),
        ({"claims": '{"sub": null}'}, (None, None, {"sub"})),
        ({"claims": "{}"}, (None, None, set[str]())),
    ],
)
async def test_the_claims_are_read_as_on_supabase(
    admin: asyncpg.Connection, settings: dict[str, str], expected: tuple[UUID | None, str | None, set[str] | None]
) -> None:
    """A legacy setting wins where it is not empty, and what is empty or absent is null."""
    async with admin.transaction():
        for name, value in settings.items():
            await admin.execute("select set_config('request.jwt.' || $1, $2, true)", name, value)
        row = await admin.fetchrow("select auth.uid(), auth.role(), auth.jwt()")
    assert row is not None
    uid, role, claims = row
    assert (uid, role, claims and set(json.loads(claims))) == expected


@pytest.mark.parametrize(("name", "value"), [("claim.sub", "me"), ("claims", '{"sub": "me"}'), ("claims", "{")])
async def test_malformed_claims_are_refused(admin: asyncpg.Connection, name: str, value: str) -> None:
    """A sub that is no UUID, or claims that are no JSON, are an error (22P02) and not nobody."""
    async with admin.transaction():
        await admin.execute("select set_config('request.jwt.' || $1, $2, true)", name, value)
        with pytest.raises(asyncpg.PostgresError) as raised:
            async with admin.transaction():
                await admin.fetchval("select auth.uid()")
    assert raised.value.sqlstate == "22P02"


OF_OPERATORS = {"spotconn.now", "spotconn.seconds_left", "spotconn.runs", "spotconn.user_id", "spotconn.integer_id"}
"""The functions that service_role may execute: the clock, two that reckon with times, and two that reckon with ids."""
PINNED = "search_path=pg_catalog, pg_temp"


async def _no_function_is_open(connection: asyncpg.Connection) -> None:
    functions = await connection.fetch(
        "select oid::regprocedure::text as name, prosecdef, proconfig, array(select coalesce(rolname::text, 'public') "
        "from aclexplode(coalesce(proacl, acldefault('f', proowner))) left join pg_roles on pg_roles.oid = grantee "
        "where grantee <> proowner) as allowed from pg_proc where pronamespace = 'spotconn'::regnamespace"
    )
    assert len(functions) >= 8
    assert {name.partition("(")[0] for name, *_ in functions} >= OF_OPERATORS
    for name, definer, config, allowed in functions:
        if name == "spotconn.follow_user()":  # of triggers alone
            assert (definer, config, allowed) == (True, [PINNED, "row_security=off"], [])
            continue
        assert (not definer, config) == (True, [PINNED]), name
        operators = ["service_role"] if name.partition("(")[0] in OF_OPERATORS else []
        assert sorted(allowed) == [*operators, "spotconn"], name


async def test_every_function_is_pinned_and_closed(admin: asyncpg.Connection) -> None:
    """Each function has its search_path pinned and runs with its caller's rights, and only spotconn may execute it, but
    for those that reckon with times and ids; spotconn.follow_user, which triggers run, has its owner's.
    """
    await _no_function_is_open(admin)


async def _opens(dsn: str) -> None:
    async with ConnectionStore.open(dsn, max_size=1):
        pass


@pytest.mark.parametrize(
    ("version", "mended_by"),
    [(SCHEMA_VERSION - 1, "spotconn schema --apply"), (99, "upgrade spotconn"), (None, "spotconn schema --apply")],
)
async def test_another_schema_is_refused_at_open(
    dsn: Dsn, scratch: asyncpg.Connection, version: int | None, mended_by: str
) -> None:
    """A database without the schema, or with an older or newer one, is refused with what mends it."""
    if version is not None:
        await apply_schema(dsn())
        await scratch.execute(
            "create or replace function spotconn.schema_version() returns integer language sql immutable "
            f"set search_path = pg_catalog, pg_temp return {version}"
        )
    with pytest.raises(SchemaMismatch, match=mended_by):
        await _opens(dsn("app"))


@pytest.mark.parametrize("object_", ["function spotconn.get_connection", "type spotconn.connection"])
async def test_a_damaged_schema_is_named(dsn: Dsn, scratch: asyncpg.Connection, object_: str) -> None:
    """A part that is missing at a call is a SchemaMismatch, too."""
    await apply_schema(dsn())
    async with ConnectionStore.open(dsn("app"), max_size=1) as store:
        await scratch.execute(f"drop {object_} cascade")
        with pytest.raises(SchemaMismatch, match="spotconn schema --apply"):
            await store.get(A)


@pytest.mark.parametrize(
    ("login", "fault"),
    [
        ("app", "alter table public.spotify_connections disable row level security"),
        ("app", "alter table spotconn.refresh_state disable row level security"),
        ("app_bypass", "alter table public.spotify_connections disable row level security"),
        ("app", "alter table public.spotify_connections owner to spotconn"),
        ("app", "revoke usage on schema spotconn from spotconn"),
        ("app", "revoke insert on public.spotify_connections from spotconn"),
        ("app", "revoke delete on spotconn.refresh_state from spotconn"),
        ("app", "revoke execute on function spotconn.schema_version() from spotconn"),
    ],
)
async def test_a_database_that_would_not_bind_is_refused_at_open(
    dsn: Dsn, scratch: asyncpg.Connection, login: str, fault: str
) -> None:
    """Policies that would not bind the role, or a grant that is missing, are found before the first call."""
    await apply_schema(dsn())
    await _opens(dsn(login))
    await scratch.execute(fault)
    with pytest.raises(RowSecurityError, match="spotconn schema --apply"):
        await _opens(dsn(login))


@pytest.mark.parametrize(
    ("attribute", "remedy"), [("bypassrls", "NOBYPASSRLS"), ("superuser", "NOSUPERUSER NOBYPASSRLS")]
)
@pytest.mark.parametrize("login", ["app", "app_bypass"])
async def test_a_role_that_is_not_bound_is_refused_at_open(
    database: Database, admin: asyncpg.Connection, login: str, attribute: str, remedy: str
) -> None:
    """A role spotconn that the policies do not bind is found, and the message tells what mends it, without what only a
    superuser may run where none is needed.
    """
    await admin.execute(f"alter role spotconn {attribute}")
    try:
        with pytest.raises(RowSecurityError, match=f"ALTER ROLE spotconn {remedy}$"):
            await _opens(database.login_dsn(login))
    finally:
        await admin.execute(f"alter role spotconn no{attribute}")
    await _opens(database.login_dsn(login))


async def test_a_login_without_membership_is_refused_at_open(database: Database, admin: asyncpg.Connection) -> None:
    """A login that is no member of spotconn is told which grant it lacks."""
    await admin.execute("create role stranger login bypassrls password 'stranger'")
    try:
        with pytest.raises(RowSecurityError, match="GRANT spotconn TO"):
            await _opens(database.login_dsn("stranger"))
    finally:
        await admin.execute("drop role stranger")
