"""A tenant holds the lock of the own row: requests of that user end soon, and hold up nobody else."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import asyncpg
import pytest

from spotconn import ConnectionStore, DatabaseUnavailable, Outcome, Profile, RefreshFailure, TokenManager
from spotconn._database.write_queues import WriteQueues
from spotconn.accounts import SpotifyAccounts
from spotconn.models import fingerprint
from spotconn.testing import FakeSpotify
from support.connections import connect, grant
from support.database import Database
from support.lock_waits import until_waiting
from support.tenant import signed_in

ALICE = Profile(spotify_user_id="alice")
SEEN = fingerprint("")
HELD = "SQLSTATE 55P03.* another transaction holds the row"


@asynccontextmanager
async def held_by_tenant(database: Database, user: UUID) -> AsyncGenerator[None]:
    """Hold the lock of the own row in a request that goes on."""
    async with signed_in(database.admin_dsn, user) as tenant, tenant.request() as session:
        await session.execute("delete from public.spotify_connections")  # what also a locked-down tenant may send
        yield
        await session.execute("rollback; begin")


async def test_each_write_of_a_locked_row_ends_soon(
    database: Database, store: ConnectionStore, users: list[UUID]
) -> None:
    """Each of the five gives up on the lock well before the store's timeout, and says who holds what."""
    user, failing, finishing = users
    for one in users:
        await store.save(one, grant("old", minutes=-1), ALICE)
    turns = [await store.begin_refresh(one, seen=SEEN) for one in (failing, finishing)]
    assert [turn.outcome for turn in turns] == [Outcome.GRANTED] * 2
    writes: list[tuple[UUID, Callable[[], Awaitable[object]]]] = [
        (user, lambda: store.save(user, grant("new"), ALICE)),
        (user, lambda: store.delete(user)),
        (user, lambda: store.begin_refresh(user, seen=SEEN)),
        (failing, lambda: store.fail_refresh(turns[0], RefreshFailure(reason="refused"))),
        (finishing, lambda: store.finish_refresh(turns[1], grant("new"))),
    ]
    for one, write in writes:
        async with held_by_tenant(database, one):
            began = time.monotonic()
            with pytest.raises(DatabaseUnavailable, match=HELD):
                await write()
            assert time.monotonic() - began < 4, "the timeout of the store is 5 s"
    for _, write in writes:
        await write()


async def test_requests_of_one_user_hold_one_connection(
    database: Database, spotify: FakeSpotify, accounts: SpotifyAccounts, users: list[UUID], admin: asyncpg.Connection
) -> None:
    """While 40 requests wait for a locked row, others are served from a pool of two, at once."""
    mallory, *others = users
    async with (
        ConnectionStore.open(database.dsn, max_size=2) as store,
        TokenManager(store, accounts, cache_ttl=0) as tokens,
    ):
        for user in users:
            await connect(store, spotify, user)
        async with held_by_tenant(database, mallory):
            requests = [asyncio.create_task(tokens.disconnect(mallory)) for _ in range(40)]
            pids = await admin.fetch("select pid from pg_stat_activity where application_name = 'spotconn'")
            pids = pids or await admin.fetch("select pid from pg_stat_activity where pid <> pg_backend_pid()")
            assert len(await until_waiting(admin, *(row["pid"] for row in pids))) == 1
            for _ in range(5):
                await asyncio.gather(*map(tokens.get_valid_token, others))
            assert not any(request.done() for request in requests[1:])
        answers = await asyncio.gather(*requests, return_exceptions=True)
        assert answers.count(True) == 1
        assert len(store.pool._writes) == 0


