"""A stored connection as the authentication of an asynchronous HTTP client: httpx, or its continuation httpx2."""

import logging
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import UUID

from spotconn._arguments import several
from spotconn._printable import shown
from spotconn._spotify.app_answers import FORBIDDEN, TOO_MANY_REQUESTS
from spotconn._spotify.authorization import base_url
from spotconn._spotify.http_library import Auth, classes, library
from spotconn._spotify.read_bodies import when_read
from spotconn._user_ids import UserId, parse_user_id
from spotconn.models import TokenSource

API_URL = "https://api.spotify.com"
"""The Web API."""
UNAUTHORIZED = 401
MISSING_SCOPE = b"Permissions missing"
"""The body of a 401 holds this where the Web API refuses a scope that was not granted (spotipy#684, #1205).

The endpoints of the player answer so. The token is good, and another one would be refused in the same way.
"""
_log = logging.getLogger("spotconn")

ASYNC_ONLY = "SpotifyAuth needs an AsyncClient: what may have to be refreshed cannot be had without awaiting"


class SpotifyAuth(Auth):
    """Sends the access token of one user with the requests of a client: `httpx.AsyncClient(auth=SpotifyAuth(...))`.

    Requests to the Web API carry the user's token. A request that is answered with 401 is repeated once with another
    token; many requests with one rejected token cost one refresh. A request whose body is a stream, a file or
    multipart cannot be repeated: its 401 goes to the caller, and the next request has another token. All other answers
    go to the caller unchanged, and so does the 401 "Permissions missing", which is about a scope and not the token.
    The source is told of answers that refuse the app (`TokenManager.report_answer`), once the caller has read them.

    The token is sent to https://api.spotify.com and to the services in `allow` only: requests to other hosts are sent
    without it, also those that a redirect leads to.

    It works with httpx and with httpx2, whichever the library itself uses.

    Args:
        source: of the tokens; a `TokenManager`.
        user_id: the user whose token is sent.
        scopes: scopes that the user must have granted; without them a request raises MissingScope and is not sent.
        allow: base URLs of further services that may get the token, such as a `FakeSpotify`: https, or http with a
            loopback literal. Scheme, host and port count, the path does not. A proxy for http, also one from the
            environment, can read the token in plain http: give the client `trust_env=False`, or set NO_PROXY.

    Raises:
        ValueError: the user id is no UUID, or `scopes` or `allow` is a single string.
        ConfigurationError: `allow` holds something that is no such base URL.
        RuntimeError: on a request of a synchronous client.
        SpotconnError: on a request, if there is no token; the same as `TokenManager.get_valid_token`.
    """

    def __init__(
        self, source: TokenSource, user_id: UserId, *, scopes: Iterable[str] = (), allow: Iterable[str] = ()
    ) -> None:
        self._source = source
        self._report = getattr(source, "report_answer", None)
        self._user_id = parse_user_id(user_id)
        self._scopes = several(scopes, name="scopes")
        urls = (API_URL, *several(allow, name="allow"))
        self._origins = frozenset(_origin(library.URL(base_url(url, name="allow"))) for url in urls)

    def __repr__(self) -> str:
        """Return the user whose token is sent."""
        return f"<SpotifyAuth user_id={self._user_id}>"

    async def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:
        """Send one request, and repeat it after a 401. Redirects are followed inside, request by request.

        Args:
            request: an httpx.Request or httpx2.Request.
        """
        if _origin(request.url) not in self._origins:
            _log.debug("no token is sent to %s: allow= does not name it", shown(request.url.host))
            yield request
            return
        # No variable holds the token: crash reports show them, while the clients hide this header.
        token = self._source.get_valid_token(self._user_id, scopes=self._scopes)
        request.headers["Authorization"] = f"Bearer {await token}"
        response = yield request
        # After a redirect this is another request. Repeating the first one could repeat its effect.
        refused = response.request
        self._note(response, request)
        if response.status_code != UNAUTHORIZED or not self._has_same_token(refused, request):
            return
        await response.aread()
        if MISSING_SCOPE in response.content:
            return
        other = await self._source.replace_rejected(self._user_id, _bearer(refused), scopes=self._scopes)
        if _is_repeatable(refused):
            refused.headers["Authorization"] = f"Bearer {other}"
            self._note((yield refused), refused)

    def _note(self, response: Any, sent: Any) -> None:
        """Report an answer to a request with the token. Its body is looked at once the caller has read it."""
        last = response.request
        if self._report is None or (last is not sent and not self._has_same_token(last, sent)):
            return
        if response.status_code in {FORBIDDEN, TOO_MANY_REQUESTS}:
            when_read(response, partial(_report_to, self._report, self._user_id, response.status_code))
        else:
            _report_to(self._report, self._user_id, response.status_code, b"")

    def sync_auth_flow(self, request: Any) -> Generator[Any, Any, None]:  # noqa: ARG002  the client's signature
        """Refuse the synchronous client.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(ASYNC_ONLY)

    def auth_flow(self, request: Any) -> Generator[Any, Any, None]:  # noqa: ARG002  as above
        """Refuse what `sync_auth_flow` refuses.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(ASYNC_ONLY)

    def _has_same_token(self, last: Any, first: Any) -> bool:
        """Return whether the last request of a chain of redirects carried the token; only then a 401 is about it."""
        return _bearer(last) == _bearer(first) and _origin(last.url) in self._origins


def _report_to(source: Callable[[UUID, int, bytes], object], user_id: UUID, status: int, body: bytes) -> None:
    with suppress(RuntimeError):  # it is closed, or of another event loop: the caller has the answer anyway
        source(user_id, status, body)


def _origin(url: Any) -> tuple[str, bytes, int | None]:
    """Return scheme, host and port; the clients have None for the default port of a scheme."""
    return url.scheme, url.raw_host, url.port


def _bearer(request: Any) -> str:
    """Return the token that a request carries, or "" for none."""
    header: str = request.headers.get("Authorization", "")
    return header.removeprefix("Bearer ")


def _is_repeatable(request: Any) -> bool:
    """Return whether the body is in memory; any other stream may be used up."""
    return isinstance(request.stream, classes("ByteStream"))
