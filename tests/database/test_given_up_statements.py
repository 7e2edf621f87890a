"""Statements that are given up: the server ends them, and has no more sessions than the pool allows."""

import asyncio
import functools
import os
import shutil
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore, DatabaseUnavailable, NotConnected, Profile
from spotconn._database.given_up import GivenUp
from spotconn._tokens.cache import ConnectionCache
from support.connections import grant
from support.database import SYSTEM_15, Database, serving
from support.fault_proxy import FaultProxy
from support.listening import SOON
from support.pgbouncer import pgbouncer
from support.processes import descendants
from support.tls import certificate

SIZE = 2
TIMEOUT = 1.0
SESSIONS = "from pg_stat_activity where usename = 'app'"
WAITING = f"{SESSIONS} and (wait_event in ('SyncRep', 'PgSleep') or wait_event_type = 'Lock')"
SLOW = """
create function public.sleep() returns trigger language plpgsql as 'begin perform pg_sleep(600); return new; end';
create trigger sleep before update on public.spotify_connections for each row execute function public.sleep()
"""
SEEN = sha256(b"access-x").hexdigest()
ALICE = Profile(spotify_user_id="alice")
Call = Callable[[ConnectionStore, UUID], Awaitable[object]]


@contextmanager
def without_standby(binaries: Path | None = None, **settings: Any) -> Generator[Database]:
    """A server whose synchronous standby is away. Commits of `app` wait for it, those of other logins do not."""
    with serving(binaries, synchronous_standby_names="absent", synchronous_commit="off", **settings) as database:
        asyncio.run(_let_app_wait(database))
        yield database


async def _let_app_wait(database: Database) -> None:
    admin = await asyncpg.connect(database.admin_dsn)
    await admin.execute("alter role app set synchronous_commit = on")
    await admin.close()


@pytest.fixture(scope="module")
def primary() -> Iterator[Database]:
    """Such a server for all tests here."""
    with without_standby() as database:
        yield database


@asynccontextmanager
async def observing(database: Database) -> AsyncGenerator[asyncpg.Connection]:
    """A superuser's connection; afterwards nothing of the test is there any more."""
    connection = await asyncpg.connect(database.admin_dsn)
    await connection.execute("set lock_timeout = '5s'")
    yield connection
    await connection.execute(f"select pg_terminate_backend(pid, 5000) {SESSIONS}")
    await connection.execute("drop function if exists public.sleep() cascade; delete from auth.users")
    await connection.close()


@pytest.fixture
async def observer(primary: Database) -> AsyncIterator[asyncpg.Connection]:
    """Such a connection to the server of all tests here."""
    async with observing(primary) as connection:
        yield connection


async def connect_users(database: Database, observer: asyncpg.Connection, count: int = 10) -> list[UUID]:
    """Make users, each with a connection."""
    query = "insert into auth.users (email) select n::text from generate_series(1, $1) as n returning id"
    users = [row["id"] for row in await observer.fetch(query, count)]
    async with ConnectionStore.open(database.bypass_dsn) as store:
        for user in users:
            await store.save(user, grant("x"), ALICE)
    return users


@pytest.fixture
async def connected(primary: Database, observer: asyncpg.Connection) -> list[UUID]:
    """Ten of them."""
    return await connect_users(primary, observer)


@asynccontextmanager
async def opened(dsn: str, **settings: str) -> AsyncGenerator[ConnectionStore]:
    """A store with little time and few connections."""
    async with ConnectionStore.open(dsn, min_size=0, max_size=SIZE, server_settings=settings) as store:
        store.pool.timeout = TIMEOUT
        yield store


