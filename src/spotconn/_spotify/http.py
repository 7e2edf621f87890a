"""One HTTP request to Spotify: its answer, or the failure of the network as an error of this library."""

import asyncio
import copy
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from spotconn._affinity import Affinity, keep_from_children
from spotconn._spotify.clients import Clients, client_factory
from spotconn._spotify.decoding import check_size, limit
from spotconn._spotify.failures import failure_of
from spotconn._spotify.http_library import AsyncClient
from spotconn._spotify.marks import Mark, marked
from spotconn._spotify.retry import BeginBy
from spotconn.errors import ConfigurationError, SpotifyUnavailable

# Not compressed, so that a small answer cannot unpack into a large one.
_HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity"}
# Who waits for the answer bounds the time: a timer of the client would throw away an answer that has arrived.
_TIMEOUT = (5.0, None, None, None)  # to connect, to read, to write, for a connection of the pool
_BEFORE_BYTES = (".connect_tcp.started", ".start_tls.started", ".send_request_headers.started")


class Response(NamedTuple):
    """The parts of an answer that are read."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpClient:
    """Sends requests over a given client, or over `Clients` of its own.

    Args:
        given: the client of either library to use, which stays open on `aclose()`; None for own ones.
        base_urls: of the services, for own clients.

    Attributes:
        own: the clients to close; None if one was given.
    """

    def __init__(self, given: AsyncClient | None, affinity: Affinity, *base_urls: str) -> None:
        self._affinity = affinity
        self.own: Clients | None = None
        self._borrow: Callable[[], AbstractContextManager[AsyncClient]]
        if given is None:
            self.own = Clients(client_factory(*base_urls))
            self._borrow = self.own.borrow
        else:
            self._borrow = partial(_open, given)

    async def send(
        self,
        method: Literal["GET", "POST"],
        url: str,
        *,
        begin_by: BeginBy,
        observed: AbstractContextManager[Callable[[int], None]],
        headers: Mapping[str, str] | None = None,
        data: dict[str, str] | None = None,
    ) -> Response:
        """Send one request and read its answer. Redirects are not followed.

        Args:
            method: HTTP method.
            url: the whole URL.
            begin_by: the time after which the request is not sent.
            observed: entered around the request; gives what is called with the status of the answer.
            headers: added to those that every request has.
            data: the form to send.

        Raises:
            SpotifyUnavailable: the network or the client failed, or the answer is too large or badly encoded. It is
                marked as not processed if no connection was made.
            ConfigurationError: the client is closed, or TLS cannot be used; nothing was sent.
            RuntimeError: in a child of fork or another event loop.
        """
        self._affinity.check()
        read = _Reader()
        failure: SpotifyUnavailable | ConfigurationError
        try:
            with self._borrow() as client, observed as read.on_status:
                streamed = _with_first_hook(client, read).stream(
                    method,
                    url,
                    headers={**_HEADERS, **(headers or {})},
                    data=data,
                    auth=None,  # not that of a client of the caller's own
                    follow_redirects=False,
                    timeout=_TIMEOUT,
                    extensions={"trace": partial(self._trace, begin_by)},
                )
                async with streamed as response:
                    return read.answer or await read(response)
        except (SpotifyUnavailable, ConfigurationError) as error:
            failure = error
        except asyncio.CancelledError:
            if read.answer is None:
                raise
            return read.answer  # the time is over in a hook of the caller's
        except (GeneratorExit, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001  a client of the caller's may raise anything, as pytest.fail does
            failure = failure_of(error, urlsplit(url).hostname or "")
        if read.answer is not None:  # whatever a hook of the caller's has raised since
            return read.answer
        self._affinity.check_home()
        # Raised outside of the handler: as __context__ the error of the client would hold the request with its tokens.
        raise failure

    async def aclose(self) -> None:
        """Close the own clients."""
        if self.own is not None:
            await self.own.aclose()

    async def _trace(self, begin_by: BeginBy, event: str, info: Mapping[str, Any]) -> None:
        """Protect new connections from forks; send nothing in a child, nor too late. Called for "trace"."""
        if event.endswith(_BEFORE_BYTES):
            # The process may have forked, or stood still, while it connected.
            self._affinity.check_home()
            begin_by.check()
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            _protect(info["return_value"])


def _protect(stream: object) -> None:
    with suppress(TypeError):  # a stream of the caller's own transport that takes no weak reference
        keep_from_children(stream)


def _open(given: AsyncClient) -> AbstractContextManager[AsyncClient]:
    if given.is_closed:
        closed = ConfigurationError(
            "the http client given to SpotifyAccounts is closed: close it after the last call, or let SpotifyAccounts "
            "make its own"
        )
        raise marked(closed, Mark.NOT_PROCESSED, Mark.OF_ONE_APP)
    return nullcontext(given)


def _with_first_hook(client: AsyncClient, hook: Callable[[Any], Awaitable[object]]) -> AsyncClient:
    """Return a client over the same connections that calls `hook` with a response before other hooks, if it has any.

    A hook that raises has the client close the response, which may hold the only good refresh token, before it is read.
    """
    hooks = client.event_hooks
    if not hooks["response"] or hasattr(client, "__del__"):  # a copy that is collected could close the connections
        return client
    client = copy.copy(client)
    client.event_hooks = {**hooks, "response": [hook, *hooks["response"]]}
    return client


class _Reader:
    """Reads a response once, within bounds.

    Attributes:
        on_status: is called with the status of the response.
        answer: what was read; None before.
    """

    def __init__(self) -> None:
        self.on_status: Callable[[int], None]
        self.answer: Response | None = None

    async def __call__(self, response: Any) -> Response:
        """Read the response. Other hooks can still read it.

        Raises:
            SpotifyUnavailable: it is too large, or encoded in a way that is not read.
        """
        # A client of the caller's own may have had this connection before.
        _protect(response.extensions.get("network_stream"))
        self.on_status(response.status_code)
        limit(response)
        body = await response.aread()
        check_size(len(body))
        self.answer = Response(response.status_code, response.headers, body)
        return self.answer
