"""The managers of one store listen for changes over one session, and what is cached outlives its loss for a time."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore, NotConnected, SpotifyAccounts, TokenManager
from spotconn.testing import FakeSpotify
from support.connections import connect
from support.database import Database
from support.fault_proxy import FaultProxy
from support.listening import SECOND, feed_of, passed, served_for, trusted, until

LISTENING = "select count(*) from pg_stat_activity where application_name = 'listening'"


class Managers:
    """Opens managers over one store, which listens through a proxy.

    Attributes:
        store: of all managers.
    """

    def __init__(self, store: ConnectionStore, accounts: SpotifyAccounts, stack: AsyncExitStack) -> None:
        self.store = store
        self._accounts = accounts
        self._stack = stack

    async def open(self, **options: Any) -> TokenManager:
        """Open a manager, which is closed at the end of the test."""
        return await self._stack.enter_async_context(TokenManager(self.store, self._accounts, **options))


@pytest.fixture
async def managers(database: Database, accounts: SpotifyAccounts, proxy: FaultProxy) -> AsyncIterator[Managers]:
    listen_dsn = f"{proxy.dsn(database.dsn)}?application_name=listening"
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(ConnectionStore.open(database.dsn, listen_dsn=listen_dsn))
        yield Managers(store, accounts, stack)


def listeners() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task.get_name() == "spotconn-subscriber"]


async def test_ten_managers_are_one_listening_session(
    managers: Managers, store: ConnectionStore, spotify: FakeSpotify, user: UUID, admin: asyncpg.Connection
) -> None:
    """All are told; those that close do not disturb the others, and the last one ends it until one reads again."""
    await connect(store, spotify, user)
    opened = [await managers.open() for _ in range(10)]
    assert await admin.fetchval(LISTENING) == 0, "none has read"
    for tokens in opened:
        await trusted(tokens, user)
    assert await admin.fetchval(LISTENING) == 1
    assert len(listeners()) == 1
    assert all(tokens._cache.trusted for tokens in opened)
    first, *others, last = opened
    await first.aclose()
    assert not first._cache.trusted
    assert all(tokens._cache.trusted and user in tokens._cache.entries for tokens in [*others, last])
    await store.delete(user)
    assert max(await asyncio.gather(*[served_for(tokens, user) for tokens in [*others, last]])) < SECOND
    for tokens in others:
        await tokens.aclose()
    assert last._cache.trusted
    await last.aclose()
    assert not listeners()
    await connect(store, spotify, user)
    await trusted(await managers.open(), user)
    assert len(listeners()) == 1


async def test_heartbeats_come_often_enough_for_the_shortest_ttl(
    managers: Managers, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """Each manager trusts for its own; a new one waits for no heartbeat that was due for those before."""
    await connect(store, spotify, user)
    long = await managers.open()
    await trusted(long, user)
    begun = time.monotonic()
    short = await managers.open(cache_ttl=0.9)
    await trusted(short, user)
    assert time.monotonic() - begun < 3, "the next heartbeat for the first would come after ten"
    ends = set[float]()
    while time.monotonic() < begun + 2:
        assert short._cache.trusted_until <= time.time() + 0.9
        ends.add(long._cache.trusted_until)
        await asyncio.sleep(0.05)
    assert len(ends) >= 4
    assert short._cache.trusted_until > time.time(), "its trust was renewed"
    assert max(ends) - short._cache.trusted_until == pytest.approx(29.1, abs=0.5)


async def test_each_manager_counts_by_its_own_clock(
    managers: Managers, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """From the time at which the heartbeat was sent."""
    await connect(store, spotify, user)
    right, ahead = await managers.open(), await managers.open(clock=lambda: time.time() + 1000)
    await trusted(right, user)
    await trusted(ahead, user)
    assert ahead._cache.trusted_until - right._cache.trusted_until == pytest.approx(1000, abs=5)


class Recorder:
    """A handler that records when heartbeats are sent and arrive."""

    ttl = 0.3

    def __init__(self) -> None:
        self.sent: list[float] = []
        self.trusted: list[float] = []

    def now(self) -> float:
        self.sent.append(time.monotonic())
        return self.sent[-1]

    def trust(self, sent: float, life: str) -> None:  # noqa: ARG002
        self.trusted.append(sent)

    def invalidate(self, user_id: UUID) -> None: ...
    def clear(self) -> None: ...
    def distrust(self) -> None: ...


async def test_a_heartbeat_counts_only_for_those_who_were_there_when_it_was_sent(
    managers: Managers, proxy: FaultProxy
) -> None:
    """A handler that comes while it is on its way is trusted with the next one; one that has gone is told nothing."""
    feed = managers.store.changes
    assert feed is not None
    first, second, gone = Recorder(), Recorder(), Recorder()
    feed.add(first)
    feed.add(gone)
    await until(lambda: bool(first.trusted))
    proxy.freeze()
    sent = len(first.sent)
    await until(lambda: len(first.sent) > sent)
    arrived = first.trusted[-1], len(gone.trusted)
    feed.add(second)
    await feed.remove(gone)
    assert not second.sent
    proxy.thaw()
    await until(lambda: bool(second.trusted))
    assert first.sent[sent] in first.trusted
    assert first.sent[sent] > arrived[0]
    assert second.trusted[0] == second.sent[0] > first.sent[sent]
    assert len(gone.trusted) == arrived[1]
    await feed.remove(first)
    assert listeners()
    await feed.remove(second)
    assert not listeners()


async def test_what_was_trusted_at_a_loss_is_served_until_the_last_heartbeat_and_the_ttl(
    managers: Managers, proxy: FaultProxy, store: ConnectionStore, spotify: FakeSpotify, users: list[UUID]
) -> None:
    """A change that was missed is not served beyond that; what is read after the loss lives for the ttl."""
    user, other, _ = users
    ahead = 0.0
    for connected in (user, other):
        await connect(store, spotify, connected)
    tokens = await managers.open(clock=lambda: time.time() + ahead)
    await trusted(tokens, user)
    end = tokens._cache.trusted_until
    proxy.refuses = True
    proxy.cut()
    await until(lambda: not tokens._cache.trusted)
    assert tokens._cache.entries[user].trust.until == end
    await store.delete(user)
    before = time.time()
    await tokens.get_valid_token(other)
    entry = tokens._cache.entries[other]
    assert before <= entry.since
    assert entry.fresh_until == entry.until == entry.since + 30
    ahead = end - 1 - time.time()
    assert await tokens.get_valid_token(user), "nobody has told it"
    ahead = end - time.time()
    with pytest.raises(NotConnected):
        await tokens.get_valid_token(user)


async def test_a_listener_that_comes_back_trusts_nothing_from_before(
    managers: Managers, proxy: FaultProxy, store: ConnectionStore, spotify: FakeSpotify, users: list[UUID]
) -> None:
    """What changed in between was not heard. What is read from now on is trusted."""
    user, other, _ = users
    for connected in (user, other):
        await connect(store, spotify, connected)
    tokens = await managers.open(cache_ttl=3)
    await trusted(tokens, user)
    proxy.refuses = True
    proxy.cut()
    await until(lambda: not tokens._cache.trusted)
    changed = time.monotonic()
    await store.delete(user)
    proxy.heal()
    await trusted(tokens, other)
    assert user in tokens._cache.entries, "the loss has cost no burst of reads"
    await served_for(tokens, user)
    assert time.monotonic() - changed < 3.5
    assert tokens._cache.trusted
    assert other in tokens._cache.entries


async def test_a_manager_that_comes_while_the_last_one_closes_is_told(
    managers: Managers, proxy: FaultProxy, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """At each step of the end, be it that the listener connects or listens: one is left, and it is trusted."""
    await connect(store, spotify, user)
    proxy.delay = 0.002  # so that it takes some steps to connect
    for step in (0, 1, 2, 3, 5, 8, 12, 20, 40):
        closing, coming = await managers.open(), await managers.open()
        await closing.get_valid_token(user)
        if step % 2:
            await until(lambda tokens=closing: tokens._cache.trusted)  # type: ignore[misc]
        ending = asyncio.create_task(closing.aclose())
        for _ in range(step // 2):
            await asyncio.sleep(0)
        await trusted(coming, user)
        await ending
        assert coming._cache.trusted
        await passed(coming)
        assert len(listeners()) == 1
        await coming.aclose()
        assert not listeners()


async def test_the_end_of_the_store_ends_it(
    database: Database, accounts: SpotifyAccounts, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """Also where a manager was left open: it trusts nothing any more."""
    await connect(store, spotify, user)
    async with ConnectionStore.open(database.dsn) as own:
        tokens = TokenManager(own, accounts)
        await trusted(tokens, user)
    assert not listeners()
    assert not tokens._cache.trusted
    assert tokens._cache.entries[user].trust.until <= time.time() + 30
    with pytest.raises(RuntimeError, match="is closed"):
        feed_of(tokens).add(tokens._source.subscriber)
    await tokens.aclose()
