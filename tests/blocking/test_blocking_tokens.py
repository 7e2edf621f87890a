"""BlockingTokens in one process: what starts when, what callers get, and what holds for many threads."""

import asyncio
import contextvars
import pickle
import signal
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, cast
from uuid import UUID

import pytest

from spotconn import (
    ConfigurationError,
    ConnectFailed,
    DatabaseUnavailable,
    NotConnected,
    SpotconnError,
    TokenManager,
    TryLater,
)
from spotconn._observer import Observer
from spotconn.blocking import BlockingTokens
from spotconn.blocking._services import Services
from support.blocking_harness import Harness, Make
from support.consent import agree

THREADS = 200
CALLS: dict[str, Callable[[BlockingTokens, UUID], object]] = {
    "get_valid_token": lambda tokens, user: tokens.get_valid_token(user),
    "get_access_token": lambda tokens, user: tokens.get_access_token(user),
    "begin": lambda tokens, user: tokens.begin(user),
    "complete": lambda tokens, _: tokens.complete("/callback?code=a&state=b", ""),
    "complete_unbound": lambda tokens, _: tokens.complete_unbound("/callback?code=a&state=b"),
    "replace_rejected": lambda tokens, user: tokens.replace_rejected(user, "BQ-rejected"),
    "status": lambda tokens, user: tokens.status(user),
    "check": lambda tokens, _: tokens.check(),
    "disconnect": lambda tokens, user: tokens.disconnect(user),
    "start": lambda tokens, user: tokens.start(user),
    "finish": lambda tokens, user: tokens.finish(user, "/callback?code=a&state=b"),
    "auth": lambda tokens, user: tokens.auth(user).get_access_token(),
}


@contextmanager
def standing_still(tokens: BlockingTokens) -> Generator[None]:
    """Context manager: the event loop of the thread does nothing."""
    reached, release = threading.Event(), threading.Event()

    async def stand(_: object) -> None:
        reached.set()
        release.wait(30)

    thread = tokens._current
    assert thread is not None
    waiting = threading.Thread(target=thread.call, args=(stand, 30))
    waiting.start()
    reached.wait(30)
    try:
        yield
    finally:
        release.set()
        waiting.join()


def test_nothing_is_started_before_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be made when a module is imported: without settings, threads and an event loop."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.delenv("SPOTIFY_CLIENT_ID", raising=False)
    before = threading.active_count()
    with BlockingTokens.from_env() as tokens:
        tokens.auth(1)
        assert threading.active_count() == before
        for _ in range(2):
            with pytest.raises(ConfigurationError, match="SPOTIFY_CLIENT_ID is not set"):
                tokens.get_valid_token(1)


