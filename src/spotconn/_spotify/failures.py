"""What a failure of an HTTP client means, from the classes of its causes.

Their texts are neither read nor repeated: they may quote what was sent or received.
"""

import re
import socket
import ssl
from collections.abc import Iterator
from typing import TypeVar, cast

from spotconn._spotify.http_library import classes
from spotconn._spotify.marks import Mark, marked
from spotconn.errors import ConfigurationError, SpotifyUnavailable

_E = TypeVar("_E", bound=BaseException)

# By name, of either library.
_UNSENT = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError")
_PROXY = "the proxy refused to connect; check HTTPS_PROXY, with its user and password"
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (socket.gaierror, "its name, or that of a proxy, cannot be resolved; check the DNS and HTTPS_PROXY of this host"),
    (ConnectionRefusedError, "the connection was refused; check firewalls and proxies on the way"),
)
# OpenSSL's names for what no repetition changes: the two sides have no version of TLS, or no cipher, in common.
_NOTHING_IN_COMMON = {
    "NO_CIPHERS_AVAILABLE",
    "NO_PROTOCOLS_AVAILABLE",
    "TLSV1_ALERT_PROTOCOL_VERSION",
    "UNSUPPORTED_PROTOCOL",
}


def failure_of(error: BaseException, host: str) -> SpotifyUnavailable | ConfigurationError:
    """Return the error of this library for one of an HTTP client.

    Args:
        error: as the client, one of its hooks or its transport has raised it.
        host: to which the request was to go.
    """
    if isinstance(error, classes("DecodingError")):
        return SpotifyUnavailable("Spotify gave an unreadable answer: its encoding is broken")
    causes = tuple(_causes(error))
    if (fixed := _fault_of_settings(causes, host)) is not None:
        return marked(fixed, Mark.NOT_PROCESSED)
    failure = SpotifyUnavailable(f"no answer from {host}: {_reason(causes)}", answered=False)
    return marked(failure, Mark.NOT_PROCESSED) if isinstance(error, classes(*_UNSENT)) else failure


def _fault_of_settings(causes: tuple[BaseException, ...], host: str) -> ConfigurationError | None:
    """Return the error for what only an engineer can mend, or None."""
    if (unverified := _first(causes, ssl.SSLCertVerificationError)) is not None:
        code = getattr(unverified, "verify_code", "unknown")
        return ConfigurationError(
            f"the TLS certificate sent for {host} does not verify (OpenSSL's code {code}): if a proxy reads TLS, its "
            "root certificate has to be in the file of SSL_CERT_FILE, or in verify= of your own client; if not, check "
            "the clock of this host"
        )
    reason = _tls_reason(_first(causes, ssl.SSLError))
    if reason in _NOTHING_IN_COMMON:
        return ConfigurationError(
            f"this host and {host} have no version of TLS or no cipher in common ({reason}): check the TLS settings of "
            "this host (OPENSSL_CONF), or of your own client"
        )
    return None


def _reason(causes: tuple[BaseException, ...]) -> str:
    """Return what to say of a failure that passes, or may pass."""
    for kind, text in _REASONS:
        if _first(causes, kind) is not None:
            return text
    if _first(causes, classes("ProxyError")) is not None:
        return _PROXY
    name = type(causes[0]).__name__
    if (damaged := _first(causes, ssl.SSLError)) is not None:
        stated = _tls_reason(damaged) or type(damaged).__name__
        return f"TLS failed ({stated}); the other side, or something on the way, does not speak it or damages it"
    return name


def _tls_reason(error: ssl.SSLError | None) -> str | None:
    """Return OpenSSL's name of a failure, such as WRONG_VERSION_NUMBER."""
    reason = str(getattr(error, "reason", None) or "")
    return reason if re.fullmatch(r"[A-Z0-9_]+", reason) else None


def _first(causes: tuple[BaseException, ...], kind: type[_E] | tuple[type[_E], ...]) -> _E | None:
    return next((cause for cause in causes if isinstance(cause, kind)), None)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all that it came of, also in groups."""
    waiting: list[BaseException | None] = [error]
    seen = set[int]()
    while waiting:
        link = waiting.pop(0)
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        if isinstance(link, BaseExceptionGroup):
            waiting += cast("BaseExceptionGroup[BaseException]", link).exceptions
        waiting += [link.__cause__, link.__context__]