class Watch:
    """Counts sessions on the server while its block lasts, by an admin's connection of its own.

    Attributes:
        most: sessions at a time.
        waited: whether one of them was seen to wait.
    """

    def __init__(self, primary: Database) -> None:
        self._dsn = primary.admin_dsn
        self.most = 0
        self.waiting = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._connection = await asyncpg.connect(self._dsn)
        self._task = asyncio.create_task(self._count())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        await self._connection.close()

    async def _count(self) -> None:
        while True:
            self.most = max(self.most, await self._connection.fetchval(f"select count(*) {SESSIONS}"))
            if await self._connection.fetchval(f"select exists (select {WAITING})"):
                self.waiting.set()
            await asyncio.sleep(0.02)


async def none_left(observer: asyncpg.Connection, condition: str = SESSIONS) -> None:
    """Wait until the server has no session of the store."""
    async with asyncio.timeout(SOON):
        while await observer.fetchval(f"select exists (select {condition})"):
            await asyncio.sleep(0.02)


async def refused(call: Awaitable[object]) -> None:
    with pytest.raises(DatabaseUnavailable):
        await call


async def begin(store: ConnectionStore, user: UUID) -> object:
    return await store.begin_refresh(user, seen=SEEN)


async def write_in_block(store: ConnectionStore, user: UUID) -> None:
    async with store.as_user(user) as connection:
        await connection.execute("update public.spotify_connections set display_name = 'Al'")


CALLS: dict[str, Call] = {
    "a standby": begin,
    "a standby, in as_user": write_in_block,
    "a lock": lambda store, user: store.get(user),
    "a trigger": lambda store, user: store.save(user, grant("y"), ALICE),
}


@asynccontextmanager
async def obstacle(primary: Database, what: str) -> AsyncGenerator[None]:
    """What statements wait for, beside the standby."""
    other = await asyncpg.connect(primary.admin_dsn)
    try:
        if what == "a trigger":
            await other.execute(SLOW)
        if what == "a lock":
            await other.execute("begin; lock table public.spotify_connections")
        yield
    finally:
        await other.close()


@pytest.mark.parametrize("what", CALLS)
async def test_statements_that_time_out(
    primary: Database, observer: asyncpg.Connection, connected: list[UUID], what: str
) -> None:
    """Each is cancelled before another session is opened in its place; at the end none is there."""
    async with obstacle(primary, what):
        async with Watch(primary) as watch, opened(primary.dsn) as store:
            for first in range(0, 6, SIZE):
                await asyncio.gather(*(refused(CALLS[what](store, user)) for user in connected[first : first + SIZE]))
        assert watch.waiting.is_set()
        assert watch.most <= SIZE
        await none_left(observer)


@pytest.mark.parametrize("what", CALLS)
async def test_callers_that_are_cancelled(
    primary: Database, observer: asyncpg.Connection, connected: list[UUID], what: str
) -> None:
    """The same holds for them; the cancellation passes through."""
    async with obstacle(primary, what):
        async with Watch(primary) as watch, opened(primary.dsn) as store:
            store.pool.timeout = SOON
            for user in connected[:4]:
                watch.waiting.clear()
                call = asyncio.ensure_future(CALLS[what](store, user))
                async with asyncio.timeout(SOON):
                    await watch.waiting.wait()
                call.cancel()
                with pytest.raises((asyncio.CancelledError, DatabaseUnavailable)):
                    await call
        assert watch.most <= SIZE
        await none_left(observer)


async def test_a_store_that_is_closed(primary: Database, observer: asyncpg.Connection, connected: list[UUID]) -> None:
    """What runs then is cancelled on the server, too, also SQL of the caller's without a time limit."""

    async def sleep(store: ConnectionStore) -> None:
        async with store.as_user(connected[0]) as connection:
            await connection.execute("select pg_sleep(600)")

    async with Watch(primary) as watch:
        async with opened(primary.dsn) as store:
            call = asyncio.create_task(sleep(store))
            async with asyncio.timeout(SOON):
                await watch.waiting.wait()
        await none_left(observer)
        with pytest.raises((DatabaseUnavailable, asyncpg.PostgresError, asyncpg.InterfaceError)):
            await call