def test_the_settings_and_overrides_are_those_of_the_manager(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A good token is served as it is stored, and a keyword argument reaches the manager."""
    (user,) = harness.connect(3600)
    settings = {"SPOTCONN_DATABASE_URL": harness.dsn, "SPOTIFY_CLIENT_ID": "0123456789abcdef"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SPOTIFY_REDIRECT_URI", raising=False)
    with BlockingTokens.from_env() as tokens:
        assert tokens.get_valid_token(user) == harness.stored(user)["access_token"]
        with pytest.raises(ConfigurationError, match="SPOTIFY_REDIRECT_URI is not set"):
            tokens.start(user)
    with BlockingTokens.from_env(max_size=3) as tokens:
        assert cast("Any", tokens)._started(30).call(_pool_size, 30) == 3
    with BlockingTokens.from_env(cache_ttl=-1) as tokens, pytest.raises(ValueError, match="cache_ttl"):
        tokens.get_valid_token(user)


def test_a_mapping_takes_the_place_of_the_environment(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the manager and for the flow; the one hook is that of both."""
    (user,) = harness.connect(3600)
    monkeypatch.setenv("DATABASE_URL", "hush")
    monkeypatch.setenv("SPOTIFY_REDIRECT_URI", "hush")
    environ = {
        "DATABASE_URL": harness.dsn,
        "SPOTIFY_CLIENT_ID": "0123456789abcdef",
        "SPOTIFY_REDIRECT_URI": "https://example.com/callback",
    }
    hook = list[object]().append
    with BlockingTokens.from_env(environ=environ, on_event=hook) as tokens:
        assert "example.com" in tokens.start(user)
        services = cast("Any", tokens)._current.resource
        assert services.flow._events is services.manager._events
        assert services.manager._events._hook is hook


async def _pool_size(on: Services) -> int:
    return on.manager.store.pool._pool.get_max_size()


def test_a_user_connects_is_served_and_disconnects(
    harness: Harness, tokens: BlockingTokens, spotify_account: str
) -> None:
    """The calls of the flow and of the manager, with the ids of users in each form."""
    harness.connect()
    [row] = harness.sql("insert into auth.users (email) values ('a') returning id")
    user: UUID = row["id"]
    callback = harness.loop.run(agree(tokens.start(str(user)), spotify_account))
    assert tokens.finish(user, callback).spotify_user_id == spotify_account
    with pytest.raises(ConnectFailed):
        tokens.finish(user, callback.replace("state=", "state=x"))
    assert tokens.status(user).connected
    token = tokens.get_valid_token(str(user), scopes=["user-top-read"], min_ttl=600)
    assert token == tokens.get_valid_token(user) == tokens.auth(user).get_access_token()
    assert tokens.get_access_token(user).value == token
    assert (tokens.disconnect(user), tokens.disconnect(user)) == (True, False)
    assert not tokens.status(user).connected


def test_the_other_ways_of_the_flow(harness: Harness, tokens: BlockingTokens, spotify_account: str) -> None:
    """By a cookie, with a user and without one, and by the state alone."""
    harness.connect()
    user, other = (row["id"] for row in harness.sql("insert into auth.users values (default), (default) returning id"))
    known = tokens.begin(user, data={"next": "/profile"}, scopes=["user-read-email"])
    callback = harness.loop.run(agree(known.url, spotify_account))
    completed = tokens.complete(callback, known.cookie.partition(";")[0], user_id=user)
    assert (completed.user_id, completed.data) == (user, {"next": "/profile"})
    unknown = tokens.begin(None)
    callback = harness.loop.run(agree(unknown.url, spotify_account))
    completed = tokens.complete(callback, unknown.cookie.partition(";")[0])
    assert completed.connection is None
    assert tokens.save(other, completed).spotify_user_id == spotify_account
    callback = harness.loop.run(agree(tokens.start(other), spotify_account))
    assert tokens.complete_unbound(callback).user_id == other


def test_another_account_is_refused_in_each_way(harness: Harness, tokens: BlockingTokens, spotify_account: str) -> None:
    """`same_account` reaches the flow."""
    harness.connect()
    [row] = harness.sql("insert into auth.users values (default) returning id")
    user: UUID = row["id"]
    tokens.finish(user, harness.loop.run(agree(tokens.start(user), spotify_account)))
    harness.spotify.add_account("bob")
    begun, unknown = tokens.begin(user), tokens.begin(None)
    known, free = (part.cookie.partition(";")[0] for part in (begun, unknown))
    back = [harness.loop.run(agree(url, "bob")) for url in (tokens.start(user), begun.url, tokens.start(user))]
    signed_in = tokens.complete(harness.loop.run(agree(unknown.url, "bob")), free)
    for refused in (
        lambda: tokens.finish(user, back[0], same_account=True),
        lambda: tokens.complete(back[1], known, same_account=True),
        lambda: tokens.complete_unbound(back[2], same_account=True),
        lambda: tokens.save(user, signed_in, same_account=True),
    ):
        with pytest.raises(ConnectFailed) as raised:
            refused()
        assert raised.value.reason == "other_account"


@pytest.fixture
def spotify_account(harness: Harness) -> str:
    return harness.spotify.add_account("alice").spotify_user_id


def test_a_rejected_token_is_replaced(harness: Harness, tokens: BlockingTokens) -> None:
    """By another one, which is stored and then served."""
    (user,) = harness.connect(3600)
    rejected = tokens.get_valid_token(user)
    other = tokens.replace_rejected(user, rejected)
    with pytest.raises(ValueError, match="scopes: expected"):
        tokens.replace_rejected(user, rejected, scopes="user-top-read")
    assert other == harness.stored(user)["access_token"] == tokens.get_valid_token(user) != rejected


def test_many_threads_share_one_manager_and_one_refresh(harness: Harness, tokens: BlockingTokens) -> None:
    """200 threads that come first at the same moment: one event loop, one manager, one refresh, one token."""
    (user,) = harness.connect(-5)
    barrier = threading.Barrier(THREADS)

    def ask(_: int) -> str:
        barrier.wait(60)
        return tokens.get_valid_token(user)

    with ThreadPoolExecutor(THREADS) as threads:
        found = set(threads.map(ask, range(THREADS)))
    assert len(found) == harness.opened == harness.spotify.refresh_calls == 1
    assert [thread.name for thread in threading.enumerate()].count("spotconn") == 1


def test_a_cached_token_needs_no_other_thread(harness: Harness, tokens: BlockingTokens) -> None:
    """It is served while the event loop stands still, in each form of the id; what is not cached waits in vain."""
    user, other = harness.connect(3600, 3600)
    token = tokens.get_valid_token(user)
    with standing_still(tokens):
        assert tokens.get_valid_token(user) == tokens.get_valid_token(str(user)) == token
        with pytest.raises(TryLater):
            tokens.get_valid_token(other, timeout=0.05)


def test_an_observer_hears_of_each_call(harness: Harness, make: Make) -> None:
    """Where telemetry counts the calls of the manager, also those that the cache answers are counted."""
    (user,) = harness.connect(3600)
    counted: list[object] = []

    class Counting(Observer):
        def counted(self, call: Any) -> Any:
            def one(*args: Any, **options: Any) -> Any:
                counted.append(call)
                return call(*args, **options)

            return one

    @asynccontextmanager
    async def opened() -> AsyncGenerator[TokenManager]:
        async with harness.open() as manager:
            manager._source.observe(Counting(), manager)
            yield manager

    tokens = make(opened)
    assert len({tokens.get_valid_token(user) for _ in range(3)}) == 1
    assert len(counted) == 3


def test_a_call_that_takes_too_long_goes_on(harness: Harness, tokens: BlockingTokens) -> None:
    """The caller is asked to try later; the refresh is saved all the same, and the next call has its token."""
    (user,) = harness.connect(-5)
    with harness.spotify.hold() as hold:
        with pytest.raises(TryLater, match=r"no answer within 0\.5 s; the call goes on in the background"):
            tokens.get_valid_token(user, timeout=0.5)
        harness.loop.run(hold.reached())
        harness.loop.run(_release(hold))
    assert tokens.get_valid_token(user) == harness.stored(user)["access_token"]
    assert harness.spotify.refresh_calls == 1


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 1e10, None, "30"])
def test_a_timeout_that_is_none_is_named(tokens: BlockingTokens, timeout: Any) -> None:
    """Each wait has an end."""
    with pytest.raises(ValueError, match="timeout: expected seconds, more than 0"):
        tokens.status(1, timeout=timeout)


