"""`spotconn schema`: the SQL for other tools, and its application and check without psql."""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from typer.testing import CliRunner, Result

from spotconn import ConnectionStore, schema_sql, user_id
from spotconn._database.schema import read_sql
from spotconn.cli import app
from support.database import Database
from support.documented_table import create_documented_table

PSQL = Path("/usr/bin/psql")
VERSION_2 = (Path(__file__).parents[1] / "database" / "schema_2.sql").read_text()
CLIENT_ID = "0123456789abcdef" * 2
Schema = Callable[..., Awaitable[Result]]


@pytest.fixture
async def url(prepared: Database) -> AsyncIterator[str]:
    """The URL of an empty database for its superuser."""
    name = f"scratch_{uuid4().hex}"
    maintenance = await asyncpg.connect(prepared.server.dsn())
    await maintenance.execute(f"create database {name}")
    yield prepared.server.dsn(name)
    await maintenance.execute(f"drop database {name} with (force)")
    await maintenance.close()


@pytest.fixture
async def scratch(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A superuser's connection to it."""
    connection = await asyncpg.connect(url)
    yield connection
    await connection.close()


@pytest.fixture
def schema(url: str, monkeypatch: pytest.MonkeyPatch) -> Schema:
    """Runs `spotconn schema` in this process, on the empty database."""
    for name in [name for name in os.environ if name.startswith(("SPOT", "DATABASE", "PG"))]:
        monkeypatch.delenv(name)

    async def run(*arguments: str, login: str = url) -> Result:
        env = {"DATABASE_URL": login, "SPOTIFY_CLIENT_ID": CLIENT_ID, "SPOTIFY_CLIENT_SECRET": "f" * 32}
        invoked = "schema", *arguments
        return await asyncio.to_thread(lambda: CliRunner().invoke(app, invoked, env=env, catch_exceptions=False))

    return run


async def test_the_sql_is_printed_ready_to_apply(schema: Schema) -> None:
    """Each choice gives the files in the order in which they are applied, within one transaction or without."""
    plain, main, lock = (read_sql(name) for name in ("plain_postgres.sql", "schema.sql", "lock_down.sql"))
    assert (await schema()).stdout == f"begin;\n\n{main}\ncommit;\n"
    assert (await schema("--plain-postgres")).stdout == f"begin;\n\n{plain}\n{main}\ncommit;\n"
    assert (await schema("--plain-postgres", "--lock-down", "--no-transaction")).stdout == f"{plain}\n{main}\n{lock}"
    undone = await schema("--undo-lock-down", "--no-transaction")
    assert undone.stdout == read_sql("lock_down_undo.sql")


async def test_an_empty_database_gets_all_that_it_needs(schema: Schema, url: str, scratch: asyncpg.Connection) -> None:
    """Without psql and without another option: what Supabase has, then the schema; then a store opens."""
    checked = await schema("--check")
    assert (checked.exit_code, checked.stdout) == (5, "")
    assert "no schema; apply the schema of this version of spotconn: spotconn schema --apply (it " in checked.stderr
    done = await schema("--apply")
    assert (done.exit_code, done.stdout) == (
        0,
        "applied plain_postgres.sql, schema.sql: version 3 (before: no schema)\n",
    )
    assert "found: no schema\n" in done.stderr
    assert "plain_postgres.sql is applied first" in done.stderr
    async with ConnectionStore.open(url, max_size=1):
        pass
    checked = await schema("--check")
    assert (checked.exit_code, checked.stdout, checked.stderr) == (0, "version 3\n", "")
    again = await schema("--apply", "--json")
    assert json.loads(again.stdout) == {
        "before": "version 3", "files": ["schema.sql"], "version": 3, "assigned": None
    }  # fmt: skip


async def test_what_was_there_is_named(schema: Schema, scratch: asyncpg.Connection) -> None:
    """The bare documented table and an older version are told apart, and both are brought up to date."""
    await create_documented_table(scratch)
    rows = await scratch.fetchval("select count(*) from spotify_connections")
    assert "the table without the schema spotconn; apply" in (await schema("--check")).stderr
    done = await schema("--apply")
    assert done.stdout == "applied schema.sql: version 3 (before: the table without the schema spotconn)\n"
    assert await scratch.fetchval("select count(*) from spotify_connections") == rows
    await scratch.execute("drop schema spotconn cascade")
    await scratch.execute(VERSION_2)
    checked = await schema("--check")
    assert checked.exit_code == 5
    assert "has version 2 of the schema, this library needs 3" in checked.stderr
    assert (await schema("--apply")).stdout == "applied schema.sql: version 3 (before: version 2)\n"


async def test_a_newer_version_is_left_alone(schema: Schema, scratch: asyncpg.Connection) -> None:
    """The schema of a later library is not replaced by an older one."""
    await schema("--apply")
    await scratch.execute(
        "create or replace function spotconn.schema_version() returns integer language sql immutable return 4"
    )
    for option in ("--apply", "--check"):
        refused = await schema(option)
        assert refused.exit_code == 5
        assert "has version 4 of the schema, this library needs 3: upgrade spotconn" in refused.stderr
    assert await scratch.fetchval("select spotconn.schema_version()") == 4


async def test_the_lock_down_there_and_back(schema: Schema, scratch: asyncpg.Connection) -> None:
    """It is applied and undone, and the check looks at what is in force and not at the mark alone."""
    await schema("--apply")
    refused = await schema("--check", "--lock-down")
    assert refused.exit_code == 5
    assert refused.stderr == "spotconn: the database is not locked down: spotconn schema --apply --lock-down\n"
    done = await schema("--apply", "--lock-down")
    assert done.stdout == "applied schema.sql, lock_down.sql: version 3 (before: version 3)\n"
    checked = json.loads((await schema("--check", "--lock-down", "--json")).stdout)
    assert checked == {"version": 3, "locked_down": True, "writes_closed": True}
    await scratch.execute("grant select (access_token) on public.spotify_connections to authenticated")
    assert (await schema("--check", "--lock-down")).exit_code == 5
    assert (await schema("--check")).exit_code == 0
    await scratch.execute("revoke select (access_token) on public.spotify_connections from authenticated")
    assert (await schema("--check", "--lock-down")).stdout == "version 3, locked down\n"
    undone = await schema("--apply", "--undo-lock-down")
    assert undone.stdout == "applied lock_down_undo.sql: version 3 (before: version 3, locked down)\n"
    assert (await schema("--check", "--lock-down")).exit_code == 5


async def test_the_weaker_level_there_and_back(schema: Schema, scratch: asyncpg.Connection) -> None:
    """It is checked by what is in force; a lock-down satisfies it and is not weakened by it; the undo opens both."""
    await schema("--apply")
    refused = await schema("--check", "--close-writes")
    assert refused.exit_code == 5
    assert refused.stderr == "spotconn: clients can write tokens: spotconn schema --apply --close-writes\n"
    done = await schema("--apply", "--close-writes")
    assert done.stdout == "applied schema.sql, close_writes.sql: version 3 (before: version 3)\n"
    checked = json.loads((await schema("--check", "--close-writes", "--json")).stdout)
    assert checked == {"version": 3, "locked_down": False, "writes_closed": True}
    await scratch.execute("grant update (scope) on public.spotify_connections to authenticated")
    assert (await schema("--check", "--close-writes")).exit_code == 5
    assert (await schema("--apply")).stdout == "applied schema.sql: version 3 (before: version 3)\n"
    assert (await schema("--check", "--close-writes")).stdout == "version 3, writes closed\n"
    await schema("--apply", "--lock-down")
    assert (await schema("--check", "--close-writes")).stdout == "version 3, locked down\n"
    refused = await schema("--apply", "--close-writes")
    assert refused.exit_code == 5
    assert "the database is locked down, which closes the writes, too. Nothing was changed." in refused.stderr
    undone = await schema("--apply", "--undo-lock-down")
    assert undone.stdout == "applied lock_down_undo.sql: version 3 (before: version 3, locked down)\n"
    assert (await schema("--check")).stdout == "version 3\n"


async def test_the_owner_of_what_stands_is_named(schema: Schema, scratch: asyncpg.Connection) -> None:
    """A table of another role is refused, and adopted once that role is named."""
    await schema("--apply")
    owner = f"owner_{uuid4().hex}"
    await scratch.execute(f"create role {owner}; alter table public.spotify_connections owner to {owner}")
    try:
        refused = await schema("--apply")
        assert refused.exit_code == 5
        assert f"public.spotify_connections belongs to the role {owner}, which could" in refused.stderr
        assert (await schema("--apply", "--owner", owner)).exit_code == 0
        assert (await schema("--apply", "--owner", f"none, {owner}")).exit_code == 0
    finally:
        await scratch.execute(f"alter table public.spotify_connections owner to postgres; drop role {owner}")


async def test_a_schema_auth_of_another_login_is_not_taken_for_supabases(
    schema: Schema, scratch: asyncpg.Connection, prepared: Database
) -> None:
    """With all that Supabase has in it, it is refused before its auth.uid() runs as the applying login."""
    mallory, database = f"mallory_{uuid4().hex}", await scratch.fetchval("select current_database()")
    await scratch.execute(
        f"create role {mallory} login password '{mallory}'; grant create on database {database} to {mallory}"
    )
    try:
        intruder = await asyncpg.connect(prepared.server.dsn(database, user=mallory, password=mallory))
        await intruder.execute(
            "create schema auth; create table auth.users (id uuid primary key); "
            "create function auth.uid() returns uuid language plpgsql as "
            "$$ begin raise exception 'called by %', current_user; end $$"
        )
        await intruder.close()
        refused = await schema("--apply")
        assert refused.exit_code == 5
        assert f"schema auth belongs to the role {mallory}, which could act as every user" in refused.stderr
    finally:
        await scratch.execute(f"drop schema auth cascade; drop owned by {mallory}; drop role {mallory}")


async def test_the_lock_down_is_undone_where_it_can_be(schema: Schema) -> None:
    """Without the schema there is nothing to undo, and what to do instead is said."""
    refused = await schema("--apply", "--undo-lock-down")
    assert refused.exit_code == 5
    assert "schema spotconn is missing. Apply schema.sql first: spotconn schema --apply." in refused.stderr


async def test_the_app_of_the_rows_that_stand(schema: Schema, url: str, scratch: asyncpg.Connection) -> None:
    """With --client-id the connections of before are assigned to that app, once."""
    await create_documented_table(scratch)
    rows = await scratch.fetch("select user_id from spotify_connections")
    wrong = await schema("--apply", "--client-id", "no id")
    assert (wrong.exit_code, "client_id: expected" in wrong.stderr) == (2, True)
    assert await scratch.fetchval("select to_regnamespace('spotconn')") is None
    done = json.loads((await schema("--apply", "--client-id", CLIENT_ID, "--json")).stdout)
    assert done["assigned"] == len(rows) > 0
    async with ConnectionStore.open(url, max_size=1) as store:
        assert (await store.get(rows[0]["user_id"])).client_id == CLIENT_ID
    assert (await schema("--apply", "--client-id", CLIENT_ID)).stdout.endswith("\n0 connections assigned to the app\n")


async def test_a_login_that_may_not_is_told_what_it_lacks(schema: Schema, prepared: Database, url: str) -> None:
    """The text names the privilege and which login has it, and nothing was changed."""
    weak = prepared.server.dsn(url.rpartition("/")[2], user="app", password="app")
    refused = await schema("--apply", login=weak)
    assert refused.exit_code == 5
    assert "permission denied for database" in refused.stderr
    assert "apply the schema with the login that owns the tables and may create roles" in refused.stderr
    await schema("--apply")
    refused = await schema("--apply", login=weak)
    assert "rights are missing that the login app cannot grant: CREATE on SCHEMA public" in refused.stderr
    assert "Apply the schema with the login that owns the tables" in refused.stderr
    assert (await schema("--check", login=weak)).exit_code == 0


async def test_a_right_that_the_login_cannot_grant_is_printed(
    schema: Schema, prepared: Database, url: str, scratch: asyncpg.Connection
) -> None:
    """The schema is applied, and the warning of the files has the statement that another login runs."""
    name = url.rpartition("/")[2]
    await scratch.execute("create role tenant login password 'tenant'")
    await scratch.execute(f"alter database {name} owner to tenant")
    try:
        done = await schema("--apply", login=prepared.server.dsn(name, user="tenant", password="tenant"))
        assert (done.exit_code, done.stdout.partition(":")[0]) == (0, "applied plain_postgres.sql, schema.sql")
        (said,) = [line for line in done.stderr.splitlines() if line.startswith("warning")]
        assert said.startswith("warning: the login tenant may not act as the role spotconn")
        assert said.endswith("GRANT spotconn TO tenant;")
    finally:
        await scratch.execute(f"alter database {name} owner to postgres; reassign owned by tenant to postgres")
        await scratch.execute("drop owned by tenant; drop role tenant")


async def test_a_database_that_is_not_utf8(schema: Schema, prepared: Database, scratch: asyncpg.Connection) -> None:
    """Nothing is applied to it; the encoding is named with the way to another."""
    name = f"scratch_{uuid4().hex}"
    await scratch.execute(f"create database {name} encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0")
    refused = await schema("--apply", login=prepared.server.dsn(name))
    await scratch.execute(f"drop database {name} with (force)")
    assert refused.exit_code == 5
    assert "applies" not in refused.stderr
    assert "the encoding of the database is LATIN1" in refused.stderr


async def test_a_table_of_users_is_tied(schema: Schema, url: str, scratch: asyncpg.Connection) -> None:
    """By its name alone, on a database without anything; what does not fit is refused with the remedy."""
    await scratch.execute("create table users (id int primary key); insert into users values (42)")
    refused = await schema("--apply", "--users", "public.users(id bigint)")
    assert (refused.exit_code, refused.stdout) == (5, "")
    assert "public.users: its column id has the type integer. Nothing was changed. Name that type: " in refused.stderr
    assert "--users 'public.users(id integer)'." in refused.stderr
    done = await schema("--apply", "--users", "public.users(id integer)")
    files = "users_check.sql, plain_postgres.sql, schema.sql, users.sql"
    assert done.stdout == f"applied {files}: version 3 (before: no schema)\n"
    assert await scratch.fetchval("select id from auth.users") == user_id(42)
    printed = await schema("--users", "public.users(id integer)")
    await scratch.execute(printed.stdout)
    env = {"DATABASE_URL": url}

    async def status(user: str) -> Result:
        return await asyncio.to_thread(lambda: CliRunner().invoke(app, ["status", "--", user], env=env))

    await scratch.execute("insert into auth.users (id) values (spotconn.user_id('user_2abc'))")
    await scratch.execute(
        "insert into spotify_connections (user_id, spotify_user_id, access_token, refresh_token, expires_at) "
        "select id, 'alice', 'a', 'r', now() from auth.users"
    )
    for user in ("42", "042", str(user_id(42)), "text:user_2abc"):
        assert (await status(user)).stdout.startswith("connected: True"), user
    for user in ("-42", "text:42"):
        assert (await status(user)).stdout.startswith("connected: False"), user


@pytest.mark.parametrize(
    "options",
    [
        ("--apply", "--check"),
        ("--apply", "--no-transaction"),
        ("--check", "--plain-postgres"),
        ("--check", "--undo-lock-down"),
        ("--check", "--users", "public.users(id bigint)"),
        ("--undo-lock-down", "--users", "public.users(id bigint)"),
        ("--users", "users"),
        ("--apply", "--users", "public.users(id money)"),
        ("--undo-lock-down", "--lock-down"),
        ("--close-writes", "--lock-down"),
        ("--check", "--undo-lock-down", "--close-writes"),
        ("--owner", "postgres"),
        ("--apply", "--owner", "it's"),
        ("--apply", "--owner", "\udcff"),
        ("--client-id", CLIENT_ID),
        ("--apply", "--undo-lock-down", "--client-id", CLIENT_ID),
    ],
)
async def test_options_that_do_not_go_together(schema: Schema, options: tuple[str, ...]) -> None:
    """They are wrong usage, named in one line."""
    refused = await schema(*options)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.startswith("spotconn: --")


@pytest.mark.skipif(not PSQL.exists(), reason="psql is not installed")
def test_the_same_through_psql(url: str, tmp_path: Path) -> None:
    """What is printed goes through psql as it is; a bare file needs --single-transaction and says so."""

    def psql(*options: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [str(PSQL), url, "-q", "-v", "ON_ERROR_STOP=1", *options]
        return subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=60)

    bare = tmp_path / "schema.sql"
    bare.write_text(schema_sql(plain_postgres=True, transaction=False))
    refused = psql("-f", str(bare))
    assert refused.returncode == 3
    assert "has to be applied within one transaction" in refused.stderr
    assert psql("--single-transaction", "-f", str(bare)).returncode == 0
    done = psql(text=schema_sql(lock_down=True))
    assert (done.returncode, done.stderr) == (0, "")
