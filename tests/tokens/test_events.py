"""The on_event hook: what is told, how often, and that no hook disturbs what it observes."""

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from uuid import UUID

import pytest

from spotconn import ConnectionStore, NotConnected, SpotifyAccounts, SpotifyUnavailable, TokenManager, events
from spotconn import ReauthorizationRequired as Refusal
from spotconn.testing import Answer, FakeSpotify
from support.connections import connect
from support.listening import until


async def test_a_refresh_is_told(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID
) -> None:
    """Refreshed tells whose connection, until when, and how long it took."""
    told: list[events.Event] = []
    await connect(store, spotify, user, ttl=-1)
    async with TokenManager(store, accounts, on_event=told.append) as tokens:
        await tokens.get_valid_token(user)
    (event,) = told
    assert isinstance(event, events.Refreshed)
    assert (event.user_id, event.expires_at) == (user, (await store.get(user)).expires_at)
    assert 0 < event.duration < 5


async def test_a_failure_and_the_recovery_are_told(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID
) -> None:
    """RefreshFailed tells the error and when to try again; Recovered tells what had been recorded."""
    told: list[events.Event] = []
    await connect(store, spotify, user, ttl=-1)
    spotify.script(*[Answer.unavailable()] * 20)
    async with TokenManager(store, accounts, on_event=told.append, refresh_timeout=2) as tokens:
        with pytest.raises(SpotifyUnavailable):
            await tokens.get_valid_token(user)
        spotify._script.clear()
    async with TokenManager(store, accounts, on_event=told.append) as tokens:
        for _ in range(100):
            try:
                await tokens.get_valid_token(user)
                break
            except SpotifyUnavailable as paused:
                await asyncio.sleep(paused.retry_after or 0)
    failed, recovered, refreshed = told
    assert isinstance(failed, events.RefreshFailed)
    assert "503" in failed.message
    assert isinstance(refreshed, events.Refreshed)
    assert recovered == events.Recovered(user_id=user, client_id="demo-client", failure="unavailable")


async def test_a_death_is_told_once_for_all_processes(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID
) -> None:
    """Of two managers that keep asking for a revoked connection, one tells, once for each time it was connected."""
    told: list[events.Event] = []
    async with (
        TokenManager(store, accounts, on_event=told.append) as one,
        TokenManager(store, accounts, on_event=told.append) as two,
    ):
        for _ in range(2):
            await connect(store, spotify, user, ttl=-1)
            spotify.revoke("alice")
            for tokens in (one, two, one, two):
                with pytest.raises(Refusal):
                    await tokens.get_valid_token(user)
    assert told == [events.ReauthorizationRequired(user_id=user, client_id="demo-client", reason="revoked")] * 2


async def test_a_disconnect_is_told(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID
) -> None:
    """Disconnected comes once, and not when there was nothing to delete."""
    told: list[events.Event] = []
    await connect(store, spotify, user)
    async with TokenManager(store, accounts, on_event=told.append) as tokens:
        assert await tokens.disconnect(user)
        assert not await tokens.disconnect(user)
    assert told == [events.Disconnected(user_id=user)]


