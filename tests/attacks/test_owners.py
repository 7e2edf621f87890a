"""A login makes an object before the schema is applied, whose files would adopt it."""

from collections.abc import AsyncIterator
from uuid import uuid4

import asyncpg
import pytest

from spotconn._database.schema import read_sql, schema_sql
from support.database import Database, Dsn
from support.scratch import scratch_database

TABLE = """create table public.spotify_connections (id uuid primary key, user_id uuid not null unique,
    spotify_user_id text not null, access_token text not null, refresh_token text not null,
    expires_at timestamptz not null, connected_at timestamptz, display_name text, email text)"""
FUNCTION = "create function public.t() returns trigger language plpgsql as $$ begin return new; end $$"
TRIGGER = "create trigger t before insert on public.spotify_connections for each row execute function public.t()"
CATALOG = (
    "select oid, relacl::text, relrowsecurity from pg_class where relnamespace = 'public'::regnamespace order by 1"
)
SQL = schema_sql(plain_postgres=True)


@pytest.fixture
async def mallory(prepared: Database) -> AsyncIterator[str]:
    """A login that may create in the database and in schema public."""
    name = f"mallory_{uuid4().hex}"
    maintenance = await asyncpg.connect(prepared.server.dsn())
    await maintenance.execute(f"create role {name} login password '{name}'")
    yield name
    await maintenance.execute(f"drop role {name}")
    await maintenance.close()


@pytest.fixture
async def dsn(prepared: Database, mallory: str) -> AsyncIterator[Dsn]:
    """A database without anything, where that login may create."""
    async with scratch_database(prepared) as of:
        connection = await asyncpg.connect(of())
        await connection.execute(f"grant create on schema public to {mallory}")
        await connection.execute(
            f"do $$ begin execute format('grant create on database %I to {mallory}', current_database()); end $$"
        )
        await connection.close()
        yield of


@pytest.fixture
async def scratch(dsn: Dsn) -> AsyncIterator[asyncpg.Connection]:
    """A superuser's connection to it."""
    connection = await asyncpg.connect(dsn())
    yield connection
    await connection.close()


async def _run(dsn: str, sql: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


async def _value(dsn: str, query: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (TABLE, "relation spotify_connections"),
        (f"{TABLE}; {FUNCTION}; {TRIGGER}", "relation spotify_connections"),
        ("create schema auth", "schema auth"),
        ("create schema spotconn", "schema spotconn"),
    ],
)
async def test_an_object_of_another_login_is_refused(dsn: Dsn, mallory: str, made: str, named: str) -> None:
    """The object and its owner are named, and nothing is changed."""
    await _run(dsn(mallory), made)
    connection = await asyncpg.connect(dsn())
    try:
        before = await connection.fetch(CATALOG)
        with pytest.raises(asyncpg.RaiseError, match=f"{mallory}, which could") as raised:
            await connection.execute(SQL)
        assert str(raised.value).startswith(named.replace("relation ", "relation public."))
        await connection.execute("rollback")
        assert await connection.fetch(CATALOG) == before
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("given", "made", "named"),
    [
        ("grant trigger on public.spotify_connections to {m}", f"{FUNCTION}; {TRIGGER}", "the function of trigger t "),
        ("grant create, usage on schema auth to {m}; drop function auth.jwt()",
         "create function auth.jwt() returns jsonb language sql stable as 'select null::jsonb'", "function auth.jwt()"),
        ("grant create, usage on schema spotconn to {m}", "create table spotconn.refresh_state_2 (a int)",
         "relation spotconn.refresh_state_2"),
        ("grant create, usage on schema spotconn to {m}",
         "create function spotconn.locked_down() returns boolean language sql as 'select true'",
         "function spotconn.locked_down()"),
    ],
)  # fmt: skip
async def test_so_is_a_part_of_ours(dsn: Dsn, mallory: str, given: str, made: str, named: str) -> None:
    """A trigger's function, a function of auth, or an object in schema spotconn, where the rest is in good hands."""
    await _run(dsn(), SQL)
    await _run(dsn(), given.format(m=mallory))
    await _run(dsn(mallory), made)
    with pytest.raises(asyncpg.RaiseError, match=f"{mallory}, which could") as raised:
        await _run(dsn(), SQL)
    assert str(raised.value).startswith(named)