async def test_a_locked_row_is_no_lost_database(
    database: Database, spotify: FakeSpotify, accounts: SpotifyAccounts, users: list[UUID]
) -> None:
    """A refresh of a locked row neither closes its connection nor has all saved grants compared with their rows."""
    mallory, alice, _ = users
    async with (
        ConnectionStore.open(database.dsn, max_size=1) as store,
        TokenManager(store, accounts, cache_ttl=0) as tokens,
    ):
        for user in (mallory, alice):
            await connect(store, spotify, user, ttl=-60)
        await tokens.get_valid_token(alice)
        pid = await store.pool.value("select pg_backend_pid()")
        async with held_by_tenant(database, mallory):
            with pytest.raises(DatabaseUnavailable, match=HELD):
                await tokens.get_valid_token(mallory)
        assert not tokens._source.refresher.saved._lost
        assert await store.pool.value("select pg_backend_pid()") == pid


async def test_a_write_that_waits_in_vain_is_no_lost_database() -> None:
    """The queue says of its own error that the database serves others."""
    queues, user = WriteQueues(), uuid4()
    async with queues.turn(user, seconds=60):
        with pytest.raises(DatabaseUnavailable) as raised:
            async with queues.turn(user, seconds=0):
                pass
    assert raised.value.locked


async def test_a_grant_passes_by_what_waits(
    database: Database, store: ConnectionStore, users: list[UUID], admin: asyncpg.Connection
) -> None:
    """Behind a flood of disconnects the grant of the same user is saved next, and that of another user at once."""
    user, other, _ = users
    for one in (user, other):
        await store.save(one, grant("old", minutes=-1), ALICE)
    turns = [await store.begin_refresh(one, seen=SEEN) for one in (user, other)]
    order: list[str] = []

    async def noted(name: str, write: Awaitable[object]) -> None:
        try:
            await write
        except DatabaseUnavailable:
            name += " in vain"
        order.append(name)

    async with held_by_tenant(database, user):
        flood = [asyncio.create_task(noted("disconnect", store.delete(user))) for _ in range(5)]
        pids = await admin.fetch("select pid from pg_stat_activity where pid <> pg_backend_pid()")
        await until_waiting(admin, *(row["pid"] for row in pids))
        saving = asyncio.create_task(noted("grant", store.finish_refresh(turns[0], grant("new"))))
        assert await store.finish_refresh(turns[1], grant("new")) is not None
        assert not order
    await asyncio.gather(saving, *flood)
    assert order[1] == "grant", order


# What can meet in a queue, each with the users that it holds at its end: none.


class Writers:
    """Blocks of one user, each of which goes on until it is told to end."""

    def __init__(self) -> None:
        self.queues = WriteQueues()
        self.user = uuid4()
        self.inside: list[str] = []
        self.ends: dict[str, asyncio.Event] = {}

    def begin(self, name: str, *, seconds: float = 60, ahead: bool = False) -> asyncio.Task[None]:
        self.ends[name] = asyncio.Event()
        return asyncio.create_task(self._write(name, seconds, ahead=ahead))

    async def _write(self, name: str, seconds: float, *, ahead: bool) -> None:
        async with self.queues.turn(self.user, seconds=seconds, ahead=ahead):
            self.inside.append(name)
            try:
                await self.ends[name].wait()
            finally:
                self.inside.remove(name)


async def steps(number: int = 10) -> None:
    """Let all that can go on do so."""
    for _ in range(number):
        await asyncio.sleep(0)


@pytest.fixture
def writers() -> Writers:
    """A queue of its own."""
    return Writers()


async def end(writers: Writers, *tasks: asyncio.Task[None]) -> None:
    """End all blocks; the queue is empty then."""
    for event in writers.ends.values():
        event.set()
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    assert len(writers.queues) == 0


async def test_one_at_a_time_in_sequence(writers: Writers) -> None:
    """Who comes first is first, one that comes ahead is next, and other users do not wait."""
    tasks = [writers.begin(name) for name in ("a", "b", "c")]
    await steps()
    tasks.append(writers.begin("ahead", ahead=True))
    await steps()
    async with writers.queues.turn(uuid4(), seconds=0.001):
        assert len(writers.queues) == 2
    for name in ("a", "ahead", "b", "c"):
        assert writers.inside == [name]
        writers.ends[name].set()
        await steps()
    await end(writers, *tasks)


