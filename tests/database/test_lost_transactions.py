"""The session of a block of `as_user` is lost: who runs the block hears whether anything of it was saved."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Literal
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore, DatabaseUnavailable, Profile
from support.connections import grant
from support.database import Database
from support.fault_proxy import FaultProxy

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Sql = PoolConnectionProxy[asyncpg.Record]

RENAME = "update public.spotify_connections set display_name = 'new'"
NAME = "select display_name from public.spotify_connections"
WAITING = "select exists (select from pg_stat_activity where wait_event_type = 'Lock' and wait_event = 'advisory')"
IDLE = "set local idle_in_transaction_session_timeout = '50ms'"


@pytest.fixture
async def proxy(database: Database) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(database.server.port).serve() as serving:
        yield serving


@pytest.fixture
async def behind(database: Database, proxy: FaultProxy) -> AsyncIterator[ConnectionStore]:
    async with ConnectionStore.open(proxy.dsn(database.dsn), max_size=1) as store:
        store.changes = None
        yield store


@pytest.fixture
async def connected(store: ConnectionStore, user: UUID) -> UUID:
    await store.save(user, grant("old"), Profile(spotify_user_id="alice", display_name="old"))
    return user


@pytest.fixture
async def slow_commit(admin: asyncpg.Connection) -> AsyncIterator[None]:
    """A commit that waits for `admin` to release an advisory lock."""
    await admin.execute("""
        create function public.wait() returns trigger language plpgsql
            as 'begin perform pg_catalog.pg_advisory_xact_lock(29); return null; end';
        create constraint trigger wait after update on public.spotify_connections deferrable initially deferred
            for each row execute function public.wait();
        select pg_advisory_lock(29);
    """)
    yield
    await admin.execute("""
        select pg_advisory_unlock_all();
        drop trigger wait on public.spotify_connections;
        drop function public.wait();
    """)


async def terminate(admin: asyncpg.Connection, sql: "Sql") -> None:
    await admin.execute("select pg_terminate_backend($1)", await sql.fetchval("select pg_backend_pid()"))


def watched(sql: "Sql") -> asyncio.Event:
    """Return an event that is set once the driver has noticed the end of the session."""
    ended = asyncio.Event()
    sql.add_termination_listener(lambda _: ended.set())
    return ended


async def run_block(store: ConnectionStore, user: UUID, act: "Callable[[Sql], Awaitable[object]]") -> None:
    async with asyncio.timeout(20), store.as_user(user) as sql:
        await act(sql)


@pytest.mark.parametrize("way", ["idle", "terminated", "cut"])
async def test_a_session_that_ends_within_the_block_is_an_error(
    behind: ConnectionStore, proxy: FaultProxy, admin: asyncpg.Connection, connected: UUID,
    way: Literal["idle", "terminated", "cut"],
) -> None:  # fmt: skip
    """The block itself does not fail, its writes are rolled back, and the error says so; the next block works."""

    async def lose(sql: "Sql") -> None:
        ended = watched(sql)
        if way == "idle":
            await sql.execute(IDLE)
        await sql.execute(RENAME)
        if way == "terminated":
            await terminate(admin, sql)
        elif way == "cut":
            proxy.cut()
        await ended.wait()

    with pytest.raises(DatabaseUnavailable, match="nothing of the block was saved") as raised:
        await run_block(behind, connected, lose)
    assert raised.value.__context__ is None
    assert await admin.fetchval(NAME) == "old"
    await run_block(behind, connected, lambda sql: sql.execute(RENAME))
    assert await admin.fetchval(NAME) == "new"


async def test_a_session_that_is_lost_as_the_block_ends_may_have_saved(
    behind: ConnectionStore, proxy: FaultProxy, connected: UUID
) -> None:
    """The driver has not noticed yet and sends the commit, so nobody knows whether it arrives."""

    async def cut(sql: "Sql") -> None:
        await sql.execute(RENAME)
        proxy.cut()

    with pytest.raises(DatabaseUnavailable, match="may be saved or not"):
        await run_block(behind, connected, cut)


@pytest.mark.usefixtures("slow_commit")
@pytest.mark.parametrize("way", ["terminated", "cut"])
async def test_a_commit_without_an_answer_may_have_happened(
    behind: ConnectionStore, proxy: FaultProxy, admin: asyncpg.Connection, connected: UUID, way: str
) -> None:
    """The session is lost while the server commits: what the block wrote may be saved; where the way was cut, it is."""
    block = asyncio.create_task(run_block(behind, connected, lambda sql: sql.execute(RENAME)))
    async with asyncio.timeout(20):
        while not await admin.fetchval(WAITING):
            await asyncio.sleep(0.01)
        if way == "cut":
            proxy.cut()
        else:
            await admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'advisory'")
        with pytest.raises(DatabaseUnavailable, match=r"lost during the commit.* may be saved or not") as raised:
            await block
    assert raised.value.__context__ is None
    await admin.execute("select pg_advisory_unlock_all()")
    if way == "cut":
        async with asyncio.timeout(20):
            while await admin.fetchval(NAME) == "old":
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("noticed", [True, False])
async def test_an_exception_of_the_block_is_not_replaced(
    behind: ConnectionStore, proxy: FaultProxy, admin: asyncpg.Connection, connected: UUID, *, noticed: bool
) -> None:
    """It passes through as it is, also where the rollback fails on a session that is lost."""
    own = LookupError("of the block")

    async def fail(sql: "Sql") -> None:
        ended = watched(sql)
        await sql.execute(RENAME)
        proxy.cut()
        if noticed:
            await ended.wait()
        raise own

    with pytest.raises(LookupError) as raised:
        await run_block(behind, connected, fail)
    assert raised.value is own
    assert (own.__cause__, own.__context__) == (None, None)
    assert await admin.fetchval(NAME) == "old"


async def test_an_error_of_the_driver_in_the_block_is_not_replaced(
    behind: ConnectionStore, admin: asyncpg.Connection, connected: UUID
) -> None:
    """A statement of the block on the lost session raises what asyncpg raises."""

    async def go_on(sql: "Sql") -> None:
        ended = watched(sql)
        await terminate(admin, sql)
        await ended.wait()
        await sql.execute(RENAME)

    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)) as raised:
        await run_block(behind, connected, go_on)
    assert type(raised.value).__module__.startswith("asyncpg")


async def test_a_block_that_has_committed_itself_loses_nothing(
    behind: ConnectionStore, proxy: FaultProxy, admin: asyncpg.Connection, connected: UUID
) -> None:
    """What it committed stands, so the loss of its session afterwards is no error."""
    async with asyncio.timeout(20), behind.as_user(connected) as sql:
        ended = watched(sql)
        await sql.execute(f"{RENAME}; commit")
        proxy.cut()
        await ended.wait()
    assert await admin.fetchval(NAME) == "new"
