"""Redirect URIs by the rules of Spotify, and the callbacks to them; no I/O and no clock."""

import ipaddress
from contextlib import suppress
from typing import NamedTuple, Protocol
from urllib.parse import SplitResult, parse_qs, urlsplit

from spotconn.errors import ConfigurationError, ConnectFailed, SpotconnError, SpotifyUnavailable

PARAMETERS = ("state", "code", "error")
"""The parameters of a callback (RFC 6749, sections 4.1.2 and 4.1.2.1); each at most once (section 3.1)."""

LONGEST = 8192
"""Characters of a callback URL that is read; Spotify's have some 500."""
LONGEST_CODE = 2048

_BEGINNINGS = ("https://", "http://", "/", "?")


class UrlObject(Protocol):
    """A URL object, as of Starlette, httpx, yarl or pydantic; its str() is the URL."""

    @property
    def scheme(self) -> str:
        """The scheme."""
        ...


class Callback(NamedTuple):
    """The parameters of a callback; "" for one that is not there."""

    state: str
    code: str
    error: str

    def __repr__(self) -> str:
        """Return no value: state and code are secrets."""
        return "<Callback>"


def checked_redirect_uri(value: str, *, name: str = "redirect_uri") -> str:
    """Return the redirect URI if Spotify would accept it.

    Spotify's rules: https, or http with a loopback literal; the name localhost is refused since 2025. RFC 6749,
    section 3.1.2: no fragment.

    Raises:
        ConfigurationError: Spotify would not; the text gives the reason and has `name` for the URI.
    """
    if fault := _fault(value):
        raise ConfigurationError(f"{name} {fault}")
    return value


def read_callback(url: str | UrlObject) -> Callback:
    """Read the URL that Spotify redirected the browser to; path and query are enough.

    Raises:
        ValueError: it is something else, such as bytes or a query without its "?".
        ConnectFailed: it holds no state, a parameter twice, or more than 8192 characters ("state_mismatch"); it holds
            neither an error nor a code that Spotify can have sent ("code_rejected").
    """
    text = _text(url)
    values = _query(text) if len(text) <= LONGEST else {}
    given = Callback(*("".join(values.get(name, [])) for name in PARAMETERS))
    if not given.state or any(len(values.get(name, [])) > 1 for name in PARAMETERS):
        raise ConnectFailed("state_mismatch", "the callback does not hold one state; start again")
    if not given.error and not _is_code(given.code):
        raise ConnectFailed("code_rejected", "the callback holds no authorization code; start again")
    return given


def refusal(error: str) -> SpotconnError:
    """Return what the `error` of a callback means. Unknown text is not repeated: a forged callback can hold any."""
    match error:
        case "access_denied":
            return ConnectFailed("denied", "the user did not agree at Spotify")
        case "server_error" | "temporarily_unavailable":
            return SpotifyUnavailable(f"Spotify ended the authorization ({error}); start again later")
        case "invalid_request" | "unauthorized_client" | "unsupported_response_type" | "invalid_scope":
            return ConfigurationError(
                f"Spotify refuses the authorization request of this app ({error}): check its redirect URI and scopes"
            )
        case _:
            return ConnectFailed("denied", "Spotify ended the authorization without a grant")


def is_loopback(parts: SplitResult) -> bool:
    """Return whether this is http to a loopback literal.

    Raises:
        ValueError: its host is a name.
    """
    return parts.scheme == "http" and ipaddress.ip_address(parts.hostname or "").is_loopback


def _fault(value: str) -> str | None:
    parts = _split(value)
    if parts is None or not parts.hostname or " " in value or not (value.isascii() and value.isprintable()):
        return "is not a URL: expected one such as https://example.com/callback"
    if "#" in value or "@" in parts.netloc:
        return "must have no fragment and no user name"
    if parts.hostname == "localhost" or parts.hostname.endswith(".localhost"):
        return "must not be localhost, which Spotify refuses: use http://127.0.0.1 or http://[::1]"
    if parts.scheme == "https" or _is_loopback_literal(parts):
        return None
    return "must be https, or http with a loopback literal such as 127.0.0.1"


def _split(value: str) -> SplitResult | None:
    with suppress(ValueError):
        parts = urlsplit(value)
        return None if parts.port == 0 else parts
    return None


def _is_loopback_literal(parts: SplitResult) -> bool:
    with suppress(ValueError):
        return is_loopback(parts)
    return False


def _text(url: object) -> str:
    text = "" if isinstance(url, bytes | bytearray) else str(url)  # with -bb, str() of bytes fails
    if not text.lower().startswith(_BEGINNINGS):
        raise ValueError(
            "callback_url: expected the URL that the browser requested, or its path and query, as a str or a URL object"
        )
    return text


def _query(url: str) -> dict[str, list[str]]:
    # Not by urlsplit, which keeps the last URLs in a cache, with their codes.
    query = url.partition("#")[0].partition("?")[2]
    with suppress(ValueError):
        return parse_qs(query, keep_blank_values=True, max_num_fields=20)
    return {}


def _is_code(text: str) -> bool:
    """Return whether this can be an authorization code: printable ASCII (RFC 6749, appendix A.11)."""
    return 0 < len(text) <= LONGEST_CODE and text.isascii() and text.isprintable()
