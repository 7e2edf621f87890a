"""TokenManager against a real Postgres and a FakeSpotify over real HTTP."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import asyncpg
import pytest

from spotconn import (
    ConnectionStore,
    MissingScope,
    NotConnected,
    Outcome,
    ReauthorizationRequired,
    SpotifyAccounts,
    SpotifyUnavailable,
    TokenManager,
)
from spotconn.testing import Answer, FakeSpotify
from support.connections import connect, content
from support.database import Database

HTML = b"<html><body>upstream connect error or disconnect/reset before headers</body></html>"


@pytest.fixture
async def tokens(store: ConnectionStore, accounts: SpotifyAccounts) -> AsyncIterator[TokenManager]:
    async with TokenManager(store, accounts) as manager:
        yield manager


async def test_fresh_token_is_served_as_stored(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """A token that is good for an hour comes from the row, and Spotify is not asked."""
    connection = await connect(store, spotify, user)
    assert await tokens.get_valid_token(str(user)) == connection.access_token
    assert spotify.token_calls == 0


async def test_expired_token_is_refreshed_and_saved(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """An expired token is replaced by one that Spotify accepts, and the row holds both new tokens."""
    before = await connect(store, spotify, user, ttl=-1)
    token = await tokens.get_valid_token(user)
    after = await store.get(user)
    assert token == after.access_token != before.access_token
    assert spotify.accepts(token)
    assert spotify.accepts_refresh(after.refresh_token)
    assert after.connected_at == before.connected_at


@pytest.mark.parametrize("ttl", [30, 29, 0, -4000])
async def test_token_within_the_margin_is_not_served(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID, ttl: float
) -> None:
    """A token with no more than the margin left counts as expired."""
    before = await connect(store, spotify, user, ttl=ttl)
    assert await tokens.get_valid_token(user) != before.access_token


async def test_fifty_callers_cost_one_call_and_others_do_not_wait(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, users: list[UUID]
) -> None:
    """Fifty callers of one expired user share one token call; while it hangs, another user is served."""
    await connect(store, spotify, users[0], account="alice", ttl=-1)
    other = await connect(store, spotify, users[1], account="bob")
    async with asyncio.TaskGroup() as group:
        with spotify.hold() as held:
            callers = [group.create_task(tokens.get_valid_token(users[0])) for _ in range(50)]
            await held.reached()
            assert await tokens.get_valid_token(users[1]) == other.access_token
            assert not any(caller.done() for caller in callers)
            held.release()
    assert len({caller.result() for caller in callers}) == 1
    assert spotify.token_calls == 1


async def test_refresh_of_one_user_does_not_wait_for_anothers(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, users: list[UUID]
) -> None:
    """While Spotify keeps one user's refresh waiting, another expired user is refreshed."""
    await connect(store, spotify, users[0], account="alice", ttl=-1)
    await connect(store, spotify, users[1], account="bob", ttl=-1)
    with spotify.hold(calls=1) as held:
        slow = asyncio.create_task(tokens.get_valid_token(users[0]))
        await held.reached()
        assert spotify.accepts(await tokens.get_valid_token(users[1]))
        assert not slow.done()
        held.release()
        assert spotify.accepts(await slow)


async def test_two_managers_refresh_once(
    store: ConnectionStore, accounts: SpotifyAccounts, database: Database, spotify: FakeSpotify, user: UUID
) -> None:
    """Of two managers over one database, one refreshes and the other waits for its token."""
    await connect(store, spotify, user, ttl=-1)
    async with (
        ConnectionStore.open(database.bypass_dsn) as other_store,
        TokenManager(store, accounts) as one,
        TokenManager(other_store, accounts) as two,
    ):
        first, second = await asyncio.gather(one.get_valid_token(user), two.get_valid_token(user))
    assert first == second
    assert spotify.token_calls == 1


async def test_cancelled_caller_stops_nothing(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID
) -> None:
    """A caller cancelled at any step of a refresh leaves a refresh that completes and is saved."""
    step, finished = 0, False
    while not finished:
        before = await connect(store, spotify, user, ttl=-1)
        calls = spotify.token_calls
        async with TokenManager(store, accounts) as tokens:
            caller = asyncio.create_task(tokens.get_valid_token(user))
            for _ in range(step):
                await asyncio.sleep(0)
            finished = caller.done()
            # What has begun goes on: the flight of the refresh, which does it all.
            begun = bool(tokens._source.refreshes.tasks) or spotify.token_calls > calls
            caller.cancel()
            await asyncio.wait([caller])
            while flights := tokens._source.refreshes.tasks:
                await asyncio.wait(flights)
        after = await store.get(user)
        assert begun or not finished
        assert (after.access_token != before.access_token) == begun
        assert spotify.token_calls - calls == begun
        assert spotify.accepts_refresh(after.refresh_token)
        step += 1 if step < 30 else step // 10


