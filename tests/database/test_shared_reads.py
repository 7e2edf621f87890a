"""Reads that callers share: few statements, and for each caller what it would have had alone."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from spotconn import (
    AesGcmSivCipher,
    ConnectionStore,
    DatabaseUnavailable,
    DecryptionError,
    NotConnected,
    RowSecurityError,
    SchemaMismatch,
    SpotconnError,
    StatementRefused,
)
from spotconn._database.bound_pool import BoundPool
from spotconn._database.idle_sessions import HOLD, is_open
from spotconn._database.pending_connects import Claim
from spotconn._database.shared_reads import LANES, MOST_USERS, PATIENCE, SharedReads
from spotconn.models import StoredAccessToken
from support.database import Database
from support.fault_proxy import FaultProxy
from support.listening import until
from support.stepping_loop import SteppingLoop

READ = b"get_access_tokens("
TIMEOUT = 1.0
"""Seconds for a connection, and again for an answer, where the database hangs."""


CONNECT = """
with added as (insert into auth.users (email) select n from generate_series(1, $1::int) as n returning id)
insert into public.spotify_connections (user_id, spotify_user_id, access_token, refresh_token, expires_at)
select id, 'account', 'access-' || id, 'refresh-' || id, now() + interval '1 hour' from added
returning user_id
"""


async def bulk_users(admin: asyncpg.Connection, number: int) -> list[UUID]:
    """So many connected users, each with an access token that names its user."""
    return [row["user_id"] for row in await admin.fetch(CONNECT, number)]


SLACK = 1.5
"""Seconds that a busy machine may take beside."""


@pytest.fixture
async def way(database: Database) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(database.server.port).serve() as proxy:
        yield proxy


@asynccontextmanager
async def opened(database: Database, way: FaultProxy, **options: Any) -> AsyncGenerator[ConnectionStore]:
    settings: dict[str, Any] = {"statement_cache_size": 100} | options
    async with ConnectionStore.open(way.dsn(database.dsn), **settings) as store:
        yield store


async def outcome(store: ConnectionStore, user: UUID) -> StoredAccessToken | type[SpotconnError]:
    try:
        return await store.tokens.get(user)
    except SpotconnError as error:
        return type(error)


async def outcomes(store: ConnectionStore, users: list[UUID]) -> list[StoredAccessToken | type[SpotconnError]]:
    return await asyncio.gather(*[outcome(store, user) for user in users])


async def test_a_crowd_costs_few_statements(database: Database, way: FaultProxy, admin: asyncpg.Connection) -> None:
    """A hundred callers are at most four, over two connections; each has its own user's token."""
    users = await bulk_users(admin, 100)
    async with opened(database, way) as store:
        for _ in range(3):
            way.executed.clear()
            found = await outcomes(store, users)
            assert len([text for text in way.executed if READ in text]) <= 4
            for user, token in zip(users, found, strict=True):
                assert isinstance(token, StoredAccessToken)
                assert token.access_token == f"access-{user}"
        assert store.pool._pool.get_size() <= LANES


async def test_more_than_one_statement_holds(database: Database, way: FaultProxy, admin: asyncpg.Connection) -> None:
    """A crowd beyond the users of one statement is read in several, and a user asked for twice has two answers."""
    users = await bulk_users(admin, MOST_USERS + 50)
    async with opened(database, way) as store:
        found = await outcomes(store, [*users, *users])
    assert [token.access_token for token in found if isinstance(token, StoredAccessToken)] == [
        f"access-{user}" for user in [*users, *users]
    ]
    assert len([text for text in way.executed if READ in text]) <= 6


