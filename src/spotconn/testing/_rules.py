"""Rules of the simulated Spotify without state: forms of errors, redirect URIs, PKCE."""

import ipaddress
import re
from contextlib import suppress
from typing import Any
from urllib.parse import SplitResult, urlsplit

from spotconn._spotify.authorization import code_challenge

Reply = tuple[int, dict[str, Any]]
"""HTTP status and JSON body."""

CODE_VERIFIER = re.compile(r"[A-Za-z0-9_.~-]{43,128}")
"""The form of a code verifier (RFC 7636, section 4.1)."""


def proves(code_verifier: str, challenge: str) -> bool:
    """Return whether a code verifier is well formed and belongs to an S256 challenge (RFC 7636, section 4.6)."""
    return CODE_VERIFIER.fullmatch(code_verifier) is not None and code_challenge(code_verifier) == challenge


def fault(error: str, description: str) -> Reply:
    """Return an error of the token endpoint (RFC 6749, section 5.2)."""
    return 400, {"error": error, "error_description": description}


def web_fault(message: str) -> Reply:
    """Return a 401 of the Web API."""
    return 401, {"error": {"status": 401, "message": message}}


def matches(redirect_uri: str, registered: str) -> bool:
    """Return whether a redirect URI is a registered one.

    It must be equal and https or loopback, or a loopback one that is registered without a port and used with one.
    """
    with suppress(ValueError):
        used, known = urlsplit(redirect_uri), urlsplit(registered)
        loopback = known.scheme == "http" and _is_loopback(known)
        if redirect_uri == registered:
            return loopback or known.scheme == "https"
        with_port = known._replace(netloc=f"{known.netloc}:{used.port}").geturl()
        return loopback and known.port is None and redirect_uri == with_port
    return False


def _is_loopback(uri: SplitResult) -> bool:
    # A name such as localhost is no address and so a ValueError: Spotify refuses it since 2025.
    return ipaddress.ip_address(uri.hostname or "").is_loopback
