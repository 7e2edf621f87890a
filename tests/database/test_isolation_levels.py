"""A database whose transactions are REPEATABLE READ or SERIALIZABLE by default, as its owner may have chosen.

There a statement that waited for another transaction fails with 40001 where READ COMMITTED would go on.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from uuid import UUID

import asyncpg
import pytest

from spotconn import (
    AesGcmSivCipher,
    ConnectFlow,
    ConnectionAdmin,
    ConnectionStore,
    DatabaseUnavailable,
    NotConnected,
    Outcome,
    Profile,
    RefreshFailure,
    SpotifyAccounts,
)
from spotconn.testing import FakeSpotify
from support.connections import grant
from support.consent import REDIRECT_URI
from support.database import Database
from support.fleet import connect_crowd, fleet, valid_digests

ALICE = Profile(spotify_user_id="alice")
LEVELS = ("repeatable read", "serializable")
WRITERS = 4
"""Stores that write the same user's rows at once; within one store they take turns."""


@pytest.fixture(params=LEVELS)
async def level(request: pytest.FixtureRequest, database: Database, admin: asyncpg.Connection) -> AsyncIterator[str]:
    """The default of the database, for every session that begins now."""
    await admin.execute(f"alter database spotconn set default_transaction_isolation = '{request.param}'")
    yield request.param
    await admin.execute("alter database spotconn reset default_transaction_isolation")


@pytest.fixture
async def stores(level: str, database: Database) -> AsyncIterator[list[ConnectionStore]]:
    """Stores as of several processes, at that level."""
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(ConnectionStore.open(database.dsn)) for _ in range(WRITERS)]
        async with opened[0].pool.acquire() as session:
            assert await session.fetchval("show transaction_isolation") == level
        yield opened


@pytest.mark.long
async def test_eight_processes_have_each_user_refreshed_once(
    level: str, database: Database, admin: asyncpg.Connection, spotify: FakeSpotify
) -> None:
    """Each of 8 processes gets each user's token, without trying again by itself."""
    users = await connect_crowd(admin, spotify, 12)
    async with spotify.serve() as url, fleet(database.dsn, url, processes=8, connections=2) as started:
        answers = await started.ask(users)
    right = await valid_digests(admin, spotify, users)
    assert "" not in right
    assert answers == [right] * 8
    assert set(spotify.refreshes.values()) == {1}


async def test_starts_at_once_all_begin(
    stores: list[ConnectionStore], user: UUID, accounts: SpotifyAccounts, admin: asyncpg.Connection
) -> None:
    """The slots of one user are taken by several processes at once, and expired ones are cleaned up by each."""
    flows = [ConnectFlow(store, accounts, redirect_uri=REDIRECT_URI, scopes=[]) for store in stores]
    urls = await asyncio.gather(*[flow.start(user) for flow in flows for _ in range(5)])
    assert len(set(urls)) == 20
    assert await admin.fetchval("select count(*) from spotconn.pending_connect") == 20


async def _refreshed(store: ConnectionStore, user: UUID) -> None:
    for _ in range(3):
        try:
            current = await store.get(user)
        except NotConnected:
            return
        turn = await store.begin_refresh(user, seen=current.fingerprint, lease=5)
        if turn.outcome is Outcome.GRANTED:
            if (current.saves or 0) % 2:
                await store.fail_refresh(turn, RefreshFailure(reason="unavailable"))
            else:
                await store.finish_refresh(turn, grant("new", minutes=-1))


OPERATIONS: list[Callable[[ConnectionStore, UUID], Awaitable[object]]] = [
    lambda store, user: store.save(user, grant("one", minutes=-1), ALICE),
    lambda store, user: store.save(user, grant("two", minutes=-1), ALICE),
    _refreshed,
    _refreshed,
    lambda store, user: store.delete(user),
]


async def test_no_operation_of_the_store_fails_beside_others(stores: list[ConnectionStore], user: UUID) -> None:
    """Connects, refreshes and disconnects of one user by several processes at once."""
    failures = Counter[str]()

    async def run(store: ConnectionStore, operation: Callable[[ConnectionStore, UUID], Awaitable[object]]) -> None:
        try:
            await operation(store, user)
        except Exception as error:  # noqa: BLE001  the count is the point
            failures[repr(error)] += 1

    for _ in range(3):
        await asyncio.gather(*[run(store, operation) for store in stores for operation in OPERATIONS])
    assert not failures


