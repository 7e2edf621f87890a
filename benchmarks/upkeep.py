"""What refreshes leave in the database: WAL, versions of rows, the size of the tables, and the time of the server."""

import asyncio
import random
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import median
from uuid import UUID

import asyncpg

from benchmarks.growth import CHECKPOINTS, PERIOD
from benchmarks.place import Database, connected, managing, new_database, stored_users
from benchmarks.rounds import Figure, together
from benchmarks.server_time import server_seconds
from benchmarks.sizes import Size
from spotconn import ConnectionStore, TokenGrant
from spotconn.models import Connection
from spotconn.testing import EmbeddedPostgres

CONNECTIONS = 4
ROUNDS = 3
SETTINGS = {"full_page_writes": "on", "checkpoint_timeout": "1h", "max_wal_size": "8GB"}
"""As a server has them that may crash; checkpoints come only where they are asked for."""
_WAL = "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint"
_SIZE = """
select sum(pg_total_relation_size(name::regclass))::bigint
from unnest(array['public.spotify_connections', 'spotconn.refresh_state', 'auth.users']) as name
"""
_UPDATES = """
select sum(n_tup_upd)::bigint as updates, sum(n_tup_hot_upd)::bigint as hot
from pg_stat_user_tables where relname in ('spotify_connections', 'refresh_state')
"""


@dataclass(frozen=True)
class Cost:
    """What one refresh costs: bytes of WAL, and seconds of the server's and of the client's processor."""

    wal: float
    server: float
    client: float


async def measure(_server: EmbeddedPostgres, size: Size) -> list[Figure]:
    """Rounds of refreshes of all users in random order, then of those who fall between two checkpoints."""
    with EmbeddedPostgres(settings=SETTINGS) as server:
        database = await new_database(server, "upkeep", rows=size.upkeep_users)
        async with connected(database.admin_dsn) as admin:
            users = await stored_users(database)
            read = Figure("read_server_us", await _read_cost(database, admin, users) * 1e6)  # while the tokens are good
            async with ConnectionStore.open(database.dsn(), min_size=CONNECTIONS, max_size=CONNECTIONS) as store:
                return [read, *await _figures(_Refreshing(store, admin), admin, users)]


async def _read_cost(database: Database, admin: asyncpg.Connection, users: Sequence[UUID]) -> float:
    """Seconds of the server's processor for a token that is read alone, one after the other."""
    async with managing(database.dsn(), connections=1, cache_ttl=0) as tokens:
        server = server_seconds(admin.get_server_pid())
        for user in users:
            await tokens.get_valid_token(user)
        return (server_seconds(admin.get_server_pid()) - server) / len(users)


async def _figures(refreshing: "_Refreshing", admin: asyncpg.Connection, users: Sequence[UUID]) -> list[Figure]:
    await refreshing.cost(users)  # the first one makes the rows of refresh_state
    await admin.execute("vacuum analyze")
    begun, before = await admin.fetchval(_SIZE), await refreshing.updates()
    costs = [await refreshing.cost(users) for _ in range(ROUNDS)]
    grown, after = await admin.fetchval(_SIZE), await refreshing.updates()
    figures = [
        # The first round writes each page whole, once.
        Figure("wal_bytes_per_refresh", median(cost.wal for cost in costs[1:])),
        Figure("hot_share", (after[1] - before[1]) / (after[0] - before[0])),
        Figure("row_bytes", grown / len(users)),
        Figure("row_growth", grown / begun),
        Figure("save_server_us", median(cost.server for cost in costs) * 1e6),
        Figure("save_client_us", median(cost.client for cost in costs) * 1e6),
    ]
    for compression in ("off", "on"):
        await admin.execute(f"alter system set wal_compression = '{compression}'")
        await admin.execute("select pg_reload_conf()")
        for minutes in CHECKPOINTS:
            await admin.execute("checkpoint")
            sample = random.sample(users, max(1, round(len(users) * min(1.0, 60 * minutes / PERIOD))))
            cost = await refreshing.cost(sample)
            name = "_compressed" if compression == "on" else ""
            figures.append(Figure(f"wal_bytes_{minutes}_minutes{name}", cost.wal))
    return figures


class _Refreshing:
    """Refreshes without Spotify: the two statements of each, whose grants have ended so that the next one is due."""

    def __init__(self, store: ConnectionStore, admin: asyncpg.Connection) -> None:
        self._store = store
        self._admin = admin

    async def cost(self, users: Sequence[UUID]) -> Cost:
        """Refresh the tokens of these users, in random order."""
        wal = await self._admin.fetchval(_WAL)
        # What a read tidies up in a page after a checkpoint writes the whole page, too.
        stored = await self._store.get_many(users)
        due = [stored[user] for user in random.sample(users, len(users))]
        session = self._admin.get_server_pid()
        server, client = server_seconds(session), time.process_time()
        await together(self._refresh, due, CONNECTIONS)
        client, server = time.process_time() - client, server_seconds(session) - server
        wal = await self._admin.fetchval(_WAL) - wal
        return Cost(wal / len(due), server / len(due), client / len(due))

    async def updates(self) -> tuple[int, int]:
        """All updates of both tables and the heap-only ones, once the sessions have reported theirs."""
        before: tuple[int, int] | None = None
        async with asyncio.timeout(30):
            while True:
                await self._store.pool.value("select 1")
                updates, hot = await self._admin.fetchrow(_UPDATES) or (0, 0)
                if updates and (updates, hot) == before:
                    return updates, hot
                before = updates, hot
                await asyncio.sleep(2)  # each reports within a second of its last statement

    async def _refresh(self, connection: object) -> None:
        if not isinstance(connection, Connection):
            raise TypeError("a stored connection cannot be read")
        turn = await self._store.begin_refresh(connection.user_id, seen=connection.fingerprint)
        ended = datetime.now(UTC) - timedelta(seconds=1)
        grant = TokenGrant(access_token=f"BQ{secrets.token_urlsafe(150)}", expires_at=ended)
        if await self._store.finish_refresh(turn, grant) is None:
            raise RuntimeError("a refresh was not saved")