def test_opening_that_fails_is_tried_again_by_the_next_call(harness: Harness, make: Make) -> None:
    """All who wait get an error of their own, and a database that is back serves without a restart."""
    (user,) = harness.connect(3600)
    down = threading.Event()
    down.set()

    @asynccontextmanager
    async def opened() -> AsyncGenerator[TokenManager]:
        if down.is_set():
            await asyncio.sleep(0.2)  # all of them wait for the same
            raise DatabaseUnavailable("away")
        async with harness.open() as manager:
            yield manager

    tokens = make(opened)
    with ThreadPoolExecutor(5) as threads:
        errors = [waiting.exception() for waiting in [threads.submit(tokens.status, user) for _ in range(5)]]
    assert [str(error) for error in errors] == ["away"] * 5
    assert len({id(error) for error in errors}) == 5
    down.clear()
    assert tokens.status(user).connected


def test_an_error_is_the_callers_own(harness: Harness, tokens: BlockingTokens) -> None:
    """Its traceback has the frames of the caller and none of the library or of the other thread."""
    harness.connect()
    [row] = harness.sql("insert into auth.users (email) values ('a') returning id")

    def fail(_: int) -> SpotconnError:
        with pytest.raises(NotConnected) as raised:
            tokens.get_valid_token(row["id"])
        frames = [entry.frame.code.path for entry in raised.traceback]
        assert {str(path) for path in frames} == {__file__}
        assert raised.value.__cause__ is raised.value.__context__ is None
        return raised.value

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(fail, range(2))
    assert first is not second


