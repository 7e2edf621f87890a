"""What is said to Spotify's accounts service, and how its answers are read; no I/O and no clock.

The rules are those of RFC 6749 (OAuth 2.0) and RFC 7636 (PKCE), where Spotify follows them. Moments are
seconds since the epoch. No error raised here quotes an answer, except for texts known to hold no secret.
"""

import base64
import hashlib
import json
import math
import secrets
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, cast
from urllib.parse import quote, urlencode, urlsplit

from spotconn._spotify.redirect import is_loopback
from spotconn.errors import (
    ConfigurationError,
    ConnectFailed,
    ReauthorizationReason,
    ReauthorizationRequired,
    SpotconnError,
    SpotifyUnavailable,
)
from spotconn.models import Profile, TokenGrant

GrantType = Literal["refresh_token", "authorization_code"]
"""RFC 6749, sections 6 and 4.1.3."""

LONGEST_EXPIRES_IN = 365 * 24 * 3600
"""Seconds; Spotify says 3600. A longer life is taken for a garbled answer."""

LONGEST_WORDS = 200
"""Characters of Spotify's own words that an error repeats."""

OK, BAD_REQUEST, UNAUTHORIZED, TOO_MANY_REQUESTS, SERVER_ERRORS = 200, 400, 401, 429, 500

KNOWN_DESCRIPTIONS = frozenset(
    {
        "Authorization code expired",
        "Invalid authorization code",
        "Invalid client",
        "Invalid client secret",
        "Invalid redirect URI",
        "Invalid refresh token",
        "Refresh token expired",
        "Refresh token revoked",
        "code_verifier was incorrect",
    }
)


class RequestNotProcessed(SpotifyUnavailable):
    """Spotify did not act on the request, so a single-use code in it is still unspent."""


class AppRefused(ConfigurationError):
    """Spotify refuses the app itself, so it refuses it for every user."""


def new_code_verifier() -> str:
    """A fresh PKCE code verifier of 86 characters (RFC 7636, section 4.1)."""
    return secrets.token_urlsafe(64)


def code_challenge(code_verifier: str) -> str:
    """The S256 code challenge of a verifier: base64url without padding (RFC 7636, section 4.2)."""
    digest = hashlib.sha256(code_verifier.encode("ascii")).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")


def authorization_request_url(
    accounts_url: str,
    *,
    client_id: str,
    redirect_uri: str,
    scopes: Iterable[str],
    state: str,
    code_challenge: str,
    show_dialog: bool,
) -> str:
    """The URL that starts an authorization (RFC 6749, section 4.1.1; RFC 7636, section 4.3)."""
    # A lone string is an iterable of its letters, which is never what was meant.
    names = scopes.split() if isinstance(scopes, str) else scopes
    query = {
        "client_id": client_id,
        "response_type": "code",
        "redirect_uri": redirect_uri,
        "state": state,
        "code_challenge_method": "S256",
        "code_challenge": code_challenge,
        "show_dialog": "true" if show_dialog else "false",
    }
    if scope := " ".join(dict.fromkeys(names)):
        query["scope"] = scope
    return f"{accounts_url}/authorize?{urlencode(query, quote_via=quote)}"


def base_url(value: str, *, name: str) -> str:
    """The base URL of a service, without a trailing slash.

    Raises:
        ConfigurationError: it is neither https nor http to a loopback literal; names the argument.
    """
    if not _is_base_url(value):
        raise ConfigurationError(f"{name} must be an https URL, or http with a loopback literal such as 127.0.0.1")
    return value.rstrip("/")


def read_grant(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    now: float,
    grant_type: GrantType = "refresh_token",
) -> TokenGrant:
    """Read the token endpoint's answer (RFC 6749, sections 5.1 and 5.2).

    Args:
        status: of the HTTP answer.
        headers: of the HTTP answer.
        body: of the HTTP answer.
        now: when the request was sent, seconds since the epoch; an access token's life counts from then.
        grant_type: what was asked for.

    Raises:
        ReauthorizationRequired: invalid_grant on a refresh.
        ConnectFailed: invalid_grant on a code exchange ("code_rejected").
        ConfigurationError: Spotify refuses this app or its request; says nothing of the user.
        SpotifyUnavailable: everything else.
    """
    answer = _json_object(body)
    if status == OK:
        return _token_grant(answer, now)
    # 401 is what RFC 6749 has for invalid_client; Spotify sends 400.
    error = _oauth_error(status, answer, now, grant_type) if status in {BAD_REQUEST, UNAUTHORIZED} else None
    raise error or _unavailable(status, headers, now)


