"""The clock of the database of a test: `spotconn.now()`, replaced as its owner."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final

import asyncpg

_REPLACE: Final = (
    "create or replace function spotconn.now() returns timestamptz language sql stable "
    "set search_path = pg_catalog, pg_temp return "
)
_CLOCK: Final = "pg_catalog.clock_timestamp()"


class DatabaseClock:
    """The clock of one database.

    Args:
        owner: a session of the owner of `spotconn.now()`.
    """

    def __init__(self, owner: asyncpg.Connection) -> None:
        self._owner = owner
        self.offset = 0.0

    async def set_offset(self, seconds: float) -> None:
        """Let the clock be that far ahead of the server's; negative for behind."""
        self.offset = seconds
        offset = f" + interval '{seconds!r} seconds'" if seconds else ""
        await self._owner.execute(_REPLACE + _CLOCK + offset)

    async def step(self, seconds: float) -> None:
        """Set the clock forward, or back where negative."""
        await self.set_offset(self.offset + seconds)

    async def stop_at(self, moment: datetime) -> None:
        """Let the clock stand still."""
        await self._owner.execute(f"{_REPLACE}'{moment.isoformat()}'::timestamptz")

    async def restore(self) -> None:
        """Let the clock be the server's, to the letter of the schema."""
        await self.set_offset(0.0)


@asynccontextmanager
async def database_clock(owner: asyncpg.Connection) -> AsyncGenerator[DatabaseClock]:
    """Context manager: the clock of the database of a session, restored at the end of the block."""
    clock = DatabaseClock(owner)
    try:
        yield clock
    finally:
        await clock.restore()