async def test_a_listener_whose_heartbeat_waits(primary: Database, observer: asyncpg.Connection) -> None:
    """The first one notifies, which waits for one lock of the whole server: its session is given up in the same way."""
    other = await asyncpg.connect(primary.admin_dsn)
    async with opened(primary.dsn, synchronous_commit="off") as store:
        assert store.changes is not None
        async with Watch(primary) as watch, store.changes.subscribe(ConnectionCache(ttl=1, size=1)) as subscription:
            await other.execute("set synchronous_commit = on")
            change = "insert into auth.users (email) values ('c'); select pg_notify('another', '')"
            committing = asyncio.create_task(other.execute(change))
            async with asyncio.timeout(SOON):
                while not await observer.fetchval(
                    "select exists (select from pg_stat_activity where wait_event = 'SyncRep')"
                ):
                    await asyncio.sleep(0.02)
            subscription._timeout = TIMEOUT
            await refused(subscription.heartbeat())
            assert watch.waiting.is_set()
        await none_left(observer, f"{WAITING} and query like '%heartbeat%'")
        assert not committing.done()
        await observer.execute("select pg_cancel_backend($1)", other.get_server_pid())
        await committing
    await other.close()


async def given_up_in_turn(database: Database, observer: asyncpg.Connection, dsn: str, users: list[UUID]) -> int:
    """Return how many sessions there are at most while writes wait for the standby and are given up."""
    async with Watch(database) as watch:
        async with opened(dsn) as store:
            for first in range(0, 6, SIZE):
                await asyncio.gather(*(refused(begin(store, user)) for user in users[first : first + SIZE]))
            await none_left(observer, WAITING)
        assert watch.waiting.is_set()
    return watch.most


async def test_sessions_behind_a_pooler(primary: Database, observer: asyncpg.Connection, connected: list[UUID]) -> None:
    """PgBouncer passes on a request to cancel, on a connection beside its pool."""
    with pgbouncer(primary.server.port, size=SIZE) as pooler:
        most = await given_up_in_turn(primary, observer, pooler.through(primary.dsn), connected)
    assert most <= SIZE * 2


@pytest.mark.long
async def test_sessions_over_tls(open_folder: Path) -> None:
    """A request to cancel is sent over TLS as well: the server takes no other."""
    if not SYSTEM_15.is_dir():
        pytest.skip("needs a server of PostgreSQL that speaks TLS")
    pem = certificate(open_folder)
    pem.chmod(0o600)
    if os.geteuid() == 0:
        shutil.chown(pem, "nobody")
    with ThreadPoolExecutor(1) as executor, ExitStack() as stack:
        settings = {"ssl": "on", "ssl_cert_file": str(pem), "ssl_key_file": str(pem)}
        serve = functools.partial(stack.enter_context, without_standby(SYSTEM_15, **settings))
        database = await asyncio.get_running_loop().run_in_executor(executor, serve)
        async with observing(database) as observer:
            users = await connect_users(database, observer)
            dsn = f"{database.dsn}?sslmode=require"
            assert await given_up_in_turn(database, observer, dsn, users) <= SIZE


async def test_a_network_that_swallows_answers(
    primary: Database, observer: asyncpg.Connection, connected: list[UUID]
) -> None:
    """Neither the call nor the next one waits longer than it may; the server ends the sessions all the same."""
    async with FaultProxy(primary.server.port).serve() as proxy, opened(proxy.dsn(primary.dsn)) as store:
        await store.get(connected[0])
        proxy.freeze(requests=False)
        for user in connected[:3]:
            await refused(begin(store, user))
        await none_left(observer, WAITING)
        proxy.heal()
        async with asyncio.timeout(SOON):
            while True:
                with suppress(DatabaseUnavailable):
                    await store.get(connected[0])
                    break


