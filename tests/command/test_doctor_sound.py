"""The doctor says nothing of a sound database, by any kind of login, on any way to it."""

from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from spotconn._database.schema import SqlFile, read_sql
from support.database import Database, serving
from support.doctor import look
from support.pgbouncer import pgbouncer
from support.supabase_project import SUPABASE

NOTHING = dict[str, str]()
OPEN = {"clients": "warn"}
"""What it says at the level that schema.sql leaves: a signed-in user reads and writes the own tokens."""
READ_ONLY = "default_transaction_read_only"


@pytest.fixture(scope="module")
def project(prepared: Database) -> Iterator[Database]:
    """A server that has what a project on Supabase has."""
    with serving(prepared.server._binaries) as database:
        yield database


@pytest.fixture
async def superuser(project: Database) -> AsyncIterator[asyncpg.Connection]:
    """A session of the superuser of that server, which is like a project on Supabase then."""
    session = await asyncpg.connect(project.admin_dsn)
    if not await session.fetchval("select exists (select from pg_roles where rolname = 'platform')"):
        await session.execute(f"{SUPABASE}; alter role platform login password 'platform'")
        await session.execute("alter role my_login password 'my_login'")
    yield session
    await session.close()


async def said(dsn: str) -> dict[str, str]:
    found = await look(dsn, SPOTCONN_REQUIRE_ENCRYPTED="1")
    assert len(found) > 10
    return {subject: one.state for subject, one in found.items() if one.state not in {"ok", "skip"}}


@pytest.mark.parametrize("login", ["postgres", "platform", "app_bypass", "app", "my_login"])
@pytest.mark.usefixtures("superuser")
async def test_nothing_is_said_to_a_login(project: Database, login: str) -> None:
    """Neither to a superuser, nor to one like `postgres` on Supabase, nor to one as the guide makes it."""
    assert await said(project.admin_dsn if login == "postgres" else project.login_dsn(login)) == OPEN


async def test_nothing_is_said_behind_a_pooler(project: Database) -> None:
    """But that it is there, and what it changes."""
    with pgbouncer(project.server.port) as pooler:
        assert await said(pooler.through(project.dsn)) == OPEN | {"pooler": "warn"}


@pytest.mark.parametrize("level", ["lock_down.sql", "close_writes.sql"])
async def test_nothing_is_said_at_a_level(project: Database, superuser: asyncpg.Connection, level: SqlFile) -> None:
    """Where clients may not write tokens there is nothing to be said of them either."""
    await superuser.execute(read_sql(level))
    try:
        assert await said(project.dsn) == NOTHING
    finally:
        await superuser.execute(read_sql("lock_down_undo.sql"))


@pytest.mark.parametrize("path", ["auth, public", "spotconn, auth", "auth, pg_catalog", "''"])
async def test_the_search_path_of_the_login_does_not_matter(
    project: Database, superuser: asyncpg.Connection, path: str
) -> None:
    """Postgres prints an expression with the names that the search_path needs: the doctor sets its own."""
    await superuser.execute(f"alter role app set search_path = {path}")
    try:
        assert await said(project.dsn) == OPEN
    finally:
        await superuser.execute("alter role app reset search_path")


@pytest.mark.long
@pytest.mark.parametrize("login", ["app", "platform"])
async def test_of_a_read_only_database_only_that_is_said(
    project: Database, superuser: asyncpg.Connection, login: str
) -> None:
    """As Supabase makes it where the disk is nearly full."""
    await superuser.execute(f"alter database spotconn set {READ_ONLY} = on")
    try:
        assert await said(project.login_dsn(login)) == OPEN | {"writing": "fail"}
    finally:
        await superuser.execute(f"alter database spotconn reset {READ_ONLY}")
