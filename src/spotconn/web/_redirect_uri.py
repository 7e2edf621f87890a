"""Warnings of a redirect URI with which no callback can succeed."""

import logging
import re
from urllib.parse import urlsplit

from starlette.requests import Request

_PORT = re.compile(r":\d*$")
_log = logging.getLogger("spotconn.web")


class RedirectUriCheck:
    """Compares where browsers begin with where Spotify sends them back, and warns once of each fault.

    With a front end a page of it may be the redirect URI, so nothing is wrong then.

    Args:
        front_end: its origin, if there is one.
    """

    def __init__(self, front_end: str | None) -> None:
        self._warned = {"host", "path"} if front_end else set[str]()

    def __call__(self, request: Request, redirect_uri: str) -> None:
        """Look at a request that begins an authorization."""
        parts = urlsplit(redirect_uri)
        host = request.headers.get("host", "")
        if host and _name(host) != _name(parts.netloc):
            self._warn(
                "host",
                "POST /connect came to another host than that of the redirect URI, so the browser comes back without "
                "its cookie: open the page on the host of the redirect URI, %s",
                parts.netloc,
            )
        if not parts.path.endswith("/callback"):
            self._warn(
                "path",
                "the redirect URI leads to %s, which is not the /callback of these routes: register the path of the "
                "mount with /callback, or let the page there POST its URL to /callback",
                parts.path or "/",
            )

    def _warn(self, fault: str, text: str, value: str) -> None:
        if fault not in self._warned:
            self._warned.add(fault)
            _log.warning(text, value)


def _name(netloc: str) -> str:
    """Return a host without its port: cookies know no ports."""
    return _PORT.sub("", netloc).lower()
