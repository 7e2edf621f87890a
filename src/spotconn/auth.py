"""A stored connection as the authentication of an asynchronous HTTP client: httpx, or its continuation httpx2."""

import sys
from collections.abc import AsyncGenerator, Generator, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

import httpx

from spotconn._spotify.oauth import base_url
from spotconn.models import TokenSource, parse_user_id

API_URL = "https://api.spotify.com"
"""The Web API."""
UNAUTHORIZED = 401
MISSING_SCOPE = b"Permissions missing"
"""In the body of a 401 with which the Web API refuses a scope that was not granted (spotipy#684, #1205).

The player's endpoints answer so. The token is good, and another one would be refused in the same way.
"""
ASYNC_ONLY = "SpotifyAuth needs an AsyncClient: what may have to be refreshed cannot be had without awaiting"

if TYPE_CHECKING:
    import httpx2

    class _Auth(httpx.Auth, httpx2.Auth):
        """What both clients accept; the class is made at run time, as httpx2 may not be installed."""

        def auth_flow(self, request: Any) -> Generator[Any, Any, None]: ...
        def sync_auth_flow(self, request: Any) -> Generator[Any, Any, None]: ...
        def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]: ...
else:
    _Auth = httpx.Auth


class SpotifyAuth(_Auth):
    """Gives the requests of a client the access token of one user: `httpx.AsyncClient(auth=SpotifyAuth(...))`.

    Requests to the Web API bear the user's token. One that is answered with 401 is repeated once with another token,
    and many with one rejected token cost one refresh. A request whose body is a stream, a file or multipart cannot be
    repeated: its 401 goes to the caller, and the next request has another token. All other answers go to the caller
    as they are, and so does the 401 "Permissions missing", which speaks of a scope and not of the token.

    The token goes to https://api.spotify.com, and to what `allow` adds, and nowhere else: requests to other hosts are
    sent without it, also those that a redirect leads to.

    It works with httpx, and with httpx2 where the program has imported that before it makes the object.

    Args:
        source: gives the tokens; a `TokenManager`.
        user_id: whose token.
        allow: base URLs of further services that may see the token, such as a `FakeSpotify`: https, or http with a
            loopback literal. Scheme, host and port count, the path does not. A client that has a proxy for http, be it
            from the environment, shows it what plain http carries: give it `trust_env=False`, or set NO_PROXY.

    Raises:
        ValueError: the user id is no UUID.
        ConfigurationError: a base URL in `allow` is none.
        RuntimeError: on a request of a synchronous client.
        SpotconnError: on a request, if there is no token to be had; the same as `TokenManager.get_valid_token`.
    """

    if not TYPE_CHECKING:

        def __new__(cls, *_args: object, **_options: object) -> Self:
            """An object that each client takes for its own kind: they accept instances of their `Auth` only."""
            other = sys.modules.get("httpx2")
            return super().__new__(cls if other is None else _also(cls, other.Auth))

    def __init__(self, source: TokenSource, user_id: UUID | str, *, allow: Iterable[str] = ()) -> None:
        self._source = source
        self._user_id = parse_user_id(user_id)
        self._origins = frozenset(_origin(httpx.URL(base_url(url, name="allow"))) for url in (API_URL, *allow))

    def __repr__(self) -> str:
        """Whose token it gives."""
        return f"<SpotifyAuth user_id={self._user_id}>"

    async def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:
        """What an AsyncClient runs for each request; redirects are followed within, request by request.

        Args:
            request: an httpx.Request or httpx2.Request.
        """
        if _origin(request.url) not in self._origins:
            yield request
            return
        # No variable holds the token: crash reports show them, while the clients hide this header.
        request.headers["Authorization"] = f"Bearer {await self._source.get_valid_token(self._user_id)}"
        response = yield request
        # After a redirect this is another request; to repeat the first one could do twice what it has done.
        refused = response.request
        if response.status_code != UNAUTHORIZED or not self._bears_the_same(refused, request):
            return
        await response.aread()
        if MISSING_SCOPE in response.content:
            return
        other = await self._source.replace_rejected(self._user_id, _bearer(refused))
        if _repeatable(refused):
            refused.headers["Authorization"] = f"Bearer {other}"
            yield refused

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

    def _bears_the_same(self, last: Any, first: Any) -> bool:
        """Whether the last request of a chain of redirects still bore the token; only then a 401 is about it."""
        return _bearer(last) == _bearer(first) and _origin(last.url) in self._origins


def _origin(url: Any) -> tuple[str, bytes, int | None]:
    """Scheme, host and port; the clients write the default port of a scheme as None."""
    return url.scheme, url.raw_host, url.port


def _bearer(request: Any) -> str:
    """The token that a request bears; "" for none."""
    header: str = request.headers.get("Authorization", "")
    return header.removeprefix("Bearer ")


def _repeatable(request: Any) -> bool:
    """Whether the body is at hand as bytes; any other stream may be used up."""
    return isinstance(request.stream, (httpx.ByteStream, sys.modules.get("httpx2", httpx).ByteStream))


@cache
def _also(kind: type, base: type) -> type:
    """The class, also derived from another base."""
    if issubclass(kind, base):
        return kind
    return type(kind.__name__, (kind, base), {"__module__": kind.__module__, "__doc__": kind.__doc__})