async def test_no_work_of_the_admin_fails_beside_the_service(
    level: str, stores: list[ConnectionStore], database: Database, users: list[UUID]
) -> None:
    """rekey, recheck, prune, assign_app, move and the counts, while the users' rows are written."""
    cipher = AesGcmSivCipher([AesGcmSivCipher.generate_key()])
    first, second, third = users
    done = asyncio.Event()

    async def write(store: ConnectionStore, user: UUID) -> None:
        while not done.is_set():
            await store.save(user, grant("one", minutes=-1), ALICE)
            await _refreshed(store, user)

    for user in (first, second):
        await stores[0].save(user, grant("one", minutes=-1), ALICE)
    async with ConnectionAdmin.open(database.admin_dsn, cipher=cipher) as house, asyncio.TaskGroup() as service:
        for store, user in zip(stores, (first, first, second), strict=False):
            service.create_task(write(store, user))
        for _ in range(3):
            await house.assign_app("demo-client")
            await house.recheck(since=datetime(2026, 1, 1, tzinfo=UTC))
            await house.stats()
            assert await asyncio.gather(*[house.mark_asked([first, second]) for _ in range(2)]) == [2, 2]
            assert (await house.prune(dead_for=timedelta(days=1), write=True)).total == 0
            assert {overview.user_id async for overview in house.failing()} <= {first, second}
        await stores[3].save(third, grant("one"), ALICE)
        for source, target in pairwise([third, *await _more(database, 2)]):
            assert await house.move(source, target)
        done.set()
    async with ConnectionAdmin.open(database.admin_dsn, cipher=cipher) as house:
        assert (await house.rekey()).done == 2  # the third was encrypted as it was moved


async def _more(database: Database, number: int) -> list[UUID]:
    admin = await asyncpg.connect(database.admin_dsn)
    rows = await admin.fetch(
        "insert into auth.users (id) select gen_random_uuid() from generate_series(1, $1) returning id", number
    )
    await admin.close()
    return [row["id"] for row in rows]


@pytest.fixture
async def conflicts(admin: asyncpg.Connection) -> AsyncIterator[Callable[[str, int], Awaitable[None]]]:
    """Makes as many inserts of a connection fail with a SQLSTATE; a sequence counts, which no rollback takes back."""

    async def make(state: str, number: int) -> None:
        await admin.execute(f"""
            create sequence public.attempts;
            grant all on sequence public.attempts to public;
            create function public.conflict() returns trigger language plpgsql as $$
            begin
                if nextval('public.attempts') <= {number} then
                    raise exception 'conflict' using errcode = '{state}';
                end if;
                return new;
            end $$;
            create trigger conflict before insert or update on public.spotify_connections
                for each row execute function public.conflict();
        """)

    yield make
    await admin.execute("drop function if exists public.conflict() cascade; drop sequence if exists public.attempts")


@pytest.mark.parametrize("state", ["40001", "40P01"])
async def test_a_conflict_is_tried_again_until_it_is_over(
    store: ConnectionStore,
    user: UUID,
    admin: asyncpg.Connection,
    conflicts: Callable[[str, int], Awaitable[None]],
    state: str,
) -> None:
    """Also a write: Postgres has rolled each attempt back. Nine conflicts in a row are no error."""
    await conflicts(state, 9)
    await store.save(user, grant("x"), ALICE)
    assert (await store.get(user)).access_token == "access-x"
    assert await admin.fetchval("select last_value from public.attempts") == 10


@pytest.mark.parametrize("state", ["40001", "40P01"])
async def test_conflicts_without_end_end_with_the_deadline(
    database: Database, user: UUID, conflicts: Callable[[str, int], Awaitable[None]], state: str
) -> None:
    """The caller is told to come again; the connection is not closed for it."""
    await conflicts(state, 1_000_000)
    async with ConnectionStore.open(database.dsn, timeout=2, max_size=1) as store:
        async with store.pool.acquire() as session:
            before = session.get_server_pid()
        begun = asyncio.get_running_loop().time()
        with pytest.raises(DatabaseUnavailable, match=state) as raised:
            await store.save(user, grant("x"), ALICE)
        assert asyncio.get_running_loop().time() - begun < 10, "a million conflicts were awaited"
        assert raised.value.locked
        async with store.pool.acquire() as session:
            assert session.get_server_pid() == before


@pytest.mark.parametrize("state", ["40001", "40P01"])
async def test_a_transaction_of_the_admin_is_begun_anew(
    store: ConnectionStore,
    users: list[UUID],
    database: Database,
    conflicts: Callable[[str, int], Awaitable[None]],
    state: str,
) -> None:
    """Where it was the victim of a deadlock, all that it had done is done once more."""
    await store.save(users[0], grant("x"), ALICE)
    await conflicts(state, 4)
    async with ConnectionAdmin.open(database.admin_dsn) as house:
        assert await house.move(users[0], users[1])
    assert (await store.get(users[1])).access_token == "access-x"
    with pytest.raises(NotConnected):
        await store.get(users[0])
