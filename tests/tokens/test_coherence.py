"""What one process remembers, while others change the table: heard of by LISTEN, and bounded by time without it."""

import asyncio
import gc
import json
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from spotconn import ConnectionStore, DatabaseUnavailable, NotConnected, SpotifyAccounts, TokenManager
from spotconn._database.change_feed import ChangeFeed
from spotconn._database.subscription import CHANNEL
from spotconn._tokens.cache import ConnectionCache
from spotconn.testing import FakeSpotify, apply_schema
from support.connections import connect
from support.database import Database
from support.fault_proxy import FaultProxy
from support.listening import SECOND, feed_of, passed, served_for, trusted, until

DELETE = "delete from public.spotify_connections where user_id = $1"

Opening = Callable[..., Awaitable[TokenManager]]


@pytest.fixture
async def opened(database: Database, accounts: SpotifyAccounts) -> AsyncIterator[Opening]:
    """Opens a manager over a store of its own."""
    async with AsyncExitStack() as stack:

        async def open_manager(dsn: str = database.dsn, listen_dsn: str | None = None, **options: Any) -> TokenManager:
            store = await stack.enter_async_context(ConnectionStore.open(dsn, max_size=2, listen_dsn=listen_dsn))
            return await stack.enter_async_context(TokenManager(store, accounts, **options))

        yield open_manager


def watched_by_listener(tell: Callable[[], None]) -> Callable[[], float]:
    """A clock that tells when it is the listener that looks at it."""

    def clock() -> float:
        task = asyncio.current_task()
        if task is not None and task.get_name() == "spotconn-subscriber":
            tell()
        return time.time()

    return clock


@asynccontextmanager
async def heard_from(database: Database) -> AsyncGenerator[list[str]]:
    """What is notified meanwhile."""
    heard: list[str] = []

    def notified(_session: object, _pid: object, _channel: object, payload: object) -> None:
        if not str(payload).startswith("heartbeat "):
            heard.append(str(payload))

    listening = await asyncpg.connect(database.dsn)
    await listening.add_listener(CHANNEL, notified)
    try:
        yield heard
    finally:
        await listening.close()


async def test_a_disconnect_elsewhere_is_known_within_a_second(
    opened: Opening, store: ConnectionStore, spotify: FakeSpotify, users: list[UUID], admin: asyncpg.Connection
) -> None:
    """By whomever: this library, a client's SQL, and the end of the user; in every process that listens."""
    managers = [await opened() for _ in range(3)]
    ways: list[Callable[[UUID], Awaitable[object]]] = [
        store.delete,
        lambda user: admin.execute(DELETE, user),
        lambda user: admin.execute("delete from auth.users where id = $1", user),
    ]
    for user, disconnect in zip(users, ways, strict=True):
        await connect(store, spotify, user)
        for tokens in managers:
            await trusted(tokens, user)
        await disconnect(user)
        assert max(await asyncio.gather(*[served_for(tokens, user) for tokens in managers])) < SECOND


