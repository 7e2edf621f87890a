"""What the answers of Spotify mean: pure functions of status, headers and body; no I/O and no clock.

The rules are those of RFC 6749 (OAuth 2.0), where Spotify follows them. Times are seconds since the epoch. No error
raised here quotes an answer, except for texts known to hold no secret.
"""

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, cast

from spotconn._spotify.app_answers import FORBIDDEN, REMEDIES, WITHOUT_PREMIUM, app_refusal
from spotconn._spotify.authorization import GrantType
from spotconn._spotify.marks import Mark, marked
from spotconn.errors import (
    ConfigurationError,
    ConnectFailed,
    ReauthorizationRequired,
    SpotconnError,
    SpotifyUnavailable,
)
from spotconn.models import LARGEST_TEXT, LARGEST_TOKEN, LONGEST_EXPIRES_IN, Profile, TokenGrant, is_token

GREATEST_EXPIRES_IN = 365 * 24 * 3600
"""Seconds; Spotify sends 3600. More than LONGEST_EXPIRES_IN counts as that; an even greater value is unreadable."""

LONGEST_REFUSAL = 200
"""Characters of a text of Spotify that an error repeats."""

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


def read_grant(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    now: float,
    client_id: str,
    grant_type: GrantType = "refresh_token",
) -> TokenGrant:
    """Read the token endpoint's answer (RFC 6749, sections 5.1 and 5.2).

    Args:
        status: HTTP status.
        headers: HTTP headers.
        body: HTTP body.
        now: when the request was sent, seconds since the epoch; the lifetime of an access token counts from then.
        client_id: of the app that sent it.
        grant_type: of the request.

    Raises:
        ReauthorizationRequired: invalid_grant on a refresh.
        ConnectFailed: invalid_grant on a code exchange ("code_rejected").
        ConfigurationError: Spotify refuses this app, or finds the request malformed.
        SpotifyUnavailable: any other answer.
    """
    answer = _json_object(body)
    if status == OK:
        return _token_grant(answer, now, grant_type)
    # RFC 6749 has 401 for invalid_client; Spotify sends 400.
    error = _oauth_error(status, answer, now, client_id, grant_type) if status in {BAD_REQUEST, UNAUTHORIZED} else None
    raise error or _unavailable(status, headers, now)


def read_profile(status: int, headers: Mapping[str, str], body: bytes, *, now: float) -> Profile:
    """Read the answer of GET /v1/me.

    Args:
        status: HTTP status.
        headers: HTTP headers.
        body: HTTP body.
        now: when the request was sent, seconds since the epoch.

    Raises:
        ConnectFailed: 401 ("code_rejected"), 403 with a text of Spotify ("not_allowed").
        ConfigurationError: 403 because of the owner of the app.
        SpotifyUnavailable: any other answer.
    """
    match status:
        case 200:
            return _profile(_json_object(body))
        case 401:
            # The token was just granted for a code, so only a new code gives another one.
            raise ConnectFailed("code_rejected", "Spotify refused the access token it had granted; start again")
        case 403 if app_refusal(status, body) == "premium_required":
            raise ConfigurationError(f"Spotify refuses this app: {WITHOUT_PREMIUM}")
        case 403 if text := _refusal_text(body):
            raise ConnectFailed("not_allowed", text)
        case _:
            raise _unavailable(status, headers, now)


def read_app_answer(status: int, headers: Mapping[str, str], body: bytes, *, now: float) -> bool:
    """Read the answer of the Web API to an app itself: True if it serves the app. The arguments are as above.

    Raises:
        ConfigurationError: 403 with a text of Spotify, or a quota that is used up.
        SpotifyUnavailable: any other answer but 200.
    """
    if status == OK:
        return True
    reason = app_refusal(status, body)
    if text := REMEDIES[reason] if reason else _refusal_text(body) if status == FORBIDDEN else "":
        raise ConfigurationError(f"the Web API refuses this app: {text}")
    raise _unavailable(status, headers, now)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds of a Retry-After header (RFC 9110, section 10.2.3), or None without a usable one.

    Args:
        headers: HTTP headers.
        now: seconds since the epoch; a date is taken relative to it.
    """
    value = next((value for name, value in headers.items() if name.lower() == "retry-after"), "")
    try:
        seconds = float(value)
    except ValueError:
        seconds = seconds_until(value, now)
    return max(0.0, seconds) if math.isfinite(seconds) else None


def seconds_until(http_date: str, now: float) -> float:
    """Return the seconds from `now`, seconds since the epoch, until a date of HTTP; NaN if it is none."""
    try:
        moment = parsedate_to_datetime(http_date)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now
    except (ValueError, TypeError, OverflowError):
        return math.nan


def _json_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in `body`, or an empty one if there is none."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        # Not raised again: the error of the parser holds the whole document, tokens included.
        return {}
    return _object(value)


def _object(value: object) -> dict[str, Any]:
    """Return `value` if it is a JSON object, else an empty one."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _token_grant(answer: dict[str, Any], now: float, grant_type: GrantType) -> TokenGrant:
    # Not validated by pydantic: its errors would blame the caller for a fault of Spotify.
    if not _is_usable(answer):
        raise _unreadable("token endpoint")
    return TokenGrant(
        access_token=answer["access_token"],
        refresh_token=answer.get("refresh_token") or None,
        expires_at=_to_datetime(now + answer["expires_in"]),
        expires_in=min(answer["expires_in"], LONGEST_EXPIRES_IN),
        scope=_scope(answer.get("scope"), grant_type),
    )


