"""Tokens obtained elsewhere become connections, with the day of their authorization, or are refused by name."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import asyncpg
import pytest
from spotipy.cache_handler import CacheFileHandler
from spotipy.oauth2 import SpotifyOAuth

from import_tokens import import_cache, read_cache, read_session, start_of
from spotconn import (
    ConnectionStore,
    NotConnected,
    ReauthorizationRequired,
    SpotifyAccounts,
    TokenManager,
    UnknownUser,
    import_grant,
)
from spotconn.testing import FakeSpotify
from support.connections import OWN_APP, connect, content, rows
from support.consent import REDIRECT_URI, SCOPES, agree

AUTHORIZED = datetime.now(UTC) - timedelta(days=100)
NOW = time.time()
CACHE = {
    "access_token": "BQ-marked-access",
    "token_type": "Bearer",
    "expires_in": 3600,
    "refresh_token": "AQ-marked-refresh",
    "scope": "user-read-email",
    "expires_at": int(NOW) + 1800,
}
SESSION = {"access_token": "of Supabase", "provider_token": "BQ-marked-a", "provider_refresh_token": "AQ-marked-b"}


@pytest.fixture
async def tokens(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify
) -> AsyncIterator[TokenManager]:
    spotify.add_account("alice", display_name="Alice", email="alice@example.com")
    spotify.add_account("bob")
    async with TokenManager(store, accounts) as manager:
        yield manager


def cache_of(spotify: FakeSpotify, account: str = "alice", *, ends_in: int = 1800) -> str:
    """A cache file with tokens that Spotify has granted."""
    grant = spotify.authorize(account, SCOPES)
    found = {"access_token": grant.access_token, "refresh_token": grant.refresh_token}
    return json.dumps(CACHE | found | {"expires_at": int(time.time()) + ends_in})


async def written_by_spotipy(path: Path, url: str) -> str:
    """The file that spotipy writes when a user has agreed."""
    oauth = SpotifyOAuth(
        "demo-client",
        "demo-secret",
        REDIRECT_URI,
        scope=SCOPES,
        cache_handler=CacheFileHandler(path),
        open_browser=False,
    )
    oauth.OAUTH_AUTHORIZE_URL, oauth.OAUTH_TOKEN_URL = f"{url}/authorize", f"{url}/api/token"
    callback = await agree(oauth.get_authorize_url())
    code = parse_qs(urlsplit(callback).query)["code"][0]
    await asyncio.to_thread(oauth.get_access_token, code, as_dict=False, check_cache=False)
    return path.read_text()


async def test_the_file_that_spotipy_writes_is_read(
    tokens: TokenManager, spotify: FakeSpotify, user: UUID, tmp_path: Path
) -> None:
    """A token that is still good is stored as it is, and the six months go on from the given day."""
    text = await written_by_spotipy(tmp_path / "cache", tokens.accounts.api_url)
    stored = await import_cache(tokens, user, text, AUTHORIZED, "alice")
    assert content(stored) == content(await tokens.store.get(user))
    found = json.loads(text)
    assert (stored.access_token, stored.refresh_token) == (found["access_token"], found["refresh_token"])
    assert stored.expires_at.timestamp() == found["expires_at"]
    assert (stored.spotify_user_id, stored.display_name) == ("alice", "Alice")
    assert (stored.email, stored.scope) == ("alice@example.com", frozenset(SCOPES))
    assert (stored.connected_at, stored.client_id) == (AUTHORIZED, OWN_APP)
    assert spotify.refresh_calls == 0
    assert await tokens.get_valid_token(user) == stored.access_token


@pytest.mark.parametrize("rotation", [True, False])
async def test_a_file_whose_token_has_ended_is_refreshed_first(
    store: ConnectionStore, user: UUID, *, rotation: bool
) -> None:
    """The refresh token that is good afterwards is stored, be it the old or a new one."""
    spotify = FakeSpotify(rotation=rotation)
    spotify.add_account("alice")
    text = cache_of(spotify, ends_in=-86400)
    async with spotify.serve() as url:
        accounts = SpotifyAccounts("demo-client", "demo-secret", accounts_url=url, api_url=url)
        async with accounts, TokenManager(store, accounts) as tokens:
            stored = await import_cache(tokens, user, text, AUTHORIZED)
    assert spotify.accepts(stored.access_token)
    assert spotify.accepts_refresh(stored.refresh_token)
    assert (stored.refresh_token == json.loads(text)["refresh_token"]) is not rotation
    assert (stored.connected_at, stored.client_id, spotify.refresh_calls) == (AUTHORIZED, OWN_APP, 1)


async def test_a_session_of_supabase_is_a_new_authorization(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """It replaces what was stored, tells no expiry and is refreshed at once, and its six months begin now."""
    await connect(store, spotify, user, account="bob", named=False)
    grant = spotify.authorize("alice", SCOPES)
    session = SESSION | {"provider_token": grant.access_token, "provider_refresh_token": grant.refresh_token}
    stored = await import_grant(tokens, user, read_session(session, time.time()), spotify_user_id="alice")
    assert (stored.spotify_user_id, stored.scope, stored.client_id) == ("alice", frozenset(SCOPES), OWN_APP)
    assert spotify.accepts(stored.access_token)
    assert stored.access_token != grant.access_token
    assert stored.connected_at is not None
    assert abs(stored.connected_at - datetime.now(UTC)) < timedelta(seconds=20)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"refresh_token": None}, "refresh_token: "),
        ({"refresh_token": ...}, "refresh_token: "),
        ({"refresh_token": ""}, "refresh_token: "),
        ({"refresh_token": "marked\u00e9"}, "refresh_token: "),
        ({"access_token": 5}, "access_token: "),
        ({"access_token": ""}, "access_token: "),
        ({"token_type": "mac"}, "token_type: "),
        ({"token_type": ...}, "token_type: "),
        ({"scope": ["user-read-email"]}, "scope: "),
        ({"expires_in": "3600"}, "expires_in: "),
        ({"expires_in": 0}, "expires_in: "),
        ({"expires_at": None}, "expires_at: "),
        ({"expires_at": True}, "expires_at: "),
        ({"expires_at": int(NOW) * 1000}, "expires_at: later than expires_in"),
        ({"expires_at": int(NOW) + 3700}, "expires_at: later than expires_in"),
        ({"expires_in": 60}, "expires_at: later than expires_in"),
    ],
)
def test_an_inconsistent_cache_is_refused(change: dict[str, Any], fault: str) -> None:
    """The error names the field and holds no token, neither in its words nor behind them."""
    cache = {name: value for name, value in (CACHE | change).items() if value is not ...}
    with pytest.raises(ValueError, match=rf"^spotipy's cache: {fault}") as raised:
        read_cache(json.dumps(cache), NOW)
    assert "marked" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"BQ-marked"'])
def test_what_is_no_cache_is_refused(text: str) -> None:
    """An empty file, half a file, and other JSON."""
    with pytest.raises(ValueError, match=r"^spotipy's cache: \w") as raised:
        read_cache(text, NOW)
    assert "marked" not in str(raised.value)


@pytest.mark.parametrize("name", ["provider_token", "provider_refresh_token"])
@pytest.mark.parametrize("value", [None, "", 5, ...])
def test_a_session_without_spotifys_tokens_is_refused(name: str, value: object) -> None:
    """As every session but that of the sign-in is; the token of Supabase itself is not taken for one of Spotify."""
    session = {key: found for key, found in (SESSION | {name: value}).items() if found is not ...}
    with pytest.raises(ValueError, match=r"^Supabase's session: ") as raised:
        read_session(session, NOW)
    assert "marked" not in str(raised.value)


@pytest.mark.parametrize("ends_in", [1800, -1])
async def test_tokens_of_another_account_are_refused(
    tokens: TokenManager, spotify: FakeSpotify, user: UUID, admin: asyncpg.Connection, ends_in: int
) -> None:
    """Nothing is stored."""
    with pytest.raises(ValueError, match=r"^spotify_user_id: these tokens are of another account"):
        await import_cache(tokens, user, cache_of(spotify, "bob", ends_in=ends_in), AUTHORIZED, "alice")
    assert await rows(admin) == []


async def test_a_connected_user_keeps_what_is_stored(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """A file is older than a connection; Spotify is not asked."""
    before = await connect(store, spotify, user)
    with pytest.raises(ValueError, match=r"^user_id: connected already"):
        await import_cache(tokens, user, cache_of(spotify, ends_in=-1), AUTHORIZED)
    assert content(await store.get(user)) == content(before)
    assert spotify.token_calls == 0


async def test_a_refresh_token_that_spotify_refuses_is_not_stored(
    tokens: TokenManager, spotify: FakeSpotify, user: UUID
) -> None:
    """It was revoked, or is another app's."""
    text = cache_of(spotify, ends_in=-1)
    spotify.revoke("alice")
    with pytest.raises(ReauthorizationRequired):
        await import_cache(tokens, user, text, AUTHORIZED)
    with pytest.raises(NotConnected):
        await tokens.store.get(user)