async def test_a_hook_that_raises_disturbs_nothing(
    store: ConnectionStore,
    accounts: SpotifyAccounts,
    spotify: FakeSpotify,
    user: UUID,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The call succeeds, the error is logged by its name without its text, and later events still come."""
    told: list[events.Event] = []

    def hook(event: events.Event) -> None:
        told.append(event)
        raise RuntimeError("secret of the hook")

    await connect(store, spotify, user, ttl=-1)
    async with TokenManager(store, accounts, on_event=hook) as tokens:
        assert spotify.accepts(await tokens.get_valid_token(user))
        await tokens.disconnect(user)
    assert [type(event).__name__ for event in told] == ["Refreshed", "Disconnected"]
    assert "RuntimeError" in caplog.text
    assert "secret of the hook" not in caplog.text


async def test_a_hook_that_hangs_disturbs_nothing(
    store: ConnectionStore,
    accounts: SpotifyAccounts,
    spotify: FakeSpotify,
    users: list[UUID],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While the hook hangs, tokens are served and refreshed; closing waits for it no longer than its time."""
    monkeypatch.setattr("spotconn.events.DRAIN_TIMEOUT", 0.1)
    release = threading.Event()
    for user in users:
        await connect(store, spotify, user, account=str(user), ttl=-1)
    try:
        async with TokenManager(store, accounts, on_event=lambda _: release.wait(30)) as tokens:
            for user in users:
                assert spotify.accepts(await tokens.get_valid_token(user))
    finally:
        release.set()


ENDS = [SystemExit, KeyboardInterrupt, GeneratorExit, pytest.fail.Exception, pytest.skip.Exception]


@pytest.mark.parametrize("awaited", [False, True], ids=["a function", "a coroutine function"])
@pytest.mark.parametrize("kind", ENDS, ids=lambda kind: kind.__name__)
async def test_a_hook_that_ends_more_than_itself_disturbs_nothing(
    kind: type[BaseException],
    awaited: bool,  # noqa: FBT001
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Neither the thread of the hook nor the event loop ends with it: later events come, and closing is quick."""
    told: list[int] = []

    def hook(event: events.Event) -> None:
        assert event.user_id is not None
        told.append(event.user_id.int)
        raise kind("secret of the hook")

    async def awaited_hook(event: events.Event) -> None:
        await asyncio.sleep(0)
        hook(event)

    sink = events.Events(awaited_hook if awaited else hook)
    for number in range(3):
        sink.emit(events.Disconnected(user_id=UUID(int=number)))
    async with asyncio.timeout(10):
        await sink.drained(seconds=30)
    assert told == [0, 1, 2]
    assert caplog.text.count(f"on_event raised {kind.__name__} for Disconnected") == 3
    assert "secret of the hook" not in caplog.text


@pytest.mark.parametrize("hangs", [False, True], ids=["a quick hook", "a hook that hangs"])
async def test_closing_needs_no_thread_of_the_executor(
    hangs: bool,  # noqa: FBT001
    store: ConnectionStore,
    spotify: FakeSpotify,
    user: UUID,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Managers and accounts close in time while all threads of the default executor wait, and hand over all events."""
    monkeypatch.setattr("spotconn.events.DRAIN_TIMEOUT", 0.2 if hangs else 20)
    told: list[events.Event] = []
    release = threading.Event()
    executor = ThreadPoolExecutor(max_workers=1)
    asyncio.get_running_loop().set_default_executor(executor)

    def hook(event: events.Event) -> None:
        if hangs:
            release.wait(30)
        told.append(event)

    await connect(store, spotify, user)
    try:
        async with spotify.serve() as url:
            accounts = SpotifyAccounts("demo-client", "demo-secret", accounts_url=url)
            tokens = TokenManager(store, accounts, on_event=hook)
            executor.submit(release.wait, 30)
            await tokens.disconnect(user)
            async with asyncio.timeout(10):
                await tokens.aclose()
                await accounts.aclose()
        assert len(told) == (0 if hangs else 1)
    finally:
        release.set()


async def test_a_refresh_that_waits_for_the_executor_holds_up_no_closing(
    store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """A name that no thread resolves costs the closing no more than the time of a refresh."""
    await connect(store, spotify, user, ttl=-1)
    release = threading.Event()
    executor = ThreadPoolExecutor(max_workers=1)
    asyncio.get_running_loop().set_default_executor(executor)
    executor.submit(release.wait, 30)
    try:
        accounts = SpotifyAccounts("demo-client", accounts_url="https://localhost:1")
        tokens = TokenManager(store, accounts, refresh_timeout=0.3)
        caller = asyncio.create_task(tokens.get_valid_token(user))
        async with asyncio.timeout(10):
            await until(lambda: bool(tokens._source.refresher._holder._requests))
            await tokens.aclose()
            await accounts.aclose()
            with pytest.raises(SpotifyUnavailable):
                await caller
    finally:
        release.set()


async def test_a_coroutine_function_is_awaited_on_the_loop(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID
) -> None:
    """A hook that is a coroutine function runs on the event loop of the manager."""
    loops: list[asyncio.AbstractEventLoop] = []

    async def hook(_event: events.Event) -> None:
        loops.append(asyncio.get_running_loop())

    await connect(store, spotify, user, ttl=-1)
    async with TokenManager(store, accounts, on_event=hook) as tokens:
        await tokens.get_valid_token(user)
    assert loops == [asyncio.get_running_loop()]


async def test_a_coroutine_that_takes_too_long_is_cancelled(
    user: UUID, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No task of the hook stays behind, and the next event comes."""
    monkeypatch.setattr(events, "HOOK_TIMEOUT", 0.05)
    ended = list[str]()

    async def hang(_event: events.Event) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    emitter = events.Events(hang)
    for _ in range(2):
        emitter.emit(events.Disconnected(user_id=user))
    await emitter.drained(seconds=10)
    await until(lambda: len(ended) == 2)
    assert caplog.text.count("on_event raised TimeoutError") == 2


async def test_a_backlog_is_bounded(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What a hook that hangs leaves waiting is bounded, and what is dropped is logged."""
    monkeypatch.setattr(events, "LARGEST_BACKLOG", 3)
    begun, release = threading.Event(), threading.Event()
    told: list[events.Event] = []

    def hook(event: events.Event) -> None:
        begun.set()
        release.wait(30)
        told.append(event)

    sink = events.Events(hook)
    sink.emit(events.Disconnected(user_id=UUID(int=0)))
    await asyncio.to_thread(begun.wait, 30)
    for number in range(1, 6):
        sink.emit(events.Disconnected(user_id=UUID(int=number)))
    release.set()
    await sink.drained(seconds=30)
    assert [event.user_id for event in told] == [UUID(int=number) for number in range(4)]
    with caplog.at_level(logging.ERROR):
        assert caplog.text.count("Disconnected was dropped") == 2


async def test_events_are_frozen_and_hold_no_token() -> None:
    """An event cannot be changed, and its fields are no secrets."""
    event = events.Refreshed(user_id=UUID(int=1), client_id="demo-client", expires_at=datetime.now(UTC), duration=0.1)
    with pytest.raises(ValueError, match="frozen"):
        event.duration = 1
    fields = {name for kind in events.Event.__args__ for name in kind.model_fields}
    assert not {name for name in fields if "token" in name or "secret" in name}


async def test_no_event_of_a_user_who_is_not_connected(
    store: ConnectionStore, accounts: SpotifyAccounts, user: UUID
) -> None:
    """Asking for an unknown user is no event."""
    told: list[events.Event] = []
    async with TokenManager(store, accounts, on_event=told.append) as tokens:
        with pytest.raises(NotConnected):
            await tokens.get_valid_token(user)
    assert not told
