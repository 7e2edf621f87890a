"""OAuth requests to Spotify, and the two errors that the parts of this package share; no I/O and no clock.

The rules are those of RFC 6749 (OAuth 2.0) and RFC 7636 (PKCE), where Spotify follows them.
"""

import base64
import hashlib
import re
import secrets
from collections.abc import Iterable
from typing import Literal
from urllib.parse import quote, urlencode, urlsplit

from spotconn._spotify.redirect import is_loopback
from spotconn.errors import ConfigurationError

GrantType = Literal["refresh_token", "authorization_code", "client_credentials"]
"""The values of grant_type in use (RFC 6749, sections 6, 4.1.3 and 4.4.2)."""

_STATE = re.compile(r"[0-9a-f]{1,12}\.[A-Za-z0-9_-]{43}", re.ASCII)


def new_state(now: float) -> str:
    """Return an unguessable state. The time in it grants nothing: it tells why an authorization is gone."""
    return f"{int(now):x}.{secrets.token_urlsafe(32)}"


def is_state(text: str) -> bool:
    """Return whether `new_state` can have made this."""
    return _STATE.fullmatch(text) is not None


def started_at(state: str) -> int:
    """Return the time in a state of `new_state`, in seconds since the epoch."""
    return int(state.partition(".")[0], 16)


def new_code_verifier() -> str:
    """Return a new PKCE code verifier of 86 characters (RFC 7636, section 4.1)."""
    return secrets.token_urlsafe(64)


def code_challenge(code_verifier: str) -> str:
    """Return the S256 code challenge of a verifier: base64url without padding (RFC 7636, section 4.2)."""
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
    """Return the URL that starts an authorization (RFC 6749, section 4.1.1; RFC 7636, section 4.3)."""
    # A single string would be iterated letter by letter.
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


def basic_authorization(client_id: str, client_secret: str) -> str:
    """Return the Authorization header of a confidential client (RFC 6749, section 2.3.1; RFC 7617).

    As Spotify documents it, neither of the two is percent-encoded before.
    """
    return "Basic " + base64.b64encode(f"{client_id}:{client_secret}".encode()).decode("ascii")


def base_url(value: str, *, name: str) -> str:
    """Return the base URL of a service without its trailing slash.

    Raises:
        ConfigurationError: `value` is neither https nor http to a loopback literal; the text has `name` for it.
    """
    if not _is_base_url(value):
        raise ConfigurationError(f"{name} must be an https URL, or http with a loopback literal such as 127.0.0.1")
    return value.rstrip("/")


def _is_base_url(value: str) -> bool:
    try:
        parts = urlsplit(value)
        blank = " " in value or not value.isprintable()
        bare = not (blank or parts.query or parts.fragment or "@" in parts.netloc or parts.port == 0)
        # The name localhost does not count: it need not resolve to this host.
        return bare and bool(parts.hostname) and (parts.scheme == "https" or is_loopback(parts))
    except ValueError:
        return False
