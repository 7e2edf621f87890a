"""A callback that is fetched twice, a caller that is cancelled, and a flow that is closed meanwhile."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectFailed, ConnectFlow, ConnectionStore, DatabaseUnavailable, SpotifyAccounts, connect
from spotconn.events import Event
from spotconn.testing import FakeSpotify
from support.connections import rows
from support.consent import REDIRECT_URI, SCOPES, agree, altered, sent, state_of
from support.database import Database
from support.lock_waits import until_someone_waits


@pytest.fixture
async def other(flow: ConnectFlow, database: Database, accounts: SpotifyAccounts) -> AsyncIterator[ConnectFlow]:
    """The flow of another process."""
    async with ConnectionStore.open(database.dsn, max_size=2) as store:
        yield ConnectFlow(store, accounts, redirect_uri=REDIRECT_URI, scopes=SCOPES)


async def test_all_who_fetch_a_callback_at_once_have_one_result(
    flow: ConnectFlow, users: list[UUID], spotify: FakeSpotify, admin: asyncpg.Connection
) -> None:
    """By cookie, by the user and unbound; each binding has a flight of its own, and the state decides between them."""
    begun, signing_in = await flow.begin(users[0]), await flow.begin(None)
    started, bot = await flow.start(users[1]), await flow.start(users[2])
    urls = [await agree(url) for url in (begun.url, signing_in.url, started, bot)]
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: flow.complete(urls[0], sent(begun)),
        lambda: flow.complete(urls[1], sent(signing_in)),
        lambda: flow.finish(users[1], urls[2]),
        lambda: flow.complete_unbound(urls[3]),
    ]
    results = [await asyncio.gather(*(call() for _ in range(3))) for call in calls]
    for same in results:
        assert same[0] is same[1] is same[2]
    assert (spotify.token_calls, len(await rows(admin))) == (4, 3)
    for call in calls:
        with pytest.raises(ConnectFailed) as raised:
            await call()
        assert raised.value.reason == "state_used"


async def test_an_error_is_each_callers_own(flow: ConnectFlow, user: UUID, spotify: FakeSpotify) -> None:
    """Those who share a callback that Spotify refuses have objects of their own, of one reason."""
    callback = altered(await agree(await flow.start(user)), code="made-up")
    done = await asyncio.gather(*(flow.finish(user, callback) for _ in range(3)), return_exceptions=True)
    assert [error.reason for error in done if isinstance(error, ConnectFailed)] == ["code_rejected"] * 3
    assert len({id(error) for error in done}) == 3
    assert spotify.token_calls == 1


async def test_another_binding_is_decided_on_its_own(
    flow: ConnectFlow, users: list[UUID], spotify: FakeSpotify, admin: asyncpg.Connection
) -> None:
    """While the rightful browser is being connected, another user, another browser and a bot are refused as ever."""
    begun = await flow.begin(users[0])
    callback = await agree(begun.url)
    with spotify.hold() as held:
        rightful = asyncio.create_task(flow.complete(callback, sent(begun)))
        await held.reached()
        for call in (
            flow.complete(callback, None),
            flow.complete(callback, sent(begun), user_id=users[1]),
            flow.complete_unbound(callback),
            flow.finish(users[1], callback),
        ):
            with pytest.raises(ConnectFailed, match="another"):
                await call
        held.release()
        assert (await rightful).user_id == users[0]
    assert [row["user_id"] for row in await rows(admin)] == [users[0]]


async def test_another_process_says_that_the_callback_was_used(
    flow: ConnectFlow, other: ConnectFlow, users: list[UUID], spotify: FakeSpotify
) -> None:
    """While the first asks Spotify, and afterwards."""
    begun, started = await flow.begin(None), await flow.start(users[0])
    callbacks = await agree(begun.url), await agree(started)
    with spotify.hold() as held:
        first: list[asyncio.Task[Any]] = [
            asyncio.create_task(flow.complete(callbacks[0], sent(begun))),
            asyncio.create_task(flow.finish(users[0], callbacks[1])),
        ]
        await held.reached()
        for _ in range(2):
            with pytest.raises(ConnectFailed) as raised:
                await other.complete(callbacks[0], sent(begun))
            assert raised.value.reason == "state_used"
            held.release()
            await asyncio.gather(*first)
        with pytest.raises(ConnectFailed) as raised:
            await other.finish(users[0], callbacks[1])
        assert raised.value.reason == "state_used"


async def test_a_locked_authorization_is_not_spent_and_holds_up_no_other(
    flow: ConnectFlow, spotify: FakeSpotify, admin: asyncpg.Connection
) -> None:
    """Its own callback is refused and works once the lock is gone; another one without a user does not wait for it."""
    locked, other = await flow.begin(None), await flow.begin(None)
    callbacks = await agree(locked.url), await agree(other.url)
    async with admin.transaction():
        await admin.execute(
            "select from spotconn.pending_connect where state_hash = sha256($1::text::bytea) for update",
            state_of(locked.url),
        )
        waiting = asyncio.create_task(flow.complete(callbacks[0], sent(locked)))
        async with asyncio.timeout(20):
            while not await admin.fetchval("select exists (select from pg_locks where not granted)"):
                pass
        assert (await flow.complete(callbacks[1], sent(other))).user_id is None
        with pytest.raises(DatabaseUnavailable):
            await waiting
    assert (await flow.complete(callbacks[0], sent(locked))).user_id is None


@asynccontextmanager
async def _claim(spotify: FakeSpotify, admin: asyncpg.Connection) -> AsyncGenerator[Callable[[], Awaitable[object]]]:
    """The claim of the state waits."""
    async with admin.transaction():
        await admin.execute("lock table spotconn.pending_connect in exclusive mode")
        yield lambda: until_someone_waits(admin, "spotconn.pending_connect")


@asynccontextmanager
async def _exchange(spotify: FakeSpotify, admin: asyncpg.Connection) -> AsyncGenerator[Callable[[], Awaitable[object]]]:
    """The code exchange waits."""
    with spotify.hold() as held:
        yield held.reached
        held.release()


@asynccontextmanager
async def _save(spotify: FakeSpotify, admin: asyncpg.Connection) -> AsyncGenerator[Callable[[], Awaitable[object]]]:
    """The save waits."""
    async with admin.transaction():
        await admin.execute("lock table public.spotify_connections in exclusive mode")
        yield lambda: until_someone_waits(admin, "public.spotify_connections")


@pytest.mark.parametrize("waits", [_claim, _exchange, _save])
async def test_a_caller_that_is_cancelled_loses_no_grant(
    store: ConnectionStore,
    accounts: SpotifyAccounts,
    spotify: FakeSpotify,
    user: UUID,
    admin: asyncpg.Connection,
    waits: Callable[..., AbstractAsyncContextManager[Callable[[], Awaitable[object]]]],
) -> None:
    """Where the browser has gone while the state is claimed, the code exchanged or the row saved, the user is connected
    all the same, once, and the end of the flow waits for it.
    """
    emitted: list[Event] = []
    spotify.add_account("alice")
    async with ConnectFlow(store, accounts, redirect_uri=REDIRECT_URI, scopes=(), on_event=emitted.append) as flow:
        callback = await agree(await flow.start(user))
        async with waits(spotify, admin) as reached:
            caller = asyncio.create_task(flow.finish(user, callback))
            await reached()
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller
            closing = asyncio.create_task(flow.aclose())
            await asyncio.sleep(0)
            assert not closing.done()
        await closing
    assert [row["spotify_user_id"] for row in await rows(admin)] == ["alice"]
    assert (len(emitted), spotify.token_calls) == (1, 1)


async def test_the_end_of_a_flow_waits_no_longer_than_it_may(
    flow: ConnectFlow,
    user: UUID,
    spotify: FakeSpotify,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An authorization that takes longer is cut off, its caller hears that, and it is logged."""
    monkeypatch.setattr(connect, "TIMEOUT", 0.1)
    monkeypatch.setattr("spotconn._tokens.single_flight.STOP_TIMEOUT", 0.1)
    callback = await agree(await flow.start(user))
    with spotify.hold() as held:
        caller = asyncio.create_task(flow.finish(user, callback))
        await held.reached()
        await flow.aclose()
        with pytest.raises(RuntimeError, match="this ConnectFlow is closed"):
            await caller
    assert "authorizations were cut off at shutdown: 1" in caplog.text


async def test_a_sign_in_that_could_not_be_saved_is_saved_again(
    flow: ConnectFlow, users: list[UUID], spotify: FakeSpotify, admin: asyncpg.Connection
) -> None:
    """`save` spends nothing: after an error it may be called again, and a token that is older ends earlier."""
    begun = await flow.begin(None)
    done = await flow.complete(await agree(begun.url), sent(begun))
    with pytest.raises(ValueError, match="user_id"):
        await flow.save("no-uuid", done)
    older = done.model_copy(
        update={"grant": done.grant.model_copy(update={"expires_at": done.grant.expires_at.replace(year=2020)})}
    )
    assert (await flow.save(users[0], older)).remaining <= 0
    assert (await flow.save(users[0], done)).remaining > 3000
