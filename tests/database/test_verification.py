"""What a store looks at when it opens, and that each remedy is one that can be carried out."""

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import pytest

from spotconn import ConfigurationError, ConnectionStore, RowSecurityError, SchemaMismatch
from spotconn.testing import apply_schema
from support.counting_proxy import CountingProxy
from support.database import Database, Dsn


async def _opens(dsn: str) -> None:
    async with ConnectionStore.open(dsn, max_size=1):
        pass


async def test_all_of_it_is_one_round_trip(database: Database) -> None:
    """`verify` on a warm connection sends one statement and waits for one answer."""
    async with CountingProxy(database.server.port).serve() as proxy:
        parts = urlsplit(database.dsn)
        netloc = parts.netloc.replace(f":{database.server.port}", f":{proxy.port}")
        async with ConnectionStore.open(urlunsplit(parts._replace(netloc=netloc)), max_size=1) as store:
            await store.verify()
            before = proxy.round_trips
            await store.verify()
            assert proxy.round_trips - before == 1


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_an_encoding_that_cannot_hold_every_name_is_named(
    prepared: Database, admin: asyncpg.Connection, encoding: str
) -> None:
    """A database that is not UTF8 is refused at open, before a user has consented, with the way to one that is."""
    name = f"scratch_{uuid4().hex}"
    made = f"create database {name} encoding '{encoding}' lc_collate 'C' lc_ctype 'C' template template0"
    await admin.execute(made)
    try:
        await apply_schema(prepared.server.dsn(name))
        with pytest.raises(ConfigurationError, match=f"{encoding}.*ENCODING 'UTF8'"):
            await _opens(prepared.server.dsn(name, user="app", password="app"))
    finally:
        await admin.execute(f"drop database {name} with (force)")


async def test_version_3_of_before_is_told_apart(dsn: Dsn, scratch: asyncpg.Connection) -> None:
    """A database without the function that is called at open is old, also where it has the same version."""
    await apply_schema(dsn())
    await scratch.execute("drop function spotconn.verify()")
    with pytest.raises(SchemaMismatch, match="spotconn schema --apply") as raised:
        await _opens(dsn("app"))
    assert (raised.value.__cause__, raised.value.__context__) == (None, None)
    await apply_schema(dsn())
    await _opens(dsn("app"))


@pytest.mark.parametrize("body", ["'select null::uuid'", "$$ select lower('ME')::uuid $$"])
async def test_users_who_are_not_seen_are_found_at_open(dsn: Dsn, scratch: asyncpg.Connection, body: str) -> None:
    """An auth.uid() that was replaced, so that the policies hide every row, is a SchemaMismatch."""
    await apply_schema(dsn())
    await _opens(dsn("app"))
    await scratch.execute(f"create or replace function auth.uid() returns uuid language sql stable as {body}")
    with pytest.raises(SchemaMismatch, match=r"auth\.uid\(\) does not return the user"):
        await _opens(dsn("app"))


@pytest.fixture
async def administrator(database: Database, admin: asyncpg.Connection) -> AsyncIterator[str]:
    """The DSN of an administrator whose login has the name of the library's role."""
    await admin.execute("alter role spotconn login superuser password 'spotconn'")
    yield database.login_dsn("spotconn")
    if not await admin.fetchval("select exists (select from pg_roles where rolname = 'spotconn')"):
        await admin.execute("alter role administrator rename to spotconn")
    await admin.execute("alter role spotconn nologin nosuperuser nobypassrls password null")


@pytest.mark.parametrize("login", ["spotconn", "app"])
async def test_an_administrator_named_spotconn_stays_one(database: Database, administrator: str, login: str) -> None:
    """The text does not advise to demote a login, perhaps the only superuser; it names another way."""
    with pytest.raises(RowSecurityError) as raised:
        await _opens(administrator if login == "spotconn" else database.dsn)
    text = str(raised.value)
    assert "NOSUPERUSER" not in text
    assert "Log in as another role, which is a member of spotconn" in text
    assert "ALTER ROLE spotconn RENAME TO" in text


@pytest.mark.parametrize("privilege", ["superuser", "nosuperuser bypassrls"])
async def test_the_way_of_the_text_leads_out(
    database: Database, administrator: str, admin: asyncpg.Connection, privilege: str
) -> None:
    """Renamed by another superuser, the administrator applies the schema, and then a member of spotconn is bound."""
    await admin.execute(f"alter role spotconn {privilege}")
    with pytest.raises(RowSecurityError, match="RENAME TO"):
        await _opens(administrator)
    await admin.execute("alter role spotconn rename to administrator")
    try:
        renamed = database.server.dsn("spotconn", user="administrator", password="spotconn")
        await admin.execute("alter role administrator superuser")
        await apply_schema(renamed, plain_postgres=False)
        await admin.execute("create role newcomer login password 'newcomer'; grant spotconn to newcomer")
        await _opens(database.login_dsn("newcomer"))
    finally:
        await admin.execute("drop role if exists newcomer; drop owned by spotconn; drop role spotconn")
        await admin.execute("reassign owned by administrator to postgres")
        await admin.execute("alter role administrator rename to spotconn")
        await admin.execute("alter role spotconn nosuperuser nobypassrls nologin")
        await apply_schema(database.admin_dsn)
    await asyncio.wait_for(_opens(database.dsn), 30)


async def test_a_role_that_owns_a_table_gives_it_away(dsn: Dsn, scratch: asyncpg.Connection) -> None:
    """The text names ownership and how it ends, and after that the store opens."""
    await apply_schema(dsn())
    await scratch.execute("alter table public.spotify_connections owner to spotconn")
    with pytest.raises(RowSecurityError, match=r"owns a table.*ALTER TABLE public\.spotify_connections OWNER TO"):
        await _opens(dsn("app"))
    await scratch.execute("alter table public.spotify_connections owner to postgres")
    await apply_schema(dsn())
    await _opens(dsn("app"))
