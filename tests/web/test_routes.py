"""What the routes do for a form, for JSON and for a page of another origin."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import asyncpg
import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message

from spotconn import ConnectionStore
from spotconn.testing import Answer, FakeSpotify
from spotconn.testing._server import serve
from spotconn.web import SpotifyRoutes
from support.connections import connect, rows
from support.consent import agree
from support.web_service import FRONT_END, WebService, signed_in, web_service

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


async def test_a_form_connects_shows_and_disconnects(service: WebService, user: UUID) -> None:
    """Each step sends the browser on with 303, at last to `after` with the outcome in its query."""
    async with service.browser(user) as browser:
        assert (await browser.send("GET", "/connection")).json()["connected"] is False
        bare = await browser.send("POST", "/connect", headers=FORM, content=b"")  # without fields
        assert bare.headers["location"].startswith(service.tokens.accounts.api_url)
        callback = await browser.connect()
        assert await browser.come_back(callback) == "/me?spotify=connected"
        status = (await browser.send("GET", "/connection")).json()
        assert (status["connected"], status["spotify_user_id"], status["display_name"]) == (True, "alice", "Alice")
        answer = await browser.send("POST", "/disconnect", data={"next": "/settings?tab=2"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/settings?tab=2&spotify=disconnected")
    assert not (await service.tokens.status(user)).connected


async def test_the_browser_comes_back_to_where_the_form_said(service: WebService, user: UUID) -> None:
    """`next` travels with the authorization; the wish to be asked again, and other scopes, go to Spotify."""
    async with service.browser(user) as browser:
        form = {"next": "/music?page=2#top", "show_dialog": "true", "scope": "user-top-read streaming"}
        answer = await browser.send("POST", "/connect", data=form)
        query = parse_qs(urlsplit(answer.headers["location"]).query)
        assert (query["scope"], query["show_dialog"]) == (["user-top-read streaming"], ["true"])
        callback = "/callback?" + (await agree(answer.headers["location"])).partition("?")[2]
        assert await browser.come_back(callback) == "/music?page=2&spotify=connected#top"


async def test_the_way_back_needs_no_session(service: WebService, user: UUID) -> None:
    """A browser whose session has ended meanwhile is known by the cookie of the flow."""
    async with service.browser(user) as browser:
        callback = await browser.connect()
        browser.http.cookies.delete("session")
        assert await browser.come_back(callback) == "/me?spotify=connected"
    assert (await service.tokens.status(user)).connected


@pytest.mark.parametrize("sent", [{"Mode": "navigate", "Site": "cross-site"}, {"Mode": "cors", "Site": "same-origin"}])
async def test_a_service_worker_may_pass_the_callback_on(service: WebService, user: UUID, sent: dict[str, str]) -> None:
    """As Chromium then says: by fetch(event.request), and by a request that the worker has made of it."""
    async with service.browser(user) as browser:
        callback = await browser.connect()
        headers = {"Sec-Fetch-Dest": "empty"} | {f"Sec-Fetch-{name}": value for name, value in sent.items()}
        assert await browser.come_back(callback, **headers) == "/me?spotify=connected"


async def test_a_sign_in_that_comes_back_here_is_not_told_as_connected(
    service: WebService, user: UUID, admin: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody is there to save it for, whoever is signed in: the page learns of an error, and the log of its cause."""
    begun = await service.flow.begin(None)
    callback = "/callback?" + (await agree(begun.url)).partition("?")[2]
    async with service.browser(user) as browser:
        cookie = begun.cookie.partition(";")[0]
        assert await browser.come_back(callback, Cookie=f"session={user}; {cookie}") == "/me?spotify=error"
    assert await rows(admin) == []
    assert [record.levelname for record in caplog.records if record.name == "spotconn.web"] == ["CRITICAL"]