async def test_tokens_of_another_app_are_imported_with_its_manager(store: ConnectionStore, user: UUID) -> None:
    """The app of the first manager is refused, and nothing is stored; that of the second one is recorded."""
    spotify = FakeSpotify(rotation=True, other_apps={"app-b": "secret-b"})
    spotify.add_account("alice")
    grant = spotify.authorize("alice", SCOPES, client_id="app-b")
    session = SESSION | {"provider_token": grant.access_token, "provider_refresh_token": grant.refresh_token}
    found = read_session(session, time.time())
    async with spotify.serve() as url:
        for app in ((OWN_APP, "demo-secret"), ("app-b", "secret-b")):
            accounts = SpotifyAccounts(*app, accounts_url=url, api_url=url)
            async with accounts, TokenManager(store, accounts) as tokens:
                if accounts.client_id == OWN_APP:
                    with pytest.raises(ReauthorizationRequired):
                        await import_grant(tokens, user, found)
                    assert not (await tokens.status(user)).connected
                else:
                    assert (await import_grant(tokens, user, found)).client_id == "app-b"


@pytest.mark.parametrize(
    ("user_id", "day", "fault"),
    [
        (uuid4(), AUTHORIZED, "user_id: no such user"),
        (None, AUTHORIZED + timedelta(days=200), "connected_at: lies in"),
        (None, AUTHORIZED.replace(tzinfo=None), "connected_at: expected a datetime with a time zone"),
    ],
)
async def test_an_impossible_import_spends_no_refresh_token(
    tokens: TokenManager, spotify: FakeSpotify, user: UUID, user_id: UUID | None, day: datetime, fault: str
) -> None:
    """A user who does not exist, a day that has not come, and one without a time zone: Spotify is not asked."""
    text = cache_of(spotify, ends_in=-1)
    with pytest.raises(UnknownUser if user_id else ValueError, match=rf"^{fault}"):
        await import_cache(tokens, user_id or user, text, day)
    assert spotify.token_calls == 0
    assert spotify.accepts_refresh(json.loads(text)["refresh_token"])


async def test_a_day_that_has_begun_somewhere_is_taken(tokens: TokenManager, spotify: FakeSpotify, user: UUID) -> None:
    """Today in Auckland may be tomorrow in UTC: a day counts from where it begins first, so it lies in the past."""
    today = datetime.now(timezone(timedelta(hours=14))).strftime("%Y-%m-%d")
    stored = await import_cache(tokens, user, cache_of(spotify, ends_in=-1), start_of(today))
    assert stored.connected_at == start_of(today) <= datetime.now(UTC)


async def test_the_day_after_is_refused_before_anything_is_spent(
    tokens: TokenManager, spotify: FakeSpotify, user: UUID
) -> None:
    """A day that has begun nowhere."""
    tomorrow = datetime.now(timezone(timedelta(hours=14))) + timedelta(days=1)
    with pytest.raises(ValueError, match=r"^connected_at: lies in the future"):
        await import_cache(tokens, user, cache_of(spotify, ends_in=-1), start_of(tomorrow.strftime("%Y-%m-%d")))
    assert spotify.token_calls == 0
