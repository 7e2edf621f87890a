"""Databases without anything, for the SQL files, and clients of PostgREST."""

from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore, SpotifyAccounts, TokenManager
from spotconn._database.schema import read_sql
from spotconn.testing import apply_schema
from support.database import Database, Dsn
from support.postgrest import RestClient, rest_session
from support.scratch import scratch_database


@pytest.fixture
async def dsn(prepared: Database) -> AsyncIterator[Dsn]:
    """A database without anything, dropped afterwards, by the logins it can be reached with."""
    async with scratch_database(prepared) as of:
        yield of


@pytest.fixture
async def scratch(dsn: Dsn) -> AsyncIterator[asyncpg.Connection]:
    """A superuser's connection to it."""
    connection = await asyncpg.connect(dsn())
    yield connection
    await connection.close()


@pytest.fixture
async def fresh(prepared: Database) -> AsyncIterator[asyncpg.Connection]:
    """A superuser's connection to another database, where the schema of this version is the first."""
    async with scratch_database(prepared) as of:
        await apply_schema(of())
        connection = await asyncpg.connect(of())
        yield connection
        await connection.close()


@pytest.fixture
async def open_table(admin: asyncpg.Connection) -> AsyncIterator[None]:
    """Clients may read and write; at the end the database is as open, or as closed, as it was."""
    locked = await admin.fetchval("select to_regprocedure('spotconn.locked_down()') is not null")
    await admin.execute(read_sql("lock_down_undo.sql"))
    yield
    await admin.execute(read_sql("lock_down.sql" if locked else "lock_down_undo.sql"))


@pytest.fixture
async def session(database: Database, admin: asyncpg.Connection, open_table: None) -> AsyncIterator[asyncpg.Connection]:
    """A session of PostgREST."""
    async with rest_session(database, admin) as opened:
        yield opened


@pytest.fixture
def browser(session: asyncpg.Connection, user: UUID) -> RestClient:
    """The browser of a signed-in user."""
    return RestClient(session, "authenticated", user)


@pytest.fixture
def edge_function(session: asyncpg.Connection) -> RestClient:
    """An edge function with a secret key, which no policy binds."""
    return RestClient(session, "service_role", None)


@pytest.fixture
async def uncached(store: ConnectionStore, accounts: SpotifyAccounts) -> AsyncIterator[TokenManager]:
    """A manager that caches nothing."""
    async with TokenManager(store, accounts, cache_ttl=0) as manager:
        yield manager
