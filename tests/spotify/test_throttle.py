"""What one answer of Spotify means for the other calls of a process, and local backoffs."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from uuid import UUID, uuid4

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from spotconn import (
    ConfigurationError,
    ConnectFailed,
    ConnectionStore,
    ReauthorizationRequired,
    SpotifyAccounts,
    SpotifyUnavailable,
    TokenManager,
)
from spotconn._backoff import Backoff
from spotconn._spotify.circuit_breaker import CircuitBreaker
from spotconn._spotify.marks import Mark, marked
from spotconn._spotify.throttle import LONGEST_RETRY_AFTER, Throttle
from spotconn._tokens import local_backoff
from spotconn._tokens.local_backoff import LocalBackoffs
from spotconn.testing import Answer, FakeSpotify
from spotconn.testing._server import serve
from support.connections import connect
from support.consent import REDIRECT_URI


def throttled(seconds: float) -> SpotifyUnavailable:
    return marked(SpotifyUnavailable("429", retry_after=seconds), Mark.OF_ONE_APP)


def test_retry_after_stops_every_call_until_then() -> None:
    """After an answer with Retry-After nothing passes until it has run out, and the error says how long that is."""
    throttle = Throttle()
    throttle.record(throttled(60), now=1000)
    with pytest.raises(SpotifyUnavailable) as raised:
        throttle.check(now=1059)
    assert (raised.value.retry_after, raised.value.answered) == (1, False)
    throttle.check(now=1060)


def test_a_broken_retry_after_does_not_stop_calls_for_ever() -> None:
    """However long Spotify asks to wait, after a day a call passes."""
    throttle = Throttle()
    throttle.record(throttled(1e12), now=0)
    with pytest.raises(SpotifyUnavailable):
        throttle.check(now=LONGEST_RETRY_AFTER - 1)
    throttle.check(now=LONGEST_RETRY_AFTER)


def test_a_passing_failure_stops_no_call() -> None:
    """A 5xx without Retry-After, or a fault of the network, says nothing about the next call."""
    throttle = Throttle()
    throttle.record(SpotifyUnavailable("503"), now=0)
    throttle.record(SpotifyUnavailable("reset", retry_after=60, answered=False), now=0)
    throttle.check(now=0)


def refusal() -> ConfigurationError:
    return marked(ConfigurationError("invalid_client"), Mark.OF_ONE_APP)


def open_circuit() -> CircuitBreaker:
    breaker = CircuitBreaker()
    for user in ("a", "b"):
        breaker.record(refusal(), 0, user)
    return breaker


def test_a_fault_of_this_host_says_nothing_of_the_app() -> None:
    """A refused app stays refused when a probe fails before Spotify has judged it."""
    breaker = open_circuit()
    breaker.record(marked(ConfigurationError("certificate"), Mark.NOT_PROCESSED), 1, "c")
    breaker.record(ConfigurationError("invalid_request"), 1, "c")
    breaker.check(2, "c")
    with pytest.raises(ConfigurationError, match="invalid_client"):
        breaker.check(2.1, "d")


def test_a_refused_app_is_probed_by_one_call_per_growing_pause() -> None:
    """While Spotify refuses the app, of a hundred calls a second only the probes pass, and ever fewer."""
    breaker = open_circuit()
    probes: list[float] = []
    for tick in range(300_000):
        now = tick / 100
        try:
            breaker.check(now, tick)
        except ConfigurationError:
            continue
        probes.append(now)
        breaker.record(refusal(), now, tick)
    # Nine pauses double up to 256 s, each less a random half; the longest, of 150 to 300 s, fill the rest of 3000 s.
    assert 16 <= len(probes) <= 29
    assert all(150 <= later - earlier <= 301 for earlier, later in pairwise(probes[-5:]))


def test_a_probe_under_way_keeps_the_others_out() -> None:
    """Until the probe has its answer, no second call passes; after a grant all calls pass."""
    breaker = open_circuit()
    breaker.check(1, "c")
    with pytest.raises(ConfigurationError, match="invalid_client"):
        breaker.check(1.1, "d")
    breaker.record(None, 1.2, "c")
    for user in ("a", "b", "c", "d"):
        breaker.check(1.3, user)


def test_one_user_opens_no_circuit_and_keeps_none_open() -> None:
    """However often the calls of one user are refused, only that user is held back, and others probe beside it."""
    breaker = CircuitBreaker()
    for now in range(1000):
        breaker.check(now, "b")
        try:
            breaker.check(now, "a")
        except ConfigurationError:
            continue
        breaker.record(refusal(), now, "a")
    breaker.record(refusal(), 1000, "b")
    breaker.check(1000.1, "c")
    breaker.check(1400, "a")
    breaker.record(refusal(), 1400, "a")
    breaker.check(1400.1, "c")


def test_a_call_that_spotify_accepts_ends_what_was_refused_before() -> None:
    """Refusals of two users with a grant in between open nothing."""
    breaker = CircuitBreaker()
    breaker.record(refusal(), 0, "a")
    breaker.record(None, 1, "b")
    breaker.record(refusal(), 2, "c")
    breaker.check(2, "d")


def test_a_look_is_no_probe() -> None:
    """It refuses what a call would be refused, and leaves the probe that is due to a call."""
    breaker = open_circuit()
    for now in (0, 10_000):
        for _ in range(3):
            breaker.look(now=now, user="another")
        breaker.check(now=now, user="another")
        with pytest.raises(ConfigurationError, match="invalid_client"):
            breaker.look(now=now, user="a third")
    breaker.record(None, now=10_000, user="another")
    breaker.look(now=10_000, user="a third")


def test_pauses_grow_to_their_longest_with_jitter() -> None:
    """Each pause is at most twice the one before and at least half of its full length."""
    backoff = Backoff(first=1, longest=30)
    for full in (1, 2, 4, 8, 16, 30, 30):
        backoff.failed(100)
        assert full / 2 <= backoff.remaining(100) <= full
    assert backoff.remaining(131) == 0


def test_local_backoffs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only so many users have a backoff; the one that began first is dropped."""
    monkeypatch.setattr(local_backoff, "MOST_BACKOFFS", 2)
    backoffs, users = LocalBackoffs(), [uuid4() for _ in range(3)]
    for user in users:
        backoffs.begin(user, "token", SpotifyUnavailable("network", answered=False), now=0)
    assert [backoffs.error(user, "token", now=0) is None for user in users] == [True, False, False]
    assert backoffs.error(users[1], "another token", now=0) is None
    backoffs.end(users[1])
    assert backoffs.error(users[1], "token", now=0) is None


