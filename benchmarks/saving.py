"""How fast refreshes are saved where a commit takes long: what NOTIFY would add, which lets one commit in at a time."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg

from benchmarks.place import Database, connected, new_database, stored_users
from benchmarks.rounds import Figure, Round, Rounds, interleaved, together
from benchmarks.sizes import Size
from spotconn import ConnectionStore, TokenGrant
from spotconn.models import Connection
from spotconn.testing import EmbeddedPostgres
from spotconn.turns import RefreshTurn

CONNECTIONS = 32
SLOW_COMMITS = {"commit_delay": "5000", "commit_siblings": "0", "max_connections": "50"}
"""Each flush of the log waits for 5 ms more, as it does for a synchronous standby. Postgres needs fsync for that."""
LEASE = 300
"""Seconds: all turns of a round begin before the first is saved."""
_ENABLED, _DISABLED = "enable always", "disable"
_TRIGGER = "alter table public.spotify_connections {} trigger spotconn_notify_change"
_EXPIRE = "update public.spotify_connections set expires_at = now() - interval '1 minute'"


async def measure(_server: EmbeddedPostgres, size: Size) -> list[Figure]:
    """Saved refreshes per second with the trigger, which is silent for them, beside those without it.

    Those of refused access tokens, of which every process is notified, show what the silence is worth.
    """
    with EmbeddedPostgres(durable=True, settings=SLOW_COMMITS) as slow:
        database = await new_database(slow, "saving", rows=size.saves)
        rounds = await _rounds(database, await stored_users(database), size)
    return [
        Figure("refresh_writes_vs_silent", rounds.ratio("save_silent", "save")),
        Figure("notified_writes_vs_silent", rounds.ratio("save_silent", "save_notified")),
        *rounds.figures(),
    ]


async def _rounds(database: Database, users: Sequence[UUID], size: Size) -> Rounds:
    async with (
        connected(database.admin_dsn) as admin,
        ConnectionStore.open(database.dsn(), min_size=CONNECTIONS, max_size=CONNECTIONS) as store,
    ):
        saving = _Saving(admin, store, users)
        return await interleaved(
            {
                "save": saving.round(_ENABLED),
                "save_silent": saving.round(_DISABLED),
                "save_notified": saving.round(_ENABLED, rejected=True),
            },
            size.storm_rounds,
        )


class _Saving:
    """Rounds of saving a refresh of each user, by the connections of one store."""

    def __init__(self, admin: asyncpg.Connection, store: ConnectionStore, users: Sequence[UUID]) -> None:
        self._admin = admin
        self._store = store
        self._users = users

    def round(self, trigger: str, *, rejected: bool = False) -> Round:
        """A round with the trigger that notifies of changes enabled or disabled; only the saving is timed."""

        async def run() -> float:
            await self._admin.execute(_TRIGGER.format(trigger))
            await self._admin.execute(_EXPIRE)
            turns = await self._begin()
            return await together(lambda turn: self._finish(turn, rejected=rejected), turns, CONNECTIONS)

        return run

    async def _begin(self) -> list[RefreshTurn]:
        stored = await self._store.get_many(self._users)
        return await asyncio.gather(
            *[
                self._store.begin_refresh(user, seen=connection.fingerprint, lease=LEASE)
                for user, connection in stored.items()
                if isinstance(connection, Connection)
            ]
        )

    async def _finish(self, turn: RefreshTurn, *, rejected: bool) -> None:
        """Save a grant as Spotify gives it, which leaves the refresh token as it is."""
        ends = datetime.now(UTC) + timedelta(hours=1)
        grant = TokenGrant(access_token=f"BQ{turn.lease_id}" + 160 * "x", expires_at=ends, expires_in=3600)
        if await self._store.finish_refresh(turn, grant, rejected=rejected) is None:
            raise RuntimeError("a refresh was not saved")
