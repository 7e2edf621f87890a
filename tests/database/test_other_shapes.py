"""Tables of the documented name and of another shape: taken over with their rows, or refused with all that is wrong."""

import asyncio

import asyncpg
import pytest
from typer.testing import CliRunner

from spotconn import ConnectionStore, Profile, StatementRefused
from spotconn._database.schema import read_sql, schema_sql
from spotconn.cli import app
from support.connections import grant
from support.database import Dsn
from support.documented_table import create_documented_table
from support.other_shapes import SHAPES, USERS

SQL = schema_sql(plain_postgres=True, transaction=False)
TAKEN = {name: shape for name, shape in SHAPES.items() if not shape.wrong}
REFUSED = {name: shape for name, shape in SHAPES.items() if shape.wrong}
CATALOG = """
select relname::text, oid, relfilenode, relrowsecurity from pg_class
where relnamespace in ('public'::regnamespace, 'auth'::regnamespace) order by 1
"""
KEYS = """
select pg_get_constraintdef(oid) from pg_constraint
where conrelid = 'public.spotify_connections'::regclass and contype in ('p', 'u', 'f') order by 1
"""


@pytest.mark.parametrize("name", TAKEN)
async def test_what_is_missing_is_added(dsn: Dsn, scratch: asyncpg.Connection, name: str) -> None:
    """The table gets its columns, keys and types, every row is kept and read by its user, and a second time is none."""
    await TAKEN[name].create(scratch)
    await scratch.execute(SQL)
    found = await scratch.fetch(CATALOG)
    async with ConnectionStore.open(dsn("app"), max_size=1) as store:
        for number, user in enumerate(USERS):
            connection = await store.get(user)
            assert (connection.refresh_token, connection.spotify_user_id) == (f"refresh{number}", f"account{number}")
            assert (connection.connected_at is None) == ("connected_at" not in TAKEN[name].values)
            scopes = {"user-read-email", "streaming"} if "scope" in TAKEN[name].values else None
            assert connection.scope == scopes
            await store.save(user, grant("new"), Profile(spotify_user_id=f"account{number}"))
    constraints = " ".join(row[0] for row in await scratch.fetch(KEYS))
    assert "FOREIGN KEY (user_id) REFERENCES auth.users(id) ON DELETE CASCADE" in constraints
    await scratch.execute(SQL)
    assert await scratch.fetch(CATALOG) == found
    await scratch.execute("delete from auth.users")
    assert not await scratch.fetch("select from public.spotify_connections")


async def test_a_sound_table_is_not_rewritten(scratch: asyncpg.Connection) -> None:
    """The documented table and its indexes stay the files that they were, and none of its rows is read."""
    await create_documented_table(scratch)
    files = "select relfilenode from pg_class where relname like '%spotify_connections%' order by oid"
    read = (
        "select seq_tup_read + coalesce(idx_tup_fetch, 0) from pg_stat_xact_all_tables "
        "where relname = 'spotify_connections'"
    )
    before = await scratch.fetch(files)
    async with scratch.transaction():
        await scratch.execute(SQL)
        assert await scratch.fetchval(read) == 0
    assert (await scratch.fetch(files))[: len(before)] == before


async def test_one_account_for_one_user_is_a_rule_of_the_project(dsn: Dsn, scratch: asyncpg.Connection) -> None:
    """With a unique index of the account, the second user who connects it is refused by its name; nothing is lost."""
    await create_documented_table(scratch, users=1)
    await scratch.execute(SQL)
    await scratch.execute("create unique index one on public.spotify_connections (spotify_user_id)")
    await scratch.execute("insert into auth.users (id) values ($1)", USERS[0])
    async with ConnectionStore.open(dsn("app"), max_size=1) as store:
        with pytest.raises(StatementRefused, match=r"\bone\b"):
            await store.save(USERS[0], grant("new"), Profile(spotify_user_id="account"))
    assert await scratch.fetchval("select count(*) from public.spotify_connections") == 1


@pytest.mark.parametrize("name", REFUSED)
async def test_what_cannot_be_mended_is_named_at_once(scratch: asyncpg.Connection, name: str) -> None:
    """One error names all that is wrong and what to do, nothing is changed, and no value is in it."""
    await REFUSED[name].create(scratch)
    before = await scratch.fetch(CATALOG)
    with pytest.raises(asyncpg.RaiseError) as raised:
        await scratch.execute(SQL)
    assert all(text in str(raised.value) for text in REFUSED[name].wrong)
    assert "spotconn migrate --from public.spotify_connections_old" in str(raised.value.hint)
    assert "refresh0" not in str(raised.value) + str(raised.value.detail)
    assert await scratch.fetch(CATALOG) == before


