"""A login without rights tries to stall an application of the schema, or to have it use objects of its own."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from spotconn._database.schema import SqlFile, read_sql, schema_sql
from support.database import Database, Dsn
from support.schema_state import schema_state
from support.scratch import scratch_database

FILES: list[SqlFile] = ["plain_postgres.sql", "schema.sql", "close_writes.sql", "lock_down.sql", "lock_down_undo.sql"]
SQL = schema_sql(plain_postgres=True)
DECOYS = """
    create schema decoy;
    create domain decoy.uuid as text; create domain decoy.timestamptz as text; create domain decoy.interval as text;
    create domain decoy.text as pg_catalog.int4; create domain decoy.jsonb as pg_catalog.int4;
    create function decoy.equal(pg_catalog.text, pg_catalog.text) returns boolean language sql as 'select false';
    create operator decoy.= (leftarg = pg_catalog.text, rightarg = pg_catalog.text, function = decoy.equal);
    create function decoy.gen_random_uuid() returns pg_catalog.uuid language sql as 'select null::pg_catalog.uuid';
"""


@pytest.fixture
async def dsn(prepared: Database) -> AsyncIterator[Dsn]:
    """A database without anything."""
    async with scratch_database(prepared) as of:
        yield of


async def _apply(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(SQL)
    finally:
        await connection.close()


async def test_an_advisory_lock_holds_nothing_up(dsn: Dsn) -> None:
    """A login without rights holds the word's advisory lock, and tries the lock that is taken: each file is applied."""
    await _apply(dsn())
    stranger = await asyncpg.connect(dsn("app"))
    admin = await asyncpg.connect(dsn())
    try:
        async with stranger.transaction():
            await stranger.execute("select pg_advisory_xact_lock(hashtext('spotconn'))")
            for refused in ("comment on schema spotconn is ''", "drop schema spotconn", "comment on schema auth is ''"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    async with stranger.transaction():
                        await stranger.execute(refused)
            await admin.execute("set lock_timeout = '2s'")
            for name in FILES:
                await admin.execute(read_sql(name))
    finally:
        await stranger.close()
        await admin.close()


async def test_four_at_once_on_an_empty_database(dsn: Dsn) -> None:
    """Each waits for the one before, from the first object on, and all succeed."""
    await asyncio.gather(*[_apply(dsn()) for _ in range(4)])


async def test_the_second_waits_for_the_first(dsn: Dsn) -> None:
    """While one application is open, another gets no lock."""
    await _apply(dsn())
    first, second = await asyncpg.connect(dsn()), await asyncpg.connect(dsn())
    try:
        await second.execute("set lock_timeout = '200ms'")
        for name in ("lock_down.sql", "plain_postgres.sql"):
            async with first.transaction():
                await first.execute(read_sql(name))
                with pytest.raises(asyncpg.LockNotAvailableError):
                    await second.execute(read_sql(name))
    finally:
        await first.close()
        await second.close()


async def test_no_object_in_the_path_is_used(dsn: Dsn, prepared: Database) -> None:
    """With decoys first in the path of the applying login the result is the same, and the path is put back."""
    async with scratch_database(prepared) as of:
        await _apply(of())
        fresh = await asyncpg.connect(of())
        connection = await asyncpg.connect(dsn())
        try:
            await connection.execute(DECOYS)
            async with connection.transaction():
                await connection.execute("set local search_path = decoy, pg_catalog, public")
                for name in ("plain_postgres.sql", "schema.sql"):
                    await connection.execute(read_sql(name))
                    assert await connection.fetchval("show search_path") == "decoy, pg_catalog, public"
            assert await connection.fetchval("show search_path") == '"$user", public'
            assert await schema_state(connection) == await schema_state(fresh)
        finally:
            await fresh.close()
            await connection.close()


async def test_the_comment_of_schema_auth_stays(dsn: Dsn) -> None:
    """What locks a project's schema changes nothing of it."""
    connection = await asyncpg.connect(dsn())
    try:
        await connection.execute("create schema auth; comment on schema auth is 'It''s ours'")
        await connection.execute(SQL)
        assert await connection.fetchval("select obj_description('auth'::regnamespace, 'pg_namespace')") == "It's ours"
    finally:
        await connection.close()