async def test_retry_after_holds_for_every_user_of_the_process(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, users: list[UUID]
) -> None:
    """After a 429 for one user no other user's refresh is sent; a usable token is still served."""
    usable = await connect(store, spotify, users[2], account="bob", ttl=100)
    for user in users[:2]:
        await connect(store, spotify, user, account=str(user), ttl=-1)
    spotify.script(Answer.too_many_requests("120"))
    async with TokenManager(store, accounts) as tokens:
        for user in users[:2]:
            with pytest.raises(SpotifyUnavailable) as raised:
                await tokens.get_valid_token(user)
            assert raised.value.retry_after == pytest.approx(120, abs=5)
        assert await tokens.get_valid_token(users[2]) == usable.access_token
    assert spotify.token_calls == 1
    assert (await store.get(users[1])).failure is None, "only what was sent is recorded"


async def test_a_refused_app_is_not_asked_about_every_user(
    store: ConnectionStore, spotify: FakeSpotify, users: list[UUID], accounts: SpotifyAccounts
) -> None:
    """With a wrong secret, 300 requests for three users cost a call for each, and few per pause; no user is marked."""
    begun = asyncio.get_running_loop().time()
    for user in users:
        await connect(store, spotify, user, account=str(user), ttl=-1)
    async with (
        SpotifyAccounts("demo-client", "wrong", accounts_url=accounts._accounts_url) as wrong,
        TokenManager(store, wrong) as tokens,
    ):
        for user in users * 100:
            with pytest.raises(ConfigurationError, match="SPOTIFY_CLIENT_SECRET"):
                await tokens.get_valid_token(user)
    assert spotify.token_calls <= 3 * (1 + (asyncio.get_running_loop().time() - begun) / 0.5)
    assert not any([(await store.get(user)).failure for user in users])


async def test_a_fault_of_this_hosts_network_pauses_this_host_alone(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID
) -> None:
    """A host that cannot reach Spotify pauses a user for itself and records nothing; another host refreshes."""
    before = await connect(store, spotify, user, ttl=-1)
    async with (
        SpotifyAccounts("demo-client", "demo-secret", accounts_url="http://127.0.0.1:1") as cut_off,
        TokenManager(store, cut_off, refresh_timeout=0.2) as here,
        TokenManager(store, accounts) as there,
    ):
        with pytest.raises(SpotifyUnavailable):
            await here.get_valid_token(user)
        with pytest.raises(SpotifyUnavailable) as raised:
            await here.get_valid_token(user)
        assert 0 < (raised.value.retry_after or 0) <= 1, "an attempt would not say when to come again"
        assert (await store.get(user)).failure is None
        token = await there.get_valid_token(user)
        assert token == await here.get_valid_token(user) != before.access_token