async def test_a_user_who_was_deleted_is_told_so(
    service: WebService, user: UUID, admin: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """Their session lives on: neither does a connect help them, nor is the service out of order; the log has it."""
    caplog.set_level("INFO", "spotconn.web")
    await admin.execute("delete from auth.users where id = $1", user)
    async with service.browser(user) as browser:
        answer = await browser.send("POST", "/connect", data={"next": "/x"})
        assert answer.headers["location"] == "/x?spotify=unknown_user"
        answer = await browser.send("POST", "/connect")
        assert (answer.status_code, answer.json()["type"]) == (409, "tag:spotconn,2026:unknown-user")
    logged = [record for record in caplog.records if record.name == "spotconn.web"]
    assert [(one.levelname, one.getMessage()[:14]) for one in logged] == [("INFO", "UnknownUser: u")] * 2


async def test_a_person_who_says_no_is_sent_back(service: WebService, user: UUID) -> None:
    """Cancel at Spotify is no error page."""
    async with service.browser(user) as browser:
        answer = await browser.send("POST", "/connect", data={"next": "/music"})
        callback = await agree(answer.headers["location"], decision="cancel")
        assert await browser.come_back("/callback?" + callback.partition("?")[2]) == "/me?spotify=denied"


async def test_json_connects_by_a_page_that_posts_its_url(service: WebService, user: UUID) -> None:
    """The bearer alone binds the callback; the answers are the URL, the status and no content."""
    async with service.browser() as browser:
        browser.headers = {"Authorization": f"Bearer {user}"}
        url = (await browser.send("POST", "/connect", json={"show_dialog": True})).json()["url"]
        browser.http.cookies.clear()
        answer = await browser.send("POST", "/callback", json={"url": await agree(url, "bob")})
        assert (answer.status_code, answer.json()["spotify_user_id"]) == (200, "bob")
        assert (await browser.send("DELETE", "/connection")).status_code == 204
        assert (await browser.send("POST", "/disconnect", json={})).status_code == 204
        assert (await browser.send("POST", "/connect")).json().keys() == {"url"}


async def test_a_token_is_handed_out_where_that_is_asked_for(
    service: WebService, store: ConnectionStore, spotify: FakeSpotify, user: UUID, users: list[UUID]
) -> None:
    """With its end, to the signed-in user alone; without a connection that is a problem."""
    stored = await connect(store, spotify, user)
    async with service.browser(user) as browser:
        answer = (await browser.send("GET", "/token")).json()
        assert answer == {"access_token": stored.access_token, "expires_at": answer["expires_at"]}
        assert answer["expires_at"].endswith("+00:00")
    async with service.browser(users[1]) as browser:
        assert (await browser.send("GET", "/token")).status_code == 409
    async with web_service(service.tokens, service.flow, spotify) as other, other.browser(user) as browser:
        assert (await browser.send("GET", "/token")).status_code == 404


async def test_nobody_is_signed_in(service: WebService) -> None:
    """JSON gets 401; a form goes to `after`, whose page can ask to sign in."""
    async with service.browser() as browser:
        for method, path in (("POST", "/connect"), ("POST", "/callback"), ("GET", "/connection"), ("GET", "/token"),
                             ("DELETE", "/connection"), ("POST", "/disconnect")):  # fmt: skip
            answer = await browser.send(method, path)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), path
            assert answer.headers["content-type"] == "application/problem+json"
        for path in ("/connect", "/disconnect"):
            answer = await browser.send("POST", path, data={"next": "/elsewhere"})
            assert answer.headers["location"] == "/me?spotify=signed_out"