async def test_a_renamed_table_makes_room(scratch: asyncpg.Connection) -> None:
    """The remedy of the error works, twice, also where the old table keeps the names of indexes and constraints."""
    await REFUSED["integer times, scopes as an array"].create(scratch)
    await scratch.execute(
        "create index idx_spotify_connections_user on public.spotify_connections (user_id);"
        "create index idx_spotify_connections_spotify_user on public.spotify_connections (spotify_user_id);"
        "alter table public.spotify_connections rename to spotify_connections_old"
    )
    await scratch.execute(SQL)
    indexes = "select count(*) from pg_index where indrelid = 'public.spotify_connections'::regclass"
    assert await scratch.fetchval(indexes) == 4
    await scratch.execute(SQL)
    assert await scratch.fetchval(indexes) == 4


async def test_the_zone_of_times_is_stated(dsn: Dsn, scratch: asyncpg.Connection) -> None:
    """Times without a zone are read in the zone of the session, which a notice names."""
    await SHAPES["short columns, times without zone"].create(scratch)
    await scratch.execute("set timezone = 'America/New_York'")
    notices: list[str] = []
    scratch.add_log_listener(lambda _, message: notices.append(message.message or ""))
    await scratch.execute(SQL)
    assert [text for text in notices if "America/New_York" in text]
    stored = (
        "select bool_and(expires_at = timestamptz '2026-11-24 12:00 America/New_York') from public.spotify_connections"
    )
    assert await scratch.fetchval(stored)


async def test_the_command_prints_the_zone(dsn: Dsn, scratch: asyncpg.Connection) -> None:
    """`spotconn schema --apply` tells it on standard error."""
    await SHAPES["short columns, times without zone"].create(scratch)
    env = {"DATABASE_URL": dsn()}
    applied = await asyncio.to_thread(lambda: CliRunner().invoke(app, ["schema", "--apply"], env=env))
    assert applied.exit_code == 0
    assert "were read in the session's zone: " in applied.stderr


async def test_the_default_of_a_converted_user_id_is_kept(scratch: asyncpg.Connection) -> None:
    """A browser that leaves user_id to the default auth.uid() still inserts the own row."""
    await SHAPES["user_id of type text"].create(scratch)
    await scratch.execute(
        "delete from public.spotify_connections; "
        "alter table public.spotify_connections alter user_id set default auth.uid()"
    )
    await scratch.execute(SQL)
    async with scratch.transaction():
        await scratch.execute(
            f'set local request.jwt.claims = \'{{"sub": "{USERS[0]}"}}\'; set local role authenticated'
        )
        await scratch.execute(
            "insert into public.spotify_connections (spotify_user_id, access_token, refresh_token, expires_at) "
            "values ('alice', 'a', 'r', now())"
        )
    assert await scratch.fetchval("select user_id::text from public.spotify_connections") == USERS[0]


FAULTS = {
    "is no table": "create view public.spotify_connections as select 1 as id",
    "column user_id: bigint instead of uuid": "alter table {} drop column user_id cascade, add user_id bigint",
    "column email: integer instead of text": "alter table {} drop column email, add email integer",
    "set not null: some rows have null": (
        "alter table {} alter refresh_token drop not null; update {} set refresh_token = null"
    ),
    "column display_name is NOT NULL": (
        "update {} set display_name = ''; alter table {} alter display_name set not null"
    ),
    "alter column user_id type uuid using user_id::pg_catalog.uuid: a value is none of that type": (
        "alter table {} drop user_id cascade, add user_id text not null default 'user_2abc'"
    ),
    "used in a policy definition. policy own on table public.spotify_connections depends on column": (
        "alter table {} drop user_id cascade, add user_id text; create policy own on {} using (user_id = '1')"
    ),
    "view or rule. rule _RETURN on view public.emails depends on column": (
        "alter table {} alter email type varchar; create view public.emails as select email from {}"
    ),
}


@pytest.mark.parametrize("named", FAULTS)
async def test_each_fault_is_named(scratch: asyncpg.Connection, named: str) -> None:
    """A fault that is planted into the documented table stands in the error."""
    if named == "is no table":
        await scratch.execute(read_sql("plain_postgres.sql"))
    else:
        await create_documented_table(scratch)
    await scratch.execute(FAULTS[named].replace("{}", "public.spotify_connections"))
    with pytest.raises(asyncpg.RaiseError) as raised:
        await scratch.execute(SQL)
    assert named in str(raised.value)
