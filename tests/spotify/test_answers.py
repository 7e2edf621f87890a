"""How the answers of Spotify are read: tables, no I/O."""

import json
import pickle
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from spotconn._spotify.answers import read_grant, read_profile, retry_after
from spotconn._spotify.authorization import GrantType
from spotconn._spotify.marks import Mark, has_mark, marked
from spotconn.errors import ConfigurationError, ConnectFailed, ReauthorizationRequired, SpotifyUnavailable
from spotconn.models import Profile

NOW = 1_800_000_000.0
APP = "demo-client"
GRANT = {"access_token": "at", "token_type": "Bearer", "expires_in": 3600, "refresh_token": "rt", "scope": "b a"}
SECRET = "s3cret-in-the-answer"


def grant(**changes: Any) -> bytes:
    return json.dumps({**GRANT, **changes}).encode()


def oauth_error(code: object, description: object = None) -> bytes:
    return json.dumps({"error": code, "error_description": description}).encode()


def test_a_full_grant() -> None:
    """A grant's life counts from when the request was sent, and its scopes are a set."""
    read = read_grant(200, {}, grant(), now=NOW, client_id=APP)
    assert (read.access_token, read.refresh_token) == ("at", "rt")
    assert read.expires_at == datetime.fromtimestamp(NOW + 3600, UTC)
    assert read.scope == frozenset("ab")


@pytest.mark.parametrize("absent", [None, ""])
def test_no_new_refresh_token(absent: str | None) -> None:
    """A null or empty refresh token is none, so the stored one stays."""
    assert read_grant(200, {}, grant(refresh_token=absent), now=NOW, client_id=APP).refresh_token is None


def test_a_minimal_grant() -> None:
    """Without refresh_token and scope the grant says None for both."""
    body = b'{"access_token":"at","token_type":"bearer","expires_in":0.5}'
    read = read_grant(200, {}, body, now=NOW, client_id=APP)
    assert (read.refresh_token, read.scope) == (None, None)


@pytest.mark.parametrize(
    ("scope", "refreshed", "connected"),
    [
        ("", None, frozenset[str]()),
        ("  ", None, frozenset[str]()),
        (" a  a ", {"a"}, {"a"}),
        (None, None, None),
        (["a"], None, None),
    ],
    ids=repr,
)
def test_scope(scope: object, refreshed: object, connected: object) -> None:
    """A scope that is no text says nothing; an empty one does so after a refresh, and is no scope for a code."""
    body = grant(scope=scope)
    assert read_grant(200, {}, body, now=NOW, client_id=APP).scope == refreshed
    code: GrantType = "authorization_code"
    assert read_grant(200, {}, body, now=NOW, client_id=APP, grant_type=code).scope == connected


UNREADABLE = [
    b"",
    b"<html>",
    b"[]",
    b"null",
    b"\xff\xfe\xfd",
    b"[" * 60_000,
    b"{}",
    grant(access_token=None),
    grant(access_token=""),
    grant(access_token=7),
    grant(access_token="a\nb"),
    grant(access_token="\ud800"),
    grant(access_token="a b"),
    grant(access_token='"a"'),
    grant(access_token="null"),
    grant(refresh_token="undefined"),
    grant(refresh_token=7),
    grant(refresh_token=[]),
    grant(refresh_token="ü"),
    grant(token_type="mac"),
    grant(token_type=None),
    grant(expires_in=None),
    grant(expires_in=True),
    grant(expires_in="3600"),
    grant(expires_in=0),
    grant(expires_in=-1),
    grant(expires_in=float("nan")),
    grant(expires_in=float("inf")),
    grant(expires_in=10**300),
    grant(expires_in=366 * 24 * 3600),
]


@pytest.mark.parametrize("body", UNREADABLE, ids=lambda body: repr(body[:90]))
def test_an_unreadable_grant(body: bytes) -> None:
    """A 200 without a usable grant is Spotify's trouble, never a half-read grant."""
    with pytest.raises(SpotifyUnavailable, match="unreadable answer") as raised:
        read_grant(200, {}, body, now=NOW, client_id=APP)
    assert raised.value.answered
    assert raised.value.__context__ is None


