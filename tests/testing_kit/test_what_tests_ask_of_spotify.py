"""What the tests of a service ask of the simulated Spotify: consent without a browser, answers, and a thread."""

import asyncio
import socket
from collections.abc import Iterator
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Scope, Send

from spotconn.testing import Answer, FakeSpotify
from spotconn.testing._server import serve

PLAYING = "/v1/me/player/currently-playing"
CALLBACK = "http://127.0.0.1:8000/callback"
REQUEST = {"client_id": "demo-client", "response_type": "code", "redirect_uri": CALLBACK, "state": "s", "scope": ""}


@pytest.fixture
def browser(spotify: FakeSpotify) -> Iterator[httpx.Client]:
    """A synchronous client of a simulated Spotify in a thread of its own; no event loop runs in the test."""
    spotify.add_account("ann")
    with spotify.serve_in_thread() as url, httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        yield client


def authorization(path: str = "https://accounts.spotify.com/authorize", **changes: str) -> str:
    return str(httpx.URL(path, params=REQUEST | changes))


def bearing(spotify: FakeSpotify, *scope: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {spotify.authorize('ann', scope).access_token}"}


def test_agree_and_cancel_do_what_the_buttons_do(spotify: FakeSpotify, browser: httpx.Client) -> None:
    """The callback has the state and a code for that very request, or the denial, as the form's answer has."""
    agreed, cancelled = spotify.agree(authorization(scope="user-top-read"), "ann"), spotify.cancel(authorization())
    posted = browser.post("/authorize", data=REQUEST | {"decision": "cancel"})
    assert cancelled == posted.headers["location"] == f"{CALLBACK}?error=access_denied&state=s"
    query = parse_qs(urlsplit(agreed).query)
    form = {"grant_type": "authorization_code", "code": query["code"][0], "redirect_uri": CALLBACK}
    grant = browser.post("/api/token", data=form, auth=("demo-client", "demo-secret")).json()
    assert (agreed.partition("?")[0], query["state"], grant["scope"]) == (CALLBACK, ["s"], "user-top-read")


@pytest.mark.parametrize(
    ("url", "account", "fault"),
    [
        (authorization(client_id="other"), "ann", "Invalid client$"),
        (
            authorization(redirect_uri="https://app.example.com/callback"),
            "ann",
            "'https://app.example.com/callback' is not reg",
        ),
        (authorization(response_type="token"), "ann", "response_type must be code"),
        (authorization(code_challenge="c"), "ann", "code_challenge_method must be S256"),
        (authorization("https://accounts.spotify.com/"), "ann", "its path is not /authorize"),
        (authorization(), "bob", "an account added before, not 'bob'"),
    ],
)
def test_agree_refuses_what_the_consent_page_refuses(spotify: FakeSpotify, url: str, account: str, fault: str) -> None:
    """A request that would get an error page is a ValueError that says which, for Agree and for Cancel."""
    spotify.add_account("ann")
    with pytest.raises(ValueError, match=fault):
        spotify.agree(url, account)
    if account == "ann":
        with pytest.raises(ValueError, match=fault):
            spotify.cancel(url)


def test_scripted_answers_of_the_web_api(spotify: FakeSpotify, browser: httpx.Client) -> None:
    """In order, the last one from then on, for a valid token only; until they are ended."""
    headers = bearing(spotify)
    playing = {"is_playing": True}
    limited = Answer(status=429, headers={"retry-after": "7"})
    spotify.on("get", PLAYING, Answer(status=204), Answer.web_error(401, "Permissions missing"), Answer(json=playing))
    spotify.on("PUT", PLAYING, limited)
    assert browser.get(PLAYING).json() == {"error": {"status": 401, "message": "No token provided"}}
    answers = [browser.get(PLAYING, headers=headers) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [204, 401, 200, 200]
    assert answers[1].json() == {"error": {"status": 401, "message": "Permissions missing"}}
    assert (answers[3].json(), answers[3].headers["content-type"]) == (playing, "application/json")
    assert browser.put(PLAYING, headers=headers).headers["retry-after"] == "7"
    spotify.on("GET", PLAYING)
    missing = browser.get(PLAYING, headers=headers)
    assert missing.status_code == 404
    assert "FakeSpotify.on" in missing.json()["error"]["message"]
    spotify.on("GET", "/v1/me/", limited)
    assert browser.get("/v1/me", headers=headers).status_code == 429
    with pytest.raises(ValueError, match="begins with /v1/"):
        spotify.on("GET", "/me/player", limited)


def test_an_app_of_the_test_is_the_web_api(spotify: FakeSpotify, browser: httpx.Client) -> None:
    """It answers what is neither scripted nor the profile, for a valid token, and knows whose that is."""

    async def whose(request: Request) -> JSONResponse:
        state = request.state
        return JSONResponse([request.path_params["name"], state.spotify_user_id, sorted(state.scopes)])

    def get(path: str, headers: dict[str, str]) -> Any:
        return browser.get(path, headers=headers).json()

    spotify.mount(Starlette(routes=[Route("/v1/{name:path}", whose)]))
    spotify.on("GET", PLAYING, Answer(json="scripted"))
    headers = bearing(spotify, "user-read-email")
    assert get("/v1/me/top/tracks", {})["error"]["message"] == "No token provided"
    assert get("/v1/me/top/tracks", headers) == ["me/top/tracks", "ann", ["user-read-email"]]
    assert get(PLAYING, headers) == "scripted"
    assert get("/v1/me", headers)["id"] == "ann"


def test_a_hold_reaches_from_one_event_loop_to_another(spotify: FakeSpotify, browser: httpx.Client) -> None:
    """A call that the simulated Spotify holds in its thread is waited for in another loop, also after one gave up."""
    form = {"grant_type": "refresh_token", "refresh_token": spotify.authorize("ann").refresh_token}
    statuses: list[int] = []

    def refresh() -> None:
        statuses.append(browser.post("/api/token", data=form, auth=("demo-client", "demo-secret")).status_code)

    caller = Thread(target=refresh)
    with spotify.hold() as hold:
        with pytest.raises(TimeoutError):
            asyncio.run(asyncio.wait_for(hold.reached(), 0.01))
        caller.start()
        asyncio.run(asyncio.wait_for(hold.reached(), 60))
        assert statuses == []
        hold.release()
        caller.join(60)
    assert statuses == [200]


def test_a_taken_port_is_an_error(spotify: FakeSpotify) -> None:
    """What hinders the server in its thread is raised where it was to start, and nothing waits for it."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        spotify.serve_in_thread(taken.getsockname()[1]).__enter__()


async def test_an_answer_waits_for_no_acknowledgement() -> None:
    """Connections send at once (TCP_NODELAY); otherwise each answer takes 40 ms, whose body follows its head."""

    async def option(scope: Scope, receive: Any, send: Send) -> None:
        connection = receive.__self__.transport.get_extra_info("socket")
        await JSONResponse(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))(scope, receive, send)

    async with serve(option) as url, httpx.AsyncClient(timeout=60) as client:
        assert (await client.get(url)).json() != 0


def test_one_text_is_not_several(spotify: FakeSpotify) -> None:
    """A scope, or a redirect URI, that is given alone would be taken letter by letter."""
    spotify.add_account("ann")
    with pytest.raises(ValueError, match="scope: expected several strings, not one"):
        spotify.authorize("ann", "user-top-read")
    with pytest.raises(ValueError, match="redirect_uris: expected several strings, not one"):
        FakeSpotify(rotation=True, redirect_uris="http://127.0.0.1/callback")
