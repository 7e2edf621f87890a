"""What notifications cost with many sessions that listen, and what a fleet of processes at rest asks of the server."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import UUID

import asyncpg

from benchmarks.place import Database, connected, managing, new_database, stored_users
from benchmarks.rounds import Figure
from benchmarks.server_time import server_seconds
from benchmarks.sizes import Size
from spotconn import TokenManager
from spotconn.testing import EmbeddedPostgres

QUEUE = 8 * 1024**3
"""Bytes of the queue, as every version has it by default."""
QUEUED = 10_000
PATIENCE = 60.0
"""Seconds until something counts as lost."""
_CHANGE = "update public.spotify_connections set display_name = $2 where user_id = $1"
_LOGINS = "select sessions from pg_stat_database where datname = current_database()"


async def measure(_server: EmbeddedPostgres, size: Size) -> list[Figure]:
    """A commit that notifies, beside more and more sessions; the queue; processes that do nothing but listen."""
    with EmbeddedPostgres(settings={"max_connections": "500"}) as server:
        database = await new_database(server, "listeners", rows=1)
        (user,) = await stored_users(database)
        async with connected(database.admin_dsn) as admin:
            return [
                *await _commits(database, admin, user, size),
                Figure("queue_bytes_per_notification", await _queued(database, admin)),
                *await _fleet(database, admin, user, size),
            ]


class _Receivers:
    """Sessions that listen, and how much they have received together."""

    def __init__(self) -> None:
        self.sessions: list[asyncpg.Connection] = []
        self.received = 0
        self._expected = 0
        self._complete = asyncio.Event()

    async def add(self, database: Database) -> None:
        session = await asyncpg.connect(database.dsn())
        self.sessions.append(session)
        await session.add_listener("spotconn", self._receive)

    async def expect(self, number: int) -> None:
        """Wait until that many notifications have arrived, all sessions together."""
        self._expected = number
        self._complete.clear()
        async with asyncio.timeout(PATIENCE):
            while self.received < number:
                await self._complete.wait()

    def _receive(self, *_notification: object) -> None:
        self.received += 1
        if self.received >= self._expected:
            self._complete.set()


@asynccontextmanager
async def _receiving() -> AsyncGenerator[_Receivers]:
    receivers = _Receivers()
    try:
        yield receivers
    finally:
        await asyncio.gather(*[session.close() for session in receivers.sessions])


async def _commits(database: Database, admin: asyncpg.Connection, user: UUID, size: Size) -> list[Figure]:
    """What a commit takes with each number of sessions, and what one delivery costs either side."""
    figures: list[Figure] = []
    costs: list[tuple[float, float]] = []
    async with _receiving() as receivers:
        for number in size.listeners:
            while len(receivers.sessions) < number:
                await receivers.add(database)
            server, client, committed, delivered = await _changes(receivers, admin, user, size.notified)
            costs.append((server, client))
            figures += [
                Figure(f"notified_commit_{number}_listeners_us", committed * 1e6),
                Figure(f"last_delivery_{number}_listeners_us", delivered * 1e6),
            ]
    deliveries = size.listeners[-1] - size.listeners[0]
    # A short run may find nothing that the processor's clock shows.
    server, client = (max(last - first, 1e-7) / deliveries for first, last in zip(costs[0], costs[-1], strict=True))
    return [*figures, Figure("delivery_server_us", server * 1e6), Figure("delivery_client_us", client * 1e6)]


async def _changes(
    receivers: _Receivers, admin: asyncpg.Connection, user: UUID, number: int
) -> tuple[float, float, float, float]:
    """Processor time of the server and of this process, time to the end of the commit and to the last delivery."""
    session = admin.get_server_pid()
    server, client = server_seconds(session), time.process_time()
    committed = delivered = 0.0
    for change in range(number):
        begun, expected = time.perf_counter(), receivers.received + len(receivers.sessions)
        await admin.execute(_CHANGE, user, f"name {change}")
        committed += time.perf_counter() - begun
        await receivers.expect(expected)
        delivered += time.perf_counter() - begun
    client, server = time.process_time() - client, server_seconds(session) - server
    return server / number, client / number, committed / number, delivered / number


async def _queued(database: Database, admin: asyncpg.Connection) -> float:
    """Bytes of the queue for a notification of the trigger, while a session in a transaction holds it up."""
    async with connected(database.dsn()) as holder:
        await holder.execute("listen spotconn")
        await holder.execute("begin; select 1")
        before = await admin.fetchval("select pg_notification_queue_usage()")
        query = "select pg_notify('spotconn', gen_random_uuid()::text) from generate_series(1, $1)"
        await admin.execute(query, QUEUED)
        used = await admin.fetchval("select pg_notification_queue_usage()") - before
        await holder.execute("rollback")
    return float(used * QUEUE / QUEUED)


async def _fleet(database: Database, admin: asyncpg.Connection, user: UUID, size: Size) -> list[Figure]:
    """Stores of their own, as those of as many processes, that listen and do nothing else for one period of logins."""
    async with _receiving() as receivers, AsyncExitStack() as stack:
        await receivers.add(database)
        ttl = 1.5 * size.fleet_seconds  # a heartbeat in each third, a connection with every second one
        managers = [
            await stack.enter_async_context(managing(database.dsn(), connections=2, cache_ttl=ttl))
            for _ in range(size.fleet)
        ]
        await asyncio.gather(*[tokens.get_valid_token(user) for tokens in managers])
        await receivers.expect(size.fleet)  # each new session is confirmed by one notification, which all receive
        return await _at_rest(admin, managers, receivers, size)


async def _at_rest(
    admin: asyncpg.Connection, managers: Sequence[TokenManager], receivers: _Receivers, size: Size
) -> list[Figure]:
    """What one period costs, with two heartbeats and the login at its end, for which there are two seconds more."""
    session = admin.get_server_pid()
    logins, server = await admin.fetchval(_LOGINS), server_seconds(session)
    await asyncio.sleep(size.fleet_seconds + 2)
    server = (server_seconds(session) - server) / len(managers)
    logins = await admin.fetchval(_LOGINS) - logins
    return [
        Figure("fleet_notifications_per_process", receivers.received / len(managers)),
        Figure("fleet_logins_per_process_and_period", logins / len(managers)),
        Figure("fleet_server_ms_per_second", server / size.fleet_seconds * 1e3),
    ]