async def test_an_owner_that_is_named_is_taken(dsn: Dsn, mallory: str) -> None:
    """The setting spotconn.owner names a role that is trusted, for this transaction."""
    await _run(dsn(mallory), TABLE)
    await _run(dsn(), read_sql("plain_postgres.sql"))
    await _run(dsn(), f"begin; set local spotconn.owner = '{mallory}'; {read_sql('schema.sql')}; commit")
    with pytest.raises(asyncpg.RaiseError, match="which could"):
        await _run(dsn(), read_sql("schema.sql"))


@pytest.mark.parametrize("named", ["", "{m}"], ids=["unnamed", "named"])
@pytest.mark.parametrize(
    ("made", "object_"), [(TABLE, "relation public.spotify_connections"), ("create schema spotconn", "schema spotconn")]
)
async def test_a_login_that_is_no_superuser_is_told_the_owner(
    dsn: Dsn, mallory: str, made: str, object_: str, named: str
) -> None:
    """As `postgres` on Supabase: a role that is only named still has to let go; the login's membership does."""
    await _run(dsn(), read_sql("plain_postgres.sql"))
    applier = f"applier_{uuid4().hex}"
    await _run(
        dsn(), f"create role {applier} login createrole bypassrls password '{applier}'; grant {applier} to postgres"
    )
    try:
        await _run(dsn(), f"grant usage on schema auth to {applier}; grant all on auth.users to {applier}")
        database = await _value(dsn(), "select current_database()")
        await _run(
            dsn(), f"alter database {database} owner to {applier}; grant spotconn to {applier} with admin option"
        )
        await _run(dsn(mallory), made)
        sql = f"begin; set local spotconn.owner = '{named.format(m=mallory)}'; {read_sql('schema.sql')}; commit"
        refused = f"and the login {applier} cannot change it" if named else "which could read and change every token"
        with pytest.raises(asyncpg.RaiseError) as raised:
            await _run(dsn(applier), sql)
        assert raised.value.args[0] == f"{object_} belongs to the role {mallory}, {refused}"
        await _run(dsn(), f"grant {mallory} to {applier}")
        await _run(dsn(applier), sql)
        await _run(dsn(), f"{FUNCTION}; {TRIGGER}")  # a superuser's, as those of Supabase's extensions are
        await _run(dsn(applier), sql)
    finally:
        await _run(dsn(), f"reassign owned by {applier} to postgres; drop owned by {applier}; drop role {applier}")


async def test_a_login_adopts_what_is_its_own(dsn: Dsn, scratch: asyncpg.Connection) -> None:
    """A member of the owning role needs no option; a login that only administers the role does, and so does another
    superuser.
    """
    await _run(dsn(), SQL)
    group = f"group_{uuid4().hex}"
    await _run(dsn(), f"create role {group}; alter table public.spotify_connections owner to {group}")
    try:
        with pytest.raises(asyncpg.RaiseError, match=f"{group}, which could"):
            await _run(dsn(), read_sql("schema.sql"))
        if await scratch.fetchval("select current_setting('server_version_num')::int >= 160000"):
            await scratch.execute(f"grant {group} to postgres with admin true, inherit false, set false")
            with pytest.raises(asyncpg.RaiseError, match=f"{group}, which could"):
                await _run(dsn(), read_sql("schema.sql"))
            await scratch.execute(f"revoke {group} from postgres")
        await _run(dsn(), f"grant {group} to postgres")
        await _run(dsn(), read_sql("schema.sql"))
    finally:
        await _run(dsn(), f"alter table public.spotify_connections owner to postgres; drop role {group}")


async def test_a_client_role_owns_nothing(dsn: Dsn) -> None:
    """A table of `authenticated` would be bound by no policy: it is refused though the login is its member."""
    await _run(dsn(), SQL)
    await _run(dsn(), "grant authenticated to postgres; alter table public.spotify_connections owner to authenticated")
    try:
        with pytest.raises(asyncpg.RaiseError, match="the role authenticated, which could"):
            await _run(dsn(), read_sql("schema.sql"))
    finally:
        await _run(dsn(), "revoke authenticated from postgres")
