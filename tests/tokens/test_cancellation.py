"""A call of the store that is cancelled: what it leaves at the server and in the pool."""

import asyncio
from collections.abc import Coroutine, Generator
from itertools import count
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore, DatabaseUnavailable, NotConnected
from spotconn.testing import FakeSpotify
from support.connections import connect, content
from support.database import Database
from support.fault_proxy import FaultProxy


class CancelledAt:
    """A call that is cancelled at the very moment at which its n-th wait is over.

    Attributes:
        cancelled: whether it has waited that often.
    """

    def __init__(self, call: Coroutine[Any, Any, object], number: int) -> None:
        self._call = call
        self._number = number
        self.cancelled = False

    def __await__(self) -> Generator[Any, None, object]:
        steps = self._call.__await__()
        try:
            for _ in range(self._number):
                yield next(steps)
            self.cancelled = True
            waited_for = steps.throw(asyncio.CancelledError())
            while True:
                yield waited_for
                waited_for = next(steps)
        except StopIteration as end:
            return end.value


async def states(admin: asyncpg.Connection) -> list[str]:
    """What the sessions of the store do."""
    return [row["state"] for row in await admin.fetch("select state from pg_stat_activity where usename = 'app'")]


@pytest.mark.parametrize("statements", [0, 100])
async def test_a_cancelled_call_leaves_no_transaction_open(
    database: Database, spotify: FakeSpotify, user: UUID, admin: asyncpg.Connection, statements: int
) -> None:
    """Wherever it was cancelled, the session is idle: an open transaction would keep the session of a pooler."""
    for number in count(1):
        # A pool of its own, because a call waits more often for a statement that is new to its session.
        async with ConnectionStore.open(database.dsn, max_size=1, statement_cache_size=statements) as store:
            stored = await connect(store, spotify, user)
            call = CancelledAt(store.get(user), number)
            try:
                await call
            except asyncio.CancelledError:
                assert await states(admin) == ["idle"], f"after {number} waits"
            else:
                assert not call.cancelled, "a cancellation was lost"
                assert number > 2
                break
            assert content(await store.get(user)) == content(stored)


async def test_a_call_that_is_cancelled_again_and_again_is_ended_at_the_server(
    database: Database, spotify: FakeSpotify, user: UUID, admin: asyncpg.Connection
) -> None:
    """As anyio cancels, at every turn of the loop: the server is still told, or the statement would commit later."""
    blocker = await asyncpg.connect(database.admin_dsn)
    async with ConnectionStore.open(database.dsn, max_size=1) as store, asyncio.timeout(20):
        stored = await connect(store, spotify, user)
        async with blocker.transaction():
            await blocker.execute("select from public.spotify_connections for update")
            call = asyncio.create_task(store.delete(user))
            while not await admin.fetchval("select count(*) from pg_locks where not granted"):
                await asyncio.sleep(0.01)
            while not call.done():
                call.cancel()
                await asyncio.sleep(0)
            while await states(admin) != ["idle"]:
                await asyncio.sleep(0.01)
        assert call.cancelled()
        assert content(await store.get(user)) == content(stored)
    await blocker.close()


async def test_a_block_that_cannot_begin_is_unavailable(database: Database, user: UUID) -> None:
    """The start of a block has the time of a statement, also on a half-open connection."""
    async with (
        FaultProxy(database.server.port).serve() as proxy,
        ConnectionStore.open(proxy.dsn(database.dsn), timeout=0.3, max_size=1) as store,
    ):
        with pytest.raises(NotConnected):
            await store.get(user)
        proxy.freeze()
        with pytest.raises(DatabaseUnavailable):
            async with asyncio.timeout(10), store.as_user(user):
                pytest.fail("it has begun")
        proxy.thaw()
        with pytest.raises(NotConnected):
            await store.get(user)


async def test_a_cancellation_ends_a_call_that_the_server_does_not_answer(database: Database, user: UUID) -> None:
    """In bounded time and as a cancellation, a call as well as a block; the next call has a new connection."""

    async def block() -> None:
        async with store.as_user(user) as connection:
            await connection.execute("select")
            inside.set()
            await asyncio.Event().wait()

    async def cancel_unanswered(call: asyncio.Task[Any]) -> None:
        proxy.freeze()
        call.cancel()
        await asyncio.wait([call])
        assert call.cancelled()
        proxy.thaw()

    inside = asyncio.Event()
    async with (
        FaultProxy(database.server.port).serve() as proxy,
        ConnectionStore.open(proxy.dsn(database.dsn), timeout=1, max_size=1) as store,
        asyncio.timeout(20),
    ):
        with proxy.hold(b"get_connection") as held:
            call = asyncio.create_task(store.get(user))
            await held.reached()
            await cancel_unanswered(call)
        caller = asyncio.create_task(block())
        await inside.wait()
        await cancel_unanswered(caller)
        with pytest.raises(NotConnected):
            await store.get(user)
