"""The reading of Spotify's answers: tables, no I/O."""

import json
import pickle
import re
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from spotconn._spotify import oauth as _oauth
from spotconn.errors import ConfigurationError, ConnectFailed, ReauthorizationRequired, SpotifyUnavailable

NOW = 1_800_000_000.0
GRANT = {"access_token": "at", "token_type": "Bearer", "expires_in": 3600, "refresh_token": "rt", "scope": "b a"}
SECRET = "s3cret-in-the-answer"


def grant(**changes: Any) -> bytes:
    return json.dumps({**GRANT, **changes}).encode()


def oauth_error(code: object, description: object = None) -> bytes:
    return json.dumps({"error": code, "error_description": description}).encode()


def test_a_full_grant() -> None:
    """A grant's life counts from when the request was sent, and its scopes are a set."""
    read = _oauth.read_grant(200, {}, grant(), now=NOW)
    assert (read.access_token, read.refresh_token) == ("at", "rt")
    assert read.expires_at == datetime.fromtimestamp(NOW + 3600, UTC)
    assert read.scope == frozenset("ab")


@pytest.mark.parametrize("absent", [None, ""])
def test_no_new_refresh_token(absent: str | None) -> None:
    """A null or empty refresh token is none, so the stored one is kept."""
    assert _oauth.read_grant(200, {}, grant(refresh_token=absent), now=NOW).refresh_token is None


def test_a_minimal_grant() -> None:
    """Without refresh_token and scope the grant says None for both."""
    body = b'{"access_token":"at","token_type":"bearer","expires_in":0.5}'
    read = _oauth.read_grant(200, {}, body, now=NOW)
    assert (read.refresh_token, read.scope) == (None, None)


@pytest.mark.parametrize(
    ("scope", "expected"), [("", frozenset[str]()), (" a  a ", {"a"}), (None, None), (["a"], None)], ids=repr
)
def test_scope(scope: object, expected: object) -> None:
    """A scope that is no text says nothing; an empty one says that nothing is granted."""
    assert _oauth.read_grant(200, {}, grant(scope=scope), now=NOW).scope == expected


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
        _oauth.read_grant(200, {}, body, now=NOW)
    assert raised.value.answered
    assert raised.value.__context__ is None


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        ("Refresh token revoked", "revoked"),
        ("Refresh token expired", "expired"),
        ("Invalid refresh token", "invalid"),
        (None, "invalid"),
        (7, "invalid"),
    ],
)
def test_invalid_grant_on_a_refresh(description: object, reason: str) -> None:
    """invalid_grant ends the connection, for the reason that the description gives."""
    with pytest.raises(ReauthorizationRequired) as raised:
        _oauth.read_grant(400, {}, oauth_error("invalid_grant", description), now=NOW)
    assert (raised.value.reason, raised.value.since) == (reason, datetime.fromtimestamp(NOW, UTC))


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
        _oauth.read_grant(400, {}, body, now=NOW, grant_type="authorization_code")
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
def test_refused_credentials(status: int, code: str, description: str, grant_type: _oauth.GrantType) -> None:
    """Refused credentials name the two settings to check and repeat no unknown text."""
    with pytest.raises(ConfigurationError, match="SPOTIFY_CLIENT_ID and SPOTIFY_CLIENT_SECRET") as raised:
        _oauth.read_grant(status, {}, oauth_error(code, description), now=NOW, grant_type=grant_type)
    assert code in str(raised.value)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("code", ["invalid_request", "unsupported_grant_type", "invalid_scope"])
def test_a_refused_request(code: str) -> None:
    """A request that Spotify does not understand is for an engineer; it says nothing of the user."""
    with pytest.raises(ConfigurationError, match=code) as raised:
        _oauth.read_grant(400, {}, oauth_error(code, SECRET), now=NOW)
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
def test_everything_else_is_transient(status: int, body: bytes, grant_type: _oauth.GrantType) -> None:
    """No other answer ends a connection or blames the settings, whatever its body says."""
    with pytest.raises(SpotifyUnavailable, match=str(status)) as raised:
        _oauth.read_grant(status, {"Retry-After": "7"}, body, now=NOW, grant_type=grant_type)
    assert (raised.value.answered, raised.value.retry_after) == (True, 7)
    assert SECRET not in str(raised.value)
    not_processed = status == 429 or status >= 500
    assert isinstance(raised.value, _oauth.RequestNotProcessed) is not_processed