async def test_one_bad_row_is_its_own_users(database: Database, way: FaultProxy, admin: asyncpg.Connection) -> None:
    """Among 200: one that does not decrypt, one that is missing, and one that a policy hides."""
    users = await bulk_users(admin, 200)
    broken, missing, hidden = users[7], users[70], users[150]
    cipher = AesGcmSivCipher([AesGcmSivCipher.generate_key()])
    foreign = AesGcmSivCipher([AesGcmSivCipher.generate_key()]).encrypt("x", user_id=broken, column="access_token")
    await admin.execute("update public.spotify_connections set access_token = $2 where user_id = $1", broken, foreign)
    await admin.execute("delete from public.spotify_connections where user_id = $1", missing)
    hide = "create policy hide on public.spotify_connections as restrictive for select using (user_id <> '{}')"
    async with opened(database, way, cipher=cipher) as store:
        await admin.execute(hide.format(hidden))
        try:
            found = await outcomes(store, users)
        finally:
            await admin.execute("drop policy hide on public.spotify_connections")
    errors = {user: one for user, one in zip(users, found, strict=True) if not isinstance(one, StoredAccessToken)}
    assert errors == {broken: DecryptionError, missing: NotConnected, hidden: RowSecurityError}


async def test_what_fails_for_several_is_repeated_for_each(
    database: Database, way: FaultProxy, admin: asyncpg.Connection
) -> None:
    """A policy of the operator's that fails for one user ends the statement of all: the others are served."""
    users = await bulk_users(admin, 20)
    bad = users[11]
    fail = "create policy fail on public.spotify_connections as restrictive for select using (case when user_id = '{}' "
    await admin.execute("update public.spotify_connections set display_name = '' where user_id = $1", bad)
    async with opened(database, way) as store:
        await admin.execute(fail.format(bad) + "then 1 / length(display_name) = 0 else true end)")
        try:
            found = await outcomes(store, users)
        finally:
            await admin.execute("drop policy fail on public.spotify_connections")
    assert {user for user, one in zip(users, found, strict=True) if not isinstance(one, StoredAccessToken)} == {bad}
    assert found[11] is StatementRefused


async def test_a_mismatch_of_users_is_of_one(database: Database, way: FaultProxy, admin: asyncpg.Connection) -> None:
    """An answer with the row of a user whom nobody has asked for is used for nobody, and each is asked for alone."""
    *users, stranger = await bulk_users(admin, 11)
    mixed_up = users[-1]
    async with opened(database, way) as store:
        await outcomes(store, users[:2])
        with way.replace(READ, mixed_up.bytes, stranger.bytes, answer=True):
            found = await outcomes(store, users)
        assert found[-1] is RowSecurityError
        for user, token in zip(users[:-1], found[:-1], strict=True):
            assert isinstance(token, StoredAccessToken)
            assert token.access_token == f"access-{user}"
        assert isinstance(await outcome(store, mixed_up), StoredAccessToken)


async def test_a_cut_connection_in_the_middle_of_a_batch(
    database: Database, way: FaultProxy, admin: asyncpg.Connection
) -> None:
    """Those of the batch are read again through another one at once, as are those who wait."""
    users = await bulk_users(admin, 20)
    async with opened(database, way, max_size=1) as store:
        await outcome(store, users[0])
        with way.hold(READ) as first:
            lanes = [asyncio.create_task(store.tokens.get(user)) for user in users[:LANES]]
            await first.reached()
            batch = [asyncio.create_task(store.tokens.get(user)) for user in users[LANES:10]]
            await asyncio.sleep(0)
            with way.hold(READ, answer=True, skip=1) as second:
                first.release()
                await second.reached()
                waiting = [asyncio.create_task(store.tokens.get(user)) for user in users[10:]]
                await asyncio.sleep(0)
                way.cut()
            found = await asyncio.gather(*lanes, *batch, *waiting)
    assert [token.access_token for token in found] == [f"access-{user}" for user in users]


async def test_each_caller_has_its_own_time(database: Database, way: FaultProxy, admin: asyncpg.Connection) -> None:
    """With a database that hangs, nobody waits longer than alone: for a connection, and then for an answer."""
    users = await bulk_users(admin, 12)
    loop = asyncio.get_running_loop()
    took: list[float] = []

    async def timed(user: UUID, after: float) -> None:
        await asyncio.sleep(after)
        began = loop.time()
        assert await outcome(store, user) is DatabaseUnavailable
        took.append(loop.time() - began)

    async with opened(database, way, timeout=TIMEOUT, max_size=2) as store:
        await outcomes(store, users)
        way.freeze()
        await asyncio.gather(*[timed(user, number * TIMEOUT / 10) for number, user in enumerate(users)])
        way.thaw()
        assert isinstance(await outcome(store, users[0]), StoredAccessToken | type)
    assert len(took) == len(users)
    assert max(took) < 2 * TIMEOUT + PATIENCE + SLACK
    assert min(took) > TIMEOUT / 2


