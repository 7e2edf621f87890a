"""Sessions that wait for a lock, seen by another session."""

import asyncio

import asyncpg


async def until_waiting(admin: asyncpg.Connection, *pids: int) -> list[int]:
    """Return which of the backends wait for a lock, as soon as one does."""
    waiting: list[int] = []
    async with asyncio.timeout(20):
        while not waiting:
            rows = await admin.fetch("select pid from pg_locks where pid = any($1::int[]) and not granted", list(pids))
            waiting = [row["pid"] for row in rows]
    return waiting


async def until_someone_waits(admin: asyncpg.Connection, table: str) -> int:
    """Return the backend that waits for a lock of a table, as soon as one does."""
    query = "select pid from pg_locks where relation = $1::text::regclass and not granted"
    async with asyncio.timeout(20):
        while (pid := await admin.fetchval(query, table)) is None:
            pass
    return int(pid)
