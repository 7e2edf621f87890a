"""What a client of the caller's own, of either library, may do: be closed, raise anything, call hooks that raise."""

import asyncio
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from types import ModuleType
from typing import Any

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


async def test_a_closed_client(http_library: Any) -> None:
    """A given client that was closed is named, and nothing is said of Spotify."""
    http = http_library.AsyncClient()
    await http.aclose()
    error = await failure(SpotifyAccounts("app", http=http))
    assert type(error) is ConfigurationError
    assert "the http client given to SpotifyAccounts is closed" in str(error)


def raising(http_library: Any, error: BaseException) -> Any:
    """A client that raises in place of an answer."""

    def respond(_request: Any) -> Any:
        raise error

    return http_library.AsyncClient(transport=http_library.MockTransport(respond))


class ClosedResourceError(Exception):
    """Like the one of anyio, which httpx does not map in each place."""


FOREIGN = [
    ClosedResourceError(),
    ssl.SSLError("bad record mac"),
    KeyError(SECRET),
    RuntimeError(SECRET),
    OSError(9, SECRET),
    ExceptionGroup(SECRET, [ValueError(SECRET)]),
    NotConnected("not of Spotify"),
    pytest.fail.Exception(SECRET),  # of a mock in a test of the caller's: no Exception
]


@pytest.mark.parametrize("foreign", FOREIGN, ids=lambda error: type(error).__name__)
async def test_what_a_client_raises(http_library: Any, foreign: BaseException) -> None:
    """Any error of a client is a fault on the way to Spotify, named by its class, and never one of the user's."""
    async with raising(http_library, foreign) as http:
        error = await failure(SpotifyAccounts("app", http=http))
    assert passes(error)
    assert type(foreign).__name__ in str(error)
    assert not has_mark(error, Mark.NOT_PROCESSED)


UNSENT = {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError"}
OWN = [*sorted(UNSENT), "InvalidURL", "TooManyRedirects", "ReadError", "ReadTimeout", "RemoteProtocolError"]


@pytest.mark.parametrize("name", OWN)
async def test_what_its_library_raises(http_library: Any, name: str) -> None:
    """An error of a client's library means the same, whichever it is; only some say that nothing was sent."""
    async with raising(http_library, getattr(http_library, name)(SECRET)) as http:
        error = await failure(SpotifyAccounts("app", http=http))
    assert passes(error)
    assert (name if name != "ProxyError" else "the proxy refused") in str(error)
    assert has_mark(error, Mark.NOT_PROCESSED) is (name in UNSENT)


async def test_a_body_that_its_library_cannot_decode(http_library: Any) -> None:
    """It is an unreadable answer of Spotify, and no fault on the way there."""
    async with raising(http_library, http_library.DecodingError(SECRET)) as http:
        error = await failure(SpotifyAccounts("app", http=http))
    assert "unreadable answer: its encoding is broken" in str(error)


class Forks:
    """Connects in a process that has become a child of fork meanwhile."""

    accounts: SpotifyAccounts

    async def __call__(self, request: Any) -> Any:
        self.accounts.affinity._forks -= 1
        await request.extensions["trace"]("connection.connect_tcp.started", {})
        raise AssertionError("it went on")


async def test_what_is_said_of_a_fork_passes(http_library: Any) -> None:
    """A request that goes on in a child of fork ends with the error that says where to make the accounts."""
    forks = Forks()
    async with http_library.AsyncClient(transport=http_library.MockTransport(forks.__call__)) as http:
        forks.accounts = SpotifyAccounts("app", http=http)
        with pytest.raises(RuntimeError, match="was made before a fork"):
            await forks.accounts.exchange_code("code", redirect_uri="https://a.example/", code_verifier="v")


async def endless() -> AsyncIterator[bytes]:
    """A body that never ends."""
    while True:
        await asyncio.sleep(0)
        yield b" " * 1024


async def test_a_body_that_never_ends(http_library: Any) -> None:
    """It is read up to a limit, and said to be too large."""

    def respond(_request: Any) -> Any:
        return http_library.Response(200, content=endless())

    async with http_library.AsyncClient(transport=http_library.MockTransport(respond)) as http:
        error = await failure(SpotifyAccounts("app", http=http))
    assert "over 65536 bytes" in str(error)


async def test_a_request_hook_that_raises(http_library: Any, spotify: FakeSpotify) -> None:
    """What a request hook raises is such an error, too."""

    async def hook(_request: Any) -> None:
        raise KeyError(SECRET)

    async with spotify.serve() as url, http_library.AsyncClient(event_hooks={"request": [hook]}) as http:
        error = await failure(SpotifyAccounts("demo-client", "demo-secret", http=http, accounts_url=url))
    assert passes(error)
    assert "KeyError" in str(error)
    assert not spotify.token_calls


async def raise_for_status(response: Any) -> None:
    response.raise_for_status()


async def raise_always(response: Any) -> None:
    await response.aread()
    raise KeyError(SECRET)


async def hang(_response: Any) -> None:
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
    http_library: Any, hook: Callable[[Any], Any], script: bytes, is_right: Callable[[SpotconnError], object]
) -> None:
    """An answer of Spotify means what it means without response hooks."""
    async with upstream(script) as served, http_library.AsyncClient(event_hooks={"response": [hook]}) as http:
        error = await failure(SpotifyAccounts("app", http=http, accounts_url=served.url))
    assert is_right(error), error


