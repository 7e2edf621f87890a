"""Rules of the simulated Spotify that need no state: shapes of errors, client credentials, redirect URIs, PKCE."""

import base64
import binascii
import ipaddress
from typing import Any
from urllib.parse import urlsplit

from spotconn._oauth import code_challenge

Reply = tuple[int, dict[str, Any]]
"""HTTP status and JSON body."""


def proves(code_verifier: str, challenge: str) -> bool:
    """Whether a code verifier belongs to an S256 challenge (RFC 7636, section 4.6)."""
    return code_verifier.isascii() and code_challenge(code_verifier) == challenge


def fault(error: str, description: str) -> Reply:
    """An error of the token endpoint (RFC 6749, section 5.2)."""
    return 400, {"error": error, "error_description": description}


def web_fault(message: str) -> Reply:
    """A 401 of the Web API."""
    return 401, {"error": {"status": 401, "message": message}}


def basic(authorization: str) -> tuple[str, str]:
    """Id and secret of a client that proves itself by HTTP Basic; empty where it does not."""
    scheme, _, credentials = authorization.partition(" ")
    try:
        decoded = base64.b64decode(credentials, validate=True).decode() if scheme.lower() == "basic" else ""
    except (binascii.Error, UnicodeDecodeError):
        decoded = ""
    client_id, _, client_secret = decoded.partition(":")
    return client_id, client_secret


def matches(redirect_uri: str, registered: str) -> bool:
    """Exactly, or a loopback literal registered without a port and used with one."""
    if redirect_uri == registered:
        return True
    try:
        used, known = urlsplit(redirect_uri), urlsplit(registered)
        return (
            known.scheme == used.scheme == "http"
            and known.hostname == used.hostname
            and ipaddress.ip_address(used.hostname or "").is_loopback
            and known.port is None
            and used.port is not None
            and (used.path, used.query, used.fragment) == (known.path, known.query, known.fragment)
        )
    except ValueError:
        return False
