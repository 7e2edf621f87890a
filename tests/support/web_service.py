"""A service with the routes for connecting Spotify, over real HTTP, and browsers that visit it."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx
from starlette.applications import Starlette
from starlette.requests import Request

from spotconn import ConnectFlow, TokenManager
from spotconn.testing import FakeSpotify
from spotconn.testing._server import serve
from spotconn.web import SpotifyRoutes
from support.consent import agree

FRONT_END = "https://app.example.com"


def back(outcome: str) -> str:
    """Where a browser goes whose front end has `/me` as the page for afterwards."""
    return f"{FRONT_END}/me?spotify={outcome}"


async def signed_in(request: Request) -> UUID | None:
    """Who asks. A stand-in for a session or a verified token: the id itself, in a cookie or as the bearer."""
    bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
    found = bearer or request.cookies.get("session")
    return UUID(found) if found else None


@dataclass
class Browser:
    """A browser with cookies of its own, which sends what browsers send along."""

    http: httpx.AsyncClient
    account: str = "alice"
    site: str | None = "same-origin"
    headers: dict[str, str] = field(default_factory=dict[str, str])

    async def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request as a page of the service does."""
        given: dict[str, str] = options.pop("headers", {})
        site = {} if self.site is None else {"Sec-Fetch-Site": self.site}
        return await self.http.request(method, f"/spotify{path}", headers=site | self.headers | given, **options)

    async def connect(self, **form: str) -> str:
        """Press Connect and Agree: the path and query of the callback that the browser is sent to."""
        answer = await self.send("POST", "/connect", data={"form": "1"} | form)
        assert answer.status_code == 303, answer.text
        callback = await agree(answer.headers["location"], self.account)
        return f"/callback?{callback.partition('?')[2]}"

    async def come_back(self, callback: str, **headers: str) -> str:
        """Follow the redirect of Spotify: where the service sends the browser then."""
        navigation = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        answer = await self.send("GET", callback, headers=navigation | headers)
        assert answer.status_code == 303, answer.text
        location: str = answer.headers["location"]
        return location


@dataclass
class WebService:
    """The running service.

    Attributes:
        url: its origin.
        tokens: its manager.
        flow: its flow.
        spotify: the simulated Spotify.
    """

    url: str
    tokens: TokenManager
    flow: ConnectFlow
    spotify: FakeSpotify

    @asynccontextmanager
    async def browser(self, user: UUID | None = None, account: str = "alice") -> AsyncGenerator[Browser]:
        """Context manager: a browser of its own, signed in or not."""
        async with httpx.AsyncClient(base_url=self.url, timeout=60) as http:
            if user is not None:
                http.cookies.set("session", str(user), domain="127.0.0.1")
            yield Browser(http, account)


@asynccontextmanager
async def web_service(
    tokens: TokenManager, flow: ConnectFlow, spotify: FakeSpotify, **settings: Any
) -> AsyncGenerator[WebService]:
    """Context manager: the routes under /spotify of an app, with settings of their own."""
    app = Starlette()
    given: dict[str, Any] = {"tokens": tokens, "flow": flow, "user": signed_in, "after": "/me"}
    app.mount("/spotify", SpotifyRoutes(**given | settings))
    async with serve(app) as url:
        yield WebService(url, tokens, flow, spotify)