async def test_a_reconnect_elsewhere_is_known(
    opened: Opening, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """The token of the old account is not served any longer, the new one is."""
    await connect(store, spotify, user)
    tokens = await opened()
    await trusted(tokens, user)
    new = await connect(store, spotify, user, account="bob")
    await until(lambda: user not in tokens._cache.entries)
    assert await tokens.get_valid_token(user) == new.access_token


async def test_while_it_listens_a_token_outlives_the_ttl_without_a_read(
    database: Database, opened: Opening, proxy: FaultProxy, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """The database is not asked for it again, only whether pool and listener are at the same server."""
    await connect(store, spotify, user)
    tokens = await opened(proxy.dsn(database.dsn), database.dsn, cache_ttl=0.3)
    await trusted(tokens, user)
    executed, cached = len(proxy.executed), tokens._cache.entries[user]
    await until(lambda: tokens._cache.trusted_until > max(cached.since + 3 * 0.3, time.time() + 0.1))
    assert await tokens.get_valid_token(user)
    assert tokens._cache.entries[user] is cached
    assert set(proxy.executed[executed:]) == {b"select spotconn.server_life()"}


async def test_a_process_keeps_what_it_has_refreshed_itself(
    opened: Opening, database: Database, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """No process is notified of a refresh, which makes no cached token wrong."""
    await connect(store, spotify, user)
    tokens = await opened()
    await trusted(tokens, user)
    async with heard_from(database) as heard:
        await connect(store, spotify, user, ttl=-1)
        await until(lambda: user not in tokens._cache.entries)
        token = await tokens.get_valid_token(user)
        the_end = uuid4()
        await store.pool._pool.execute("select pg_notify($1, $2)", CHANNEL, str(the_end))
        await until(lambda: str(the_end) in heard)
    assert heard == [str(user), str(the_end)]
    assert tokens._cache.entries[user].access_token == token


async def test_a_read_under_way_does_not_bring_back_what_is_gone(
    opened: Opening, proxy: FaultProxy, database: Database, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """A row that was read before the disconnect, and arrives after the notification, is not remembered."""
    old = await connect(store, spotify, user)
    tokens = await opened(proxy.dsn(database.dsn), database.dsn)
    await trusted(tokens, user)
    tokens._cache.invalidate(user)
    with proxy.hold(b"get_access_tokens", answer=True) as held:
        reading = asyncio.create_task(tokens.get_valid_token(user))
        await held.reached()
        (pending,) = tokens._cache.pending[user]
        await store.delete(user)
        await until(lambda: pending.void)
        held.release()
        assert await reading == old.access_token, "who asked before the disconnect may have it"
    assert user not in tokens._cache.entries
    with pytest.raises(NotConnected):
        await tokens.get_valid_token(user)


async def test_a_grant_that_could_not_be_saved_is_not_trusted_until_it_is_stale(
    opened: Opening, proxy: FaultProxy, database: Database, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """It is served while the pool is cut off; that the user disconnected was heard before, and is not told again."""
    await connect(store, spotify, user, ttl=-1)
    tokens = await opened(proxy.dsn(database.dsn), database.dsn)
    with proxy.hold(b"finish_refresh") as held:
        refreshing = asyncio.create_task(tokens.get_valid_token(user))
        await held.reached()
        await until(lambda: tokens._cache.trusted)
        proxy.refuses = True
        proxy.cut()
        token = await refreshing
    await store.delete(user)
    await until(lambda: user not in tokens._cache.entries)
    assert await tokens.get_valid_token(user) == token
    assert tokens._cache.entries[user].fresh_until <= time.time() + 30
    proxy.heal()
    await until(lambda: tokens._source.refresher.unsaved.get(user) is None)
    with pytest.raises(NotConnected):
        await tokens.get_valid_token(user)


async def test_a_lost_connection_is_made_again(
    opened: Opening,
    proxy: FaultProxy,
    database: Database,
    store: ConnectionStore,
    spotify: FakeSpotify,
    user: UUID,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """While there is none, `cache_ttl` counts; the loss is told once, and the return."""
    caplog.set_level(logging.INFO, "spotconn")
    await connect(store, spotify, user)
    tokens = await opened(listen_dsn=proxy.dsn(database.dsn), cache_ttl=0.3)
    await trusted(tokens, user)
    proxy.refuses = True
    proxy.cut()
    await until(lambda: not tokens._cache.trusted)
    tokens._cache.invalidate(user)
    await tokens.get_valid_token(user)
    await store.delete(user)
    assert await served_for(tokens, user) <= 0.3
    await until(lambda: feed_of(tokens)._backoff.failures > 3)
    proxy.heal()
    await connect(store, spotify, user)
    await trusted(tokens, user)
    said = [record.getMessage() for record in caplog.records if "notifications of changes" in record.getMessage()]
    assert [line.split(":")[0] for line in said] == [
        "notifications of changes arrive",
        "notifications of changes do not arrive, connections are cached for 0.3 s",
        "notifications of changes arrive",
    ]


async def test_a_cut_is_known_at_once(
    opened: Opening, proxy: FaultProxy, database: Database, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """And not only by the next proof, which is ten seconds away."""
    await connect(store, spotify, user)
    tokens = await opened(listen_dsn=proxy.dsn(database.dsn))
    await trusted(tokens, user)
    proxy.cut()
    async with asyncio.timeout(3):
        await until(lambda: not tokens._cache.trusted)


async def test_a_connection_that_hears_nothing_is_trusted_for_the_ttl_at_most(
    opened: Opening, proxy: FaultProxy, database: Database, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """A half-open one: the sockets stay open, and nothing comes through."""
    await connect(store, spotify, user)
    tokens = await opened(listen_dsn=proxy.dsn(database.dsn), cache_ttl=0.9)
    await trusted(tokens, user)
    proxy.freeze()
    await store.delete(user)
    assert await served_for(tokens, user) <= 0.9


@pytest.mark.parametrize("step", [30.0, -60.0])
async def test_a_process_whose_clock_makes_a_step_trusts_nothing_at_first(
    opened: Opening,
    proxy: FaultProxy,
    database: Database,
    store: ConnectionStore,
    spotify: FakeSpotify,
    user: UUID,
    step: float,
) -> None:
    """Ahead, as after a suspended machine, or back: the first call asks the database, before it was notified."""
    ahead = 0.0
    await connect(store, spotify, user)
    tokens = await opened(listen_dsn=proxy.dsn(database.dsn), clock=lambda: time.time() + ahead)
    await trusted(tokens, user)
    proxy.freeze()
    await store.delete(user)
    assert await tokens.get_valid_token(user), "nothing has told it yet"
    ahead = step
    with pytest.raises(NotConnected):
        await tokens.get_valid_token(user)


@pytest.mark.parametrize(
    "damage",
    [
        "drop trigger spotconn_notify_change on public.spotify_connections",
        "alter table public.spotify_connections disable trigger spotconn_notify_truncate",
    ],
)
async def test_without_the_triggers_nothing_is_trusted(
    opened: Opening,
    database: Database,
    store: ConnectionStore,
    spotify: FakeSpotify,
    user: UUID,
    admin: asyncpg.Connection,
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    """Whoever drops them, as for a very large service, falls back on the TTL by that alone, also while it runs."""
    await connect(store, spotify, user)
    running = await opened(cache_ttl=0.3)
    await trusted(running, user)
    await admin.execute(damage)
    try:
        await until(lambda: not running._cache.trusted)
        assert "triggers that tell of changes are gone" in caplog.text
        later = await opened(cache_ttl=0.3)
        await later.get_valid_token(user)
        await until(lambda: feed_of(later)._backoff.failures > 1)
        assert not later._cache.trusted
    finally:
        await apply_schema(database.admin_dsn)


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "{}",
        "7",
        "not a user",
        "heartbeat",
        "* ",
        '{"user_id": "a", "expires_at": 1}',
        pytest.param("[" * 7999, id="deep"),
    ],
)
async def test_what_no_trigger_sends_is_ignored(
    opened: Opening, store: ConnectionStore, spotify: FakeSpotify, user: UUID, admin: asyncpg.Connection, payload: str
) -> None:
    """Anybody who may log in may notify: nonsense must not empty the cache of every process."""
    await connect(store, spotify, user)
    tokens = await opened()
    await trusted(tokens, user)
    await admin.execute("select pg_notify($1, $2)", CHANNEL, payload)
    await passed(tokens)
    assert user in tokens._cache.entries
    await admin.execute("select pg_notify($1, '*')", CHANNEL)
    await until(lambda: not tokens._cache.entries)
    assert await tokens.get_valid_token(user)


async def test_a_forged_proof_lends_no_cover(
    opened: Opening, proxy: FaultProxy, database: Database, store: ConnectionStore, spotify: FakeSpotify, user: UUID,
    admin: asyncpg.Connection,
) -> None:  # fmt: skip
    """Nor does that of another process."""
    await connect(store, spotify, user)
    tokens = await opened(proxy.dsn(database.dsn), database.dsn)
    with proxy.hold(b"heartbeat") as held:
        await tokens.get_valid_token(user)
        await held.reached()
        await admin.execute("select spotconn.heartbeat('0123456789abcdef')")
        assert not tokens._cache.trusted
        held.release()
        await until(lambda: tokens._cache.trusted)


async def test_the_listening_connection_leads_to_the_same_database(
    opened: Opening,
    database: Database,
    store: ConnectionStore,
    spotify: FakeSpotify,
    user: UUID,
    admin: asyncpg.Connection,
) -> None:
    """One that leads to another hears itself and none of the changes that count."""
    name = f"other_{uuid4().hex}"
    await admin.execute(f"create database {name} template template0")
    try:
        await connect(store, spotify, user)
        tokens = await opened(listen_dsn=database.dsn.replace("/spotconn", f"/{name}"), cache_ttl=1)
        feed_of(tokens)._timeout = 0.2
        await tokens.get_valid_token(user)
        await until(lambda: feed_of(tokens)._backoff.failures > 1)
        assert not tokens._cache.trusted
        await tokens.aclose()
    finally:
        await admin.execute(f"drop database {name} with (force)")


async def test_waiting_for_a_proof_holds_no_connection_of_the_pool(
    database: Database, proxy: FaultProxy, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """With one connection, a listener that hears nothing would keep every read waiting."""
    await connect(store, spotify, user)
    cache = ConnectionCache(ttl=1, size=1)
    async with ConnectionStore.open(database.dsn, max_size=1) as small:
        changes = ChangeFeed(small.pool, proxy.dsn(database.dsn), {})
        async with changes.subscribe(cache) as subscription:
            subscription._timeout = 2
            proxy.freeze()
            proving = asyncio.create_task(subscription.heartbeat())
            reads = 0
            while not proving.done():
                await small.get(user)
                reads += 1
            with pytest.raises(DatabaseUnavailable, match="did not answer in time"):
                await proving
    assert reads > 5


async def test_whatever_its_connection_raises_it_tries_again(
    database: Database, accounts: SpotifyAccounts, store: ConnectionStore, spotify: FakeSpotify, user: UUID,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """As a callable that fetches the password: nothing of its error is in the log but its name."""
    failing = iter([True])

    def password() -> str:
        if next(failing, False):
            raise LookupError("hush")
        return "app"

    await connect(store, spotify, user)
    store.changes = ChangeFeed(store.pool, database.dsn, {"password": password})
    async with TokenManager(store, accounts) as tokens:
        await trusted(tokens, user)
    assert "LookupError" in caplog.text
    assert "hush" not in caplog.text


async def test_what_a_caller_has_in_its_context_is_not_the_listeners(
    opened: Opening, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """A trace of the first call would go on for as long as the process lives."""
    traced = ContextVar("traced", default=False)
    seen = list[bool]()

    await connect(store, spotify, user)
    tokens = await opened(clock=watched_by_listener(lambda: seen.append(traced.get())))
    traced.set(True)
    await trusted(tokens, user)
    assert seen
    assert not any(seen)


async def test_a_short_ttl_costs_no_more_than_ten_proofs_a_second(
    opened: Opening, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """The cover has gaps then, in which the database is asked."""
    asked = list[float]()

    await connect(store, spotify, user)
    tokens = await opened(cache_ttl=0.001, clock=watched_by_listener(lambda: asked.append(time.monotonic())))
    await tokens.get_valid_token(user)
    await until(lambda: len(asked) >= 16)  # it looks at the clock three times at most for each
    assert asked[15] - asked[0] > 0.4


async def test_a_pool_of_ones_own_listens_where_it_is_told_to(
    database: Database, accounts: SpotifyAccounts, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """Without a DSN there is no task and no connection more."""
    await connect(store, spotify, user)
    async with asyncpg.create_pool(database.dsn, min_size=1) as pool:
        async with TokenManager(ConnectionStore(pool), accounts) as tokens:
            await tokens.get_valid_token(user)
            assert tokens.store.changes is None
        async with TokenManager(ConnectionStore(pool, listen_dsn=database.dsn), accounts) as tokens:
            await trusted(tokens, user)


@pytest.mark.parametrize("options", [{"cache_ttl": 0}, {"cache_size": 0}])
async def test_a_manager_that_remembers_nothing_does_not_listen(
    opened: Opening, store: ConnectionStore, spotify: FakeSpotify, user: UUID, options: dict[str, int]
) -> None:
    """It would be a connection for nothing."""
    await connect(store, spotify, user)
    tokens = await opened(**options)
    await tokens.get_valid_token(user)
    assert feed_of(tokens)._task is None


async def test_closing_ends_it_at_every_step(
    database: Database, proxy: FaultProxy, accounts: SpotifyAccounts, store: ConnectionStore, spotify: FakeSpotify,
    user: UUID, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """No task, connection or error is left, be it that it connects, waits for a proof, or listens."""
    await connect(store, spotify, user)
    proxy.delay = 0.005  # so that it takes some steps to connect
    step, proven = 0, False
    while not proven:
        before = asyncio.all_tasks()
        async with (
            ConnectionStore.open(database.dsn, max_size=2, listen_dsn=proxy.dsn(database.dsn)) as other,
            TokenManager(other, accounts) as tokens,
        ):
            await tokens.get_valid_token(user)
            for _ in range(step):
                await asyncio.sleep(0)
            proven = tokens._cache.trusted
        assert not {task for task in asyncio.all_tasks() - before if "spotconn" in task.get_name()}
        assert not tokens._cache.entries
        assert tokens._cache.trusted_until == math.inf
        assert not other._watchers
        step += 1 + step // 4
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_the_notifications_are_those_of_every_writer(
    database: Database, admin: asyncpg.Connection, users: list[UUID], store: ConnectionStore
) -> None:
    """A client role without any right in the schema spotconn tells, too; a row that changes its user tells of both."""
    one, two = str(users[0]), str(users[1])
    ends = "2027-01-31T12:00:00.5+00:00"
    async with heard_from(database) as heard:
        async with admin.transaction():
            await admin.execute("set local role authenticated; set local timezone to 'Asia/Kolkata'")
            await admin.execute("select set_config('request.jwt.claims', $1, true)", json.dumps({"sub": one}))
            await admin.execute(
                "insert into public.spotify_connections "
                "(user_id, spotify_user_id, access_token, refresh_token, expires_at) "
                f"values ('{one}', 'alice', 'access', 'refresh', '{ends}')"
            )
        await admin.execute("update public.spotify_connections set user_id = $1", users[1])
        await admin.execute("update public.spotify_connections set expires_at = 'infinity'")
        await admin.execute("truncate public.spotify_connections")
        await until(lambda: len(heard) == 5)
    assert heard == [one, one, two, two, "*"]


async def test_a_login_that_is_refused_is_told_and_tried_again(
    database: Database, accounts: SpotifyAccounts, store: ConnectionStore, spotify: FakeSpotify, user: UUID,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The tokens are served meanwhile; nothing of the DSN is in the log."""
    await connect(store, spotify, user)
    store.changes = ChangeFeed(store.pool, database.dsn.replace(":app@", ":hush-hush@"), {})
    async with TokenManager(store, accounts) as tokens:
        await tokens.get_valid_token(user)
        await until(lambda: feed_of(tokens)._backoff.failures > 1)
        assert await tokens.get_valid_token(user)
    assert "the database refused the login" in caplog.text
    assert "hush" not in caplog.text
