"""After a failover that leaves the old primary running, no process listens there for long.

The two servers here are independent of each other: what a process sees of a failover is that the way to the database
leads elsewhere. `test_promoted_server.py` has a primary with its standby.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from uuid import UUID, uuid4

import asyncpg
import pytest

from spotconn import ConnectionStore, DatabaseUnavailable, SpotifyAccounts, TokenManager
from spotconn._database import change_feed
from spotconn._database.server_check import ServerCheck
from spotconn._database.subscription import OTHER_SERVER
from spotconn.testing import FakeSpotify, postgres_binaries
from support.connections import connect
from support.database import VERSIONS, Database, serving
from support.fault_proxy import FaultProxy
from support.listening import feed_of, passed, served_for, trusted, until

TTL = 3.0
SLACK = 5.0
"""Seconds for a busy machine, and for the shortest time between two new connections."""
LIFE = "select spotconn.server_life()"


@pytest.fixture(scope="module")
def other(request: pytest.FixtureRequest) -> Iterator[Database]:
    """The server that takes over: it has the schema, and no connections."""
    version = request.config.getoption("--postgres")
    with serving(VERSIONS[version] if version else postgres_binaries()) as serving_other:
        yield serving_other


@pytest.fixture
async def ways(database: Database) -> AsyncIterator[tuple[FaultProxy, FaultProxy]]:
    """The way of the pool to the database, and that of the listener."""
    async with FaultProxy(database.server.port).serve() as pool, FaultProxy(database.server.port).serve() as listener:
        yield pool, listener


@pytest.fixture
async def tokens(
    ways: tuple[FaultProxy, FaultProxy], database: Database, accounts: SpotifyAccounts, store: ConnectionStore,
    spotify: FakeSpotify, user: UUID,
) -> AsyncIterator[TokenManager]:  # fmt: skip
    """A manager that trusts the token of a user."""
    await connect(store, spotify, user)
    dsn, listen_dsn = (way.dsn(database.dsn) for way in ways)
    async with (
        ConnectionStore.open(dsn, listen_dsn=listen_dsn) as own,
        TokenManager(own, accounts, cache_ttl=TTL) as it,
    ):
        await trusted(it, user)
        yield it


def turn(ways: tuple[FaultProxy, FaultProxy], other: Database) -> None:
    """Lead new connections to the other server."""
    for way in ways:
        way.turn_to(other.server.port)


async def life_of(database: Database) -> str:
    session = await asyncpg.connect(database.dsn)
    life: str = await session.fetchval(LIFE)
    await session.close()
    return life


async def test_a_listener_on_the_old_server_is_left_with_the_next_heartbeat(
    tokens: TokenManager, ways: tuple[FaultProxy, FaultProxy], other: Database, user: UUID
) -> None:
    """The pool's sessions were cut and lead to the new one; what was disconnected there is served for the ttl."""
    old = feed_of(tokens)._subscription
    turn(ways, other)
    ways[0].cut()
    assert await served_for(tokens, user) < TTL + SLACK
    await until(lambda: feed_of(tokens)._subscription is not old and tokens._cache.trusted)
    await passed(tokens)


async def test_sessions_that_all_stay_on_the_old_server_are_left(
    tokens: TokenManager, ways: tuple[FaultProxy, FaultProxy], other: Database, user: UUID
) -> None:
    """Nothing on them is amiss, and the old server answers: a new connection shows it; the pool leaves it, too."""
    turn(ways, other)
    assert await served_for(tokens, user) < TTL + 2 * SLACK
    assert await tokens.store.pool.value(LIFE) == await life_of(other)
    await until(lambda: tokens._cache.trusted)
    await passed(tokens)


async def test_a_pool_on_the_old_server_is_left_where_the_listener_begins_anew(
    tokens: TokenManager, ways: tuple[FaultProxy, FaultProxy], other: Database
) -> None:
    """The listener's session alone was cut: no notification of the pool's sessions would ever arrive. The count of
    skipped changes differs from server to server, as a sequence does after a promotion.
    """
    admin = await asyncpg.connect(other.admin_dsn)
    await admin.execute("select nextval('spotconn.skipped_notifications') from generate_series(1, 40)")
    await admin.close()
    old = feed_of(tokens)._subscription
    turn(ways, other)
    ways[1].cut()
    await until(lambda: feed_of(tokens)._subscription not in {None, old} and tokens._cache.trusted)
    assert await tokens.store.pool.value(LIFE) == await life_of(other)
    await passed(tokens)


async def test_trust_ends_where_no_new_connection_shows_the_server(
    tokens: TokenManager, ways: tuple[FaultProxy, FaultProxy]
) -> None:
    """The sessions go on, and new connections are refused: where they would lead is not known."""
    for way in ways:
        way.refuses = True
    await until(lambda: not tokens._cache.trusted)
    for way in ways:
        way.heal()
    await until(lambda: tokens._cache.trusted)