@contextmanager
def frozen(pids: list[int]) -> Generator[None]:
    """Stop processes while the block lasts."""
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def processes(observer: asyncpg.Connection) -> list[int]:
    """Those of the server."""
    data = await observer.fetchval("select current_setting('data_directory')")
    postmaster = int((Path(data) / "postmaster.pid").read_text().split()[0])
    return [postmaster, *await descendants(postmaster)]


async def test_a_server_that_is_frozen(primary: Database, observer: asyncpg.Connection, connected: list[UUID]) -> None:
    """No request to cancel is answered meanwhile; when it wakes, the sessions that were given up vanish."""
    async with Watch(primary) as watch, opened(primary.dsn) as store:
        held = [asyncio.create_task(begin(store, user)) for user in connected[:SIZE]]
        async with asyncio.timeout(SOON):
            await watch.waiting.wait()
        with frozen(await processes(observer)):
            for call in held:
                await refused(call)
            for user in connected[2:5]:
                await refused(begin(store, user))
        await none_left(observer, WAITING)
        assert watch.most <= SIZE * 2


@pytest.mark.long
async def test_a_commit_of_which_nothing_is_known(
    primary: Database, observer: asyncpg.Connection, connected: list[UUID]
) -> None:
    """It stands on the primary: who asks again finds it, and a user who was disconnected stays so."""
    first, second, third, *_ = connected
    async with opened(primary.dsn) as waiting, opened(primary.bypass_dsn) as store:
        turn = await store.begin_refresh(first, seen=SEEN)
        await refused(waiting.finish_refresh(turn, grant("y")))
        assert (saved := await store.finish_refresh(turn, grant("y")))
        assert saved.access_token == (await store.get(first)).access_token == "access-y"
        await refused(waiting.delete(second))
        await none_left(observer, WAITING)
        with pytest.raises(NotConnected):
            await store.get(second)
        await refused(waiting.save(third, grant("z"), ALICE))
        assert (await store.save(third, grant("z"), ALICE)).access_token == "access-z"


async def test_nothing_outlives_a_close_that_is_cancelled(primary: Database, observer: asyncpg.Connection) -> None:
    """No task, and no connection with a request to cancel, where the server answers to nothing."""
    async with FaultProxy(primary.server.port).serve() as proxy:
        pool = await asyncpg.create_pool(proxy.dsn(primary.dsn), min_size=0, max_size=1)
        given_up = GivenUp()
        session = await pool.acquire()
        call = asyncio.create_task(session.execute("select pg_sleep(600)"))
        async with asyncio.timeout(SOON):
            while not await observer.fetchval(f"select exists (select {WAITING})"):
                await asyncio.sleep(0.02)
        proxy.freeze()
        call.cancel()
        await asyncio.wait([call])
        given_up.add(session)
        closing = asyncio.create_task(given_up.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])
        async with asyncio.timeout(SOON):
            while any("spotconn-" in repr(task) or "Connection._cancel" in repr(task) for task in asyncio.all_tasks()):
                await asyncio.sleep(0.02)
        pool.terminate()


@pytest.mark.long
@pytest.mark.parametrize("what", ["a standby", "a trigger"])
async def test_a_crowd_for_a_minute(primary: Database, observer: asyncpg.Connection, what: str) -> None:
    """Of fifty callers none waits longer than for a connection and for an answer, whatever becomes of the others."""
    users = await connect_users(primary, observer, 50)
    loop = asyncio.get_running_loop()
    end = loop.time() + 60
    slowest = 0.0

    async def ask(store: ConnectionStore, user: UUID) -> None:
        nonlocal slowest
        while (begun := loop.time()) < end:
            with suppress(DatabaseUnavailable):
                await CALLS[what](store, user)
            slowest = max(slowest, loop.time() - begun)

    async with obstacle(primary, what), Watch(primary) as watch:
        async with ConnectionStore.open(primary.dsn, timeout=2) as store:
            await asyncio.gather(*(ask(store, user) for user in users))
        assert watch.most <= 10
        await none_left(observer)
    assert slowest < 3 * 2 + 2
