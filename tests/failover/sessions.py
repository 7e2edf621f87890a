"""The sessions of each login on each server, counted while a scenario runs."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress

import asyncpg

BETWEEN = 0.5
"""Seconds between two looks."""
PATIENCE = 2.0
"""Seconds for a server to answer; one that is away or frozen is asked again later."""
_COUNT = "select usename, count(*) from pg_stat_activity where usename like 'client_%' group by usename"
_BROKEN = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)


class Sessions:
    """Counts.

    Attributes:
        most: by login, on one server at one time.
    """

    def __init__(self) -> None:
        self.most: dict[str, int] = {}

    @asynccontextmanager
    async def counted(self, dsns: Sequence[str]) -> AsyncGenerator[None]:
        """Context manager: count until the end of the block."""
        tasks = [asyncio.create_task(self._watch(dsn)) for dsn in dsns]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, dsn: str) -> None:
        while True:
            with suppress(*_BROKEN):
                await self._look(dsn)
            await asyncio.sleep(BETWEEN)

    async def _look(self, dsn: str) -> None:
        admin = await asyncpg.connect(dsn, timeout=PATIENCE, command_timeout=PATIENCE)
        try:
            while True:
                for login, count in await admin.fetch(_COUNT):
                    self.most[login] = max(count, self.most.get(login, 0))
                await asyncio.sleep(BETWEEN)
        finally:
            admin.terminate()
