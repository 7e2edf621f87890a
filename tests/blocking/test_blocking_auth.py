"""The authentication of requests and of spotipy, against a FakeSpotify and a foreign server over real HTTP."""

import io
import logging
from collections.abc import Iterator
from typing import Any, cast
from uuid import UUID

import httpx
import pytest
import requests
import spotipy
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route

from spotconn import ConfigurationError, NotConnected, ReauthorizationRequired, SpotifyUnavailable
from spotconn.blocking import BlockingTokens
from spotconn.testing import Answer
from spotconn.testing._server import serve
from support.blocking_harness import Harness, Make

UNKNOWN = Answer(json={"access_token": "BQ-unknown-to-the-web-api", "token_type": "Bearer", "expires_in": 3600})


class Gateway:
    """A server that redirects, refuses and records, and hands everything else to the fake."""

    def __init__(self, harness: Harness) -> None:
        self.url = ""
        self.seen: list[tuple[str, str | None]] = []
        self._spotify = harness.spotify

    def app(self) -> Starlette:
        methods = ["GET", "POST"]
        return Starlette(
            routes=[
                Route("/redirect/{status:int}", self._redirect, methods=methods),
                Route("/refuse", self._refuse, methods=methods),
                Route("/body", self._body, methods=methods),
                Mount("/", self._spotify),
            ]
        )

    def bearers(self) -> list[str | None]:
        """What the requests to its own routes carried."""
        return [bearer for _, bearer in self.seen]

    async def _redirect(self, request: Request) -> Response:
        self._record(request)
        return RedirectResponse(request.query_params["to"], request.path_params["status"])

    async def _refuse(self, request: Request) -> Response:
        self._record(request)
        return JSONResponse({"error": {"status": 401, "message": request.query_params.get("message", "no")}}, 401)

    async def _body(self, request: Request) -> Response:
        self._record(request)
        body = await request.body()
        refused = self._spotify.bearer(request.headers.get("authorization"))
        return JSONResponse(refused[1], refused[0]) if isinstance(refused, tuple) else PlainTextResponse(body)

    def _record(self, request: Request) -> None:
        self.seen.append((request.url.path, request.headers.get("authorization")))


@pytest.fixture
def gateway(harness: Harness) -> Iterator[Gateway]:
    """The Web API as far as the client is concerned."""
    yield from _serving(harness)


@pytest.fixture
def foreign(harness: Harness) -> Iterator[Gateway]:
    """Another host: another port is another origin."""
    yield from _serving(harness)


def _serving(harness: Harness) -> Iterator[Gateway]:
    gateway = Gateway(harness)
    serving = serve(gateway.app())
    gateway.url = harness.loop.run(serving.__aenter__())
    yield gateway
    harness.loop.run(serving.__aexit__(None, None, None))


@pytest.fixture
def user(harness: Harness) -> UUID:
    """A user with a good token."""
    (user,) = harness.connect(3600)
    return user


@pytest.fixture
def http(tokens: BlockingTokens, user: UUID, gateway: Gateway) -> Iterator[requests.Session]:
    """A session that bears the user's token."""
    with requests.Session() as session:
        session.auth = tokens.auth(user, allow=[gateway.url])
        yield session


def test_requests_bear_the_token(http: requests.Session, harness: Harness) -> None:
    """The Web API of the manager's accounts answers as to the connected account."""
    answer = http.get(f"{harness.url}/v1/me", timeout=30)
    assert (answer.status_code, answer.json()["id"]) == (200, "account-0")
    assert harness.spotify.token_calls == 0


def test_a_rejected_token_is_replaced_once(
    http: requests.Session, harness: Harness, user: UUID, gateway: Gateway
) -> None:
    """The same request comes again with its body and another token, which the next one has from the start."""
    harness.spotify.reject_access_token(harness.stored(user)["access_token"])
    for _ in range(2):
        answer = http.post(f"{gateway.url}/body", data=b"words", timeout=30)
        assert (answer.status_code, answer.text) == (200, "words")
    first, *others = gateway.bearers()
    assert len(others) == 2
    assert {*others} == {f"Bearer {harness.stored(user)['access_token']}"} != {first}
    assert harness.spotify.refresh_calls == 1


def test_a_second_401_goes_to_the_caller(http: requests.Session, harness: Harness, user: UUID) -> None:
    """A request is repeated once, also where redirects follow it."""
    harness.spotify.reject_access_token(harness.stored(user)["access_token"])
    harness.spotify.script(UNKNOWN)
    assert http.get(f"{harness.url}/v1/me", timeout=30).status_code == 401
    assert harness.spotify.refresh_calls == 1
    with pytest.raises(SpotifyUnavailable, match="granted less than a minute ago"):
        http.get(f"{harness.url}/v1/me", timeout=30)


def test_a_redirect_has_the_new_token(http: requests.Session, harness: Harness, user: UUID, gateway: Gateway) -> None:
    """Where the first hop replaced it, the next one on the same host does not begin with the rejected one."""
    harness.spotify.reject_access_token(harness.stored(user)["access_token"])
    answer = http.get(f"{gateway.url}/redirect/302", params={"to": "/body"}, timeout=30)
    assert answer.status_code == 200
    assert [path for path, _ in gateway.seen] == ["/redirect/302", "/body", "/body"]
    assert harness.spotify.refresh_calls == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_other_host_sees_the_token(http: requests.Session, gateway: Gateway, foreign: Gateway, status: int) -> None:
    """Neither when it is asked itself nor after a redirect, also with a 401 that asks for another try."""
    for url in (f"{foreign.url}/refuse", f"{gateway.url}/redirect/{status}?to={foreign.url}/refuse"):
        assert http.get(url, timeout=30).status_code == 401
    assert foreign.bearers() == [None, None]
    assert gateway.bearers() != [None]


