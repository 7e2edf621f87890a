"""One HTTP request to Spotify: its answer, or the failure of the network as an error of this library."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any, Literal, NamedTuple

import httpx

from spotconn._affinity import Affinity, keep_from_children
from spotconn._spotify.authorization import RequestNotProcessed
from spotconn._spotify.clients import Clients, client_factory
from spotconn._spotify.retry import BeginBy
from spotconn.errors import SpotifyUnavailable

LARGEST_BODY = 64 * 1024
"""Bytes of an answer that are read; a grant or a profile has about one thousand."""

# Not compressed, so that a small answer cannot unpack into a large one.
_HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity"}
_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
# Who waits for the answer bounds the time: a timer of the client would throw away an answer that has arrived.
_TIMEOUT = httpx.Timeout(None, connect=5)
_BEFORE_BYTES = (".connect_tcp.started", ".start_tls.started", ".send_request_headers.started")


class Response(NamedTuple):
    """The parts of an answer that are read."""

    status: int
    headers: httpx.Headers
    body: bytes


class HttpClient:
    """Sends requests over a given client, or over `Clients` of its own.

    Args:
        given: the client to use, which stays open on `aclose()`; None for own ones.
        base_urls: of the services, for own clients.

    Attributes:
        own: the clients to close; None if one was given.
    """

    def __init__(self, given: httpx.AsyncClient | None, affinity: Affinity, *base_urls: str) -> None:
        self._affinity = affinity
        self.own: Clients | None = None
        self._borrow: Callable[[], AbstractContextManager[httpx.AsyncClient]]
        if given is None:
            self.own = Clients(client_factory(*base_urls))
            self._borrow = self.own.borrow
        else:
            self._borrow = lambda: nullcontext(given)

    async def send(
        self,
        method: Literal["GET", "POST"],
        url: str,
        *,
        begin_by: BeginBy,
        observed: AbstractContextManager[Callable[[int], None]],
        headers: Mapping[str, str] | None = None,
        data: dict[str, str] | None = None,
        auth: httpx.Auth | None = None,
    ) -> Response:
        """Send one request and read its answer. Redirects are not followed.

        Args:
            method: HTTP method.
            url: the whole URL.
            begin_by: the time after which the request is not sent.
            observed: entered around the request; gives what is called with the status of the answer.
            headers: added to those that every request has.
            data: the form to send.
            auth: how the request is authenticated.

        Raises:
            RequestNotProcessed: no connection was made, so nothing was sent.
            SpotifyUnavailable: the network failed later, or the answer is too large or badly encoded.
        """
        self._affinity.check()
        try:
            with self._borrow() as client, observed as on_status:
                streamed = client.stream(
                    method,
                    url,
                    headers={**_HEADERS, **(headers or {})},
                    data=data,
                    auth=auth,
                    follow_redirects=False,
                    timeout=_TIMEOUT,
                    extensions={"trace": partial(self._trace, begin_by)},
                )
                async with streamed as response:
                    # A client of the caller's own may have had this connection before.
                    _protect(response.extensions.get("network_stream"))
                    on_status(response.status_code)
                    return Response(response.status_code, response.headers, await _read_body(response))
        except httpx.RequestError as error:
            failure = _network_failure(error)
        # Raised outside of the handler: as __context__ the error of httpx would hold the request with its tokens.
        raise failure

    async def aclose(self) -> None:
        """Close the own clients."""
        if self.own is not None:
            await self.own.aclose()

    async def _trace(self, begin_by: BeginBy, event: str, info: Mapping[str, Any]) -> None:
        """Protect new connections from forks; send nothing in a child, nor too late. Called by httpcore ("trace")."""
        if event.endswith(_BEFORE_BYTES):
            # The process may have forked, or stood still, while it connected.
            self._affinity.check_home()
            begin_by.check()
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            _protect(info["return_value"])


def _protect(stream: object) -> None:
    with suppress(TypeError):  # a stream of the caller's own transport that takes no weak reference
        keep_from_children(stream)


async def _read_body(response: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > LARGEST_BODY:
            raise SpotifyUnavailable(f"Spotify gave an unreadable answer: over {LARGEST_BODY} bytes")
    return bytes(body)


def _network_failure(error: httpx.RequestError) -> SpotifyUnavailable:
    """Return what the class of `error` means; its text may quote what was sent or received."""
    if isinstance(error, httpx.DecodingError):
        return SpotifyUnavailable("Spotify gave an unreadable answer: its encoding is broken")
    kind = RequestNotProcessed if isinstance(error, _UNSENT) else SpotifyUnavailable
    return kind(f"no answer from {error.request.url.host}: {type(error).__name__}", answered=False)
