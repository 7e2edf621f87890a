"""The documented checks by a single-page app of another site, in a real browser; and the way that cannot work there."""

import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from playwright.async_api import BrowserContext, Page, Request, Response, expect
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from single_page_demo import PAGE
from spotconn import ConnectFlow, ConnectionStore, SpotifyAccounts, TokenManager
from spotconn.testing import Answer, FakeSpotify
from spotconn.testing._server import serve
from spotconn.web import SpotifyRoutes
from support.browser import agree, connected_to
from support.connections import rows
from support.consent import SCOPES, pending
from support.guide import GUIDES
from support.single_page import Sites, running

TWICE = """
const once = window.fetch;
window.fetch = (url, options) => {
  if (!String(url).endsWith("/spotify/callback")) return once(url, options);
  sessionStorage.setItem("address", location.href);
  return Promise.all([once(url, options), once(url, options)]).then((answers) => answers[0]);
};
"""
"""Fetches the callback twice at the same moment, as an effect does under React's StrictMode, and notes the address."""


@pytest.fixture
async def context(shared_chromium: str) -> AsyncIterator[BrowserContext]:
    """A browser without a session, and without a script error at the end."""
    errors: list[str] = []
    async with connected_to(shared_chromium) as browser, await browser.new_context() as context:
        context.on("weberror", lambda error: errors.append(str(error.error)))
        yield context
    assert errors == []


@pytest.fixture
def spotify() -> FakeSpotify:
    """One that knows two accounts and plays something."""
    redirect_uris = ("http://127.0.0.1/callback.html", "http://127.0.0.1/spotify/callback")
    spotify = FakeSpotify(rotation=True, redirect_uris=redirect_uris)
    spotify.add_account("alice", display_name="Alice", email="alice@example.com")
    spotify.add_account("bob", display_name="Bob", email="bob@example.com")
    spotify.on("GET", "/v1/me/player/currently-playing", Answer(json={"item": {"name": "Northbound"}}))
    return spotify


async def sign_in(page: Page, sites: Sites, email: str) -> None:
    await page.goto(sites.page_url)
    await page.get_by_label("Email").fill(email)
    await page.get_by_label("Password").fill("any")
    await page.get_by_role("button", name="Sign in").click()


async def connect(page: Page, sites: Sites, button: str, account: str) -> None:
    await page.get_by_role("button", name=button, exact=True).click()
    await page.wait_for_url("**/authorize?*")
    await agree(page, account, back=f"{sites.page_url}/")


async def test_the_documented_checks(
    context: BrowserContext,
    store: ConnectionStore,
    accounts: SpotifyAccounts,
    spotify: FakeSpotify,
    admin: asyncpg.Connection,
    users: list[UUID],
) -> None:
    """Connect, see it, disconnect, see the row gone, reconnect with another account, see all of it replaced."""
    requests: list[Request] = []
    context.on("request", lambda request: requests.append(request))  # noqa: PLW0108  it wraps no builtin
    async with running(store, accounts, {"alice@example.com": users[0]}) as sites:
        page = await context.new_page()
        await sign_in(page, sites, "alice@example.com")
        await expect(page.locator("#state")).to_have_text("Not connected")

        # 1. connect from the Profile view
        await page.get_by_role("button", name="Connect Spotify").click()
        await page.wait_for_url("**/authorize?*")
        assert await pending(admin) == 1
        await agree(page, "Alice", back=f"{sites.page_url}/")
        await expect(page.get_by_role("status")).to_have_text("Connected.")
        (first,) = await rows(admin)
        assert (first["user_id"], first["spotify_user_id"], first["display_name"]) == (users[0], "alice", "Alice")
        assert await pending(admin) == 0

        # 2. the connection appears, with what is playing now
        await expect(page.locator("#state")).to_have_text("Connected")
        await expect(page.locator("#account")).to_have_text("Alice")
        await expect(page.locator("#playing")).to_have_text("Northbound")
        assert first["access_token"] not in await page.content()

        # 3. disconnect from the Profile view
        await page.get_by_role("button", name="Disconnect").click()
        await expect(page.locator("#state")).to_have_text("Not connected")

        # 4. the row is gone
        assert await rows(admin) == []

        # 5. reconnect, then again with another Spotify account
        await connect(page, sites, "Connect Spotify", "Alice")
        await expect(page.locator("#account")).to_have_text("Alice")
        (second,) = await rows(admin)
        await connect(page, sites, "Reconnect", "Bob")

        # 6. tokens and account are updated
        await expect(page.locator("#account")).to_have_text("Bob")
        await expect(page.locator("#playing")).to_have_text("Northbound")
        (third,) = await rows(admin)
        assert (third["id"], third["spotify_user_id"], third["email"]) == (second["id"], "bob", "bob@example.com")
        for column in ("access_token", "refresh_token", "expires_at"):
            assert third[column] != second[column]
        assert third["connected_at"] > second["connected_at"]

        await no_code_stays(context, page, sites, requests)