async def test_a_pool_of_one_that_is_held(database: Database, way: FaultProxy, admin: asyncpg.Connection) -> None:
    """Callers hear in their time that there is no connection, and are served when it is free; its holder goes on."""
    users = await bulk_users(admin, 10)
    async with opened(database, way, timeout=TIMEOUT, max_size=1) as store:
        async with store.as_user(users[0]) as connection:
            assert set(await outcomes(store, users)) == {DatabaseUnavailable}
            waiting = [asyncio.create_task(store.tokens.get(user)) for user in users]
            assert await connection.fetchval("select count(*) from public.spotify_connections") == 1
        assert all(isinstance(token, StoredAccessToken) for token in await asyncio.gather(*waiting))


async def test_reading_starves_nobody(database: Database, way: FaultProxy, admin: asyncpg.Connection) -> None:
    """Beside callers who read without a pause through the only connection, others get it, too."""
    users = await bulk_users(admin, 30)
    async with opened(database, way, max_size=1) as store:

        async def read(user: UUID) -> None:
            while True:
                await store.tokens.get(user)

        reading = [asyncio.create_task(read(user)) for user in users]
        try:
            async with asyncio.timeout(5):
                for _ in range(3):
                    async with store.as_user(users[0]) as connection:
                        assert await connection.fetchval("select count(*) from public.spotify_connections") == 1
                    assert not await store.pending.take(Claim("no such state", "user", users[0]))
        finally:
            for task in reading:
                task.cancel()
            ended = await asyncio.gather(*reading, return_exceptions=True)
    assert {type(error) for error in ended} == {asyncio.CancelledError}


async def test_a_connection_is_kept_while_it_is_needed_and_given_back(
    database: Database, way: FaultProxy, admin: asyncpg.Connection
) -> None:
    """One caller after the other costs no reset of the session in between; soon after the last one the pool is idle."""
    (user,) = await bulk_users(admin, 1)
    async with opened(database, way, max_size=2) as store:
        await outcome(store, user)
        idle = store.pool._idle
        taken = {id(session) for session, _ in idle._free}
        await outcome(store, user)
        assert {id(session) for session, _ in idle._free} == taken != set()
        async with asyncio.timeout(20 * HOLD):
            await until(lambda: store.pool._pool.get_idle_size() == store.pool._pool.get_size())
        assert not idle._free
        assert not idle._since
        await outcome(store, user)
        await admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'")
        await until(lambda: not idle._free or not is_open(idle._free[0][0]))
        assert isinstance(await outcome(store, user), StoredAccessToken)


class Scripted(BoundPool):
    """A pool whose answers a test gives one by one, in virtual time."""

    def __init__(self) -> None:
        super().__init__(asyncpg.create_pool("postgresql://nobody@127.0.0.1:1/none"), name="ConnectionStore")
        self.checked = True
        self.asked: list[tuple[list[UUID], asyncio.Future[None]]] = []
        self.statements = 0
        self.refuses_several = False

    @asynccontextmanager
    async def _acquire(self, *, reuse: bool, **_: object) -> AsyncGenerator[Any]:  # noqa: ARG002  as there
        await asyncio.sleep(0)
        try:
            yield None
        finally:
            await asyncio.sleep(0)

    async def fetch(self, session: Any, query: str, user_ids: list[UUID]) -> Any:  # noqa: ARG002  as there
        self.statements += 1
        future = asyncio.get_running_loop().create_future()
        self.asked.append((user_ids, future))
        await future
        if self.refuses_several and len(user_ids) > 1:
            raise SchemaMismatch("a policy fails")
        return [{"user_id": user} for user in user_ids]

    def answer(self) -> bool:
        """Answer the statement that has waited for longest."""
        while self.asked:
            _, future = self.asked.pop(0)
            if not future.done():
                future.set_result(None)
                return True
        return False