async def test_a_pool_without_a_free_session_ends_no_trust(
    database: Database, accounts: SpotifyAccounts, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """As during a long block of `as_user`: a new connection leads where the next one of the pool would."""
    await connect(store, spotify, user)
    async with (
        ConnectionStore.open(database.dsn, max_size=1, timeout=0.5) as own,
        TokenManager(own, accounts, cache_ttl=9) as tokens,
    ):
        await trusted(tokens, user)
        subscription = feed_of(tokens)._subscription
        trusted_until = tokens._cache.trusted_until
        async with own.as_user(user):
            await until(lambda: tokens._cache.trusted_until > trusted_until + 7)
        assert feed_of(tokens)._subscription is subscription


async def test_a_server_with_a_later_promotion_counts_among_several_hosts(
    database: Database, other: Database, store: ConnectionStore
) -> None:
    """Whichever stands first in the URL; hosts that do not answer are passed over, and so is an older server."""
    lives = sorted([await life_of(database), await life_of(other)])
    dsn = f"postgresql://app:app@127.0.0.1:{database.server.port},127.0.0.1:{other.server.port},127.0.0.1:1/spotconn"
    loop = asyncio.get_running_loop()
    check = ServerCheck(store.pool, dsn, {}, since=loop.time() - 10)
    assert await check.compare(await life_of(database), period=10) == 0, "both are of the same timeline"
    check = ServerCheck(store.pool, dsn, {}, since=loop.time() - 10)
    with pytest.raises(DatabaseUnavailable, match=OTHER_SERVER):
        await check.compare(f"00000000 {lives[0]}", period=10)


async def test_the_first_success_of_the_pool_ends_the_pause(
    tokens: TokenManager, ways: tuple[FaultProxy, FaultProxy], user: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listener does not sit in it while calls succeed again; it would last a quarter of an hour here."""
    monkeypatch.setattr(change_feed, "FIRST_PAUSE", 1800.0)
    monkeypatch.setattr(change_feed, "LONGEST_PAUSE", 1800.0)
    feed = feed_of(tokens)
    feed._backoff.first = 1800.0
    for way in ways:
        way.refuses = True
        way.cut()
    await until(lambda: feed._backoff.failures > 0)
    tokens._cache.invalidate(user)
    with pytest.raises(Exception, match="database"):
        await tokens.get_valid_token(user)
    for way in ways:
        way.heal()
    assert await tokens.get_valid_token(user)
    await until(lambda: tokens._cache.trusted)


async def test_what_does_not_pass_by_itself_is_not_asked_again_soon(
    tokens: TokenManager, admin: asyncpg.Connection, user: UUID
) -> None:
    """As a pooler that refuses LISTEN, or triggers that were dropped: the pool's success changes nothing about it."""
    feed = feed_of(tokens)
    feed._backoff.first = change_feed.REFUSED_PAUSE
    await admin.execute("alter table public.spotify_connections disable trigger spotconn_notify_change")
    try:
        await until(lambda: feed._backoff.failures == 1)
        for _ in range(3):
            feed.wake()
            feed.look()
            tokens._cache.invalidate(user)
            await tokens.get_valid_token(user)
        assert feed._subscription is None
        assert feed._backoff.failures == 1
    finally:
        await admin.execute("alter table public.spotify_connections enable always trigger spotconn_notify_change")


class Recorder:
    """A handler that records what it gets."""

    ttl = 0.6

    def __init__(self) -> None:
        self.users: list[UUID] = []
        self.heartbeats = 0

    def now(self) -> float:
        return 0.0

    def trust(self, sent: float, life: str) -> None:  # noqa: ARG002
        self.heartbeats += 1

    def invalidate(self, user_id: UUID) -> None:
        self.users.append(user_id)

    def clear(self) -> None: ...
    def distrust(self) -> None: ...


async def test_after_the_first_heartbeat_nobody_notifies(database: Database) -> None:
    """Thirty processes on one database: as many notifications, however long they listen."""
    payloads = list[str]()

    def notified(_session: object, _pid: object, _channel: object, payload: object) -> None:
        payloads.append(str(payload))

    session = await asyncpg.connect(database.dsn)
    await session.add_listener("spotconn", notified)
    handlers = [Recorder() for _ in range(30)]
    async with AsyncExitStack() as stack:
        stack.push_async_callback(session.close)
        for handler in handlers:
            own = await stack.enter_async_context(ConnectionStore.open(database.dsn, statement_cache_size=100))
            assert own.changes is not None
            own.changes.add(handler)
        await until(lambda: min(handler.heartbeats for handler in handlers) >= 5)
        await session.fetchval("select 1")
        assert len(payloads) == len(set(payloads)) == len(handlers)


async def test_all_that_was_committed_before_a_heartbeat_has_arrived_with_it(
    store: ConnectionStore, database: Database, admin: asyncpg.Connection
) -> None:
    """Also amid what others notify, and without any notification of its own: PostgreSQL delivers before it is ready."""
    handler, noise = Recorder(), await asyncpg.connect(database.dsn)

    async def disturb() -> None:
        while True:
            await noise.execute("select pg_notify('spotconn', gen_random_uuid()::text) from generate_series(1, 20)")

    assert store.changes is not None
    async with store.changes.subscribe(handler) as subscription:
        await subscription.heartbeat()
        disturbing = asyncio.create_task(disturb())
        try:
            for _ in range(200):
                user = uuid4()
                await admin.execute("select pg_notify('spotconn', $1)", str(user))
                await subscription.heartbeat()
                assert user in handler.users
                handler.users.clear()
        finally:
            disturbing.cancel()
            await asyncio.gather(disturbing, return_exceptions=True)
            noise.terminate()