async def no_code_stays(context: BrowserContext, page: Page, sites: Sites, requests: list[Request]) -> None:
    """Neither the history nor a referrer nor a URL of a request to the service has a code or state."""
    session: Any = await context.new_cdp_session(page)
    history = await session.send("Page.getNavigationHistory")
    own = [entry["url"] for entry in history["entries"] if entry["url"].startswith(sites.page_url)]
    assert len(own) > 1
    assert [url for url in own if "?" in url] == []
    # Not all_headers(), which never comes for a request that a navigation has ended.
    assert any("referer" in request.headers for request in requests)
    assert [request.url for request in requests if "code=" in request.headers.get("referer", "")] == []
    assert [
        request.url for request in requests if request.url.startswith(sites.api_url) and "code=" in request.url
    ] == []


async def test_a_callback_fetched_twice_connects_once(
    context: BrowserContext,
    store: ConnectionStore,
    accounts: SpotifyAccounts,
    spotify: FakeSpotify,
    users: list[UUID],
) -> None:
    """Both get the connection, with no code in the address. A later one, and one of another user, are refused."""
    answers: list[Response] = []
    context.on("response", lambda answer: answers.append(answer) if answer.url.endswith("/spotify/callback") else None)
    await context.add_init_script(TWICE)
    async with running(store, accounts, {"alice@example.com": users[0]}) as sites:
        page = await context.new_page()
        await sign_in(page, sites, "alice@example.com")
        await connect(page, sites, "Connect Spotify", "Alice")
        await expect(page.get_by_role("status")).to_have_text("Connected.")
        await expect(page.locator("#state")).to_have_text("Connected")
        assert ([answer.status for answer in answers], spotify.token_calls) == ([200, 200], 1)
        assert await page.evaluate("sessionStorage.getItem('address')") == f"{sites.page_url}/callback.html"
        for user, reason in ((users[0], "state_used"), (users[1], "state_mismatch")):
            body = answers[0].request.post_data_json
            again = await sites.client.post("/spotify/callback", json=body, headers=sites.bearer(user))
            assert (again.status_code, again.json()["reason"]) == (409, reason)
        assert (await sites.client.get("/spotify/connection", headers=sites.bearer(users[0]))).json()["connected"]


@asynccontextmanager
async def service_with_cookies(
    store: ConnectionStore, accounts: SpotifyAccounts, user: UUID
) -> AsyncGenerator[tuple[str, str]]:
    """A service that waits for the callback itself, of a user with a cookie or a bearer: its URL and its page's."""
    routes: SpotifyRoutes

    async def signed_in(request: HttpRequest) -> UUID | None:
        return user if "alice" in {request.cookies.get("session"), request.headers.get("authorization")} else None

    async def blank(_request: HttpRequest) -> HTMLResponse:
        return HTMLResponse('<link rel="icon" href="data:,">')

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        await routes(scope, receive, send)

    async with (
        serve(Starlette(routes=[Route("/", blank), Mount("/spotify", dispatch)])) as url,
        TokenManager(store, accounts) as tokens,
        ConnectFlow(store, accounts, redirect_uri=f"{url}/spotify/callback", scopes=SCOPES) as flow,
    ):
        page_url = url.replace("127.0.0.1", "localhost")
        routes = SpotifyRoutes(tokens=tokens, flow=flow, user=signed_in, after="/", front_end=page_url)
        yield url, page_url


BEGIN = """async ([url, headers]) => {
  const answer = await fetch(`${url}/spotify/connect`, { method: "POST", credentials: "include", headers });
  return (await answer.json()).url ?? answer.status;
}"""
"""Begins an authorization as a page does that relies on cookies."""


async def test_cookies_work_within_a_site_and_not_across_sites(
    context: BrowserContext,
    store: ConnectionStore,
    accounts: SpotifyAccounts,
    spotify: FakeSpotify,
    admin: asyncpg.Connection,
    user: UUID,
) -> None:
    """Across sites the browser sends no session, takes no cookie of the flow, and the callback is refused unspent."""
    async with service_with_cookies(store, accounts, user) as (url, page_url):
        await context.add_cookies([{"name": "session", "value": "alice", "url": url, "sameSite": "Lax"}])
        page = await context.new_page()

        await page.goto(page_url)
        assert await page.evaluate(BEGIN, [url, {}]) == 401
        await page.goto(await page.evaluate(BEGIN, [url, {"Authorization": "alice"}]))
        assert [cookie.get("name") for cookie in await context.cookies()] == ["session"]
        await agree(page, "Alice", back=f"{page_url}/*spotify=state_mismatch")
        assert (await rows(admin), await pending(admin)) == ([], 1)

        await page.goto(url)
        await page.goto(await page.evaluate(BEGIN, [url, {}]))
        await agree(page, "Alice", back=f"{page_url}/*spotify=connected")
        assert [row["user_id"] for row in await rows(admin)] == [user]


def test_the_guide_shows_the_page_that_runs_here() -> None:
    """Each line of code that the guide has on two sites stands in the example."""
    guide = (GUIDES / "single-page-app.md").read_text().partition("## Two sites")[2]
    shown = {
        line.strip() for code in re.findall(r"```(?:js|html)\n(.*?)```", guide, re.DOTALL) for line in code.splitlines()
    }
    assert len(shown) > 10
    assert shown - {line.strip() for file in PAGE.iterdir() for line in file.read_text().splitlines()} == set()
