"""Servers and databases that take no writes: named at open, and left where another takes them."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionAdmin, ConnectionStore, DatabaseUnavailable, Profile, SpotifyAccounts, TokenManager
from spotconn._database.server_leaving import INTERVAL
from support.connections import grant
from support.database import Database, serving
from support.fault_proxy import FaultProxy
from support.lock_waits import until_someone_waits
from support.read_only import SETTING, read_only

ALICE = Profile(spotify_user_id="alice")
SESSIONS = "select count(*) from pg_stat_activity where usename = 'app' and backend_type = 'client backend'"


@pytest.fixture(scope="module")
def standby(prepared: Database) -> Iterator[Database]:
    """A server that is a standby since its restart, as a primary that was demoted in place is."""
    with serving(prepared.server._binaries) as database:
        asyncio.run(_demote(database))
        database.server.restart()
        yield database


async def _demote(database: Database) -> None:
    session = await asyncpg.connect(database.admin_dsn)
    await session.execute("create role operator login noinherit password 'operator'; grant service_role to operator")
    folder = await session.fetchval("show data_directory")
    await session.execute(f"copy (select '') to '{folder}/standby.signal'")
    await session.close()


class Logins:
    """Counts the connections that a pool opens."""

    def __init__(self) -> None:
        self.count = 0

    async def connect(self, *args: Any, **options: Any) -> asyncpg.Connection:
        self.count += 1
        return await asyncpg.connect(*args, **options)


@asynccontextmanager
async def counted(dsn: str, size: int) -> AsyncGenerator[tuple[ConnectionStore, Logins]]:
    """A store whose pool has no connection yet, and its logins."""
    logins = Logins()
    async with asyncpg.create_pool(dsn, connect=logins.connect, min_size=0, max_size=size) as pool:
        yield ConnectionStore(pool), logins


@asynccontextmanager
async def turning(standby: Database, size: int) -> AsyncGenerator[tuple[FaultProxy, ConnectionStore]]:
    """A store whose pool has as many connections, all to the standby, through a proxy that can be turned."""
    async with (
        FaultProxy(standby.server.port).serve() as proxy,
        asyncpg.create_pool(proxy.dsn(standby.dsn), min_size=size, max_size=size) as pool,
    ):
        yield proxy, ConnectionStore(pool)


async def sessions_of(database: Database) -> int:
    session = await asyncpg.connect(database.admin_dsn)
    count: int = await session.fetchval(SESSIONS)
    await session.close()
    return count


async def until_none(database: Database) -> None:
    """Wait until no session of the service is left on a server: one ends after its socket was closed."""
    async with asyncio.timeout(10):
        while await sessions_of(database):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("where", "remedy"),
    [
        ("role app", f"ALTER ROLE app RESET {SETTING}"),
        ("database spotconn", f"ALTER DATABASE spotconn RESET {SETTING}"),
        ("system", f"ALTER SYSTEM RESET {SETTING}"),
    ],
)
async def test_open_names_a_read_only_database_and_the_mend(database: Database, where: str, remedy: str) -> None:
    """Wherever it is set; what opens before it is mended would say "try again later" for ever."""
    async with read_only(database, where):
        with pytest.raises(DatabaseUnavailable, match=f"read-only.*{remedy}") as raised:
            async with ConnectionStore.open(database.dsn, max_size=1):
                pass
    assert raised.value.sqlstate == "25006"
    assert raised.value.answered
    async with ConnectionStore.open(database.dsn, max_size=1):
        pass


async def test_open_names_a_read_only_session(database: Database) -> None:
    """One that the database URL or the pool makes so."""
    settings = {SETTING: "on"}
    with pytest.raises(DatabaseUnavailable, match=f"take {SETTING} out of DATABASE_URL"):
        async with ConnectionStore.open(database.dsn, server_settings=settings):
            pass


async def test_open_names_a_standby(standby: Database) -> None:
    """By itself, and not as a setting, with what to do."""
    with pytest.raises(DatabaseUnavailable, match=r"standby.*primary") as raised:
        async with ConnectionStore.open(standby.dsn, max_size=1):
            pass
    assert SETTING not in str(raised.value)


async def test_a_process_whose_pool_leads_to_a_standby_is_not_ready(
    standby: Database, database: Database, accounts: SpotifyAccounts
) -> None:
    """It is ready again at the first look after its address leads to the primary, with every connection there."""
    async with turning(standby, 3) as (proxy, store), TokenManager(store, accounts) as manager:
        with pytest.raises(DatabaseUnavailable, match="standby"):
            await manager.check()
        await asyncio.sleep(INTERVAL)
        proxy.turn_to(database.server.port)
        await manager.check()
        await until_none(standby)


async def test_a_standby_is_left_at_the_first_write(standby: Database, database: Database, user: UUID) -> None:
    """The write is repeated at the new primary and does not fail; no connection to the old one is used again."""
    async with turning(standby, 4) as (proxy, store):
        assert await sessions_of(standby) == 4
        proxy.turn_to(database.server.port)
        await store.save(user, grant("x"), ALICE)
        await until_none(standby)
        assert (await store.get(user)).access_token == "access-x"


async def test_writes_that_meet_a_standby_together(standby: Database, database: Database, users: list[UUID]) -> None:
    """All of them are repeated, and none leaves the new primary again."""
    async with turning(standby, 3) as (proxy, store):
        proxy.turn_to(database.server.port)
        await asyncio.gather(*(store.save(user, grant("x"), ALICE) for user in users))
        await until_none(standby)
        assert store.pool.leaving.generation == 1


async def test_what_is_in_use_is_left_at_its_end(standby: Database, database: Database, users: list[UUID]) -> None:
    """A block of the caller's ends undisturbed, as does a read or another use of the pool; none is used again."""
    async with turning(standby, 4) as (proxy, store):
        async with store.as_user(users[1]) as connection, store.pool._pool.acquire() as own:
            await store.tokens.get_many(users)
            async with store.pool.acquire() as session:
                proxy.turn_to(database.server.port)
                await store.save(users[0], grant("x"), ALICE)
                assert await session.fetchval("select pg_is_in_recovery()")
            assert await connection.fetchval("select pg_is_in_recovery()")
            assert await own.fetchval("select pg_is_in_recovery()")
        await until_none(standby)


