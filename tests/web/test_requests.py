"""Requests that the routes do not carry out: other methods and paths, odd bodies, and faults of the service around."""

import asyncio
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from starlette.requests import Request
from starlette.types import Message, Receive

from spotconn.web import SpotifyRoutes
from support.consent import pending
from support.web_service import WebService

METHODS = (
    ("GET", "/connect", 405, "POST, OPTIONS"),
    ("HEAD", "/callback", 405, "GET, POST, OPTIONS"),
    ("PUT", "/connection", 405, "GET, HEAD, DELETE, OPTIONS"),
    ("OPTIONS", "/callback", 204, "GET, POST, OPTIONS"),
    ("HEAD", "/connection", 200, None),
    ("GET", "/", 404, None),
    ("GET", "/connect/", 404, None),
    ("GET", "/x/connection", 404, None),
    ("OPTIONS", "/nothing", 404, None),
)


async def test_methods_and_paths(service: WebService, user: UUID) -> None:
    """What is not there is 404, another method 405 with Allow; a HEAD of the callback spends nothing."""
    async with service.browser(user) as browser:
        for method, path, status, allow in METHODS:
            answer = await browser.send(method, path)
            assert (answer.status_code, answer.headers.get("allow")) == (status, allow), (method, path)
            assert (method == "HEAD") <= (answer.content == b"")


JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
BODIES: tuple[tuple[str, dict[str, str], bytes, int], ...] = (
    ("/connect", {"Content-Type": "text/plain"}, b'{"next": "/x"}', 415),
    ("/connect", {"Content-Type": "multipart/form-data; boundary=x"}, b"--x--", 415),
    ("/connect", {}, b'{"next": "/x"}', 415),
    ("/callback", FORM, b"url=%2F%3Fcode%3Dc", 415),
    ("/disconnect", {"Content-Type": "text/plain"}, b"{}", 415),
    ("/connect", JSON, b"[" * 9000, 400),
    ("/connect", JSON, b"[]", 400),
    ("/connect", JSON, b"\xff", 400),
    ("/connect", JSON, b'{"next": 1}', 400),
    ("/connect", JSON, b'{"show_dialog": "perhaps"}', 400),
    ("/connect", JSON, b'{"scope": "a\\u0000b"}', 400),
    ("/connect", JSON, b'{"scope": "a\\"b"}', 400),
    ("/connect", JSON, b'{"scope": "' + b"a" * 1001 + b'"}', 400),
    ("/connect", {"Content-Type": "application/json; charset=utf-8"}, b" " * 10_001, 413),
    ("/connect", FORM, b"next=/" + b"x" * 10_001, 413),
    ("/connect", FORM, b"next=%ff", 400),
    ("/connect", FORM, b"a=1&" * 30, 400),
    ("/callback", JSON, b'{"url": "https://app.example.com/callback"}', 400),
    ("/callback", JSON, b'{"url": null}', 400),
    ("/callback", JSON, b'{"url": "/?code=c"}', 409),
)


async def test_a_body_that_is_too_large_malformed_or_of_another_type_is_refused(
    service: WebService, admin: asyncpg.Connection, user: UUID
) -> None:
    """As a problem, and nothing is begun or disconnected."""
    async with service.browser(user) as browser:
        for path, headers, content, status in BODIES:
            answer = await browser.send("POST", path, headers=headers, content=content)
            assert (answer.status_code, answer.json()["status"]) == (status, status), (path, content[:40])
            assert answer.headers["content-type"] == "application/problem+json"
    assert await pending(admin) == 0


async def _called(routes: SpotifyRoutes, receive: Receive, **scope: Any) -> list[Message]:
    """What the routes answer to a request that no client of HTTP can be made to send."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    request = {"type": "http", "method": "POST", "path": "/connect", "query_string": b"", "scheme": "http"}
    await routes({**request, "headers": [(b"content-type", b"application/json")], **scope}, receive, send)
    return sent


async def test_a_body_that_does_not_arrive_is_not_waited_for(
    service: WebService, user: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has ten seconds, here fewer; where the client has gone the request ends at once; a websocket is closed."""

    async def stalled() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def gone() -> Message:
        return {"type": "http.disconnect"}

    async def found(_request: Request) -> UUID:
        return user

    monkeypatch.setattr("spotconn.web._requests.BODY_TIMEOUT", 0.01)
    routes = SpotifyRoutes(tokens=service.tokens, flow=service.flow, user=found, after="/me")
    assert (await _called(routes, stalled))[0]["status"] == 408
    assert (await _called(routes, gone))[0]["status"] == 400
    assert await _called(routes, stalled, type="websocket") == [{"type": "websocket.close"}]


async def test_an_error_of_the_services_own_leaves_no_callback_in_its_frames(service: WebService) -> None:
    """What `user` raises reaches the app as it is, without the frames of the library, which hold the request."""

    async def failing(_request: Request) -> UUID:
        raise LookupError("the session")

    async def receive() -> Message:
        raise AssertionError

    routes = SpotifyRoutes(tokens=service.tokens, flow=service.flow, user=failing, after="/me")
    with pytest.raises(LookupError) as raised:
        await _called(routes, receive, method="GET", path="/callback", query_string=b"code=hush&state=hush")
    names = [entry.frame.f_globals["__name__"] for entry in raised.traceback]
    assert not [name for name in names if name.startswith("spotconn")]
    assert raised.traceback[-1].name == "failing"
