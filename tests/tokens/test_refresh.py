"""The refresh protocol at its edges: a busy lease, a lapsed one, the second look, a failing release, shutdown."""

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID

import asyncpg
import pytest

from spotconn import (
    ConfigurationError,
    ConnectionStore,
    Outcome,
    ReauthorizationRequired,
    RefreshInProgress,
    SpotifyAccounts,
    SpotifyUnavailable,
    TokenManager,
)
from spotconn.testing import Answer, FakeSpotify
from support.connections import connect


@pytest.fixture
async def tokens(store: ConnectionStore, accounts: SpotifyAccounts) -> AsyncIterator[TokenManager]:
    async with TokenManager(store, accounts) as manager:
        yield manager


async def test_a_busy_connection_is_waited_for_no_longer_than_the_deadline(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID
) -> None:
    """While another process holds the lease, the caller waits, then hears RefreshInProgress; Spotify is not asked."""
    stored = await connect(store, spotify, user, ttl=-1)
    await store.begin_refresh(user, seen=stored.fingerprint, lease=30)
    async with TokenManager(store, accounts, refresh_timeout=0.5) as tokens:
        with pytest.raises(RefreshInProgress) as raised:
            await tokens.get_valid_token(user)
    assert 25 < (raised.value.retry_after or 0) <= 30
    assert spotify.token_calls == 0


async def test_a_dead_holder_delays_others_by_its_lease_at_most(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """When a holder never answers, the next caller takes over as soon as the lease has run out."""
    stored = await connect(store, spotify, user, ttl=-1)
    turn = await store.begin_refresh(user, seen=stored.fingerprint, lease=0.1)
    assert turn.outcome is Outcome.GRANTED
    assert spotify.accepts(await tokens.get_valid_token(user))
    assert spotify.token_calls == 1


async def test_the_second_look_finds_a_siblings_write(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """If Spotify refuses a token that is no longer the stored one, the stored one is used and nothing is recorded."""
    await connect(store, spotify, user, ttl=-1)
    spotify.revoke("alice")
    with spotify.hold() as held:
        caller = asyncio.create_task(tokens.get_valid_token(user))
        await held.reached()
        reconnected = await connect(store, spotify, user, account="bob")
        held.release()
        assert await caller == reconnected.access_token
    assert (await store.get(user)).failure is None


async def test_after_a_lapsed_lease_a_refusal_is_not_final(
    tokens: TokenManager, store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID
) -> None:
    """A holder that overran its lease may still save: nobody waits for it, and its save ends the recorded refusal."""
    stored = await connect(store, spotify, user, ttl=-1)
    late = await store.begin_refresh(user, seen=stored.fingerprint, lease=0.01)
    grant = await accounts.refresh(stored.refresh_token)
    with pytest.raises(ReauthorizationRequired):
        await tokens.get_valid_token(user)
    failure = (await store.get(user)).failure
    assert failure is not None
    assert failure.retry_at is not None
    assert failure.retry_at - failure.since == timedelta(minutes=1)
    saved = await store.finish_refresh(late, grant)
    assert saved is not None
    assert (saved.recovered, saved.failure) == ("revoked", None)
    assert await tokens.get_valid_token(user) == saved.access_token
    assert spotify.token_calls == 2


async def test_a_refused_app_marks_no_user(
    store: ConnectionStore, spotify: FakeSpotify, user: UUID, accounts: SpotifyAccounts
) -> None:
    """invalid_client is a ConfigurationError that records nothing and frees the lease at once."""
    stored = await connect(store, spotify, user, ttl=-1)
    wrong = SpotifyAccounts("demo-client", "wrong", accounts_url=accounts._accounts_url)
    async with wrong, TokenManager(store, wrong) as tokens:
        with pytest.raises(ConfigurationError):
            await tokens.get_valid_token(user)
    assert (await store.get(user)).failure is None
    assert (await store.begin_refresh(user, seen=stored.fingerprint)).outcome is Outcome.GRANTED


async def test_a_release_that_fails_does_not_hide_the_cause(
    tokens: TokenManager,
    store: ConnectionStore,
    spotify: FakeSpotify,
    user: UUID,
    admin: asyncpg.Connection,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If the failure cannot be recorded, the caller still hears what Spotify said, and the log tells the rest."""
    await connect(store, spotify, user, ttl=-1)
    spotify.script(Answer.too_many_requests("60"))
    with spotify.hold() as held, caplog.at_level(logging.WARNING, "spotconn"):
        caller = asyncio.create_task(tokens.get_valid_token(user))
        await held.reached()
        await admin.execute("alter function spotconn.fail_refresh rename to fail_refresh_gone")
        try:
            held.release()
            with pytest.raises(SpotifyUnavailable):
                await caller
        finally:
            await admin.execute("alter function spotconn.fail_refresh_gone rename to fail_refresh")
    assert "could not be recorded" in caplog.text


async def test_a_stricter_demand_is_not_served_by_a_weaker_flight(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """Callers that ask at once for different remaining lives each get what they asked for."""
    before = await connect(store, spotify, user, ttl=1000)
    weak, strict = await asyncio.gather(tokens.get_valid_token(user), tokens.get_valid_token(user, min_ttl=2000))
    assert weak == before.access_token
    assert strict != before.access_token


async def test_a_stricter_failure_is_not_a_weaker_callers(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """A caller who joined a flight for a longer life is served its own good token when that flight fails."""
    before = await connect(store, spotify, user, ttl=1000)
    spotify.script(Answer.too_many_requests("60"))
    strict = asyncio.create_task(tokens.get_valid_token(user, min_ttl=2000))
    await asyncio.sleep(0)
    assert await tokens.get_valid_token(user) == before.access_token
    with pytest.raises(SpotifyUnavailable):
        await strict


async def test_shutdown_is_bounded(
    store: ConnectionStore,
    accounts: SpotifyAccounts,
    spotify: FakeSpotify,
    user: UUID,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A flight that outlasts the lease is cut off at shutdown, and that is logged."""
    await connect(store, spotify, user, ttl=-1)
    tokens = TokenManager(store, accounts, refresh_timeout=0.2, lease=0.5)
    refresher = tokens._source.refresher
    refresher._times = refresher._holder._times = refresher._times._replace(timeout=30, lease=31)
    with spotify.hold() as held:
        caller = asyncio.create_task(tokens.get_valid_token(user))
        await held.reached()
        await tokens.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await caller
    assert "cut off at shutdown" in caplog.text
