"""The lease covers the whole request, and an answer that has arrived counts, however late this process looks at it."""

import asyncio
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from uuid import UUID

import asyncpg
import httpx
import pytest

from spotconn import ConnectionStore, SpotifyAccounts, TokenManager
from spotconn.testing import FakeSpotify
from support.connections import connect
from support.crash import working
from support.database import Database
from support.fault_proxy import FaultProxy
from support.listening import until
from support.token_worker import digest

TIMEOUT = 1.0
"""Seconds for Spotify where the event loop stands still for longer."""


@contextmanager
def spotify_in_a_thread(spotify: FakeSpotify) -> Generator[str]:
    """Serve it by an event loop of its own, which goes on while that of the test stands still; its URL."""
    started, ended = threading.Event(), asyncio.Event()
    urls: list[str] = []
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with spotify.serve() as url:
            urls.append(url)
            started.set()
            await ended.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=[serve()])
    thread.start()
    started.wait(10)
    try:
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(10)
        loop.close()


async def lease_is_over(admin: asyncpg.Connection, left: float = 0) -> None:
    """Wait until a lease is taken and has no more than that many seconds left."""
    text = (
        "select count(*) from spotconn.refresh_state where lease_until <= clock_timestamp() + make_interval(secs => $1)"
    )
    async with asyncio.timeout(10):
        while not await admin.fetchval(text, left):
            await asyncio.sleep(0.01)


async def test_a_turn_that_comes_late_is_given_back(
    database: Database, proxy: FaultProxy, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID,
    admin: asyncpg.Connection,
) -> None:  # fmt: skip
    """Where what is left of the lease does not cover the request, it is not sent; the next turn serves the caller."""
    async with (
        ConnectionStore.open(proxy.dsn(database.dsn)) as store,
        TokenManager(store, accounts, cache_ttl=0, refresh_timeout=0.5, lease=1) as tokens,
    ):
        await connect(store, spotify, user, ttl=-1)
        with proxy.hold(b"begin_refresh", answer=True) as late, proxy.hold(b"fail_refresh") as returned:
            caller = asyncio.create_task(tokens.get_valid_token(user))
            await late.reached()
            await lease_is_over(admin, left=0.7)
            late.release()
            await returned.reached()
            assert spotify.token_calls == 0
        assert spotify.accepts(await caller)
    assert spotify.token_calls == 1


async def test_a_turn_that_comes_after_its_lease_sends_no_second_request(
    database: Database, proxy: FaultProxy, store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify,
    user: UUID, admin: asyncpg.Connection,
) -> None:  # fmt: skip
    """Another has taken the refresh over meanwhile: one request is in flight, and both have its token."""
    await connect(store, spotify, user, ttl=-1)
    async with (
        ConnectionStore.open(proxy.dsn(database.dsn)) as slow,
        TokenManager(slow, accounts, cache_ttl=0, refresh_timeout=4, lease=4.5) as late,
        TokenManager(store, accounts, cache_ttl=0) as sibling,
    ):
        with proxy.hold(b"begin_refresh", answer=True) as held, spotify.hold() as answer:
            first = asyncio.create_task(late.get_valid_token(user))
            await held.reached()
            await admin.execute("update spotconn.refresh_state set lease_until = now()")
            second = asyncio.create_task(sibling.get_valid_token(user))
            await answer.reached()
            await lease_is_over(admin, left=14.4)  # the first has 0.5 s for the database's answer
            with proxy.hold(b"begin_refresh", answer=True) as again:
                held.release()
                await again.reached()
                assert spotify.token_calls == 1, "the first has given its turn back, and asks once more"
            answer.release()
            assert await first == await second
    assert spotify.token_calls == 1


@pytest.mark.parametrize("closing", [False, True], ids=["at work", "closing"])
@pytest.mark.parametrize("own_client", [False, True], ids=["own clients", "a client with a short timeout"])
async def test_an_answer_in_the_socket_is_saved_after_the_loop_stood_still(
    store: ConnectionStore,
    user: UUID,
    closing: bool,  # noqa: FBT001
    own_client: bool,  # noqa: FBT001
) -> None:
    """The event loop is blocked for longer than Spotify has time: the answer arrived in time, is read and saved."""
    spotify = FakeSpotify(rotation=True, latency=(0.3, 0.3))
    before = await connect(store, spotify, user, ttl=-1)
    client = httpx.AsyncClient(timeout=0.1) if own_client else None
    with spotify_in_a_thread(spotify) as url:
        async with SpotifyAccounts("demo-client", "demo-secret", accounts_url=url, http=client) as accounts:
            tokens = TokenManager(store, accounts, refresh_timeout=TIMEOUT)
            caller = asyncio.create_task(tokens.get_valid_token(user))
            await until(lambda: spotify.token_calls == 1)
            ending = asyncio.create_task(tokens.aclose() if closing else asyncio.sleep(0))
            await asyncio.sleep(0)
            time.sleep(TIMEOUT + 0.7)  # noqa: ASYNC251  it blocks the event loop
            token = await caller
            await ending
            await tokens.aclose()
            if client is not None:
                await client.aclose()
    after = await store.get(user)
    assert token == after.access_token != before.access_token
    assert spotify.accepts_refresh(after.refresh_token)
    assert spotify.token_calls == 1


async def test_an_answer_in_the_socket_of_a_stopped_process_is_saved(
    database: Database, store: ConnectionStore, spotify: FakeSpotify, user: UUID, admin: asyncpg.Connection
) -> None:
    """A process that is stopped until its lease is over, as a frozen function is, saves what came meanwhile."""
    await connect(store, spotify, user, ttl=-1)
    async with spotify.serve() as url, working(database.dsn, url) as process:
        await process.ready()
        with spotify.hold() as held:
            process.order(user)
            await held.reached()
            process._process.send_signal(signal.SIGSTOP)
            held.release()
            await lease_is_over(admin)
        process._process.send_signal(signal.SIGCONT)
        answer = await process.answer()
    after = await store.get(user)
    assert answer == {"token": digest(after.access_token)}
    assert spotify.accepts_refresh(after.refresh_token)
    assert spotify.token_calls == 1