def test_errors_of_the_callers_own_functions_show_where(make: Make) -> None:
    """A mistake in what opens the manager is found in its own line."""

    @asynccontextmanager
    async def opened() -> AsyncGenerator[TokenManager]:
        raise KeyError("mistaken")
        yield

    with pytest.raises(KeyError, match="mistaken") as raised:
        make(opened).status(1)
    assert raised.traceback[-1].name == "opened"


def test_sys_exit_in_the_event_loop_ends_no_thread(harness: Harness, make: Make) -> None:
    """Where opening calls it, the caller is told at once and the next call tries again; a call has it as its own."""
    tokens = make(partial(next, iter([_exiting(), harness.open()])))
    with pytest.raises(RuntimeError, match=r"what opens the manager has called sys\.exit") as raised:
        tokens.status(1)
    assert raised.traceback[-1].name == "_exiting"
    assert not tokens.status(1).connected
    thread = tokens._current
    assert thread is not None

    async def leave(_: object) -> None:
        sys.exit("of a hook")

    with pytest.raises(SystemExit, match="of a hook"):
        thread.call(leave, 30)
    assert not tokens.status(1).connected
    assert tokens._current is thread
    assert harness.opened == 1


@asynccontextmanager
async def _exiting() -> AsyncGenerator[TokenManager]:
    sys.exit("settings are missing")
    yield


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_died_is_replaced(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its event loop fails, as without memory, later calls have a new one and do not wait in vain."""

    @asynccontextmanager
    async def opened() -> AsyncGenerator[None]:
        yield

    async def answer(_: object) -> int:
        return 1

    def fail(_: object) -> None:
        raise MemoryError

    tokens = make(opened)
    thread = tokens._started(30)
    assert thread.call(answer, 30) == 1
    monkeypatch.setattr(vars(thread._loop)["_selector"], "select", fail)
    thread._loop.call_soon_threadsafe(list)
    thread._thread.join(60)
    assert tokens._started(30).call(answer, 30) == 1
    assert tokens._started(30) is not thread
    thread.close()


def test_what_is_open_has_no_context_of_a_call(harness: Harness, make: Make) -> None:
    """The context variables of the first caller, such as a request of Flask, are not held for ever."""
    variable = contextvars.ContextVar[str]("variable", default="none")
    variable.set("of the caller")
    found: list[str] = []

    @asynccontextmanager
    async def opened() -> AsyncGenerator[TokenManager]:
        found.append(variable.get())
        async with harness.open() as manager:
            yield manager

    make(opened).status(1)
    assert found == ["none"]


@pytest.mark.parametrize("name", CALLS)
async def test_a_running_event_loop_is_not_stopped(name: str) -> None:
    """Each call says what to await instead, before anything is started."""
    before = threading.active_count()
    with (
        BlockingTokens.from_env() as tokens,
        pytest.raises(RuntimeError, match=r"await a TokenManager there, or .* \(asyncio.to_thread\)"),
    ):
        CALLS[name](tokens, UUID(int=1))
    assert threading.active_count() == before


async def test_beside_an_event_loop_it_serves_in_another_thread(harness: Harness, tokens: BlockingTokens) -> None:
    """As the text of that error has it."""
    assert not (await asyncio.to_thread(tokens.status, 1)).connected


def test_bad_arguments_are_named() -> None:
    """When it is made: scopes that are one text, and a context manager in place of what makes one."""
    makers: list[Callable[..., object]] = [BlockingTokens.from_env, partial(BlockingTokens, TokenManager.from_env)]
    for make_one in makers:
        for scopes in ("user-top-read", None, ["two words"]):
            with pytest.raises(ValueError, match="scopes: expected"):
                make_one(scopes=scopes)
    for opened in (TokenManager.from_env(), _exiting(), None):
        with pytest.raises(TypeError, match=r"opened: .* such as TokenManager\.from_env, not a call of it"):
            BlockingTokens(cast("Any", opened))


def test_pickling_says_what_to_do() -> None:
    """As multiprocessing would, also of an auth."""
    tokens = BlockingTokens.from_env()
    for value in (tokens, tokens.auth(1)):
        with pytest.raises(TypeError, match="make it in a module that each process imports"):
            pickle.dumps(value)


def test_one_that_is_dropped_open_warns_and_ends(harness: Harness) -> None:
    """Its thread and its connections do not stay."""
    harness.connect()
    dropped = [BlockingTokens(harness.open)]
    dropped[0].status(1)
    thread = cast("Any", dropped[0])._current._thread
    with pytest.warns(ResourceWarning, match="a BlockingTokens was dropped"):
        dropped.clear()
    thread.join(60)
    assert not thread.is_alive()


def test_a_closed_one_is_not_entered() -> None:
    """The block would run into the error of its first call."""
    tokens = BlockingTokens.from_env()
    tokens.close()
    with pytest.raises(RuntimeError, match="is closed: make another one"), tokens:
        raise AssertionError("entered")


@pytest.mark.parametrize("used", [False, True])
def test_after_close_each_call_says_so(harness: Harness, make: Make, *, used: bool) -> None:
    """Also a cached token is not served any more, and closing again does nothing."""
    (user,) = harness.connect(3600)
    tokens = make()
    if used:
        tokens.get_valid_token(user)
    with tokens:
        pass
    tokens.close()
    for call in CALLS.values():
        with pytest.raises(RuntimeError, match="this BlockingTokens is closed"):
            call(tokens, user)
    assert not [thread for thread in threading.enumerate() if thread.name == "spotconn"]


def test_closing_ends_what_still_waits(harness: Harness, make: Make) -> None:
    """A refresh under way is completed and saved, its caller has the token; a call that hangs is told of the end."""
    (user,) = harness.connect(-5)
    tokens = make()
    assert not tokens.status(1).connected
    thread = tokens._current
    assert thread is not None
    hanging = threading.Event()

    async def hang(_: object) -> None:
        hanging.set()
        await asyncio.sleep(3600)

    with ThreadPoolExecutor(3) as threads, harness.spotify.hold() as hold:
        refreshing = threads.submit(tokens.get_valid_token, user)
        harness.loop.run(hold.reached())
        told = threads.submit(thread.call, hang, 60)
        assert hanging.wait(30)
        closing = threads.submit(tokens.close)
        harness.loop.run(_release(hold))
        closing.result(60)
        assert refreshing.result(60) == harness.stored(user)["access_token"]
        with pytest.raises(RuntimeError, match="this BlockingTokens is closed"):
            told.result(60)


def test_each_that_closes_waits_for_the_end(harness: Harness, make: Make) -> None:
    """The second does not end its process while the first still waits for a refresh."""
    (user,) = harness.connect(-5)
    tokens = make()
    with ThreadPoolExecutor(3) as threads, harness.spotify.hold() as hold:
        refreshing = threads.submit(tokens.get_valid_token, user)
        harness.loop.run(hold.reached())
        closing = [threads.submit(tokens.close) for _ in range(2)]
        assert not wait(closing, 0.3).done
        harness.loop.run(_release(hold))
        assert not wait(closing, 60).not_done
        assert refreshing.result(60) == harness.stored(user)["access_token"]


def test_a_signal_handler_may_close(harness: Harness, make: Make) -> None:
    """Wherever the signal comes, also where its thread is in a call and holds the locks."""
    tokens = make()
    assert not tokens.status(1).connected
    thread = tokens._current
    assert thread is not None

    def close(_number: int, _frame: object) -> None:
        tokens.close()

    before = signal.signal(signal.SIGUSR1, close)
    try:
        with tokens._lock, thread._lock:
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    with pytest.raises(RuntimeError, match="this BlockingTokens is closed"):
        tokens.status(1)


async def _release(hold: Any) -> None:
    hold.release()
