"""A database without anything, for the SQL files."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from uuid import uuid4

import asyncpg

from support.database import Database, Dsn


@asynccontextmanager
async def scratch_database(server: Database) -> AsyncGenerator[Dsn]:
    """Context manager: the DSN of a new database, by the logins it can be reached with."""
    name = f"scratch_{uuid4().hex}"
    maintenance = await asyncpg.connect(server.server.dsn())
    await maintenance.execute(f"create database {name}")

    def of(login: str = "") -> str:
        return server.server.dsn(name, user=login, password=login) if login else server.server.dsn(name)

    yield of
    await maintenance.execute(f"drop database {name} with (force)")
    await maintenance.close()
