"""What a client of the caller's own may do: be closed, raise anything, call hooks that raise."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from spotconn import (
    ConfigurationError,
    NotConnected,
    ReauthorizationRequired,
    SpotconnError,
    SpotifyAccounts,
    SpotifyUnavailable,
)
from spotconn._spotify.marks import Mark, has_mark
from spotconn.testing import FakeSpotify
from support.refused_refresh import GRANT, SECRET, failure, passes
from support.upstream import answer, upstream


async def test_a_closed_client() -> None:
    """A given client that was closed is named, and nothing is said of Spotify."""
    http = httpx.AsyncClient()
    await http.aclose()
    error = await failure(SpotifyAccounts("app", http=http))
    assert type(error) is ConfigurationError
    assert "the http client given to SpotifyAccounts is closed" in str(error)


class Broken(httpx.AsyncBaseTransport):
    """Raises in place of an answer."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        del request
        raise self._error


class ClosedResourceError(Exception):
    """Like the one of anyio, which httpx does not map in each place."""


FOREIGN = [
    ClosedResourceError(),
    ssl.SSLError("bad record mac"),
    KeyError(SECRET),
    RuntimeError(SECRET),
    OSError(9, SECRET),
    httpx.StreamClosed(),
    httpx.InvalidURL(SECRET),
    httpx.TooManyRedirects(SECRET),
    ExceptionGroup(SECRET, [ValueError(SECRET)]),
    NotConnected("not of Spotify"),
    pytest.fail.Exception(SECRET),  # of a mock in a test of the caller's: no Exception
]


@pytest.mark.parametrize("foreign", FOREIGN, ids=lambda error: type(error).__name__)
async def test_what_a_client_raises(foreign: BaseException) -> None:
    """Any error of a client is a fault on the way to Spotify, named by its class, and never one of the user's."""
    async with httpx.AsyncClient(transport=Broken(foreign)) as http:
        error = await failure(SpotifyAccounts("app", http=http))
    assert passes(error)
    assert type(foreign).__name__ in str(error)
    assert not has_mark(error, Mark.NOT_PROCESSED)


class Forks(httpx.AsyncBaseTransport):
    """Connects in a process that has become a child of fork meanwhile."""

    accounts: SpotifyAccounts

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.accounts.affinity._forks -= 1
        await request.extensions["trace"]("connection.connect_tcp.started", {})
        raise AssertionError("it went on")


async def test_what_is_said_of_a_fork_passes() -> None:
    """A request that goes on in a child of fork ends with the error that says where to make the accounts."""
    transport = Forks()
    async with httpx.AsyncClient(transport=transport) as http:
        transport.accounts = SpotifyAccounts("app", http=http)
        with pytest.raises(RuntimeError, match="was made before a fork"):
            await transport.accounts.exchange_code("code", redirect_uri="https://a.example/", code_verifier="v")


