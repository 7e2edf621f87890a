"""Databases without anything, for the SQL files."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from spotconn.testing import apply_schema
from support.database import Database, Dsn
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