def _scope(value: object, grant_type: GrantType) -> frozenset[str] | None:
    """Return the granted scopes; None where the answer does not say.

    A refresh without a scope leaves the scopes as they were (RFC 6749, section 6), and no scope is empty (section 3.3).
    In the answer to a code, a scope that is stated is what was granted in place of what was asked for (section 5.1).
    """
    if not isinstance(value, str) or len(value.encode("utf-8", "replace")) > LARGEST_TEXT:
        return None
    if grant_type == "refresh_token" and not value.split():
        return None
    return frozenset(value.split())


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
    return isinstance(value, str) and len(value) <= LARGEST_TOKEN and is_token(value)


def _is_lifetime(value: object) -> bool:
    # A bool is an int in Python; NaN fails the comparison.
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= GREATEST_EXPIRES_IN


def _profile(answer: dict[str, Any]) -> Profile:
    spotify_user_id = _text(answer.get("id"))
    if spotify_user_id is None or spotify_user_id != answer["id"]:
        raise _unreadable("profile")
    return Profile(
        spotify_user_id=spotify_user_id,
        display_name=_text(answer.get("display_name")),
        email=_text(answer.get("email")),
        account_id=_text(answer.get("account_id")),
        raw=answer,
    )


def _text(value: object) -> str | None:
    """Return `value` as Postgres can store it: without NUL and lone surrogates, both of which JSON allows.

    None where it is no text, or too large.
    """
    if not isinstance(value, str):
        return None
    encoded = value.replace("\0", "").encode("utf-8", "ignore")
    return encoded.decode("utf-8") or None if len(encoded) <= LARGEST_TEXT else None


def _refusal_text(body: bytes) -> str:
    """Return the text of Spotify in a 403, or "" if it is not Spotify's, such as the HTML page of a gateway."""
    text = body.decode("utf-8", "replace").strip()
    if text.startswith("{"):
        text = str(_object(_json_object(body).get("error")).get("message", ""))
    printable = "".join(letter for letter in text if letter.isprintable())
    return "" if printable.startswith("<") else printable[:LONGEST_REFUSAL]


def _oauth_error(
    status: int, answer: dict[str, Any], now: float, client_id: str, grant_type: GrantType
) -> SpotconnError | None:
    """Return the error that the answer states as in RFC 6749, section 5.2, or None if it states none."""
    code, description = answer.get("error"), answer.get("error_description")
    match code:
        case "invalid_client" | "unauthorized_client":
            refused = ConfigurationError(
                f"Spotify refuses the credentials of the app {client_id} ({_stated(code, description)}): check "
                "SPOTIFY_CLIENT_ID and SPOTIFY_CLIENT_SECRET or, if it is another app, SPOTCONN_OTHER_APPS"
            )
            return marked(refused, Mark.OF_ONE_APP)
        case "invalid_grant" if status == BAD_REQUEST and grant_type == "refresh_token":
            return ReauthorizationRequired("invalid", _to_datetime(now))  # the text does not tell why
        case "invalid_grant" if status == BAD_REQUEST:
            stated = _stated(code, description)
            return ConnectFailed("code_rejected", f"Spotify rejected the authorization code ({stated}); start again")
        case "invalid_request" | "invalid_scope" if status == BAD_REQUEST and grant_type == "refresh_token":
            # What differs from one user's request to the next is the refresh token alone.
            malformed = ConfigurationError(
                f"Spotify finds a refresh request malformed ({_stated(code, description)}): if it is that of one user, "
                "the stored refresh token is at fault and the user connects again; if it is that of many, compare the "
                "client id with Spotify's dashboard"
            )
            return marked(malformed, Mark.OF_ONE_CALL)
        case "invalid_request" | "unsupported_grant_type" | "invalid_scope" if status == BAD_REQUEST:
            return ConfigurationError(
                f"Spotify refuses the request of this app ({_stated(code, description)}): compare its redirect URI and "
                "client id with Spotify's dashboard"
            )
        case _:
            return None


def _stated(code: str, description: object) -> str:
    """Return the error as text; a description that is not known could hold a secret and is left out."""
    known = isinstance(description, str) and description in KNOWN_DESCRIPTIONS
    return f"{code}: {description}" if known else code


def _unavailable(status: int, headers: Mapping[str, str], now: float) -> SpotifyUnavailable:
    failure = SpotifyUnavailable(f"Spotify answered with status {status}", retry_after=retry_after(headers, now))
    if status != TOO_MANY_REQUESTS and status < SERVER_ERRORS:
        return failure  # what was sent may be the cause: it says nothing of other calls
    marked(failure, Mark.NOT_PROCESSED)
    return failure if failure.retry_after is None else marked(failure, Mark.OF_ONE_APP)


def _unreadable(what: str) -> SpotifyUnavailable:
    return SpotifyUnavailable(f"Spotify's {what} gave an unreadable answer")


def _to_datetime(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