@pytest.mark.parametrize(
    "description", ["Refresh token revoked", "Refresh token expired", "Invalid refresh token", None, 7]
)
def test_invalid_grant_on_a_refresh(description: object) -> None:
    """invalid_grant is a refusal whatever the description says: the date of the authorization tells the reason."""
    with pytest.raises(ReauthorizationRequired) as raised:
        read_grant(400, {}, oauth_error("invalid_grant", description), now=NOW, client_id=APP)
    assert (raised.value.reason, raised.value.since) == ("invalid", datetime.fromtimestamp(NOW, UTC))


@pytest.mark.parametrize(
    "description",
    [
        "Invalid authorization code",
        "Authorization code expired",
        "Invalid redirect URI",
        "code_verifier was incorrect",
    ],
)
def test_invalid_grant_on_a_code_exchange(description: str) -> None:
    """invalid_grant on a code exchange rejects the code and says why, in words known to be harmless."""
    body = oauth_error("invalid_grant", description)
    with pytest.raises(ConnectFailed, match=description) as raised:
        read_grant(400, {}, body, now=NOW, client_id=APP, grant_type="authorization_code")
    assert raised.value.reason == "code_rejected"


@pytest.mark.parametrize("grant_type", ["refresh_token", "authorization_code"])
@pytest.mark.parametrize("status", [400, 401])
@pytest.mark.parametrize(
    ("code", "description"),
    [
        ("invalid_client", "Invalid client"),
        ("invalid_client", "Invalid client secret"),
        ("unauthorized_client", SECRET),
    ],
)
def test_refused_credentials(status: int, code: str, description: str, grant_type: GrantType) -> None:
    """Refused credentials name the app and the settings to check, and repeat no unknown text."""
    with pytest.raises(ConfigurationError, match="SPOTIFY_CLIENT_ID and SPOTIFY_CLIENT_SECRET") as raised:
        read_grant(status, {}, oauth_error(code, description), now=NOW, client_id=APP, grant_type=grant_type)
    assert code in str(raised.value)
    assert f"the app {APP} " in str(raised.value)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("code", ["invalid_request", "unsupported_grant_type", "invalid_scope"])
def test_a_refused_request(code: str) -> None:
    """A request that Spotify does not understand is for an engineer; it says nothing of the user."""
    with pytest.raises(ConfigurationError, match=code) as raised:
        read_grant(400, {}, oauth_error(code, SECRET), now=NOW, client_id=APP)
    assert SECRET not in str(raised.value)


UPSTREAM = b"upstream connect error or disconnect/reset before headers"


@pytest.mark.parametrize("grant_type", ["refresh_token", "authorization_code"])
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, b""),
        (400, f"<html>{SECRET}</html>".encode()),
        (400, b'"invalid_grant"'),
        (400, oauth_error(["invalid_grant"])),
        (400, oauth_error(None)),
        (400, oauth_error(SECRET)),
        (401, oauth_error("invalid_grant")),
        (401, oauth_error("invalid_request")),
        (403, oauth_error("invalid_client")),
        (302, b""),
        (404, b"not found"),
        (429, b"Too many requests"),
        (429, oauth_error("invalid_grant")),
        (500, UPSTREAM),
        (502, b"<html>"),
        (503, oauth_error("invalid_grant")),
        (504, b""),
    ],
)
def test_everything_else_is_transient(status: int, body: bytes, grant_type: GrantType) -> None:
    """No other answer ends a connection or blames the settings, with any body."""
    with pytest.raises(SpotifyUnavailable, match=str(status)) as raised:
        read_grant(status, {"Retry-After": "7"}, body, now=NOW, client_id=APP, grant_type=grant_type)
    assert (raised.value.answered, raised.value.retry_after) == (True, 7)
    assert SECRET not in str(raised.value)
    not_processed = status == 429 or status >= 500
    assert has_mark(raised.value, Mark.NOT_PROCESSED) is not_processed


def test_errors_pickle() -> None:
    """The internal kind of SpotifyUnavailable crosses processes with its data."""
    error = marked(SpotifyUnavailable("away", retry_after=3.0, answered=False), Mark.NOT_PROCESSED)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.retry_after, copy.answered) == ("away", 3.0, False)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("5", 5),
        (" 1.5 ", 1.5),
        ("-3", 0),
        ("Fri, 15 Jan 2027 08:01:00 GMT", 60),
        ("Fri, 15 Jan 2027 08:01:00 -0000", 60),
        ("Fri, 15 Jan 2027 07:59:00 GMT", 0),
        ("Fri, 15 Jan 99999 08:01:00 GMT", None),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("", None),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    """Retry-After is seconds or a date relative to now; in the past it is 0, and nonsense is None."""
    assert retry_after({"retry-after": value}, NOW) == seconds
    assert retry_after({"RETRY-AFTER": value}, NOW) == seconds