async def test_a_connection_that_waits_for_the_next_read_is_left(
    standby: Database, database: Database, user: UUID
) -> None:
    """Reads that share connections see the new primary from the write on."""
    async with turning(standby, 4) as (proxy, store):
        await asyncio.gather(*(store.tokens.get_many([user]) for _ in range(3)))
        proxy.turn_to(database.server.port)
        reads = [asyncio.create_task(store.tokens.get(user)) for _ in range(3)]
        await store.save(user, grant("x"), ALICE)
        await asyncio.gather(*reads, return_exceptions=True)
        for _ in range(5):
            found = await store.tokens.get(user)
            assert found is not None
        await until_none(standby)


async def test_the_callers_own_read_only_transaction_leaves_nothing(database: Database, user: UUID) -> None:
    """SQL in a block of as_user that is refused is the caller's: the pool stays as it is."""
    async with ConnectionStore.open(database.dsn, min_size=2, max_size=2) as store:
        for _ in range(3):
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                async with store.as_user(user) as connection:
                    await connection.execute("set transaction read only; create temp table never ()")
        assert store.pool.leaving.generation == 0


async def test_a_database_that_stays_read_only_is_not_flooded(database: Database, user: UUID) -> None:
    """Writes that fail open a connection now and then, not each; reads are served over what is open."""
    async with counted(database.dsn, 4) as (store, logins):
        await store.save(user, grant("x"), ALICE)
        async with read_only(database):
            loop = asyncio.get_running_loop()
            began, before = loop.time(), logins.count
            for _ in range(40):
                with pytest.raises(DatabaseUnavailable, match="read-only"):
                    await store.save(user, grant("y"), ALICE)
                assert (await store.get(user)).access_token == "access-x"
            assert logins.count - before <= 1 + (loop.time() - began) / INTERVAL
            crowd = await asyncio.gather(
                *(store.save(user, grant("y"), ALICE) for _ in range(40)), return_exceptions=True
            )
            assert {type(error) for error in crowd} == {DatabaseUnavailable}
            assert logins.count - before <= 4 * (1 + (loop.time() - began) / INTERVAL)
        await store.save(user, grant("z"), ALICE)


@pytest.mark.usefixtures("operator")
async def test_an_admin_leaves_a_standby_too(standby: Database, database: Database, user: UUID) -> None:
    """The transaction of a command is begun anew at the new primary."""
    async with (
        FaultProxy(standby.server.port).serve() as proxy,
        asyncpg.create_pool(proxy.dsn(standby.login_dsn("operator")), min_size=2, max_size=2) as pool,
    ):
        proxy.turn_to(database.server.port)
        assert await ConnectionAdmin(pool).mark_asked([user]) == 0


async def test_who_listens_is_notified_that_a_server_was_left(
    standby: Database, database: Database, user: UUID
) -> None:
    """Once, as it is left; a session that listens may lead to the same one."""
    departures = list[int]()
    async with turning(standby, 1) as (proxy, store):
        store.pool.on_leave = lambda: departures.append(store.pool.leaving.generation)
        proxy.turn_to(database.server.port)
        await store.save(user, grant("x"), ALICE)
        await store.save(user, grant("x"), ALICE)
        assert departures == [1]
        await store.pool.leave_server()
        await store.save(user, grant("x"), ALICE)
        assert departures == [1, 2]


async def test_a_session_that_ends_takes_no_other_along(
    database: Database, admin: asyncpg.Connection, user: UUID
) -> None:
    """A server that goes away ends all of them itself, and one that an operator ended says nothing of the others."""
    async with ConnectionStore.open(database.dsn, min_size=3, max_size=3) as store:
        await admin.execute("begin; lock table public.spotify_connections")
        saving = asyncio.create_task(store.save(user, grant("x"), ALICE))
        pid = await until_someone_waits(admin, "public.spotify_connections")
        session = await asyncpg.connect(database.admin_dsn)
        await session.execute("select pg_terminate_backend($1)", pid)
        with pytest.raises(DatabaseUnavailable):
            await saving
        assert store.pool.leaving.generation == 0
        await session.close()