async def test_a_block_that_fails_gives_the_turn_on(writers: Writers) -> None:
    """An exception and a cancellation within the block end it as its normal end does."""
    first, second = writers.begin("first"), writers.begin("second")
    await steps()
    first.cancel()
    await steps()
    assert writers.inside == ["second"]
    with pytest.raises(LookupError):
        async with writers.queues.turn(uuid4(), seconds=1):
            raise LookupError
    await end(writers, first, second)


@pytest.mark.parametrize("together", [False, True])
async def test_a_cancelled_waiter(writers: Writers, *, together: bool) -> None:
    """One that is cancelled while it waits, also in the step in which its turn comes, gives the turn on."""
    tasks = [writers.begin(name) for name in ("a", "b", "c")]
    await steps()
    writers.ends["a"].set()
    if together:
        await steps(1)  # a has ended, and b does not know yet
    tasks[1].cancel()
    await steps()
    assert writers.inside == ["c"]
    assert tasks[1].cancelled()
    await end(writers, *tasks)


@pytest.mark.parametrize("order", ["turn first", "cancellation first"])
async def test_a_turn_and_a_cancellation_in_one_step(writers: Writers, order: str) -> None:
    """In either sequence, the next that waits has the turn."""
    async with writers.queues.turn(writers.user, seconds=1):
        tasks = [writers.begin(name) for name in ("a", "b")]
        await steps()
        if order == "cancellation first":
            tasks[0].cancel()
    if order == "turn first":
        tasks[0].cancel()
    await steps()
    assert writers.inside == ["b"]
    await end(writers, *tasks)


async def test_a_waiter_whose_time_is_over(writers: Writers) -> None:
    """It hears so without a turn, and those behind it keep their places."""
    tasks = [writers.begin("a"), writers.begin("late", seconds=0.01), writers.begin("c")]
    with pytest.raises(DatabaseUnavailable, match=r"other writes of this user have not ended within 0\.01 s"):
        await tasks[1]
    assert writers.inside == ["a"]
    writers.ends["a"].set()
    await steps()
    assert writers.inside == ["c"]
    await end(writers, *tasks)


async def test_a_turn_that_comes_as_the_time_is_over(writers: Writers) -> None:
    """Whether it is taken or not, the next that waits has it afterwards."""
    for delay in (0.0, 0.005, 0.01, 0.015):
        async with writers.queues.turn(writers.user, seconds=1):
            tasks = [writers.begin("late", seconds=0.01), writers.begin("b")]
            await steps()
            time.sleep(delay)  # noqa: ASYNC251  so that the loop finds both at once
        writers.ends["late"].set()
        await asyncio.wait([tasks[0]])
        await steps()
        assert writers.inside == ["b"]
        await end(writers, *tasks)


async def test_all_that_wait_go_on_at_a_close(writers: Writers) -> None:
    """They find the store closed; also where one of them is cancelled, or the first ends, at the same time."""
    tasks = [writers.begin(name) for name in ("a", "b", "c", "d")]
    await steps()
    tasks[2].cancel()
    writers.queues.close()
    writers.ends["a"].set()
    await steps()
    assert writers.inside == ["b", "d"]
    await end(writers, *tasks)


async def test_a_closed_store_keeps_no_writer_waiting(
    database: Database, user: UUID, admin: asyncpg.Connection
) -> None:
    """A store that is closed while requests wait ends them at once, with what a closed store says."""
    async with ConnectionStore.open(database.dsn, max_size=1) as store:
        await store.save(user, grant("old"), ALICE)
        async with held_by_tenant(database, user):
            requests = [asyncio.create_task(store.delete(user)) for _ in range(3)]
            pids = await admin.fetch("select pid from pg_stat_activity where pid <> pg_backend_pid()")
            await until_waiting(admin, *(row["pid"] for row in pids))
            closing = asyncio.create_task(store.pool.close())
            for request in requests[1:]:
                with pytest.raises(RuntimeError, match="this ConnectionStore is closed"):
                    await request
            assert not requests[0].done()
            with pytest.raises(DatabaseUnavailable, match=HELD):
                await requests[0]
            await closing
        assert len(store.pool._writes) == 0