def read_profile(status: int, headers: Mapping[str, str], body: bytes, *, now: float) -> Profile:
    """Read the answer of GET /v1/me.

    Args:
        status: of the HTTP answer.
        headers: of the HTTP answer.
        body: of the HTTP answer.
        now: when the request was sent, seconds since the epoch.

    Raises:
        ConnectFailed: 401 ("code_rejected"), 403 in words ("not_allowed").
        SpotifyUnavailable: everything else.
    """
    match status:
        case 200:
            return _profile(_json_object(body))
        case 401:
            # The profile is read with the token just granted for a code: whatever is wrong with it, only a
            # new code gives another one.
            raise ConnectFailed("code_rejected", "Spotify refused the access token it had granted; start again")
        case 403 if words := _refusal(body):
            raise ConnectFailed("not_allowed", words)
        case _:
            raise _unavailable(status, headers, now)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that a Retry-After header asks to wait (RFC 9110, section 10.2.3); None without a usable one.

    Args:
        headers: of the HTTP answer.
        now: seconds since the epoch; a date is taken relative to it.
    """
    value = next((value for name, value in headers.items() if name.lower() == "retry-after"), "")
    try:
        seconds = float(value)
    except ValueError:
        seconds = _seconds_until(value, now)
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _seconds_until(http_date: str, now: float) -> float:
    try:
        moment = parsedate_to_datetime(http_date)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now
    except (ValueError, TypeError, OverflowError):
        return math.nan


def _is_base_url(value: str) -> bool:
    try:
        parts = urlsplit(value)
        blank = " " in value or not value.isprintable()
        bare = not (blank or parts.query or parts.fragment or "@" in parts.netloc or parts.port == 0)
        # The name localhost does not count: it need not resolve to this host.
        return bare and bool(parts.hostname) and (parts.scheme == "https" or is_loopback(parts))
    except ValueError:
        return False


def _json_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`; an empty one where there is none."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        # Not raised onwards: a JSON error carries the whole document, tokens included.
        return {}
    return _object(value)


def _object(value: object) -> dict[str, Any]:
    """`value`, if it is a JSON object; else an empty one."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _token_grant(answer: dict[str, Any], now: float) -> TokenGrant:
    # Fields are judged here, not by pydantic: its errors would name a fault of Spotify as one of the caller.
    if not _is_usable(answer):
        raise _unreadable("token endpoint")
    scope = answer.get("scope")
    return TokenGrant(
        access_token=answer["access_token"],
        refresh_token=answer.get("refresh_token") or None,
        expires_at=_moment(now + answer["expires_in"]),
        scope=frozenset(scope.split()) if isinstance(scope, str) else None,
    )


def _is_usable(answer: dict[str, Any]) -> bool:
    refresh_token, token_type = answer.get("refresh_token"), answer.get("token_type")
    return (
        _is_token(answer.get("access_token"))
        and (refresh_token is None or refresh_token == "" or _is_token(refresh_token))
        and isinstance(token_type, str)
        and token_type.lower() == "bearer"
        and _is_lifetime(answer.get("expires_in"))
    )


def _is_token(value: object) -> bool:
    """Visible ASCII only (RFC 6749, appendix A.12): anything else could not be sent in a header."""
    return isinstance(value, str) and value != "" and value.isascii() and value.isprintable()


def _is_lifetime(value: object) -> bool:
    # JSON's true is Python's 1; NaN fails the comparison.
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= LONGEST_EXPIRES_IN


def _profile(answer: dict[str, Any]) -> Profile:
    spotify_user_id = _text(answer.get("id"))
    if spotify_user_id is None or spotify_user_id != answer["id"]:
        raise _unreadable("profile")
    return Profile(
        spotify_user_id=spotify_user_id,
        display_name=_text(answer.get("display_name")),
        email=_text(answer.get("email")),
    )


def _text(value: object) -> str | None:
    """`value` as Postgres can store it: no NUL and no lone surrogates, both of which JSON can spell."""
    if not isinstance(value, str):
        return None
    return value.replace("\0", "").encode("utf-8", "ignore").decode("utf-8") or None


def _refusal(body: bytes) -> str:
    """Spotify's words in a 403; empty where they are not its own, as in a gateway's HTML page."""
    text = body.decode("utf-8", "replace").strip()
    if text.startswith("{"):
        text = str(_object(_json_object(body).get("error")).get("message", ""))
    words = "".join(letter for letter in text if letter.isprintable())
    return "" if words.startswith("<") else words[:LONGEST_WORDS]


def _oauth_error(status: int, answer: dict[str, Any], now: float, grant_type: GrantType) -> SpotconnError | None:
    """The error that the answer states in the manner of RFC 6749, section 5.2; None where it does not."""
    code, description = answer.get("error"), answer.get("error_description")
    match code:
        case "invalid_client" | "unauthorized_client":
            told = f"Spotify refuses this app's credentials ({_stated(code, description)})"
            return AppRefused(f"{told}: check SPOTIFY_CLIENT_ID and SPOTIFY_CLIENT_SECRET")
        case "invalid_grant" if status == BAD_REQUEST and grant_type == "refresh_token":
            return ReauthorizationRequired(_reason(description), _moment(now))
        case "invalid_grant" if status == BAD_REQUEST:
            told = _stated(code, description)
            return ConnectFailed("code_rejected", f"Spotify rejected the authorization code ({told}); start again")
        case "invalid_request" | "unsupported_grant_type" | "invalid_scope" if status == BAD_REQUEST:
            return ConfigurationError(f"Spotify refuses the request of this app ({_stated(code, description)})")
        case _:
            return None


def _reason(description: object) -> ReauthorizationReason:
    words = description.lower() if isinstance(description, str) else ""
    if "expired" in words:
        return "expired"
    return "revoked" if "revoked" in words else "invalid"


def _stated(code: str, description: object) -> str:
    known = isinstance(description, str) and description in KNOWN_DESCRIPTIONS
    return f"{code}: {description}" if known else code


def _unavailable(status: int, headers: Mapping[str, str], now: float) -> SpotifyUnavailable:
    kind = RequestNotProcessed if status == TOO_MANY_REQUESTS or status >= SERVER_ERRORS else SpotifyUnavailable
    return kind(f"Spotify answered with status {status}", retry_after=retry_after(headers, now))


def _unreadable(what: str) -> SpotifyUnavailable:
    return SpotifyUnavailable(f"Spotify's {what} gave an unreadable answer")


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