def test_no_retry_after() -> None:
    """Without the header there is no time to wait."""
    assert retry_after({"date": "x"}, NOW) is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"id": "u", "display_name": "U", "email": "u@example.org"}, ("u", "U", "u@example.org")),
        ({"id": "u"}, ("u", None, None)),
        ({"id": "u", "display_name": None, "email": ""}, ("u", None, None)),
        ({"id": "u", "display_name": 7, "email": ["x"]}, ("u", None, None)),
        ({"id": "u", "display_name": "a\0b\ud800c"}, ("u", "abc", None)),
    ],
)
def test_a_profile(answer: dict[str, object], expected: tuple[str | None, ...]) -> None:
    """A profile needs an id; of the rest, what is not text or cannot be stored is left out."""
    profile = read_profile(200, {}, json.dumps(answer).encode(), now=NOW)
    assert (profile.spotify_user_id, profile.display_name, profile.email) == expected


@pytest.mark.parametrize(
    ("account_id", "expected"), [("A1", "A1"), (None, None), (7, None), ("", None), ("x" * 2000, None)]
)
def test_the_lasting_id_of_an_account(account_id: object, expected: str | None) -> None:
    """It is taken over where it is a text, and nothing is wrong with a profile that has none."""
    assert read_profile(200, {}, json.dumps({"id": "a", "account_id": account_id}).encode(), now=NOW) == Profile(
        spotify_user_id="a", account_id=expected
    )


def test_a_profile_has_all_that_spotify_said() -> None:
    """Whatever it is, and in no repr and no dump; two profiles are equal without it."""
    said = {"id": "a", "country": SECRET, "product": "premium", "images": [{"url": SECRET}], "later": {"x": 1}}
    profile = read_profile(200, {}, json.dumps(said).encode(), now=NOW)
    assert profile.raw == said
    assert SECRET not in f"{profile!r} {profile.model_dump()} {profile.model_dump_json()} {dict(profile)}"
    assert profile == Profile(spotify_user_id="a")
    assert hash(profile) == hash(Profile(spotify_user_id="a"))
    assert profile != Profile(spotify_user_id="a", account_id="A1")


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"id":null}', b'{"id":""}', b'{"id":7}', b'{"id":"a\\u0000"}'])
def test_a_profile_without_an_id(body: bytes) -> None:
    """Without a usable id there is no profile."""
    with pytest.raises(SpotifyUnavailable, match="unreadable answer"):
        read_profile(200, {}, body, now=NOW)


def test_a_profile_with_a_refused_token() -> None:
    """A refused token ends the connect attempt: only a new code gives another token."""
    body = b'{"error":{"status":401,"message":"Invalid access token"}}'
    with pytest.raises(ConnectFailed) as raised:
        read_profile(401, {}, body, now=NOW)
    assert raised.value.reason == "code_rejected"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"User not registered in the Developer\r\n Dashboard\n", "User not registered in the Developer Dashboard"),
        (b"x" * 1000, "x" * 200),
        (b'{"error":{"status":403,"message":"Forbidden."}}', "Forbidden."),
    ],
)
def test_a_refused_account(body: bytes, words: str) -> None:
    """A 403 in words refuses this account to this app; the user gets to read Spotify's words."""
    with pytest.raises(ConnectFailed, match=f"^{re.escape(words)}$") as raised:
        read_profile(403, {}, body, now=NOW)
    assert raised.value.reason == "not_allowed"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (403, b""),
        (403, b"<html>blocked</html>"),
        (403, b'{"error":"x"}'),
        (429, b'{"error":{"status":429,"reason":"QUOTA_EXCEEDED"}}'),
        (500, UPSTREAM),
    ],
)
def test_no_profile_for_now(status: int, body: bytes) -> None:
    """The page of a gateway, a full quota and a broken server refuse no account."""
    with pytest.raises(SpotifyUnavailable) as raised:
        read_profile(status, {"Retry-After": "4"}, body, now=NOW)
    assert raised.value.retry_after == 4
