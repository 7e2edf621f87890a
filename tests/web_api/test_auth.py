"""SpotifyAuth in both HTTP clients, against a real Postgres, a FakeSpotify and a foreign server over real HTTP."""

import asyncio
import io
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route

from spotconn import (
    ConfigurationError,
    ConnectionStore,
    MissingScope,
    NotConnected,
    Profile,
    ReauthorizationRequired,
    SpotifyAccounts,
    SpotifyAuth,
    TokenManager,
)
from spotconn.testing import FakeSpotify
from spotconn.testing._server import serve
from support.connections import OWN_APP, connect

SPOTIFY = "https://api.spotify.com"


@dataclass
class Server:
    """A server on loopback that redirects and records, and hands everything else to the fake."""

    spotify: FakeSpotify
    url: str = ""
    seen: list[tuple[str, str | None, bytes]] = field(default_factory=list[tuple[str, str | None, bytes]])
    """Path, Authorization and body of the requests to its own routes."""

    def app(self) -> Starlette:
        async def redirect(request: Request) -> Response:
            await self._record(request)
            return RedirectResponse(request.query_params["to"], int(request.path_params["status"]))

        async def refuse(request: Request) -> Response:
            await self._record(request)
            status = int(request.path_params["status"])
            message = request.query_params.get("message", "no")
            return JSONResponse({"error": {"status": status, "message": message}}, status)

        async def body(request: Request) -> Response:
            await self._record(request)
            refused = self.spotify.bearer(request.headers.get("authorization"))
            return JSONResponse(refused[1], refused[0]) if isinstance(refused, tuple) else PlainTextResponse("done")

        methods = ["GET", "POST", "PUT"]
        return Starlette(
            routes=[
                Route("/redirect/{status}", redirect, methods=methods),
                Route("/status/{status}", refuse, methods=methods),
                Route("/body", body, methods=methods),
                Mount("/", self.spotify),
            ]
        )

    async def _record(self, request: Request) -> None:
        self.seen.append((request.url.path, request.headers.get("authorization"), await request.body()))


@pytest.fixture
async def api(spotify: FakeSpotify) -> AsyncIterator[Server]:
    """The Web API as far as the client is concerned."""
    server = Server(spotify)
    async with serve(server.app()) as server.url:
        yield server


@pytest.fixture
async def foreign(spotify: FakeSpotify) -> AsyncIterator[Server]:
    """Another host: another port is another origin."""
    server = Server(spotify)
    async with serve(server.app()) as server.url:
        yield server


@pytest.fixture
async def tokens(store: ConnectionStore, api: Server) -> AsyncIterator[TokenManager]:
    async with (
        SpotifyAccounts("demo-client", "demo-secret", accounts_url=api.url, api_url=api.url) as accounts,
        TokenManager(store, accounts) as manager,
    ):
        yield manager


@pytest.fixture
async def client(http_library: Any, tokens: TokenManager, api: Server, user: UUID) -> AsyncIterator[Any]:
    """A client that bears the user's token and follows redirects."""
    auth = tokens.auth(user)
    async with http_library.AsyncClient(auth=auth, base_url=api.url, follow_redirects=True, timeout=60) as opened:
        yield opened


async def test_requests_bear_the_token(client: Any, store: ConnectionStore, spotify: FakeSpotify, user: UUID) -> None:
    """The Web API answers as to the connected account."""
    await connect(store, spotify, user, account="alice")
    answer = await client.get("/v1/me")
    assert (answer.status_code, answer.json()["id"]) == (200, "alice")
    assert spotify.token_calls == 0


