"""A stored connection as the authentication of requests, and as an auth manager of spotipy."""

import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Protocol
from urllib.parse import urlsplit
from uuid import UUID

from spotconn._arguments import several
from spotconn._printable import shown
from spotconn._spotify.app_answers import FORBIDDEN, TOO_MANY_REQUESTS
from spotconn._spotify.authorization import base_url
from spotconn._tracebacks import scrubbed, scrubbed_method
from spotconn._user_ids import UserId, parse_user_id
from spotconn.auth import API_URL, MISSING_SCOPE, UNAUTHORIZED

_log = logging.getLogger("spotconn")
_PORTS = {"http": 80, "https": 443}


class Tokens(Protocol):
    """What a `BlockingAuth` asks of `BlockingTokens`."""

    @property
    def api_url(self) -> str:
        """Base URL of the Web API."""
        ...

    def get_valid_token(self, user_id: UserId, *, scopes: Iterable[str] = ...) -> str:
        """Return an access token that Spotify accepts now."""
        ...

    def replace_rejected(self, user_id: UserId, rejected_token: str, *, scopes: Iterable[str] = ...) -> str:
        """Return another access token than the one that was refused."""
        ...

    def report_answer(self, user_id: UserId, status: int, body: bytes) -> None:
        """Record what the Web API has answered."""
        ...


@scrubbed
class BlockingAuth:
    """Sends the access token of one user with requests: `requests.get(url, auth=tokens.auth(user_id))`.

    It does in synchronous code what `SpotifyAuth` does in asynchronous code. Requests to the Web API carry the user's
    token. One that is answered with 401 is repeated once with another token, unless its body is a stream: then its 401
    goes to the caller, and the next request has another token. So does the 401 "Permissions missing", which is about a
    scope and not the token.

    The token is sent to https://api.spotify.com and to the services in `allow` only. A redirect to another host, port
    or scheme loses it.

    With spotipy: `session = requests.Session()`, `session.auth = tokens.auth(user_id)` and
    `spotipy.Spotify(requests_session=session)`. As an `auth_manager` of spotipy it serves, too, but then a 401 goes to
    the caller, and spotipy sends the token with every URL that it is given, and logs it at DEBUG.

    Make it by `BlockingTokens.auth`. It may be used in any thread, and after a fork.
    """

    def __init__(
        self,
        tokens: Tokens,
        user_id: UserId,
        *,
        scopes: Iterable[str],
        allow: Iterable[str],
    ) -> None:
        self._tokens = tokens
        self._user_id: UUID = parse_user_id(user_id)
        self._scopes = several(scopes, name="scopes")
        urls = (API_URL, *several(allow, name="allow"))
        self._origins = frozenset(_origin(base_url(url, name="allow")) for url in urls)

    def __repr__(self) -> str:
        """Return the user whose token is sent."""
        return f"<BlockingAuth user_id={self._user_id}>"

    def __call__(self, request: Any) -> Any:
        """Send the token with a request that may have it: what requests calls.

        Args:
            request: a requests.PreparedRequest.

        Raises:
            TypeError: it is a request of httpx.
            SpotconnError: as `BlockingTokens.get_valid_token`.
        """
        if not hasattr(request, "register_hook"):
            raise TypeError("BlockingAuth is for requests: for httpx there is TokenManager.auth, with an AsyncClient")
        if self._may_see_token(request.url):
            request.headers["Authorization"] = f"Bearer {self.get_access_token()}"
            request.register_hook("response", self._handle)
        else:
            _log.debug("no token is sent to %s: allow= does not name it", shown(str(_origin(request.url)[1])))
        return request

    def get_access_token(self, *, as_dict: bool = False) -> str:
        """Return an access token that Spotify accepts now: what spotipy calls.

        Raises:
            ValueError: `as_dict` is set.
            SpotconnError: as `BlockingTokens.get_valid_token`.
        """
        if as_dict:
            raise ValueError("as_dict: there is the token only")
        return self._tokens.get_valid_token(self._user_id, scopes=self._scopes)

    @scrubbed_method
    def _handle(self, response: Any, **options: Any) -> Any:
        """Repeat what was rejected, and report the answer: a hook of requests."""
        response = self._repeat_rejected(response, **options)
        if "Authorization" in response.request.headers and self._may_see_token(response.request.url):
            self._report(response, streamed=options.get("stream", False))
        return response

    def _report(self, response: Any, *, streamed: bool) -> None:
        """Report an answer of the Web API. The body of one that is streamed is not read."""
        refused = response.status_code in {FORBIDDEN, TOO_MANY_REQUESTS}
        if refused and streamed:
            return
        with suppress(RuntimeError):  # closed meanwhile: the answer is the caller's all the same
            self._tokens.report_answer(self._user_id, response.status_code, response.content if refused else b"")

    def _repeat_rejected(self, response: Any, **options: Any) -> Any:
        """Repeat a request that was answered with 401, once in a chain of redirects."""
        request = response.request
        rejected = str(request.headers.get("Authorization", "")).removeprefix("Bearer ")
        if response.status_code != UNAUTHORIZED or not rejected or not self._may_see_token(request.url):
            return response
        request.deregister_hook("response", self._handle)
        if MISSING_SCOPE in response.content:
            return response
        other = self._tokens.replace_rejected(self._user_id, rejected, scopes=self._scopes)
        if not isinstance(request.body, bytes | str | None):
            return response
        # The request itself, and not a copy: a redirect that follows is made of it.
        request.headers["Authorization"] = f"Bearer {other}"
        # The connection's own method calls no hooks.
        return response.connection.send(request, **options)

    def _may_see_token(self, url: str) -> bool:
        origin = _origin(url)
        return origin in self._origins or origin == _origin(self._tokens.api_url)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    """Return scheme, host and port as requests finds them in a URL, which decides where it connects to."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)
