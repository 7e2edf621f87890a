"""Time limits that a login or a database has for web requests do not end the work of an operator."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from spotconn import ConnectionAdmin, DatabaseUnavailable
from spotconn._command.probe import Probe
from spotconn._database.acquire import acquire
from spotconn._database.pool import close_pool, open_pool
from support.database import Database
from support.doctor import look
from support.lock_waits import until_someone_waits
from support.pgbouncer import pgbouncer

LIMITS = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
OWN = dict.fromkeys(LIMITS, "250ms")
SHOW = "select name, setting::int / 1000 as seconds from pg_settings where name = any($1)"


@pytest.fixture
async def hurried(database: Database, admin: asyncpg.Connection) -> AsyncIterator[str]:
    """The DSN of an operator's login with time limits of a quarter of a second."""
    await admin.execute("create role hurried login password 'hurried'; grant spotconn, service_role to hurried")
    for name, limit in OWN.items():
        await admin.execute(f"alter role hurried set {name} = '{limit}'")
    yield database.login_dsn("hurried")
    await admin.execute("drop role hurried")


async def outlast_the_limits(admin: asyncpg.Connection) -> int:
    """Return the session that has waited for a lock of the table for longer than the limits of the login."""
    pid = await until_someone_waits(admin, "public.spotify_connections")
    await admin.execute("select pg_sleep(0.6)")
    return pid


@pytest.mark.parametrize("work", ["stats", "doctor"])
async def test_work_that_takes_longer_than_the_login_may(hurried: str, admin: asyncpg.Connection, work: str) -> None:
    """The admin and the doctor have limits of their own."""

    async def stats() -> int:
        async with ConnectionAdmin.open(hurried) as operator:
            return (await operator.stats()).connections

    async def doctor() -> int:
        found = await look(hurried)
        return sum(one.state == "fail" for one in found.values())

    async with admin.transaction():
        await admin.execute("lock table public.spotify_connections in access exclusive mode")
        task = asyncio.create_task(stats() if work == "stats" else doctor())
        await outlast_the_limits(admin)
    assert await task == 0


async def test_the_limits_are_those_of_one_transaction(hurried: str) -> None:
    """Within it 300 seconds, for the doctor 60; behind it those of the login again, so a pooler passes nothing on."""

    async def seconds(session: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]") -> list[int]:
        rows = {row["name"]: row["seconds"] for row in await session.fetch(SHOW, LIMITS)}
        return [rows[name] for name in LIMITS]

    async with ConnectionAdmin.open(hurried, max_size=1) as operator:
        async with operator._database.transaction() as session:
            assert await seconds(session) == [300, 0, 300]
        async with operator._pool.acquire() as session:
            assert await seconds(session) == [0, 0, 0]  # a quarter of one
    pool = await open_pool(hurried, {"max_size": 1})
    try:
        async with acquire(pool) as session:
            async with Probe(session).rolled_back():
                assert await seconds(session) == [60, 0, 60]
            assert await seconds(session) == [0, 0, 0]
    finally:
        await close_pool(pool)


async def test_a_pooler_passes_no_limit_on(operator: str, database: Database, admin: asyncpg.Connection) -> None:
    """Through PgBouncer the work has its own limits too, and the next client of the connection those of the login."""
    await admin.execute("alter role operator set statement_timeout = '250ms'")
    try:
        with pgbouncer(database.server.port, size=1) as bouncer:
            dsn = bouncer.through(operator)
            async with ConnectionAdmin.open(dsn) as house:
                async with admin.transaction():
                    await admin.execute("lock table public.spotify_connections in access exclusive mode")
                    task = asyncio.create_task(house.stats())
                    await outlast_the_limits(admin)
                assert (await task).connections == 0
            client = await asyncpg.connect(dsn, statement_cache_size=0)
            assert await client.fetchval("show statement_timeout") == "250ms"
            await client.close()
    finally:
        await admin.execute("alter role operator reset statement_timeout")


async def test_a_statement_that_is_cancelled_all_the_same_names_the_limit(
    hurried: str, admin: asyncpg.Connection
) -> None:
    """So an operator knows what to raise where it is one."""
    async with ConnectionAdmin.open(hurried) as operator, admin.transaction():
        await admin.execute("lock table public.spotify_connections in access exclusive mode")
        task = asyncio.create_task(operator.stats())
        await admin.execute("select pg_cancel_backend($1)", await outlast_the_limits(admin))
        with pytest.raises(DatabaseUnavailable, match=r"57014.*statement_timeout"):
            await task
