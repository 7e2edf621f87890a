"""How many connections to the server a process holds, as the guide for Supabase counts them."""

import asyncio
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionAdmin, ConnectionStore, DatabaseUnavailable, SpotifyAccounts, TokenManager
from spotconn.testing import FakeSpotify
from support.connections import connect
from support.database import Database
from support.listening import SECOND, SOON, served_for, trusted, until
from support.pgbouncer import PgBouncer, pgbouncer

COUNT = "select count(*) from pg_stat_activity where application_name = 'counted'"


@pytest.fixture
async def sessions(
    admin: asyncpg.Connection, user: UUID, store: ConnectionStore, spotify: FakeSpotify
) -> asyncpg.Connection:
    """A session that counts those of the process under test; its user is connected."""
    await connect(store, spotify, user)
    return admin


@pytest.fixture
def session_mode(database: Database) -> Iterator[PgBouncer]:
    """A pooler in session mode."""
    with pgbouncer(database.server.port, size=15, mode="session") as started:
        yield started


async def hold_all(store: ConnectionStore, user: UUID, sessions: asyncpg.Connection) -> int:
    """Return how many connections there are while thirty callers want one each."""
    release = asyncio.Event()
    most = store.pool._pool.get_max_size()
    inside = 0

    async def hold() -> None:
        nonlocal inside
        async with store.as_user(user):
            inside += 1
            await release.wait()

    async with asyncio.TaskGroup() as group:
        for _ in range(30):
            group.create_task(hold())
        await until(lambda: inside == most)
        counted: int = await sessions.fetchval(COUNT)
        release.set()
    return counted


@pytest.mark.parametrize(("options", "most"), [({}, 11), ({"max_size": 3}, 4)], ids=["by default", "max_size=3"])
async def test_a_process_at_the_server(
    database: Database, accounts: SpotifyAccounts, sessions: asyncpg.Connection, user: UUID, options: dict[str, Any],
    most: int,
) -> None:  # fmt: skip
    """Ten and the one that listens at most; of those that idle long enough one stays, beside the one that listens."""
    dsn = f"{database.dsn}?application_name=counted"
    options = options | {"max_inactive_connection_lifetime": 0.3}
    async with ConnectionStore.open(dsn, **options) as store, TokenManager(store, accounts) as tokens:
        await trusted(tokens, user)
        assert await hold_all(store, user, sessions) == most
        async with asyncio.timeout(SOON):
            while await sessions.fetchval(COUNT) > 2:
                await asyncio.sleep(0.05)


async def test_a_process_behind_a_pooler_in_session_mode(
    session_mode: PgBouncer, database: Database, accounts: SpotifyAccounts, sessions: asyncpg.Connection, user: UUID,
    store: ConnectionStore,
) -> None:  # fmt: skip
    """It does not listen by itself, since one in transaction mode looks the same; told to, it does, through it."""
    dsn = session_mode.through(database.dsn)
    async with ConnectionStore.open(dsn) as deaf, TokenManager(deaf, accounts) as tokens:
        await tokens.get_valid_token(user)
        assert deaf.changes is None
    async with ConnectionStore.open(dsn, listen_dsn=dsn) as listening, TokenManager(listening, accounts) as tokens:
        await trusted(tokens, user)
        await store.delete(user)
        assert await served_for(tokens, user) < SECOND


async def test_an_operators_command(chief: str, sessions: asyncpg.Connection) -> None:
    """One, or two of a `ConnectionAdmin` that has work for two."""
    async with ConnectionAdmin.open(f"{chief}?application_name=counted") as house:
        await asyncio.gather(*(house.stats() for _ in range(10)))
        assert 1 <= await sessions.fetchval(COUNT) <= 2


async def test_what_is_opened_while_a_store_closes_is_closed(
    database: Database, sessions: asyncpg.Connection, user: UUID
) -> None:
    """The pool does not wait for a connection that a call still opens, and the call gets none."""
    begun, go_on = asyncio.Event(), asyncio.Event()
    opened: list[asyncpg.Connection] = []

    async def slowly(*args: Any, **options: Any) -> asyncpg.Connection:
        if opened:
            begun.set()
            await go_on.wait()
        opened.append(await asyncpg.connect(*args, **options))
        return opened[-1]

    settings: dict[str, Any] = {"connect": slowly, "server_settings": {"application_name": "counted"}}
    opening = ConnectionStore.open(database.dsn, statement_cache_size=100, **settings)
    async with opening as store, store.as_user(user):
        late = asyncio.create_task(store.get(user))
        await begun.wait()
    go_on.set()
    with pytest.raises(DatabaseUnavailable):
        await late
    assert [connection.is_closed() for connection in opened] == [True, True]
    async with asyncio.timeout(SOON):
        while await sessions.fetchval(COUNT):
            await asyncio.sleep(0.005)
