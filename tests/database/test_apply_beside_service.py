"""The schema is applied beside a running service: no call fails, and none waits long."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import cycle
from uuid import UUID, uuid4

import asyncpg
import pytest

from spotconn import (
    ConfigurationError,
    ConnectionStore,
    DatabaseUnavailable,
    NotConnected,
    Profile,
    TokenGrant,
    TokenManager,
    schema_sql,
)
from spotconn._database.acquire import acquire
from spotconn._database.application import apply, look
from spotconn._database.idle_sessions import Session
from spotconn._database.pending_connects import PendingConnect
from spotconn._database.pool import close_pool, open_pool
from spotconn._database.schema import read_sql
from spotconn.accounts import SpotifyAccounts
from spotconn.models import fingerprint
from spotconn.testing import FakeSpotify
from support.connections import connect
from support.database import Database, Dsn
from support.documented_table import create_documented_table
from support.lock_waits import until_waiting

GRANT = TokenGrant(access_token="a", refresh_token="r", expires_at=datetime.now(UTC) - timedelta(hours=1))
SEEN = fingerprint(GRANT.access_token)
SCHEMA = schema_sql(transaction=False)
TABLE = "public.spotify_connections"


@asynccontextmanager
async def _session(dsn: str) -> AsyncGenerator[Session]:
    pool = await open_pool(dsn, {"max_size": 1, "statement_cache_size": 0})
    try:
        async with acquire(pool) as session:
            yield session
    finally:
        await close_pool(pool)


async def test_no_caller_sees_it(
    database: Database, accounts: SpotifyAccounts, spotify: FakeSpotify, admin: asyncpg.Connection
) -> None:
    """While the files are applied again and again, every read, refresh, connect and disconnect goes well."""
    # So many that none is refreshed or started more often than a user may be, however slowly the files are applied.
    added = await admin.fetch("insert into auth.users (email) select n from generate_series(1, 30) as n returning id")
    users: list[UUID] = [row["id"] for row in added]
    async with (
        ConnectionStore.open(database.dsn, max_size=6) as store,
        TokenManager(store, accounts, cache_ttl=0) as tokens,
    ):
        applied = 0

        async def traffic(some: list[UUID]) -> None:
            for user in cycle(some):
                if applied == 12:
                    return
                await connect(store, spotify, user, ttl=-1)
                with suppress(NotConnected):  # the other task of this user has disconnected
                    await tokens.get_valid_token(user)
                await store.get_many(users)
                await store.pending.put(PendingConnect(user, "verifier"), uuid4().hex, life=600)
                await tokens.disconnect(user)

        async def apply_again() -> None:
            nonlocal applied
            for name in ("schema.sql", "lock_down.sql", "schema.sql", "lock_down_undo.sql") * 3:
                await admin.execute(read_sql(name))
                applied += 1

        async with asyncio.timeout(100), asyncio.TaskGroup() as group:
            group.create_task(apply_again())
            for first in (0, 10, 20) * 2:  # two tasks for each user
                group.create_task(traffic(users[first : first + 10]))


async def test_the_first_application_and_a_change_of_users_do_not_deadlock(
    dsn: Dsn, scratch: asyncpg.Connection
) -> None:
    """A transaction that writes auth.users and then reads the table goes on beside one that makes our other tables."""
    await scratch.execute(read_sql("plain_postgres.sql"))
    await create_documented_table(scratch)
    migration, other = await asyncpg.connect(dsn()), await asyncpg.connect(dsn())
    try:
        async with other.transaction():
            await other.execute("update auth.users set email = email")
            applying = asyncio.create_task(migration.execute(SCHEMA))
            await until_waiting(scratch, migration.get_server_pid())
            await other.fetch(f"select from {TABLE}")
        await asyncio.wait_for(applying, 60)
    finally:
        await migration.close()
        await other.close()


async def test_it_waits_behind_a_long_transaction_and_the_service_does_not(
    database: Database, admin: asyncpg.Connection, store: ConnectionStore, user: UUID
) -> None:
    """Reads and refreshes go on while a transaction holds the table, none longer than the lock is waited for, and once
    that ends the schema is applied. What it waits for is named.
    """
    waited: list[str] = []
    waits = asyncio.Event()

    def waiting(holders: str) -> None:
        waited.append(holders)
        waits.set()

    await store.save(user, GRANT, Profile(spotify_user_id="alice"))
    async with _session(database.admin_dsn) as session:
        transaction = admin.transaction()
        await transaction.start()
        await admin.execute(f"lock table {TABLE} in access share mode")
        applying = asyncio.create_task(apply(session, SCHEMA, waiting=waiting))
        longest = 0.0
        while not waits.is_set():
            before = time.monotonic()
            await store.get(user)
            turn = await store.begin_refresh(user, seen=SEEN)
            await store.finish_refresh(turn, GRANT)
            longest = max(longest, time.monotonic() - before)
        assert not applying.done()
        await transaction.rollback()
        await asyncio.wait_for(applying, 60)
    assert longest < 1.5
    pid = await admin.fetchval("select pg_backend_pid()")
    assert f"the transaction of process {pid} (login postgres" in waited[0]


@pytest.mark.parametrize("holds", [f"lock table {TABLE} in access share mode", read_sql("lock_down_undo.sql")])
async def test_a_transaction_that_does_not_end_is_named(
    database: Database, admin: asyncpg.Connection, holds: str
) -> None:
    """After its patience the application ends with what it waits for, a table or another application, and no change."""
    async with _session(database.admin_dsn) as session, admin.transaction():
        await admin.execute(holds)
        pid = await admin.fetchval("select pg_backend_pid()")
        with pytest.raises(DatabaseUnavailable, match=f"process {pid} .*try again later"):
            await apply(session, SCHEMA, waiting=lambda _: None, patience=0)
        assert not session.is_in_transaction()


async def test_a_plain_login_learns_the_process(database: Database, admin: asyncpg.Connection) -> None:
    """A login that may not see others' transactions names what holds the lock all the same."""
    async with _session(database.dsn) as session, admin.transaction():
        await admin.execute(f"lock table {TABLE} in access share mode")
        pid = await admin.fetchval("select pg_backend_pid()")
        with pytest.raises(DatabaseUnavailable, match=rf"process {pid} \(login postgres\)"):
            await apply(session, f"lock table {TABLE} in access exclusive mode", waiting=lambda _: None, patience=0)