async def test_rejected_token_is_replaced_and_the_request_repeated(
    client: Any, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """After a 401 one refresh follows, and the caller sees the answer to the repeated request only."""
    before = await connect(store, spotify, user)
    spotify.reject_access_token(before.access_token)
    answer = await client.get("/v1/me")
    assert [past.status_code for past in answer.history] == [401]
    assert (answer.status_code, spotify.refresh_calls) == (200, 1)


async def test_second_rejection_goes_to_the_caller(
    client: Any, store: ConnectionStore, spotify: FakeSpotify, user: UUID, api: Server
) -> None:
    """A request is repeated once only."""
    await connect(store, spotify, user)
    answer = await client.get("/status/401")
    first, second = (authorization for _, authorization, _ in api.seen)
    assert answer.status_code == 401
    assert first != second
    assert spotify.refresh_calls == 1


async def test_many_requests_with_one_rejected_token_cost_one_refresh(
    client: Any, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """Thirty requests at once, all refused, share one refresh."""
    before = await connect(store, spotify, user)
    spotify.reject_access_token(before.access_token)
    answers = await asyncio.gather(*(client.get("/v1/me") for _ in range(30)))
    assert {answer.status_code for answer in answers} == {200}
    assert spotify.refresh_calls == 1


@pytest.mark.parametrize("status", [403, 429, 500])
async def test_other_answers_are_not_touched(
    client: Any, store: ConnectionStore, spotify: FakeSpotify, user: UUID, api: Server, status: int
) -> None:
    """Neither 403 nor 429 nor 500 says anything about the token: no refresh, no second request."""
    await connect(store, spotify, user)
    answer = await client.get(f"/status/{status}")
    assert (answer.status_code, answer.elapsed.total_seconds() > 0) == (status, True)
    assert (len(api.seen), spotify.token_calls) == (1, 0)


async def test_missing_scope_is_not_taken_for_a_bad_token(
    client: Any, store: ConnectionStore, spotify: FakeSpotify, user: UUID, api: Server
) -> None:
    """The player's 401 for a scope that is not granted costs no refresh, however often it comes."""
    await connect(store, spotify, user)
    for _ in range(3):
        answer = await client.get("/status/401", params={"message": "Permissions missing"})
        assert answer.json()["error"]["message"] == "Permissions missing"
    assert (len(api.seen), spotify.token_calls) == (3, 0)


@pytest.mark.parametrize("body", [{"content": b"abc"}, {"json": {"a": 1}}, {"data": {"a": "b"}}], ids=str)
async def test_body_at_hand_is_sent_again(
    client: Any, store: ConnectionStore, spotify: FakeSpotify, user: UUID, api: Server, body: dict[str, Any]
) -> None:
    """Bytes, JSON and a form arrive whole with the repeated request."""
    before = await connect(store, spotify, user)
    spotify.reject_access_token(before.access_token)
    assert (await client.post("/body", **body)).text == "done"
    (_, _, first), (_, _, second) = api.seen
    assert first == second != b""


async def _chunks() -> AsyncIterator[bytes]:
    yield b"a"
    yield b"b"


@pytest.mark.parametrize("kind", ["stream", "file"])
async def test_streamed_body_is_not_sent_again(
    client: Any, store: ConnectionStore, spotify: FakeSpotify, user: UUID, api: Server, kind: str
) -> None:
    """Its 401 goes to the caller; the caller's next request has a token that works."""

    def body() -> dict[str, Any]:
        return {"content": _chunks()} if kind == "stream" else {"files": {"cover": io.BytesIO(b"jpeg")}}

    before = await connect(store, spotify, user)
    spotify.reject_access_token(before.access_token)
    assert (await client.post("/body", **body())).status_code == 401
    assert len(api.seen) == 1
    assert (await client.post("/body", **body())).text == "done"
    assert spotify.refresh_calls == 1


async def test_cancelled_request_leaves_the_refresh_and_the_client_in_order(
    client: Any, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """A caller that gives up while a 401 is being mended: the refresh is saved, and the client goes on."""
    before = await connect(store, spotify, user)
    spotify.reject_access_token(before.access_token)
    with spotify.hold() as held:
        caller = asyncio.create_task(client.get("/v1/me"))
        await held.reached()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
    assert (await client.get("/v1/me")).json()["id"] == "alice"
    assert (await store.get(user)).access_token != before.access_token
    assert spotify.refresh_calls == 1


async def test_401_of_an_origin_that_is_not_allowed_says_nothing_of_the_token(http_library: Any) -> None:
    """The clients keep the header where a redirect leads to https on the same host; no other token is asked for."""

    class Source(_NoSource):
        async def get_valid_token(self, user_id: UUID | str, *, scopes: Iterable[str] = ()) -> str:  # noqa: ARG002
            return "token"

    flow = SpotifyAuth(Source(), uuid4(), allow=["http://127.0.0.1"]).async_auth_flow(
        http_library.Request("GET", "http://127.0.0.1")
    )
    sent = await anext(flow)
    led = http_library.Request("GET", "https://127.0.0.1", headers=sent.headers)
    with pytest.raises(StopAsyncIteration):
        await flow.asend(http_library.Response(401, request=led))


async def test_streamed_answer_works(client: Any, store: ConnectionStore, spotify: FakeSpotify, user: UUID) -> None:
    """An answer that is read piece by piece is repeated as well before the caller reads it."""
    before = await connect(store, spotify, user)
    spotify.reject_access_token(before.access_token)
    async with client.stream("GET", "/v1/me") as answer:
        assert answer.status_code == 200
        assert b"".join([piece async for piece in answer.aiter_bytes()]).startswith(b'{"id":')


async def test_other_hosts_get_no_token(
    client: Any,
    store: ConnectionStore,
    spotify: FakeSpotify,
    user: UUID,
    foreign: Server,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A request to another host is sent without it, its 401 costs no refresh, and a line at DEBUG names the host."""
    caplog.set_level(logging.DEBUG, "spotconn")
    await connect(store, spotify, user)
    caplog.clear()
    assert (await client.get(f"{foreign.url}/status/401?code=secret")).status_code == 401
    assert foreign.seen == [("/status/401", None, b"")]
    assert spotify.token_calls == 0
    assert [record.getMessage() for record in caplog.records if record.name == "spotconn"] == [
        "no token is sent to 127.0.0.1: allow= does not name it"
    ]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_to_another_host_bears_no_token(
    client: Any, store: ConnectionStore, spotify: FakeSpotify, user: UUID, api: Server, foreign: Server, status: int
) -> None:
    """The other host sees no token and its 401 is not taken for one about the token."""
    await connect(store, spotify, user)
    answer = await client.get(f"/redirect/{status}", params={"to": f"{foreign.url}/status/401"})
    assert answer.status_code == 401
    assert foreign.seen == [("/status/401", None, b"")]
    assert "authorization" not in answer.request.headers
    assert (len(api.seen), spotify.token_calls) == (1, 0)


async def test_redirect_that_is_not_followed_holds_no_token_for_another_host(
    http_library: Any,
    tokens: TokenManager,
    store: ConnectionStore,
    spotify: FakeSpotify,
    user: UUID,
    api: Server,
    foreign: Server,
) -> None:
    """Also the request that the caller may send by themselves has none, and gets none."""
    await connect(store, spotify, user)
    async with http_library.AsyncClient(auth=tokens.auth(user), base_url=api.url) as client:
        answer = await client.get("/redirect/307", params={"to": f"{foreign.url}/body"})
        await client.send(answer.next_request)
    assert foreign.seen == [("/body", None, b"")]


async def test_redirect_back_from_another_host_bears_no_token(
    client: Any, store: ConnectionStore, spotify: FakeSpotify, user: UUID, api: Server, foreign: Server
) -> None:
    """Another host cannot make the client use the token for it; the 401 for none costs no refresh."""
    await connect(store, spotify, user)
    answer = await client.get(f"{foreign.url}/redirect/307", params={"to": f"{api.url}/v1/me"})
    assert answer.json()["error"]["message"] == "No token provided"
    there_and_back = f"{foreign.url}/redirect/307?to={api.url}/v1/me"
    answer = await client.get("/redirect/307", params={"to": there_and_back})
    assert answer.json()["error"]["message"] == "No token provided"
    assert spotify.token_calls == 0


async def test_redirect_within_the_host_is_repeated_from_where_it_was_refused(
    client: Any, store: ConnectionStore, spotify: FakeSpotify, user: UUID, api: Server
) -> None:
    """What was done before the redirect is not done again."""
    before = await connect(store, spotify, user)
    spotify.reject_access_token(before.access_token)
    answer = await client.post("/redirect/303", params={"to": "/body"}, content=b"once")
    assert answer.text == "done"
    assert [(path, body) for path, _, body in api.seen] == [("/redirect/303", b"once"), ("/body", b""), ("/body", b"")]


@pytest.mark.parametrize(
    "url",
    [
        "http://api.spotify.com/v1/me",
        "https://api.spotify.com:8443/v1/me",
        "https://api.spotify.com.example.com/v1/me",
        "https://evil-api.spotify.com/v1/me",
        "https://accounts.spotify.com/v1/me",
        "https://api.spotify.com@example.com/v1/me",
        "https://api.spotify.com./v1/me",
        "https://example.com/https://api.spotify.com/v1/me",
    ],
)
async def test_what_only_looks_like_spotify_gets_no_token(http_library: Any, url: str) -> None:
    """Scheme, host and port must all be those of the Web API."""
    request = http_library.Request("GET", url)
    await anext(SpotifyAuth(_NoSource(), uuid4()).async_auth_flow(request))
    assert "authorization" not in request.headers


@pytest.mark.parametrize(
    "url", [f"{SPOTIFY}/v1/me", "https://API.spotify.com:443/v1/me", "https://u:p@api.spotify.com"]
)
async def test_the_web_api_gets_the_token(http_library: Any, url: str) -> None:
    """However its URL is written."""
    with pytest.raises(_Asked):
        await anext(SpotifyAuth(_NoSource(), uuid4()).async_auth_flow(http_library.Request("GET", url)))


class _Asked(Exception):
    """The source was asked for a token."""


class _NoSource:
    async def get_valid_token(self, user_id: UUID | str, *, scopes: Iterable[str] = ()) -> str:
        raise _Asked(user_id, scopes)

    async def replace_rejected(self, user_id: UUID | str, rejected_token: str, *, scopes: Iterable[str] = ()) -> str:
        raise _Asked(user_id, rejected_token, scopes)


async def test_allowed_services_get_the_token(
    http_library: Any, tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID, foreign: Server
) -> None:
    """What the caller allows by name may see the token."""
    connection = await connect(store, spotify, user)
    async with http_library.AsyncClient(auth=tokens.auth(user, allow=[f"{foreign.url}/ignored/path"])) as client:
        await client.get(f"{foreign.url}/body")
    assert foreign.seen == [("/body", f"Bearer {connection.access_token}", b"")]


@pytest.mark.parametrize("url", ["http://example.com", "http://localhost:8000", "example.com", "", "ftp://127.0.0.1"])
def test_what_may_see_the_token_must_be_safe(url: str) -> None:
    """A token is not allowed over plain HTTP, but to a loopback literal."""
    with pytest.raises(ConfigurationError, match="allow must be an https URL"):
        SpotifyAuth(_NoSource(), uuid4(), allow=[url])


def test_user_id_must_be_one() -> None:
    """A malformed user id is refused before any request."""
    with pytest.raises(ValueError, match="user_id: expected a UUID"):
        SpotifyAuth(_NoSource(), "alice")


@pytest.mark.parametrize("name", ["scopes", "allow"])
def test_one_text_is_not_several(name: str) -> None:
    """It would be taken letter by letter."""
    for value in ("https://example.com", None):
        with pytest.raises(ValueError, match=f"{name}: expected several strings, not one"):
            SpotifyAuth(_NoSource(), uuid4(), **cast("Any", {name: value}))


def test_synchronous_client_is_refused(http_library: Any) -> None:
    """With a clear error, before anything is sent."""
    with (
        http_library.Client(auth=SpotifyAuth(_NoSource(), uuid4())) as client,
        pytest.raises(RuntimeError, match="AsyncClient"),
    ):
        client.get(SPOTIFY)
    with pytest.raises(RuntimeError, match="AsyncClient"):
        SpotifyAuth(_NoSource(), uuid4()).auth_flow(http_library.Request("GET", SPOTIFY))


async def test_reason_why_there_is_no_token_reaches_the_caller(
    client: Any, store: ConnectionStore, spotify: FakeSpotify, user: UUID, api: Server
) -> None:
    """Without a connection nothing is sent; after a 401 and a revoked refresh token the user must be asked."""
    with pytest.raises(NotConnected):
        await client.get("/body")
    assert not api.seen
    before = await connect(store, spotify, user)
    spotify.reject_access_token(before.access_token)
    spotify.revoke("alice")
    with pytest.raises(ReauthorizationRequired):
        await client.get("/body")


async def test_a_missing_scope_is_told_before_anything_is_sent(
    http_library: Any,
    tokens: TokenManager,
    store: ConnectionStore,
    spotify: FakeSpotify,
    user: UUID,
    api: Server,
    foreign: Server,
) -> None:
    """The request raises MissingScope, and so does the repetition where the token of the refresh lacks the scope. A
    host that sees no token gets its request.
    """
    await connect(store, spotify, user, scope=frozenset({"user-read-email"}))
    auth = tokens.auth(user, scopes=["user-read-email", "user-top-read"])
    async with http_library.AsyncClient(auth=auth, base_url=api.url, timeout=60) as client:
        with pytest.raises(MissingScope) as raised:
            await client.get("/status/200")
        assert raised.value.scopes == {"user-read-email", "user-top-read"}
        assert not api.seen
        assert (await client.get(f"{foreign.url}/status/204")).status_code == 204
        narrow = spotify.authorize("alice", ["user-read-email"])
        stored = narrow.model_copy(update={"scope": raised.value.scopes, "expires_in": None})
        await store.save(user, stored, Profile(spotify_user_id="alice"), client_id=OWN_APP)
        await client.get("/status/200")
        assert len(api.seen) == 1
        with pytest.raises(MissingScope):
            await client.get("/status/401")
        assert len(api.seen) == 2
    assert spotify.token_calls == 1


async def test_failure_to_replace_leaves_no_token_in_its_frames(
    client: Any, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """What a crash report shows of the variables of this module holds no token."""
    before = await connect(store, spotify, user)
    spotify.reject_access_token(before.access_token)
    spotify.revoke("alice")
    with pytest.raises(ReauthorizationRequired) as raised:
        await client.get("/v1/me")
    frames = [entry.frame for entry in raised.traceback if str(entry.path).endswith("auth.py")]
    shown = [repr(value) for frame in frames for value in frame.f_locals.values()]
    assert shown
    assert not [text for text in shown if before.access_token in text]


def test_repr_names_the_user_only() -> None:
    """Whose token it gives."""
    user = uuid4()
    assert repr(SpotifyAuth(_NoSource(), user)) == f"<SpotifyAuth user_id={user}>"


@pytest.mark.long
def test_it_passes_for_what_is_imported_later() -> None:
    """No client is imported for it; one that the program imports after it was made accepts it all the same."""
    pytest.importorskip("httpx2")
    code = """
import sys, uuid, spotconn
class Source: ...
auth = spotconn.SpotifyAuth(Source(), uuid.uuid4())
print("httpx" in sys.modules, type(auth) is spotconn.SpotifyAuth)
import httpx, httpx2
print(isinstance(auth, httpx.Auth), isinstance(auth, httpx2.Auth), isinstance(auth, spotconn.SpotifyAuth))
httpx2.AsyncClient(auth=auth), httpx.AsyncClient(auth=auth)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False True\nTrue True True\n"


def test_it_works_where_httpx_is_an_alias_of_httpx2() -> None:
    """A program that replaces httpx by httpx2 as a whole has one client only."""
    pytest.importorskip("httpx2")
    code = """
import httpx2
httpx2.alias_httpx()
import httpx, uuid, spotconn
class Source: ...
auth = spotconn.SpotifyAuth(Source(), uuid.uuid4())
print(httpx.Auth is httpx2.Auth, isinstance(auth, httpx2.Auth), type(auth) is spotconn.SpotifyAuth)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True True True\n"