async def read(reads: SharedReads, user: UUID) -> UUID:
    row = await reads.row(user)
    assert row is not None
    found: UUID = row["user_id"]
    return found


def run_dry(loop: SteppingLoop, pool: Scripted) -> None:
    """Run all callbacks and answer all statements until there is nothing left."""
    for _ in range(10_000):
        if loop.is_ready():
            loop.step()
        elif not pool.answer():
            return
    raise AssertionError("it does not end")


def users_of(number: int) -> list[UUID]:
    return [UUID(int=place + 1) for place in range(number)]


STEPS = 60
"""More than a scenario has."""


@pytest.mark.parametrize("early", [1, 2, 3, 5])
def test_nobody_who_comes_at_any_step_is_left_waiting(early: int) -> None:
    """Two callers come at every two steps of the reads of others, also right as a reader finds that nobody waits."""
    for places in itertools.combinations_with_replacement(range(STEPS), 2):
        loop, left = SteppingLoop.new(), sorted(places)
        with loop.running():
            reads = SharedReads(pool := Scripted())
            *first, third, fourth = users_of(early + 2)
            tasks = [loop.begin(read(reads, user), str(user)) for user in first]
            late = [third, fourth]
            for step in range(STEPS):
                while left and left[0] == step:
                    left.pop(0)
                    tasks.append(loop.begin(read(reads, late.pop(0)), "late"))
                if loop.is_ready():
                    loop.step()
                elif not pool.answer() and not left:
                    break
            run_dry(loop, pool)
            assert [task.done() for task in tasks] == [True] * (early + 2), places
            assert [task.result() for task in tasks] == users_of(early + 2)
            assert reads._lanes == 0
            assert not reads._waiting
        assert not loop.unretrieved()
        assert not loop.complaints


@pytest.mark.parametrize("callers", [1, 2, 3, 6])
def test_a_caller_that_is_cancelled_at_any_step_disturbs_no_other(callers: int) -> None:
    """Each of them, at each step: all others have their own answer, and no lane is lost."""
    for victim, at in itertools.product(range(callers), range(STEPS)):
        loop = SteppingLoop.new()
        with loop.running():
            reads = SharedReads(pool := Scripted())
            tasks = [loop.begin(read(reads, user), str(user)) for user in users_of(callers)]
            for step in range(STEPS):
                if step == at:
                    tasks[victim].cancel()
                if loop.is_ready():
                    loop.step()
                elif not pool.answer():
                    break
            run_dry(loop, pool)
            for place, (task, user) in enumerate(zip(tasks, users_of(callers), strict=True)):
                assert task.done(), (victim, at)
                if not task.cancelled():
                    assert task.result() == user
                else:
                    assert place == victim
            assert reads._lanes == 0
            assert not reads._waiting
        assert not loop.unretrieved()
        assert not loop.complaints


@pytest.mark.parametrize("callers", [3, 6])
def test_a_reader_that_is_cancelled_leaves_nobody_waiting(callers: int) -> None:
    """At each step of its task, before the first one too: those whom it read for read alone."""
    for at in range(STEPS):
        loop = SteppingLoop.new()
        with loop.running():
            reads = SharedReads(pool := Scripted())
            tasks = [loop.begin(read(reads, user), str(user)) for user in users_of(callers)]
            for step in range(STEPS):
                if step >= at and reads._reading:
                    for reader in reads._reading:
                        reader.cancel()
                    at = STEPS  # noqa: PLW2901  once
                if loop.is_ready():
                    loop.step()
                elif not pool.answer():
                    break
            run_dry(loop, pool)
            assert [task.result() for task in tasks] == users_of(callers), at
            assert reads._lanes == 0
        assert not loop.complaints


@pytest.mark.parametrize("callers", [3, 6])
def test_callers_who_all_leave_leave_no_task_behind(callers: int) -> None:
    """At each step, as at the end of an event loop: no reader begins for nobody."""
    for at in range(STEPS):
        loop = SteppingLoop.new()
        with loop.running():
            reads = SharedReads(pool := Scripted())
            tasks = [loop.begin(read(reads, user), str(user)) for user in users_of(callers)]
            for _ in range(at):
                if loop.is_ready():
                    loop.step()
                elif not pool.answer():
                    break
            statements = pool.statements
            for task in tasks:
                task.cancel()
            run_dry(loop, pool)
            assert pool.statements == statements, at
            assert all(task.done() for task in (*tasks, *loop.tasks))
            assert reads._lanes == 0


