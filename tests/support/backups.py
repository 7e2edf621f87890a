"""Rows that go back in time, by hand."""

from uuid import UUID

import asyncpg

from spotconn import ConnectionStore, TokenManager
from spotconn.testing import FakeSpotify
from support.connections import connect
from support.invariants import stored_row

_STATE = "select * from spotconn.refresh_state where user_id = $1"


class Backup:
    """The row of a user and what is recorded of it, as they were."""

    def __init__(self, row: asyncpg.Record, state: asyncpg.Record) -> None:
        self._row = row
        self._state = state

    @classmethod
    async def of(cls, admin: asyncpg.Connection, user: UUID) -> "Backup":
        state = await admin.fetchrow(_STATE, user)
        assert state is not None
        return cls(await stored_row(admin, user), state)

    async def restore(self, admin: asyncpg.Connection) -> None:
        """Put both back, as a server does that has lost commits: nobody is notified."""
        async with admin.transaction():
            await admin.execute("set local session_replication_role = replica")
            await admin.execute("alter table public.spotify_connections disable trigger spotconn_notify_change")
            for table, record in (("public.spotify_connections", self._row), ("spotconn.refresh_state", self._state)):
                columns = list(record.keys())
                values = ", ".join(f"${n}" for n in range(1, len(columns) + 1))
                await admin.execute(f"delete from {table} where user_id = $1", record["user_id"])
                await admin.execute(f"insert into {table} ({', '.join(columns)}) values ({values})", *record.values())
            await admin.execute("alter table public.spotify_connections enable always trigger spotconn_notify_change")


async def refreshed(store: ConnectionStore, tokens: TokenManager, spotify: FakeSpotify, admin: asyncpg.Connection,
                    user: UUID) -> tuple[Backup, str]:  # fmt: skip
    """Connect a user and refresh; what was stored before, and the token."""
    await connect(store, spotify, user, account=str(user), ttl=-1)
    before = await Backup.of(admin, user)
    return before, await tokens.get_valid_token(user)