@pytest.mark.parametrize(
    "url",
    [
        "https://api.spotify.com.example.com/",
        "https://api.spotify.com@example.com/",
        "https://example.com/api.spotify.com",
        "http://api.spotify.com/",
        "https://api.spotify.com:444/",
        "https://api.spotify.com./",
        "https://example.com\\@api.spotify.com/",
        "https://example.com#@api.spotify.com/",
    ],
)
def test_no_address_that_looks_like_the_web_api_sees_the_token(tokens: BlockingTokens, user: UUID, url: str) -> None:
    """Scheme, host and port decide, as requests itself reads them."""
    assert not bearer(tokens, user, url).startswith("Bearer")  # requests makes Basic of what stands before an @
    for good in ("https://api.spotify.com/v1/me", "https://API.spotify.com:443/v1/me"):
        assert bearer(tokens, user, good).startswith("Bearer BQ")


def bearer(tokens: BlockingTokens, user: UUID, url: str) -> str:
    """What a request to a URL would carry."""
    return str(requests.Request("GET", url, auth=tokens.auth(user)).prepare().headers.get("Authorization", ""))


def test_what_cannot_be_repeated_goes_to_the_caller(
    http: requests.Session, harness: Harness, user: UUID, gateway: Gateway
) -> None:
    """A body that is a stream is not sent twice, but the next request has another token; a scope is no token."""
    scope = http.get(f"{gateway.url}/refuse", params={"message": "Permissions missing"}, timeout=30)
    assert (scope.status_code, len(gateway.seen), harness.spotify.refresh_calls) == (401, 1, 0)
    harness.spotify.reject_access_token(harness.stored(user)["access_token"])
    assert http.post(f"{gateway.url}/body", data=io.BytesIO(b"words"), timeout=30).status_code == 401
    assert http.post(f"{gateway.url}/body", data=io.BytesIO(b"words"), timeout=30).text == "words"
    assert (len(gateway.seen), harness.spotify.refresh_calls) == (3, 1)


def test_errors_come_through_as_they_are(tokens: BlockingTokens, harness: Harness) -> None:
    """Of a user without a connection, and of one whose consent has ended."""
    (user,) = harness.connect(-5)
    harness.spotify.revoke("account-0")
    for expected, who in ((NotConnected, UUID(int=1)), (ReauthorizationRequired, user)):
        with pytest.raises(expected):
            requests.get(f"{harness.url}/v1/me", auth=tokens.auth(who), timeout=30)


def test_bad_arguments_are_named(tokens: BlockingTokens) -> None:
    """When it is made, not at its first request; and its repr has the user and no token."""
    with pytest.raises(ValueError, match="user_id"):
        tokens.auth("alice")
    with pytest.raises(ConfigurationError, match="allow"):
        tokens.auth(1, allow=["http://example.com"])
    for name in ("scopes", "allow"):
        for value in ("user-top-read", None):
            with pytest.raises(ValueError, match=f"{name}: expected several strings, not one"):
                tokens.auth(1, **cast("Any", {name: value}))
    with pytest.raises(ValueError, match="as_dict"):
        tokens.auth(1).get_access_token(as_dict=True)
    assert repr(tokens.auth(1)) == "<BlockingAuth user_id=73706f74-0000-8000-8000-000000000001>"


def test_httpx_is_refused(tokens: BlockingTokens, user: UUID) -> None:
    """Before anything is sent, with what to use instead."""
    with pytest.raises(TypeError, match=r"for httpx there is TokenManager\.auth"):
        httpx.get("http://127.0.0.1:1/v1/me", auth=tokens.auth(user))


def test_a_host_that_gets_no_token_is_logged(
    http: requests.Session, foreign: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    """At DEBUG: its name, and neither path nor query."""
    caplog.set_level(logging.DEBUG, "spotconn")
    http.get(f"{foreign.url}/body?code=secret", timeout=30)
    assert [record.getMessage() for record in caplog.records if record.name == "spotconn"] == [
        "no token is sent to 127.0.0.1: allow= does not name it"
    ]


def test_spotipy_works_with_a_session(
    http: requests.Session, harness: Harness, tokens: BlockingTokens, user: UUID
) -> None:
    """It needs no auth manager then, and a rejected token is replaced."""
    harness.spotify.reject_access_token(harness.stored(user)["access_token"])
    spotify = spotipy.Spotify(requests_session=http)
    spotify.prefix = f"{tokens.api_url}/v1/"
    assert spotify.me()["id"] == "account-0"
    assert harness.spotify.refresh_calls == 1


def test_spotipy_takes_it_as_an_auth_manager(make: Make, harness: Harness) -> None:
    """Before each request it asks for a token, which is refreshed where it has run out."""
    (user,) = harness.connect(-5)
    spotify = spotipy.Spotify(auth_manager=make().auth(user))
    spotify.prefix = f"{harness.url}/v1/"
    assert [spotify.me()["id"] for _ in range(2)] == ["account-0"] * 2
    assert harness.spotify.refresh_calls == 1
