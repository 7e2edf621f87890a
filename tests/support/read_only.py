"""A database that takes no writes for a while, by a setting."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import asyncpg

from support.database import Database

SETTING = "default_transaction_read_only"


@asynccontextmanager
async def read_only(database: Database, where: str = "system") -> AsyncGenerator[None]:
    """The database is read-only by ALTER SYSTEM, ALTER DATABASE or ALTER ROLE; new sessions know by then, and after."""
    session = await asyncpg.connect(database.admin_dsn)
    try:
        await session.execute(f"alter {where} set {SETTING} = on")
        await session.execute("select pg_reload_conf()")
        await _until_shown(database.dsn, "on")
        yield
    finally:
        await session.execute(f"set {SETTING} = off")
        await session.execute(f"alter {where} reset {SETTING}")
        await session.execute("select pg_reload_conf()")
        await session.close()
    await _until_shown(database.dsn, "off")


async def _until_shown(dsn: str, value: str) -> None:
    async with asyncio.timeout(10):
        session = await asyncpg.connect(dsn)
        while await session.fetchval(f"show {SETTING}") != value:
            await session.close()
            session = await asyncpg.connect(dsn)
        await session.close()
