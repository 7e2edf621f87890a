"""What the log and the answers say of connects that fail and of a service that is set up wrongly."""

import logging
from typing import Any
from uuid import UUID

import pytest
from starlette.requests import Request
from starlette.types import Message

from spotconn import ConnectFlow
from spotconn.web import SpotifyRoutes
from spotconn.web._redirect_uri import RedirectUriCheck
from support.web_service import WebService

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """What the routes have logged since the last call."""
    found = [(one.levelname, one.getMessage()) for one in caplog.records if one.name == "spotconn.web"]
    caplog.clear()
    return found


async def test_a_failed_connect_is_logged_without_its_code_and_state(
    service: WebService, user: UUID, users: list[UUID], caplog: pytest.LogCaptureFixture
) -> None:
    """As information, with the reason in words, whether the browser or a page brought the callback."""
    caplog.set_level(logging.INFO, "spotconn.web")
    async with service.browser(user) as browser, service.browser(users[1]) as other:
        callback = await browser.connect()
        assert await other.come_back(callback) == "/me?spotify=state_mismatch"
        assert (await other.send("POST", "/callback", json={"url": callback})).status_code == 409
    first, second = logged(caplog)
    assert first == (
        "INFO",
        "ConnectFailed: this authorization began in another browser, or its cookie did not come along; start again",
    )
    assert second == ("INFO", "ConnectFailed: another user has started this authorization; start again")


@pytest.mark.parametrize(
    ("host", "redirect_uri", "front_end", "said"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:9000/spotify/callback", None, []),  # cookies know no ports
        ("App.Example.com", "https://app.example.com/spotify/callback", None, []),
        ("[::1]:8000", "http://[::1]:8000/callback", None, []),
        ("", "https://app.example.com/callback", None, []),
        ("localhost:8000", "http://127.0.0.1:8000/callback", None, ["redirect URI, 127.0.0.1:8000"]),
        ("app.example.com", "https://app.example.com/connected", None, ["leads to /connected, which is not"]),
        ("localhost", "http://127.0.0.1", None, ["redirect URI, 127.0.0.1", "leads to /, which is not"]),
        ("api.example.com", "https://app.example.com/callback.html", "https://app.example.com", []),
    ],
)
def test_a_redirect_uri_that_cannot_work_is_warned_of_once(
    host: str, redirect_uri: str, front_end: str | None, said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """On another host the cookie is lost, and another path is none of the routes; a front end may have its own."""
    check = RedirectUriCheck(front_end)
    headers = [(b"host", host.encode())] if host else []
    for _ in range(2):
        check(Request({"type": "http", "headers": headers}), redirect_uri)
    found = logged(caplog)
    assert [level for level, _ in found] == ["WARNING"] * len(said)
    assert all(part in text for part, (_, text) in zip(said, found, strict=True))


async def test_the_routes_look_at_the_redirect_uri_of_their_flow(
    service: WebService, user: UUID, caplog: pytest.LogCaptureFixture
) -> None:
    """A page that was opened as localhost connects nobody, and the log says which host to open."""
    async with service.browser(user) as browser:
        for _ in range(2):
            headers = {"Host": "localhost:8000", "Cookie": f"session={user}"}
            assert (await browser.send("POST", "/connect", headers=headers)).status_code == 200
    [(level, text)] = logged(caplog)
    assert (level, "open the page on the host of the redirect URI, 127.0.0.1" in text) == ("WARNING", True)


async def test_a_user_function_that_is_not_async_is_named(
    flow: ConnectFlow,
) -> None:
    """A plain function that returns the id is a TypeError; one that returns an awaitable is none."""

    async def nobody() -> None:
        return None

    def plain(_request: Request) -> None:
        return None

    async def receive() -> Message:
        return {"type": "http.request", "body": b"{}"}

    statuses: list[int] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    no_headers: list[tuple[bytes, bytes]] = []
    request = {"type": "http", "method": "GET", "path": "/connection", "query_string": b"", "headers": no_headers}
    settings: dict[str, Any] = {"tokens": plain, "flow": flow, "after": "/"}
    wrong: dict[str, Any] = settings | {"user": plain}
    with pytest.raises(TypeError, match=r"^user: expected an async function"):
        await SpotifyRoutes(**wrong)(request, receive, send)
    await SpotifyRoutes(user=lambda _: nobody(), **settings)(request, receive, send)
    assert statuses == [401]


async def test_a_form_that_is_not_taken_is_told_what_is(service: WebService, user: UUID) -> None:
    """A return URL that is too long has a text of its own, and a multipart form hears of the other kind."""
    async with service.browser(user) as browser:
        answer = await browser.send("POST", "/connect", data={"next": "/" + "x" * 900})
        assert (answer.status_code, answer.json()["detail"][:34]) == (400, "next: expected at most 900 charact")
        answer = await browser.send("POST", "/connect", data={"next": "//x"})
        assert (answer.status_code, answer.json()["detail"][:30]) == (400, "next: expected a path that beg")
        answer = await browser.send("POST", "/connect", files={"a": b"b"})
        assert (answer.status_code, FORM["Content-Type"] in answer.json()["detail"]) == (415, True)