async def test_a_manager_that_closes_begins_nothing_at_spotify(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID
) -> None:
    """Closed at any step of a refresh, it saves what Spotify was asked for, or does not ask and leaves no lease."""
    step, outcomes = 0, set[int]()
    while outcomes != {0, 1} or step < 30:
        before = await connect(store, spotify, user, ttl=-1)
        calls = spotify.token_calls
        tokens = TokenManager(store, accounts)
        caller = asyncio.create_task(tokens.get_valid_token(user))
        for _ in range(step):
            await asyncio.sleep(0)
        sent = spotify.token_calls - calls
        await tokens.aclose()
        await asyncio.wait([caller])
        after, asked = await store.get(user), spotify.token_calls - calls
        assert sent <= asked <= 1
        assert (after.access_token != before.access_token) == asked
        if not asked:
            with pytest.raises(RuntimeError, match="closed"):
                await caller
            assert (await store.begin_refresh(user, seen=before.fingerprint)).outcome is Outcome.GRANTED
        outcomes.add(asked)
        step += 1 if step < 30 else step // 10


async def test_stale_token_is_served_and_refreshed_in_the_background(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """A token near its end is served at once, while one refresh runs behind."""
    before = await connect(store, spotify, user, ttl=100)
    with spotify.hold() as held:
        assert await tokens.get_valid_token(user) == before.access_token
        await held.reached()
        assert await tokens.get_valid_token(user) == before.access_token
        held.release()
        await asyncio.wait(tokens._source.refreshes.tasks)
    after = await store.get(user)
    assert await tokens.get_valid_token(user) == after.access_token != before.access_token
    assert spotify.token_calls == 1


async def test_failure_in_the_background_is_logged_and_not_raised(
    tokens: TokenManager,
    store: ConnectionStore,
    spotify: FakeSpotify,
    user: UUID,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A stale token is served although its refresh fails; the failure is logged."""
    before = await connect(store, spotify, user, ttl=100)
    spotify.revoke("alice")
    with caplog.at_level(logging.WARNING, "spotconn"):
        assert await tokens.get_valid_token(user) == before.access_token
        await asyncio.wait(tokens._source.refreshes.tasks)
    assert "ReauthorizationRequired" in caplog.text
    assert await tokens.get_valid_token(user) == before.access_token
    assert not tokens._source.refreshes.tasks, "a refused connection is not asked again"


async def test_revoked_connection_is_recorded_and_not_asked_again(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """After invalid_grant every call answers from the record, and the tokens stay in the row."""
    before = await connect(store, spotify, user, ttl=-1)
    spotify.revoke("alice")
    for _ in range(3):
        with pytest.raises(ReauthorizationRequired) as raised:
            await tokens.get_valid_token(user)
        assert raised.value.reason == "revoked"
    assert spotify.token_calls == 1
    after = await store.get(user)
    assert (after.access_token, after.refresh_token) == (before.access_token, before.refresh_token)
    assert (await tokens.status(user)).reauthorization == "revoked"


async def test_reconnecting_voids_the_record(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """A reconnect makes a refused connection work again."""
    await connect(store, spotify, user, ttl=-1)
    spotify.revoke("alice")
    with pytest.raises(ReauthorizationRequired):
        await tokens.get_valid_token(user)
    await connect(store, spotify, user, account="bob", ttl=-1)
    assert spotify.accepts(await tokens.get_valid_token(user))


@pytest.mark.parametrize(
    "answer",
    [
        Answer(body=HTML, headers={"content-type": "text/html"}),
        Answer(body=b""),
        Answer(json={"access_token": 5, "token_type": "Bearer", "expires_in": 3600}),
        Answer(json={"access_token": "x", "token_type": "Bearer", "expires_in": -1}),
        Answer(json={"access_token": "x", "token_type": "Bearer"}),
        Answer(status=400, body=HTML),
        Answer(status=502, body=HTML),
        Answer(status=429, headers={"retry-after": "13749"}),
    ],
    ids=["html", "empty", "wrong-type", "negative", "no-expiry", "400-html", "502", "429"],
)
async def test_nonsense_from_spotify_leaves_the_row_untouched(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID, answer: Answer
) -> None:
    """An unusable answer is SpotifyUnavailable, and the row is as it was."""
    before = await connect(store, spotify, user, ttl=-1)
    spotify.script(*[answer] * 20)
    async with TokenManager(store, accounts, refresh_timeout=0.3, lease=1) as tokens:
        with pytest.raises(SpotifyUnavailable):
            await tokens.get_valid_token(user)
    after = await store.get(user)
    assert content(after.model_copy(update={"failure": None})) == content(before)


async def test_spotifys_refusal_pauses_every_process(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID
) -> None:
    """After a 429 with Retry-After another manager does not ask, and says for how long."""
    await connect(store, spotify, user, ttl=-1)
    spotify.script(Answer(status=429, headers={"retry-after": "120"}))
    for _ in range(2):
        async with TokenManager(store, accounts) as tokens:
            with pytest.raises(SpotifyUnavailable) as raised:
                await tokens.get_valid_token(user)
            assert raised.value.retry_after == pytest.approx(120, abs=5)
    assert spotify.token_calls == 1


async def test_replace_rejected_refreshes_once_for_all(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """Many callers with the same rejected token cost one refresh, and late ones none."""
    rejected = (await connect(store, spotify, user)).access_token
    fresh = set(await asyncio.gather(*[tokens.replace_rejected(user, rejected) for _ in range(10)]))
    assert len(fresh) == 1
    assert rejected not in fresh
    assert await tokens.replace_rejected(user, rejected) in fresh
    assert spotify.token_calls == 1


async def test_disconnect_during_a_refresh_wins(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """A row deleted while Spotify answers stays deleted, and the caller hears so."""
    await connect(store, spotify, user, ttl=-1)
    with spotify.hold() as held:
        caller = asyncio.create_task(tokens.get_valid_token(user))
        await held.reached()
        assert await tokens.disconnect(user)
        held.release()
        with pytest.raises(NotConnected):
            await caller
    assert not (await tokens.status(user)).connected


async def test_reconnect_during_a_refresh_wins(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """A row replaced while Spotify answers is what the caller gets."""
    await connect(store, spotify, user, ttl=-1)
    with spotify.hold() as held:
        caller = asyncio.create_task(tokens.get_valid_token(user))
        await held.reached()
        replaced = await connect(store, spotify, user, account="bob")
        held.release()
        assert await caller == replaced.access_token
    assert (await store.get(user)).spotify_user_id == "bob"


async def test_disconnect_forgets_the_cached_token(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """After a disconnect the token that was just served is not served again."""
    await connect(store, spotify, user)
    await tokens.get_valid_token(user)
    assert await tokens.disconnect(user)
    assert not await tokens.disconnect(user)
    with pytest.raises(NotConnected):
        await tokens.get_valid_token(user)


async def test_a_read_under_way_does_not_revive_a_disconnected_user(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID, admin: asyncpg.Connection
) -> None:
    """A refresh that ends after a disconnect in this process does not fill the cache."""
    await connect(store, spotify, user, ttl=-1)
    with spotify.hold() as held:
        caller = asyncio.create_task(tokens.get_valid_token(user))
        await held.reached()
        tokens._cache.invalidate(user)
        held.release()
        await caller
    await admin.execute("delete from public.spotify_connections where user_id = $1", user)
    with pytest.raises(NotConnected):
        await tokens.get_valid_token(user)


async def test_scopes_are_checked_against_the_newest_row(
    store: ConnectionStore, tokens: TokenManager, spotify: FakeSpotify, user: UUID
) -> None:
    """A missing scope is named; once another process has stored it, it is found although the old row is cached."""
    await connect(store, spotify, user, scope=frozenset({"a"}))
    await tokens.get_valid_token(user, scopes=["a"])
    with pytest.raises(MissingScope) as raised:
        await tokens.get_valid_token(user, scopes=["a", "b"])
    assert raised.value.missing == {"b"}
    assert raised.value.scopes == {"a", "b"}
    await connect(store, spotify, user, scope=frozenset({"a", "b"}))
    await tokens.get_valid_token(user, scopes=["a", "b"])


async def test_unrecorded_scope_is_no_missing_scope(
    store: ConnectionStore, tokens: TokenManager, spotify: FakeSpotify, user: UUID
) -> None:
    """A row from before scopes were recorded is served."""
    await connect(store, spotify, user, scope=None)
    assert await tokens.get_valid_token(user, scopes=["a"])


async def test_min_ttl_is_honoured(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """A token that ends before the caller's job is refreshed first."""
    before = await connect(store, spotify, user, ttl=1000)
    assert await tokens.get_valid_token(user, min_ttl=900) == before.access_token
    assert await tokens.get_valid_token(user, min_ttl=1100) != before.access_token


async def test_bad_input_is_named(tokens: TokenManager) -> None:
    """Malformed arguments are ValueErrors that name them; an unknown user is not connected."""
    for call in (tokens.get_valid_token, tokens.status, tokens.disconnect):
        with pytest.raises(ValueError, match="user_id"):
            await call("no-uuid")
    with pytest.raises(ValueError, match="user_id"):
        await tokens.replace_rejected("no-uuid", "x")
    for wrong in ("secret\ud800", "secret\u00e9", b"secret", None):
        with pytest.raises(ValueError, match=r"^rejected_token: expected the access token") as raised:
            await tokens.replace_rejected(uuid4(), wrong)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        assert (raised.value.__cause__, raised.value.__context__) == (None, None)
    with pytest.raises(ValueError, match="min_ttl"):
        await tokens.get_valid_token(uuid4(), min_ttl=3001)
    with pytest.raises(ValueError, match="scopes"):
        await tokens.get_valid_token(uuid4(), scopes="user-read-email")
    with pytest.raises(NotConnected):
        await tokens.get_valid_token(uuid4())
    assert not (await tokens.status(uuid4())).connected


async def test_bad_input_is_named_for_a_cached_token_too(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """The hot path serves only what is asked for rightly; an unhashable user id is named, too."""
    await connect(store, spotify, user)
    await tokens.get_valid_token(user)
    with pytest.raises(ValueError, match="scopes"):
        await tokens.get_valid_token(user, scopes="")
    with pytest.raises(ValueError, match="user_id"):
        await tokens.get_valid_token([user])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("expiry_margin", -1),
        ("refresh_window", 1),
        ("refresh_timeout", 0),
        ("lease", 10),
        ("cache_ttl", -1),
        ("cache_ttl", math.inf),
        ("cache_size", -1),
    ],
)
async def test_bad_numbers_are_named(
    store: ConnectionStore, accounts: SpotifyAccounts, name: str, value: float
) -> None:
    """A constructor argument out of range is a ValueError that names it."""
    with pytest.raises(ValueError, match=name):
        TokenManager(store, accounts, **{name: value})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def test_aclose_waits_until_a_refresh_is_saved(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID
) -> None:
    """Closing waits for the refresh under way; afterwards calls are refused."""
    before = await connect(store, spotify, user, ttl=-1)
    tokens = TokenManager(store, accounts)
    with spotify.hold() as held:
        caller = asyncio.create_task(tokens.get_valid_token(user))
        await held.reached()
        closing = asyncio.create_task(tokens.aclose())
        held.release()
        await closing
    assert (await store.get(user)).access_token == await caller != before.access_token
    with pytest.raises(RuntimeError, match="closed"):
        await tokens.get_valid_token(user)


async def test_time_is_the_managers_clock(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID
) -> None:
    """The clock given to the manager decides when a token has run out, also for a cached one."""
    connection = await connect(store, spotify, user)
    now = connection.expires_at.timestamp() - 3600
    async with TokenManager(store, accounts, cache_ttl=7200, clock=lambda: now) as tokens:
        assert await tokens.get_valid_token(user) == connection.access_token
        now += 3571
        assert await tokens.get_valid_token(user) != connection.access_token


async def test_a_fleet_does_not_wake_at_once(store: ConnectionStore, accounts: SpotifyAccounts) -> None:
    """The moment of a background refresh is spread over processes and users, within the last quarter of the window."""
    managers = [TokenManager(store, accounts, refresh_window=300) for _ in range(100)]
    user, others = uuid4(), [uuid4() for _ in range(100)]
    by_process = {tokens._source.window_of(user) for tokens in managers}
    by_user = {managers[0]._source.window_of(other) for other in others}
    for windows in (by_process, by_user):
        assert len(windows) > 80
        assert all(225 <= window <= 300 for window in windows)
        assert max(windows) - min(windows) > 50
