"""A disconnect while the synchronous standby is away is not acknowledged before it is replicated: real servers."""

import asyncio
from collections.abc import Iterator
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore, DatabaseUnavailable, NotConnected, Profile
from support.connections import grant
from support.listening import SOON
from support.replication import Pair, replicated

TIMEOUT = 1.5
ATTEMPTS = 3
WAITING = "select count(*) from pg_stat_activity where wait_event = 'SyncRep' and usename = 'app'"
pytestmark = pytest.mark.long


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A primary whose commits wait for its standby."""
    with replicated(synchronous=True) as servers:
        yield servers


async def connected(pair: Pair) -> UUID:
    """Return a user with a connection that the standby has, too."""
    admin = await asyncpg.connect(pair.primary.admin_dsn)
    user: UUID = await admin.fetchval("insert into auth.users (email) values ('a') returning id")
    await admin.close()
    async with ConnectionStore.open(pair.primary.dsn()) as store:
        await store.save(user, grant("x"), Profile(spotify_user_id="alice"))
    await asyncio.to_thread(pair.wait_until_replayed)
    return user


async def refused(store: ConnectionStore, user: UUID) -> None:
    """Disconnect again and again; each attempt is given up, and none is acknowledged."""
    for _ in range(ATTEMPTS):
        with pytest.raises(DatabaseUnavailable):
            await store.delete(user)


async def is_connected(pair: Pair, user: UUID) -> bool:
    """Return what a new process reads from the primary."""
    async with ConnectionStore.open(pair.primary.dsn()) as store:
        try:
            await store.get(user)
        except NotConnected:
            return False
        return True


async def test_none_is_acknowledged_that_a_promotion_undoes(pair: Pair) -> None:
    """The standby has not received it and becomes the primary: the connection is back, and nobody was promised else."""
    user = await connected(pair)
    await asyncio.to_thread(pair.pause_replication)
    async with ConnectionStore.open(pair.primary.dsn(), timeout=TIMEOUT) as store:
        await refused(store, user)
    assert not await is_connected(pair, user), "the primary has it"
    await asyncio.to_thread(pair.promote)
    assert await is_connected(pair, user)


async def test_one_that_is_acknowledged_outlives_a_promotion(pair: Pair) -> None:
    """It waits until the standby is back; then the primary can be lost."""
    user = await connected(pair)
    await asyncio.to_thread(pair.standby.freeze)
    async with ConnectionStore.open(pair.primary.dsn(), timeout=TIMEOUT) as store:
        await refused(store, user)
        store.pool.timeout = SOON
        last = asyncio.create_task(store.delete(user))
        await asyncio.to_thread(pair.primary.wait_for, f"({WAITING}) > 0")
        assert not last.done()
        await asyncio.to_thread(pair.standby.thaw)
        await last
    await asyncio.to_thread(pair.primary.kill)
    await asyncio.to_thread(pair.promote)
    assert not await is_connected(pair, user)
