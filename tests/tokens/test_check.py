"""`TokenManager.check`: what fails a readiness probe, and what does not."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID

import asyncpg
import pytest

from spotconn import (
    AesGcmSivCipher,
    ConfigurationError,
    ConnectionStore,
    DatabaseUnavailable,
    DecryptionError,
    SchemaMismatch,
    SpotifyAccounts,
    TokenManager,
    events,
)
from spotconn.testing import Answer, FakeSpotify
from support.connections import OWN_APP, connect
from support.counting_proxy import CountingProxy
from support.database import Database
from support.watched_store import report

OTHER_APP = "other-app"
PREMIUM = "Active premium subscription required for the owner of the app."
LAPSED = 403, PREMIUM
WRONG_SECRET = Answer(status=400, json={"error": "invalid_client", "error_description": "Invalid client secret"})


@pytest.fixture
def spotify() -> FakeSpotify:
    """One with two apps."""
    return FakeSpotify(other_apps={OTHER_APP: None})


async def test_it_is_one_round_trip_and_fails_where_the_database_does(
    database: Database, accounts: SpotifyAccounts, spotify: FakeSpotify, admin: asyncpg.Connection
) -> None:
    """On a warm pool, and with no call of Spotify; a schema that does not fit and a lost database have their names."""
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(CountingProxy(database.server.port).serve())
        parts = urlsplit(database.dsn)
        dsn = urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{database.server.port}", f":{proxy.port}")))
        async with ConnectionStore.open(dsn, max_size=1) as store, TokenManager(store, accounts) as tokens:
            await tokens.check()
            before = proxy.round_trips
            await tokens.check()
            assert (proxy.round_trips - before, spotify.token_calls) == (1, 0)
            await admin.execute("alter function spotconn.verify() rename to elsewhere")
            try:
                with pytest.raises(SchemaMismatch):
                    await tokens.check()
            finally:
                await admin.execute("alter function spotconn.elsewhere() rename to verify")
            await stack.aclose()
            with pytest.raises(DatabaseUnavailable):
                await tokens.check()


async def test_wrong_keys_fail_it_and_one_users_row_does_not(
    database: Database, store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, users: list[UUID]
) -> None:
    """The rows of two users that do not decrypt do, unless as many do decrypt."""
    keys = [AesGcmSivCipher.generate_key() for _ in range(2)]
    ours, another = (ConnectionStore(store.pool._pool, cipher=AesGcmSivCipher([key])) for key in keys)
    for user in users[:2]:
        await connect(another, spotify, user)
    await connect(ours, spotify, users[2])
    async with TokenManager(ours, accounts, cache_ttl=0) as tokens:
        for user, ready in ((users[0], True), (users[0], True), (users[1], False)):
            with pytest.raises(DecryptionError):
                await tokens.get_valid_token(user)
            if ready:
                await tokens.check()
            else:
                with pytest.raises(DecryptionError, match=r"most users.*SPOTCONN_ENCRYPTION_KEYS"):
                    await tokens.check()
        await tokens.get_valid_token(users[2])
        with pytest.raises(DecryptionError):
            await tokens.check()
        await connect(ours, spotify, users[1])
        await tokens.get_valid_token(users[1])
        await tokens.check()


@pytest.fixture
async def other(spotify: FakeSpotify, accounts: SpotifyAccounts) -> AsyncIterator[SpotifyAccounts]:
    """The second app."""
    async with SpotifyAccounts(OTHER_APP, accounts_url=accounts.api_url, api_url=accounts.api_url) as opened:
        yield opened


async def test_one_user_with_a_token_of_another_app_does_not_fail_it(
    store: ConnectionStore,
    accounts: SpotifyAccounts,
    spotify: FakeSpotify,
    admin: asyncpg.Connection,
    users: list[UUID],
) -> None:
    """Where browsers may write: its owner has no Premium, so it takes two such users and nobody who is served."""
    for user in users:
        await connect(store, spotify, user)
    await admin.execute(
        "update public.spotify_connections set access_token = 'of-my-own-app' where user_id = $1", users[0]
    )
    async with TokenManager(store, accounts) as tokens:
        for _ in range(3):
            await report(tokens, users[0], *LAPSED)
        await tokens.check()
        await report(tokens, users[1], 200)
        await report(tokens, users[2], *LAPSED)
        await tokens.check()
        await report(tokens, users[1], *LAPSED)
        with pytest.raises(ConfigurationError, match=f"the app {OWN_APP}: .* no active Premium"):
            await tokens.check()
        await report(tokens, users[0], 200)
        await tokens.check()


async def test_an_app_without_premium_fails_it_once_no_other_works(
    store: ConnectionStore,
    accounts: SpotifyAccounts,
    other: SpotifyAccounts,
    spotify: FakeSpotify,
    users: list[UUID],
) -> None:
    """A process with several apps serves the users of the others, so it stays ready until all are refused."""
    for user in users[:2]:
        await connect(store, spotify, user)
    await connect(store, spotify, users[2], app=OTHER_APP)
    async with TokenManager(store, accounts) as alone, TokenManager(store, accounts, other_apps=[other]) as tokens:
        for user in users[:2]:
            await report(tokens, user, *LAPSED)
        await tokens.check()
        with pytest.raises(ConfigurationError, match=f"the app {OWN_APP}: .* no active Premium"):
            await alone.check()
        await report(tokens, users[2], *LAPSED)
        other.refusals.record(403, PREMIUM.encode())  # of a profile
        with pytest.raises(ConfigurationError, match=f"the app {OWN_APP}: .* no active Premium"):
            await tokens.check()


async def test_a_wrong_secret_fails_it_once_two_users_are_refused(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, users: list[UUID]
) -> None:
    """What one user has stored may be the cause of one refusal; it is told once, and so is its end."""
    told: list[events.Event] = []

    async def hook(event: events.Event) -> None:
        if isinstance(event, events.AppRefused | events.AppAccepted):
            told.append(event)

    for user in users:
        await connect(store, spotify, user, ttl=-1)
    spotify.script(WRONG_SECRET, WRONG_SECRET)
    async with TokenManager(store, accounts, on_event=hook) as tokens:
        with pytest.raises(ConfigurationError):
            await tokens.get_valid_token(users[0])
        await tokens.check()
        with pytest.raises(ConfigurationError):
            await tokens.get_valid_token(users[1])
        with pytest.raises(ConfigurationError, match=f"the app {OWN_APP}: .* SPOTIFY_CLIENT_SECRET"):
            await tokens.check()
        await tokens.get_valid_token(users[2])
        await tokens.check()
    app = {"client_id": OWN_APP, "reason": "invalid_client"}
    assert [event.model_dump(exclude={"user_id"}) for event in told] == [app, app]
    assert [type(event) for event in told] == [events.AppRefused, events.AppAccepted]


async def test_strangers_and_a_spent_quota_do_not_fail_it(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, users: list[UUID]
) -> None:
    """Anybody who can sign up could bring them about, and with them take down a service that works."""
    async with TokenManager(store, accounts) as tokens:
        for user in users:
            await connect(store, spotify, user)
            await report(tokens, user, 403, "User not registered in the Developer Dashboard")
        await report(tokens, users[0], 429, '{"error": {"status": 429, "reason": "QUOTA_EXCEEDED"}}')
        await tokens.check()
    with pytest.raises(RuntimeError, match="closed"):
        await tokens.check()
