"""The SQL files belong into a transaction of the caller's, and leave alone what the project has."""

import re
from typing import Any

import asyncpg
import pytest

from spotconn import ConnectionStore, schema_sql, schema_statements
from spotconn._database.application import look
from spotconn._database.schema import SqlFile, read_sql
from spotconn.testing import apply_schema
from support.database import Database, Dsn
from support.schema_state import schema_state

FILES: list[SqlFile] = ["plain_postgres.sql", "schema.sql", "close_writes.sql", "lock_down.sql", "lock_down_undo.sql"]
CATALOG = """
select nspname::text, nspacl::text from pg_namespace where nspname in ('auth', 'public', 'spotconn')
union all select relnamespace::regnamespace::text || '.' || relname, relacl::text from pg_class
    where relnamespace::regnamespace::text in ('auth', 'public', 'spotconn')
union all select pronamespace::regnamespace::text || '.' || proname, prosrc from pg_proc
    where pronamespace::regnamespace::text in ('auth', 'public', 'spotconn')
order by 1, 2
"""
READS = "select has_column_privilege('authenticated', 'public.spotify_connections', 'access_token', 'select')"


async def test_a_trial_of_every_file_is_rolled_back(scratch: asyncpg.Connection) -> None:
    """Within a transaction of the caller's each file is a part of it: the rollback leaves nothing of any."""
    before = await scratch.fetch(CATALOG)
    transaction = scratch.transaction()
    await transaction.start()
    for name in FILES:
        await scratch.execute(read_sql(name))
    assert await scratch.fetchval("select spotconn.schema_version()") == 3
    await transaction.rollback()
    assert await scratch.fetch(CATALOG) == before


async def test_a_failed_migration_is_undone_as_a_whole(dsn: Dsn, scratch: asyncpg.Connection) -> None:
    """What a migration does beside a file is recorded together with it, or not at all."""
    await apply_schema(dsn())
    await scratch.execute("create table migrations (name text)")

    async def migrate() -> None:
        async with scratch.transaction():
            await scratch.execute("insert into migrations values ('lock down')")
            await scratch.execute(read_sql("lock_down.sql"))
            await scratch.execute("grant spotconn to no_such_login")

    with pytest.raises(asyncpg.UndefinedObjectError):
        await migrate()
    assert await scratch.fetchval("select count(*) from migrations") == 0
    assert await scratch.fetchval(READS)


@pytest.mark.parametrize("name", FILES)
async def test_a_statement_for_each_transaction_is_refused(scratch: asyncpg.Connection, name: SqlFile) -> None:
    """A tool that commits after each statement gets an error from the second one, before anything is changed."""
    _, marking, checking, *_ = _statements(read_sql(name))
    await scratch.execute(marking)
    with pytest.raises(asyncpg.PostgresError, match="has to be applied within one transaction") as raised:
        await scratch.execute(checking)
    assert raised.value.sqlstate == "25P01"
    assert "spotconn schema --apply" in str(raised.value.hint)


def _statements(text: str) -> list[str]:
    """By the form of these files: each statement ends a line, and a body ends with its dollars."""
    return re.findall(r"^(?:do \$\$\n.*?^\$\$|(?!--)\S[^;]*);$", text, re.DOTALL | re.MULTILINE)


async def test_the_statements_do_what_the_files_do(
    dsn: Dsn, scratch: asyncpg.Connection, fresh: asyncpg.Connection
) -> None:
    """Prepared one by one in a transaction they make the database that the files make, with and without the tokens."""
    async with scratch.transaction():
        for statement in schema_statements(plain_postgres=True, lock_down=True):
            await (await scratch.prepare(statement)).fetch()
    await fresh.execute(read_sql("lock_down.sql"))
    assert await schema_state(scratch) == await schema_state(fresh)
    async with scratch.transaction():
        for statement in schema_statements(undo_lock_down=True):
            await (await scratch.prepare(statement)).fetch()
    assert await scratch.fetchval(READS)


def test_what_is_printed_is_one_transaction() -> None:
    """BEGIN and COMMIT stand around all the files together, or nowhere; the statements have none."""
    parts = [read_sql(name) for name in ("plain_postgres.sql", "schema.sql", "lock_down.sql")]
    bare = schema_sql(plain_postgres=True, lock_down=True, transaction=False)
    assert bare == "\n".join(parts)
    assert schema_sql(plain_postgres=True, lock_down=True) == f"begin;\n\n{bare}\ncommit;\n"
    assert schema_sql(transaction=False) == parts[1]
    assert schema_sql(undo_lock_down=True, transaction=False) == read_sql("lock_down_undo.sql")
    statements = schema_statements(plain_postgres=True, lock_down=True)
    assert not {"begin", "commit"} & {statement.lower() for statement in statements}
    assert not any(statement.endswith(";") or statement.startswith("--") for statement in statements)
    wrong: Any
    for wrong in ({"plain_postgres": True}, {"lock_down": True}, {"close_writes": True}, {"users": "a.b(c text)"}):
        with pytest.raises(ValueError, match="undo_lock_down"):
            schema_sql(undo_lock_down=True, **wrong)
        with pytest.raises(ValueError, match="undo_lock_down"):
            schema_statements(undo_lock_down=True, **wrong)