def test_errors_pickle() -> None:
    """The internal kind of SpotifyUnavailable crosses processes with its data."""
    error = _oauth.RequestNotProcessed("away", retry_after=3.0, answered=False)
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
    assert _oauth.retry_after({"retry-after": value}, NOW) == seconds
    assert _oauth.retry_after({"RETRY-AFTER": value}, NOW) == seconds


def test_no_retry_after() -> None:
    """Without the header nothing is asked."""
    assert _oauth.retry_after({"date": "x"}, NOW) is None


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
    profile = _oauth.read_profile(200, {}, json.dumps(answer).encode(), now=NOW)
    assert (profile.spotify_user_id, profile.display_name, profile.email) == expected


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"id":null}', b'{"id":""}', b'{"id":7}', b'{"id":"a\\u0000"}'])
def test_a_profile_without_an_id(body: bytes) -> None:
    """Without a usable id there is no profile."""
    with pytest.raises(SpotifyUnavailable, match="unreadable answer"):
        _oauth.read_profile(200, {}, body, now=NOW)


def test_a_profile_with_a_refused_token() -> None:
    """A refused token ends the connect attempt: only a new code gives another token."""
    body = b'{"error":{"status":401,"message":"Invalid access token"}}'
    with pytest.raises(ConnectFailed) as raised:
        _oauth.read_profile(401, {}, body, now=NOW)
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
        _oauth.read_profile(403, {}, body, now=NOW)
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
    """A gateway's page, a full quota and a broken server refuse nobody."""
    with pytest.raises(SpotifyUnavailable) as raised:
        _oauth.read_profile(status, {"Retry-After": "4"}, body, now=NOW)
    assert raised.value.retry_after == 4


def test_the_challenge_of_rfc_7636() -> None:
    """The challenge is that of RFC 7636, appendix B."""
    verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    assert _oauth.code_challenge(verifier) == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


def test_a_new_verifier() -> None:
    """Every verifier is new and of the form that RFC 7636 demands."""
    verifier = _oauth.new_code_verifier()
    assert re.fullmatch(r"[A-Za-z0-9_.~-]{43,128}", verifier)
    assert verifier != _oauth.new_code_verifier()


def authorization_query(scopes: Any, *, show_dialog: bool = False) -> dict[str, list[str]]:
    url = _oauth.authorization_request_url(
        "https://accounts.spotify.com",
        client_id="app id",
        redirect_uri="https://example.org/back?x=1&y=2",
        scopes=scopes,
        state="st&te",
        code_challenge="ch",
        show_dialog=show_dialog,
    )
    assert url.startswith("https://accounts.spotify.com/authorize?")
    return parse_qs(urlsplit(url).query, strict_parsing=True)


def test_the_authorization_url() -> None:
    """The URL holds every parameter of the code flow with PKCE, safely encoded."""
    assert authorization_query(["b", "a", "b"]) == {
        "client_id": ["app id"],
        "response_type": ["code"],
        "redirect_uri": ["https://example.org/back?x=1&y=2"],
        "scope": ["b a"],
        "state": ["st&te"],
        "code_challenge_method": ["S256"],
        "code_challenge": ["ch"],
        "show_dialog": ["false"],
    }


def test_scopes_of_the_authorization_url() -> None:
    """No scopes means no parameter, and one text of scopes is not taken for its letters."""
    assert "scope" not in authorization_query([])
    query = authorization_query("user-read-email streaming", show_dialog=True)
    assert (query["scope"], query["show_dialog"]) == (["user-read-email streaming"], ["true"])


@pytest.mark.parametrize(
    "url", ["https://accounts.spotify.com/", "http://127.0.0.1:8080", "http://[::1]:1/x", "https://h:8443/x"]
)
def test_a_base_url(url: str) -> None:
    """https, or http to a loopback literal; a trailing slash goes."""
    assert _oauth.base_url(url, name="api_url") == url.rstrip("/")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "accounts.spotify.com",
        "http://accounts.spotify.com",
        "http://localhost:8080",
        "http://",
        "https://",
        "ftp://127.0.0.1",
        "https://user:s3cret@host",
        "https://host?s3cret",
        "https://host#s3cret",
        "https://host:s3cret",
        "https://ho st",
        "https://host\n",
        "https://[::1",
    ],
)
def test_a_malformed_base_url(url: str) -> None:
    """Anything else is refused by the argument's name, and its value is not shown."""
    with pytest.raises(ConfigurationError, match=r"^api_url must be") as raised:
        _oauth.base_url(url, name="api_url")
    assert "s3cret" not in str(raised.value)
    assert raised.value.__context__ is None