class Endless(httpx.AsyncByteStream):
    """A body that never ends."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(0)
            yield b" " * 1024


async def test_a_body_that_never_ends() -> None:
    """It is read up to a limit, and said to be too large."""
    respond = httpx.MockTransport(lambda _: httpx.Response(200, stream=Endless()))
    async with httpx.AsyncClient(transport=respond) as http:
        error = await failure(SpotifyAccounts("app", http=http))
    assert "over 65536 bytes" in str(error)


async def test_a_request_hook_that_raises(spotify: FakeSpotify) -> None:
    """What a request hook raises is such an error, too."""

    async def hook(_request: httpx.Request) -> None:
        raise KeyError(SECRET)

    async with spotify.serve() as url, httpx.AsyncClient(event_hooks={"request": [hook]}) as http:
        error = await failure(SpotifyAccounts("demo-client", "demo-secret", http=http, accounts_url=url))
    assert passes(error)
    assert "KeyError" in str(error)
    assert not spotify.token_calls


async def raise_for_status(response: httpx.Response) -> None:
    response.raise_for_status()


async def raise_always(response: httpx.Response) -> None:
    await response.aread()
    raise KeyError(SECRET)


async def hang(_response: httpx.Response) -> None:
    await asyncio.Event().wait()


HOOKS = {"raise_for_status": raise_for_status, "a hook that always raises": raise_always}
ANSWERS: dict[str, tuple[bytes, Callable[[SpotconnError], object]]] = {
    "invalid_grant": (answer(400, {"error": "invalid_grant"}), lambda error: type(error) is ReauthorizationRequired),
    "invalid_client": (answer(400, {"error": "invalid_client"}), lambda error: has_mark(error, Mark.OF_ONE_APP)),
    "503": (answer(503, Retry_After="70"), lambda error: getattr(error, "retry_after", None) == 70),
    "302": (answer(302, Location="http://["), lambda error: "status 302" in str(error)),
    "too large": (answer(200, b" " * 70_000), lambda error: "over 65536 bytes" in str(error)),
}


@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS)
@pytest.mark.parametrize(("script", "is_right"), ANSWERS.values(), ids=ANSWERS)
async def test_the_answer_counts_and_not_the_hook(
    hook: Callable[[httpx.Response], Any], script: bytes, is_right: Callable[[SpotconnError], object]
) -> None:
    """An answer of Spotify means what it means without response hooks."""
    async with upstream(script) as served, httpx.AsyncClient(event_hooks={"response": [hook]}) as http:
        error = await failure(SpotifyAccounts("app", http=http, accounts_url=served.url))
    assert is_right(error), error


@pytest.mark.parametrize("hook", [raise_always, hang])
async def test_a_grant_survives_a_hook(spotify: FakeSpotify, hook: Callable[[httpx.Response], Any]) -> None:
    """A hook that raises or hangs after a success does not lose the only good refresh token.

    The client is not altered.
    """
    spotify.add_account("ann")
    refresh_token = spotify.authorize("ann").refresh_token
    assert refresh_token is not None
    async with spotify.serve() as url, httpx.AsyncClient(event_hooks={"response": [hook]}) as http:
        async with SpotifyAccounts("demo-client", "demo-secret", http=http, accounts_url=url) as accounts:
            grant = await accounts.refresh(refresh_token, timeout=2)
        assert http.event_hooks == {"request": [], "response": [hook]}
    assert grant.refresh_token is not None
    assert spotify.accepts_refresh(grant.refresh_token)


async def test_a_hook_can_read_the_answer() -> None:
    """Hooks are called with a response whose body can be read again."""
    seen: list[bytes] = []

    async def hook(response: httpx.Response) -> None:
        seen.append(await response.aread())

    async with (
        upstream(answer(200, GRANT)) as served,
        httpx.AsyncClient(event_hooks={"response": [hook]}) as http,
        SpotifyAccounts("app", http=http, accounts_url=served.url) as accounts,
    ):
        await accounts.refresh(SECRET)
    assert b"granted-at" in seen[0]


class ClosesWhenCollected(httpx.AsyncClient):
    """As some packages have it: a copy that is collected must not close what the client needs."""

    def __del__(self) -> None:
        vars(self._transport)["handle_async_request"] = Broken(RuntimeError("closed")).handle_async_request


class CallsNoHooks(httpx.AsyncClient):
    """Answers by itself."""

    async def send(self, request: httpx.Request, **_options: Any) -> httpx.Response:
        return httpx.Response(200, json=GRANT, request=request)


@pytest.mark.parametrize("kind", [ClosesWhenCollected, CallsNoHooks])
async def test_clients_of_other_classes(kind: type[httpx.AsyncClient]) -> None:
    """A client that must not be copied and one that calls no hooks are asked all the same."""
    async with (
        upstream(answer(200, GRANT)) as served,
        kind(event_hooks={"response": [raise_for_status]}) as http,
        SpotifyAccounts("app", http=http, accounts_url=served.url) as accounts,
    ):
        for _ in range(2):
            assert (await accounts.refresh(SECRET)).access_token == "granted-at"


class Counts(httpx.AsyncClient):
    """Counts what it sends, as a rate limit does."""

    sent = 0

    async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        self.sent += 1
        return await super().send(request, **options)


async def test_a_client_that_keeps_count(spotify: FakeSpotify) -> None:
    """A client of the caller's own class is used itself and not a copy of it."""
    spotify.add_account("ann")
    refresh_token = spotify.authorize("ann").refresh_token
    assert refresh_token is not None
    async with spotify.serve() as url, Counts() as http:
        accounts = SpotifyAccounts("demo-client", "demo-secret", http=http, accounts_url=url)
        for _ in range(2):
            refresh_token = (await accounts.refresh(refresh_token)).refresh_token or refresh_token
    assert http.sent == 2


async def test_a_code_is_sent_again_only_if_nothing_was_sent() -> None:
    """A fault of which nobody knows whether Spotify got the request is not one to repeat a code after."""
    calls: list[str] = []

    def count(request: httpx.Request) -> httpx.Response:
        calls.append(str(request.url))
        raise RuntimeError("anything")

    async with httpx.AsyncClient(transport=httpx.MockTransport(count)) as http:
        accounts = SpotifyAccounts("app", http=http)
        with pytest.raises(SpotifyUnavailable):
            await accounts.exchange_code("code", redirect_uri="https://a.example/", code_verifier="v", timeout=1)
    assert len(calls) == 1