async def test_too_many_starts_are_answered_in_the_form_of_the_request(service: WebService, user: UUID) -> None:
    """JSON gets 429 with the time to wait, and a form is sent back with a word for it."""
    async with service.browser(user) as browser:
        for _ in range(20):
            assert (await browser.send("POST", "/connect")).status_code == 200
        answer = await browser.send("POST", "/connect")
        assert (answer.status_code, int(answer.headers["retry-after"]) > 500) == (429, True)
        answer = await browser.send("POST", "/connect", data={"next": "/x"})
        assert answer.headers["location"] == "/x?spotify=try_later"


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (Answer(status=400, body=b'{"error": "invalid_client"}'), "error"),
        (Answer.too_many_requests("3600"), "try_later"),
    ],
    ids=["the app", "rate limit"],
)
async def test_what_goes_wrong_at_spotify_sends_the_browser_back(
    service: WebService, user: UUID, fault: Answer, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A person never meets a page of JSON; the log has it once."""
    async with service.browser(user) as browser:
        callback = await browser.connect()
        service.spotify.script(fault)
        assert await browser.come_back(callback) == f"/me?spotify={outcome}"
    assert len([record for record in caplog.records if record.name == "spotconn.web"]) == 1


async def test_a_front_end_of_another_origin_may_call_and_no_other(
    service: WebService, spotify: FakeSpotify, user: UUID
) -> None:
    """Preflight and answer name exactly its origin; to any other page there is not a word of CORS."""
    preflight = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    async with (
        web_service(service.tokens, service.flow, spotify, front_end=FRONT_END) as served,
        served.browser() as browser,
    ):
        browser.site, bearer = "cross-site", {"Authorization": f"Bearer {user}", "Origin": FRONT_END}
        answer = await browser.send("OPTIONS", "/connect", headers=preflight | {"Origin": FRONT_END})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (204, FRONT_END)
        assert answer.headers["access-control-allow-headers"] == "Authorization, Content-Type"
        assert "POST" in answer.headers["access-control-allow-methods"]
        answer = await browser.send("POST", "/connect", json={"next": "/profile"}, headers=bearer)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, FRONT_END)
        callback = "/callback?" + (await agree(answer.json()["url"])).partition("?")[2]
        assert await browser.come_back(callback) == f"{FRONT_END}/profile?spotify=connected"
        assert (await browser.send("GET", "/connection", headers=bearer)).json()["connected"]
        for origin in ("https://evil.example", "null", f"{FRONT_END}.evil.example", "http://app.example.com"):
            for method, headers in (("OPTIONS", preflight), ("GET", bearer)):
                answer = await browser.send(method, "/connection", headers=headers | {"Origin": origin})
                assert not [name for name in answer.headers if name.startswith("access-control")]
                assert (answer.status_code, answer.headers["vary"]) == ({"OPTIONS": 204, "GET": 403}[method], "Origin")
    async with service.browser(user) as browser:
        answer = await browser.send("GET", "/connection", headers={"Origin": service.url})
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("root_path", ["", "/api"])
async def test_fastapi_mounts_them_in_its_lifespan_behind_a_proxy(
    service: WebService, spotify: FakeSpotify, user: UUID, root_path: str
) -> None:
    """The objects are found from the request; a prefix that the proxy has cut off, or has not, changes nothing."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[dict[str, Any]]:
        routes = SpotifyRoutes(
            tokens=lambda request: request.state.tokens,
            flow=lambda request: request.app.state.flow,
            user=signed_in,
            after="/me",
        )
        app.mount("/v1/spotify", routes)
        app.state.flow = service.flow
        yield {"tokens": service.tokens}

    app = FastAPI(lifespan=lifespan)
    async with app.router.lifespan_context(app) as state:

        async def with_state(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "state": dict(state or {}), "root_path": root_path}, receive, send)

        async with serve(with_state) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
            for prefix in {"", root_path}:
                answer = await client.get(
                    f"{prefix}/v1/spotify/connection", headers={"Authorization": f"Bearer {user}"}
                )
                assert (answer.status_code, answer.json()["connected"]) == (200, False)


async def test_a_browser_that_goes_away_loses_no_grant(
    service: WebService, spotify: FakeSpotify, user: UUID, admin: asyncpg.Connection
) -> None:
    """The request is cancelled while Spotify is asked for the tokens: they are saved all the same."""
    async with service.browser(user) as browser:
        callback = await browser.connect()
        cookie = "; ".join(f"{cookie.name}={cookie.value}" for cookie in browser.http.cookies.jar)
    routes = SpotifyRoutes(tokens=service.tokens, flow=service.flow, user=signed_in, after="/me")
    path, _, query = callback.partition("?")
    scope = {"type": "http", "method": "GET", "path": path, "query_string": query.encode(), "scheme": "http",
             "headers": [(b"cookie", cookie.encode())], "server": ("127.0.0.1", 80)}  # fmt: skip

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(_message: Message) -> None:
        raise AssertionError("nobody is there to answer")

    with spotify.hold() as hold:
        request = asyncio.ensure_future(routes(scope, receive, send))
        await hold.reached()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        hold.release()
        await service.flow.aclose()
    assert [row["user_id"] for row in await rows(admin)] == [user]


def test_the_settings_are_checked_and_shown(store: ConnectionStore) -> None:
    """A wrong `after` or `front_end` is named at once; the repr has the settings."""
    given: dict[str, Any] = dict.fromkeys(("tokens", "flow", "user"), signed_in)
    for after in ("//evil.example", "profile", "https://evil.example/", "/a b"):
        with pytest.raises(ValueError, match=r"^after: expected"):
            SpotifyRoutes(**given, after=after)
    with pytest.raises(ValueError, match=r"^front_end: expected"):
        SpotifyRoutes(**given, after="/", front_end="*")
    routes = SpotifyRoutes(**given, after="/me", front_end=f"{FRONT_END}/", token=True)
    assert repr(routes) == f"<SpotifyRoutes after='{FRONT_END}/me' front_end='{FRONT_END}' token=True>"