@pytest.mark.parametrize("hook", [raise_always, hang])
async def test_a_grant_survives_a_hook(http_library: Any, spotify: FakeSpotify, hook: Callable[[Any], Any]) -> None:
    """A hook that raises or hangs after a success does not lose the only good refresh token.

    The client is not altered.
    """
    spotify.add_account("ann")
    refresh_token = spotify.authorize("ann").refresh_token
    assert refresh_token is not None
    async with spotify.serve() as url, http_library.AsyncClient(event_hooks={"response": [hook]}) as http:
        async with SpotifyAccounts("demo-client", "demo-secret", http=http, accounts_url=url) as accounts:
            grant = await accounts.refresh(refresh_token, timeout=2)
        assert http.event_hooks == {"request": [], "response": [hook]}
    assert grant.refresh_token is not None
    assert spotify.accepts_refresh(grant.refresh_token)


@pytest.mark.parametrize("name", ["httpx", "httpx2"])
async def test_a_grant_survives_the_import_of_the_other_library(
    spotify: FakeSpotify, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What another thread is importing just now has no classes yet: an answer is read all the same."""
    spotify.add_account("ann")
    refresh_token = spotify.authorize("ann").refresh_token
    assert refresh_token is not None
    async with (
        spotify.serve() as url,
        SpotifyAccounts("demo-client", "demo-secret", accounts_url=url) as accounts,
    ):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
        grant = await accounts.refresh(refresh_token, timeout=60)
    assert grant.refresh_token is not None


async def test_a_hook_can_read_the_answer(http_library: Any) -> None:
    """Hooks are called with a response whose body can be read again, and which says how long it took."""
    seen: list[bytes] = []

    async def hook(response: Any) -> None:
        seen.append(await response.aread())
        assert response.elapsed.total_seconds() > 0

    async with (
        upstream(answer(200, GRANT)) as served,
        http_library.AsyncClient(event_hooks={"response": [hook]}) as http,
        SpotifyAccounts("app", http=http, accounts_url=served.url) as accounts,
    ):
        await accounts.refresh(SECRET)
    assert b"granted-at" in seen[0]


def close_what_the_client_needs(client: Any) -> None:
    client._transport.handle_async_request = None


async def answer_by_itself(_client: Any, request: Any, **_options: Any) -> Any:
    module = __import__(type(request).__module__)
    return module.Response(200, json=GRANT, request=request)


METHODS = {
    "closes when collected": {"__del__": close_what_the_client_needs},
    "calls no hooks": {"send": answer_by_itself},
}


@pytest.mark.parametrize("methods", METHODS.values(), ids=METHODS)
async def test_clients_of_other_classes(http_library: Any, methods: dict[str, Any]) -> None:
    """A client whose copy must not be collected, as of some packages, and one that calls no hooks are asked all the
    same.
    """
    kind: Any = type("Other", (http_library.AsyncClient,), methods)
    async with (
        upstream(answer(200, GRANT)) as served,
        kind(event_hooks={"response": [raise_for_status]}) as http,
        SpotifyAccounts("app", http=http, accounts_url=served.url) as accounts,
    ):
        for _ in range(2):
            assert (await accounts.refresh(SECRET)).access_token == "granted-at"


async def test_a_client_that_keeps_count(http_library: Any, spotify: FakeSpotify) -> None:
    """A client of the caller's own class, as of a rate limit, is used itself and not a copy of it."""
    sent: list[Any] = []

    async def send(client: Any, request: Any, **options: Any) -> Any:
        sent.append(client)
        return await http_library.AsyncClient.send(client, request, **options)

    spotify.add_account("ann")
    refresh_token = spotify.authorize("ann").refresh_token
    assert refresh_token is not None
    kind: Any = type("Counts", (http_library.AsyncClient,), {"send": send})
    async with spotify.serve() as url, kind() as http:
        accounts = SpotifyAccounts("demo-client", "demo-secret", http=http, accounts_url=url)
        for _ in range(2):
            refresh_token = (await accounts.refresh(refresh_token)).refresh_token or refresh_token
        assert sent == [http] * 2


async def test_a_code_is_sent_again_only_if_nothing_was_sent(http_library: Any) -> None:
    """A fault of which nobody knows whether Spotify got the request is not one to repeat a code after."""
    calls: list[str] = []

    def count(request: Any) -> Any:
        calls.append(str(request.url))
        raise RuntimeError("anything")

    async with http_library.AsyncClient(transport=http_library.MockTransport(count)) as http:
        accounts = SpotifyAccounts("app", http=http)
        with pytest.raises(SpotifyUnavailable):
            await accounts.exchange_code("code", redirect_uri="https://a.example/", code_verifier="v", timeout=1)
    assert len(calls) == 1
