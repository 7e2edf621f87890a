"""Tokens for many users where the caller is slow, Spotify asks to wait, or the iterator of ids does not end."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from uuid import UUID

import asyncpg
import pytest

from spotconn import (
    ConfigurationError,
    ConnectionStore,
    SpotconnError,
    SpotifyAccounts,
    SpotifyUnavailable,
    TokenManager,
    TokensProgress,
)
from spotconn._tokens import batch
from spotconn.testing import Answer, FakeClock, FakeSpotify
from support.bulk import connect_many
from support.connections import OWN_APP, connect
from support.database_clock import DatabaseClock, database_clock

Found = str | SpotconnError
APP_B = "app-b"


@pytest.fixture
def spotify() -> FakeSpotify:
    """It knows two apps."""
    return FakeSpotify(rotation=True, other_apps={APP_B: "secret-b"})


@pytest.fixture
async def hasty(store: ConnectionStore, accounts: SpotifyAccounts) -> AsyncIterator[TokenManager]:
    """A manager whose own retries are over before two seconds have passed: a Retry-After of 2 is left to the pass."""
    async with TokenManager(store, accounts, refresh_timeout=3, lease=6) as manager:
        yield manager


@pytest.fixture
async def stepped(admin: asyncpg.Connection) -> AsyncIterator[DatabaseClock]:
    async with database_clock(admin) as clock:
        yield clock


async def all_of(answers: AsyncIterator[tuple[UUID, Found]]) -> dict[UUID, Found]:
    return dict([pair async for pair in answers])


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.001)


async def test_no_token_is_handed_out_that_has_ended_meanwhile(
    store: ConnectionStore, admin: asyncpg.Connection, stepped: DatabaseClock
) -> None:
    """A caller who works for a minute for each user gets a token that is good for it each time; who has been refused
    meanwhile gets the reason. Only those that have ended are refreshed.
    """
    clock = FakeClock(time.time())
    spotify = FakeSpotify(rotation=True, clock=clock)
    async with (
        spotify.serve() as url,
        SpotifyAccounts(OWN_APP, "demo-secret", accounts_url=url, api_url=url, clock=clock) as accounts,
        TokenManager(store, accounts, clock=clock) as tokens,
    ):
        users = await connect_many(admin, spotify, [3600] * 80)
        served, refused = 0, list[Found]()
        async for _, found in tokens.get_valid_tokens(users):
            served += 1
            if isinstance(found, str):
                assert spotify.accepts(found)
            else:
                refused.append(found)
            if served == 30:
                spotify.revoke("account-79")
            clock.step(60)
            await stepped.step(60)
    assert served == 80
    assert [type(error).__name__ for error in refused] == ["ReauthorizationRequired"]
    assert spotify.token_calls == 80 - 60  # the sixtieth has half a minute left, the margin


async def test_one_throttle_does_not_fail_the_others(
    hasty: TokenManager, spotify: FakeSpotify, admin: asyncpg.Connection
) -> None:
    """A single 429 costs two seconds, and one call more than there are users; `progress` is called for the wait."""
    users = await connect_many(admin, spotify, [-1] * 40)
    spotify.script(Answer.too_many_requests("2"))
    reported: list[TokensProgress] = []
    begun = asyncio.get_running_loop().time()
    found = await all_of(hasty.get_valid_tokens(users, concurrency=3, progress=reported.append))
    assert asyncio.get_running_loop().time() - begun >= 2
    assert len(found) == 40
    assert all(isinstance(token, str) and spotify.accepts(token) for token in found.values())
    assert spotify.token_calls == 41
    *waits, last = reported
    assert waits
    assert all(0 < one.waiting <= 2 for one in waits)
    assert last == TokensProgress(done=40, failed=0)


async def test_the_backoff_of_one_user_leaves_the_time_to_the_others(
    hasty: TokenManager, spotify: FakeSpotify, admin: asyncpg.Connection
) -> None:
    """Who has failed lately gets that as the answer at once: the pass can still wait for a throttle."""
    ill, *users = await connect_many(admin, spotify, [-1] * 11)
    spotify.script(*[Answer(status=500)] * 9)
    with pytest.raises(SpotifyUnavailable):
        await hasty.get_valid_token(ill)
    spotify._script.clear()
    await admin.execute("update spotconn.refresh_state set retry_at = now() + interval '20 seconds'")
    seen: list[TokensProgress] = []
    first = await all_of(hasty.get_valid_tokens([ill], throttle_timeout=30, progress=seen.append))
    assert isinstance(first[ill], SpotifyUnavailable)
    assert [one.waiting for one in seen] == [0.0]
    spotify.script(Answer.too_many_requests("2"))
    found = await all_of(hasty.get_valid_tokens([ill, *users], throttle_timeout=3))
    assert all(isinstance(found[user], str) for user in users)


@pytest.mark.parametrize("allowed", [29.0, 0.0])
async def test_a_throttle_beyond_the_timeout_is_the_answer_at_once(
    hasty: TokenManager, spotify: FakeSpotify, admin: asyncpg.Connection, allowed: float
) -> None:
    """Each user has SpotifyUnavailable with the time that is left of it, nobody waits, and Spotify is asked no more."""
    users = await connect_many(admin, spotify, [-1] * 12)
    spotify.script(Answer.too_many_requests("30"))
    reported: list[TokensProgress] = []
    answers = hasty.get_valid_tokens(users, concurrency=1, throttle_timeout=allowed, progress=reported.append)
    async with asyncio.timeout(20):
        found = await all_of(answers)
    assert (len(found), spotify.token_calls) == (12, 1)
    for error in found.values():
        assert isinstance(error, SpotifyUnavailable)
        assert error.retry_after is not None
        assert 0 <= error.retry_after <= 30
    assert [one.waiting for one in reported] == [0.0]


async def test_a_token_that_is_still_good_is_not_waited_for(
    hasty: TokenManager, spotify: FakeSpotify, admin: asyncpg.Connection
) -> None:
    """While Spotify asks to wait, users with minutes left have their stored token at once."""
    users = await connect_many(admin, spotify, [-1, *[200] * 5])
    spotify.script(*[Answer.too_many_requests("30")] * 6)
    async with aclosing(hasty.get_valid_tokens(users)) as answers, asyncio.timeout(20):
        first = [await anext(answers) for _ in range(5)]
    assert {user for user, _ in first} == set(users[1:])


async def test_the_throttle_of_one_app_holds_up_its_own_connections_only(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, admin: asyncpg.Connection
) -> None:
    """More users of the throttled app than refreshes at once: those of the other app are served meanwhile."""
    rows = await admin.fetch("insert into auth.users (email) select n from generate_series(1, 12) as n returning id")
    users = [row["id"] for row in rows]
    own, others = users[:8], users[8:]
    for number, user in enumerate(users):
        app = OWN_APP if user in own else APP_B
        await connect(store, spotify, user, account=f"account-{number}", ttl=-1, app=app)
    url = accounts.api_url
    async with (
        SpotifyAccounts(APP_B, "secret-b", accounts_url=url, api_url=url) as b,
        TokenManager(store, accounts, other_apps=[b], refresh_timeout=3, lease=6) as tokens,
        aclosing(tokens.get_valid_tokens(users, concurrency=1)) as answers,
    ):
        spotify.script(Answer.too_many_requests("30"))
        async with asyncio.timeout(15):
            found = dict([await anext(answers) for _ in others])
    assert set(found) == set(others)
    assert all(isinstance(token, str) and spotify.accepts(token) for token in found.values())
    assert spotify.refresh_calls_by_app[OWN_APP] == 1


async def test_closing_ends_a_wait_at_once(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, admin: asyncpg.Connection
) -> None:
    """A pass that waits for Spotify ends with its block, with its caller and with the manager, and leaves no task."""
    users = await connect_many(admin, spotify, [-1] * 4)
    spotify.script(*[Answer.too_many_requests("50")] * 4)
    waiting = asyncio.Event()

    def note(progress: TokensProgress) -> None:
        if progress.waiting:
            waiting.set()

    tokens = TokenManager(store, accounts, refresh_timeout=3, lease=6)
    cancelled = asyncio.create_task(all_of(tokens.get_valid_tokens(users, progress=note)))
    closed = asyncio.create_task(all_of(tokens.get_valid_tokens(users, progress=note)))
    async with asyncio.timeout(20):
        await waiting.wait()
        cancelled.cancel()
        await asyncio.wait([cancelled])
        await tokens.aclose()
        with pytest.raises(RuntimeError, match="this TokenManager is closed"):
            await closed
    assert not {task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("spotconn-many")}


async def test_a_slow_caller_waits_for_spotify_too(
    store: ConnectionStore, admin: asyncpg.Connection, stepped: DatabaseClock
) -> None:
    """A token that ended in the queue is refreshed after the throttle, of which `progress` is called."""
    clock = FakeClock(time.time())
    spotify = FakeSpotify(rotation=True, clock=clock)
    reported: list[TokensProgress] = []
    async with (
        spotify.serve() as url,
        SpotifyAccounts(OWN_APP, "demo-secret", accounts_url=url, api_url=url, clock=clock) as accounts,
        TokenManager(store, accounts, clock=clock, refresh_timeout=3, lease=6) as tokens,
    ):
        users = await connect_many(admin, spotify, [3600] * 2)
        async with aclosing(tokens.get_valid_tokens(users, progress=reported.append)) as answers:
            await anext(answers)
            clock.step(4000)
            await stepped.step(4000)
            spotify.script(Answer.too_many_requests("2"))
            _, token = await anext(answers)
        assert isinstance(token, str)
        assert spotify.accepts(token)
    assert spotify.token_calls == 2
    assert [one.waiting > 0 for one in reported] == [True]


@pytest.mark.parametrize("ends", ["failure", "close"])
async def test_a_source_that_swallows_its_cancellation_does_not_hold_up_the_end(
    store: ConnectionStore,
    accounts: SpotifyAccounts,
    spotify: FakeSpotify,
    admin: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    ends: str,
) -> None:
    """A fault of all, and the end of the manager, reach a caller who waits for an answer."""
    monkeypatch.setattr(batch, "STOP_TIMEOUT", 0.1)
    users = await connect_many(admin, spotify, [-1] * batch.BATCH if ends == "failure" else [3600] * batch.BATCH)
    hangs, go_on = asyncio.Event(), asyncio.Event()

    async def stubborn() -> AsyncIterator[UUID]:
        for user in users:
            yield user
        while not go_on.is_set():
            hangs.set()
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                continue

    tokens = TokenManager(store, accounts)
    if ends == "failure":
        refusal = Answer(status=400, json={"error": "invalid_client"})
        spotify.script(*[refusal] * batch.BATCH)
    caller = asyncio.create_task(all_of(tokens.get_valid_tokens(stubborn())))
    async with asyncio.timeout(30):
        if ends == "close":
            await hangs.wait()
        closing = asyncio.create_task(tokens.aclose()) if ends == "close" else None
        with pytest.raises(ConfigurationError if ends == "failure" else RuntimeError):
            await caller
        go_on.set()
        await (closing or tokens.aclose())
    await until(lambda: not any(task.get_name() == "spotconn-many" for task in asyncio.all_tasks()))


async def test_bad_timeouts_are_named(hasty: TokenManager, user: UUID) -> None:
    """At the call."""
    for wrong in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"^throttle_timeout: "):
            hasty.get_valid_tokens([user], throttle_timeout=wrong)