async def test_two_stuck_connections_hold_up_nobody_else(
    database: Database, way: FaultProxy, admin: asyncpg.Connection
) -> None:
    """Who has waited for a moment, because both lanes are slow, reads through the pool as anybody does."""
    users = await bulk_users(admin, 20)
    async with opened(database, way) as store:
        first, second = (way.hold(READ) for _ in range(LANES))
        with first, second:
            stuck = [asyncio.create_task(store.tokens.get(user)) for user in users[:LANES]]
            await first.reached()
            await second.reached()
            async with asyncio.timeout(store.pool.timeout / 2):
                found = await outcomes(store, users)
            assert all(isinstance(token, StoredAccessToken) for token in found)
            assert not any(task.done() for task in stuck)
        await asyncio.gather(*stuck)


async def test_the_last_connection_of_a_pool_is_not_held(
    database: Database, way: FaultProxy, admin: asyncpg.Connection
) -> None:
    """The application may use the pool past the library, which then does not know that it waits."""
    users = await bulk_users(admin, 5)
    async with opened(database, way, max_size=1) as store:
        await outcomes(store, users)
        assert not store.pool._idle._free
        assert store.pool._pool.get_idle_size() == 1


async def test_slow_statements_keep_nobody_for_longer(
    database: Database, way: FaultProxy, admin: asyncpg.Connection
) -> None:
    """Where Postgres ends every statement late: nobody waits for longer than alone."""
    users = await bulk_users(admin, 30)
    slow = {"statement_timeout": "700"}
    loop = asyncio.get_running_loop()
    async with opened(database, way, timeout=0.8, server_settings=slow) as store:
        await outcomes(store, users)
        async with admin.transaction():
            await admin.execute("lock table public.spotify_connections in access exclusive mode")
            began = loop.time()
            assert set(await outcomes(store, users)) == {DatabaseUnavailable}
            assert loop.time() - began < 2 * 0.8 + PATIENCE + SLACK


@pytest.mark.parametrize("late", [False, True])
def test_what_fails_for_several_is_repeated_while_there_is_time(*, late: bool) -> None:
    """Each reads alone then, unless its time is over: then it has the error as an object of its own."""
    loop = SteppingLoop.new()
    with loop.running():
        reads = SharedReads(pool := Scripted())
        tasks = [loop.begin(read(reads, user), str(user)) for user in users_of(LANES + 2)]
        while pool.statements <= LANES:
            if loop.is_ready():
                loop.step()
            else:
                assert pool.answer()
        loop.pass_time(pool.timeout + 1 if late else 0)
        pool.refuses_several = True
        run_dry(loop, pool)
        assert pool.statements == LANES + 1 + (0 if late else 2)
        if late:
            errors = [task.exception() for task in tasks[LANES:]]
            assert [type(error) for error in errors] == [SchemaMismatch] * 2
            assert errors[0] is not errors[1]
        else:
            assert [task.result() for task in tasks] == users_of(LANES + 2)


async def test_a_read_that_ends_while_the_store_closes_keeps_no_connection(
    database: Database, way: FaultProxy, admin: asyncpg.Connection
) -> None:
    """Closing gives back what waits for the next read, and what comes later: it does not wait for its timeout."""
    users = await bulk_users(admin, 2)
    loop = asyncio.get_running_loop()
    async with opened(database, way) as store:
        await outcomes(store, users)
        assert store.pool._idle._free
        with way.hold(READ) as held:
            reading = asyncio.create_task(store.tokens.get(users[0]))
            await held.reached()
            await store.tokens.get(users[1])  # so that a timer is set
            began = loop.time()
            closing = asyncio.create_task(store.pool.close())
            await until(lambda: not store.pool._idle._free)
        assert isinstance(await reading, StoredAccessToken)
        await closing
        assert loop.time() - began < store.pool.timeout / 2