async def test_a_background_refresh_that_fails_is_not_begun_again_at_once(
    store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """While a host pauses, a stale token is served without another attempt behind it."""
    stale = await connect(store, spotify, user, ttl=100)
    async with (
        SpotifyAccounts("demo-client", "demo-secret", accounts_url="http://127.0.0.1:1") as cut_off,
        TokenManager(store, cut_off, refresh_timeout=0.2) as tokens,
    ):
        assert await tokens.get_valid_token(user) == stale.access_token
        await asyncio.wait(tokens._source.refreshes.tasks)
        assert await tokens.get_valid_token(user) == stale.access_token
        assert not tokens._source.refreshes.tasks


async def test_a_recorded_pause_is_not_asked_for_with_every_stale_token(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID
) -> None:
    """A process that finds the pause of another leaves the database alone until it is over."""
    stale = await connect(store, spotify, user, ttl=100)
    spotify.script(Answer.too_many_requests("120"))
    for _ in range(2):
        async with TokenManager(store, accounts) as tokens:
            for _ in range(2):  # the one that has the answer of Spotify has not read the record yet
                await tokens.get_valid_token(user)
                if tokens._source.refreshes.tasks:
                    await asyncio.wait(tokens._source.refreshes.tasks)
            assert await tokens.get_valid_token(user) == stale.access_token
            assert not tokens._source.refreshes.tasks
    assert spotify.token_calls == 1


async def test_an_empty_refresh_token_is_the_users_to_mend(accounts: SpotifyAccounts, spotify: FakeSpotify) -> None:
    """A row whose refresh token another client has emptied needs the user, and no request is sent."""
    with pytest.raises(ReauthorizationRequired, match="invalid"):
        await accounts.refresh("")
    assert spotify.token_calls == 0


async def test_no_attempt_begins_in_the_second_half_of_its_time(
    accounts: SpotifyAccounts, spotify: FakeSpotify
) -> None:
    """What Spotify asks to repeat after half of the time is left, so that no answer is cut off early."""
    spotify.add_account("alice")
    refresh_token = spotify.authorize("alice").refresh_token or ""
    spotify.script(Answer.too_many_requests("3"))
    with pytest.raises(SpotifyUnavailable, match="429"):
        await accounts.refresh(refresh_token, timeout=5)
    assert spotify.token_calls == 1


async def test_a_call_that_finds_no_slot_is_not_made(spotify: FakeSpotify, monkeypatch: pytest.MonkeyPatch) -> None:
    """While as many calls as allowed are under way, another waits for half of its time and then gives up unsent."""
    monkeypatch.setattr("spotconn._spotify.admission.MOST_CALLS", 1)
    spotify.add_account("alice")
    refresh_token = spotify.authorize("alice").refresh_token or ""
    async with spotify.serve() as url, SpotifyAccounts("demo-client", "demo-secret", accounts_url=url) as narrow:
        with spotify.hold() as held:
            first = asyncio.create_task(narrow.refresh(refresh_token))
            await held.reached()
            with pytest.raises(SpotifyUnavailable, match="too many calls"):
                await narrow.refresh(refresh_token, timeout=2)
            held.release()
            await first
    assert spotify.token_calls == 1


class Unwilling:
    """A real server that answers 429 with a Retry-After to the paths that are named."""

    def __init__(self, inner: FakeSpotify) -> None:
        self.inner = inner
        self.waits: dict[str, str] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if wait := self.waits.get(scope.get("path", "")):
            await PlainTextResponse("Too many requests", 429, {"retry-after": wait})(scope, receive, send)
        else:
            await self.inner(scope, receive, send)


CALLS: dict[str, Callable[[SpotifyAccounts], Awaitable[object]]] = {
    "/v1/me": lambda accounts: accounts.profile("token", timeout=5),
    "/api/token": lambda accounts: accounts.exchange_code("c", redirect_uri=REDIRECT_URI, code_verifier="v", timeout=5),
}


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.parametrize(("wait", "told"), [(7200, True), (4, False)])
async def test_what_a_connect_needs_is_known_before_it_begins(
    spotify: FakeSpotify, path: str, *, wait: int, told: bool
) -> None:
    """A throttled profile or exchange is told without a request, and a wait of a few seconds is none."""
    unwilling = Unwilling(spotify)
    unwilling.waits[path] = str(wait)
    async with serve(unwilling) as url, SpotifyAccounts("demo-client", accounts_url=url, api_url=url) as accounts:
        accounts.check_connect()
        with pytest.raises(SpotifyUnavailable):
            await CALLS[path](accounts)
        with pytest.raises(SpotifyUnavailable, match="asked this app to wait") if told else nullcontext() as raised:
            accounts.check_connect(uuid4())
    assert raised is None or 7000 < (raised.value.retry_after or 0) <= 7200


async def test_a_short_wait_is_waited_for_also_by_an_exchange(spotify: FakeSpotify, accounts: SpotifyAccounts) -> None:
    """A code is not lost to what Spotify has answered to another user: nothing of it was sent."""
    spotify.script(Answer.too_many_requests("0.5"))
    exchange = partial(accounts.exchange_code, "c", redirect_uri=REDIRECT_URI, code_verifier="v")
    with pytest.raises(SpotifyUnavailable):
        await exchange(timeout=0.9)
    accounts.check_connect()
    with pytest.raises(ConnectFailed, match="invalid_grant"):
        await exchange()


async def test_refreshes_that_wait_keep_nobody_from_connecting(spotify: FakeSpotify, accounts: SpotifyAccounts) -> None:
    """Each kind of call has a throttle of its own."""
    spotify.script(Answer.too_many_requests("7200"))
    with pytest.raises(SpotifyUnavailable):
        await accounts.refresh("rt", timeout=5)
    accounts.check_connect()