async def test_the_logins_own_limit_does_not_end_it(database: Database, admin: asyncpg.Connection) -> None:
    """A statement_timeout that the operator gave the login is put out of force for the application alone."""
    async with _session(database.admin_dsn) as session:
        await session.execute("set statement_timeout = '100ms'")
        await apply(session, "select pg_catalog.pg_sleep(0.3)", waiting=lambda _: None)
        with pytest.raises(asyncpg.QueryCanceledError):
            await session.execute("select pg_catalog.pg_sleep(0.3)")


@pytest.mark.parametrize(
    ("sql", "text"),
    [
        ("drop table public.spotify_connections", "must be owner of table spotify_connections. The login lacks that"),
        ("grant spotconn to no_such_role", 'role "no_such_role" does not exist (SQLSTATE 42704)'),
        ("do $$ begin raise exception 'no' using hint = 'Do so.'; end $$", "the schema was not applied: no. Do so."),
    ],
)
async def test_what_is_refused_names_what_is_in_the_way(
    database: Database, admin: asyncpg.Connection, sql: str, text: str
) -> None:
    """A missing privilege, a missing role and an error of the files: their text and hint, nothing of the driver's."""
    async with _session(database.dsn) as session:
        with pytest.raises(ConfigurationError) as raised:
            await apply(session, sql, waiting=lambda _: None)
        assert text in str(raised.value)
        assert (raised.value.__cause__, raised.value.__context__) == (None, None)
        assert (await look(session)).version == 3


async def test_a_connection_that_is_lost_is_said_to_be(database: Database, admin: asyncpg.Connection) -> None:
    """A server that ends the session is DatabaseUnavailable, which a later attempt mends."""
    async with _session(database.admin_dsn) as session:
        with pytest.raises(DatabaseUnavailable):
            await apply(session, "select pg_terminate_backend(pg_backend_pid())", waiting=lambda _: None)