SUPABASES_OWN = """
create schema auth;
create table auth.users (instance_id uuid, id uuid not null primary key, email varchar(255));
create function auth.uid() returns uuid language sql stable as $$
  select 
  coalesce(
    nullif(current_setting('request.jwt.claim.sub', true), ''),
    (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')
  )::uuid;
$$;
create function auth.role() returns text language sql stable as $$
  select 
  coalesce(
    nullif(current_setting('request.jwt.claim.role', true), ''),
    (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role')
  )::text
$$
"""  # noqa: W291  as it is there
OWN_UID = "create function auth.uid() returns uuid language {} {} as $$ {} $$"
SETTING = "nullif(current_setting('app.user_id', true), '')::uuid"
CLAIM = "(nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid"
OWN = {
    "auth.uid()": OWN_UID.format("sql", "stable", f"select {SETTING}"),
    "auth.uid() ": OWN_UID.format("plpgsql", "stable", f"begin return {CLAIM}; end"),
    "auth.role()": "create function auth.role() returns name language sql stable as 'select current_user'",
    "auth.jwt()": "create function auth.jwt() returns jsonb language sql volatile as $$ select '{}'::jsonb $$",
    "auth.users": "create table auth.users (id bigint primary key)",
    "auth.users ": "create table auth.users (id uuid, tenant uuid, primary key (id, tenant))",
    "auth.users  ": "create view auth.users as select gen_random_uuid() as id",
}


@pytest.mark.parametrize("name", OWN)
async def test_what_the_project_has_is_refused_by_name(scratch: asyncpg.Connection, name: str) -> None:
    """Another function, or users without a uuid as key: nothing is replaced or added, and the hint says what to do."""
    await scratch.execute(f"create schema auth; {OWN[name]}")
    before = await scratch.fetch(CATALOG)
    with pytest.raises(asyncpg.PostgresError) as raised:
        await scratch.execute(read_sql("plain_postgres.sql"))
    assert name.strip() in str(raised.value)
    assert "a database of its own" in str(raised.value.hint)
    assert await scratch.fetch(CATALOG) == before


async def test_the_way_of_the_hint_keeps_the_projects_own(dsn: Dsn, scratch: asyncpg.Connection) -> None:
    """With all that it names there, the command leaves plain_postgres.sql out, and the store opens."""
    await scratch.execute(f"create schema auth; {OWN['auth.uid() ']}")
    with pytest.raises(asyncpg.PostgresError) as raised:
        await scratch.execute(read_sql("plain_postgres.sql"))
    named = ("auth.users", "id uuid", "anon", "authenticated", "service_role")
    assert all(name in str(raised.value.hint) for name in named)
    await scratch.execute("create table auth.users (id uuid primary key)")  # the roles are those of the server
    async with asyncpg.create_pool(dsn(), min_size=1, max_size=1) as pool, pool.acquire() as session:
        assert (await look(session)).supabase
    await scratch.execute(schema_sql())
    async with ConnectionStore.open(dsn("app"), max_size=1):
        pass


async def test_all_that_differs_is_named_at_once(scratch: asyncpg.Connection) -> None:
    """Two functions of the project's own stand in one text."""
    await scratch.execute(f"create schema auth; {OWN['auth.uid()']}; {OWN['auth.jwt()']}")
    with pytest.raises(asyncpg.PostgresError, match=r"auth\.uid\(\), auth\.jwt\(\)"):
        await scratch.execute(read_sql("plain_postgres.sql"))


async def test_what_supabase_has_passes(dsn: Dsn, scratch: asyncpg.Connection) -> None:
    """Its functions stay as they are, with their white space, and what is missing is added."""
    await scratch.execute(SUPABASES_OWN)
    sources = (
        "select prosrc from pg_proc where oid in ('auth.uid()'::regprocedure, 'auth.role()'::regprocedure) order by 1"
    )
    before = await scratch.fetch(sources)
    for _ in range(2):
        await scratch.execute(schema_sql(plain_postgres=True))
    assert await scratch.fetch(sources) == before
    assert await scratch.fetchval("select auth.jwt()") is None
    async with ConnectionStore.open(dsn("app"), max_size=1):
        pass


async def test_policies_that_would_hide_every_row_are_refused(scratch: asyncpg.Connection) -> None:
    """Over an auth.uid() that reads something else the schema is not applied; over one that reads the claims it is."""
    await scratch.execute(f"create schema auth; create table auth.users (id uuid primary key); {OWN['auth.uid()']}")
    with pytest.raises(asyncpg.PostgresError, match="does not return the sub") as raised:
        await scratch.execute(read_sql("schema.sql"))
    assert "spotconn schema --apply" in str(raised.value.hint)
    assert await scratch.fetchval("select to_regclass('public.spotify_connections')") is None
    await scratch.execute(f"drop function auth.uid(); {OWN['auth.uid() ']}")
    async with scratch.transaction():
        await scratch.execute("set local request.jwt.claims = '{}'")
        await scratch.execute(read_sql("schema.sql"))
        assert await scratch.fetchval("select current_setting('request.jwt.claims')") == "{}"
    assert await scratch.fetchval("select spotconn.schema_version()") == 3


async def test_the_role_of_the_library_does_not_apply_it(database: Database, admin: asyncpg.Connection) -> None:
    """The login `spotconn`, such as a server's first superuser may have, would own the tables that shall bind it."""
    await admin.execute("alter role spotconn login superuser password 'spotconn'")
    try:
        with pytest.raises(asyncpg.PostgresError, match="is itself the role spotconn") as raised:
            await apply_schema(database.login_dsn("spotconn"))
    finally:
        await admin.execute("alter role spotconn nologin nosuperuser password null")
    assert "RENAME TO" in str(raised.value.hint)
