"""What the profile app lets a browser do, and what not; what it leaves behind when it is killed."""

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import asyncpg
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from spotconn.testing._server import serve
from support.browser import Person, agree, connected_to, press, profile_app
from support.connections import rows
from support.consent import pending
from support.database import Database
from support.processes import descendants


@pytest.fixture
async def users(users_of_profile_app: list[UUID]) -> list[UUID]:
    """Those that the app knows."""
    return users_of_profile_app


@pytest.fixture
def url(shared_profile_app: str, users: list[UUID]) -> str:
    """Of the running app."""
    return shared_profile_app


@pytest.fixture
async def client(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A browser without a window, with Alice signed in."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        home = await client.get("/")
        await client.post("/sign-in", data={"csrf": csrf_of(home), "user": "alice"})
        yield client


def csrf_of(page: httpx.Response) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', page.text)
    assert found is not None
    return found[1]


async def test_the_session_cookie_is_out_of_reach(client: httpx.AsyncClient) -> None:
    """No script reads it, no form of another site sends it, and it changes with the sign-in."""
    async with httpx.AsyncClient(base_url=client.base_url, timeout=60) as other:
        home = await other.get("/")
        known = other.cookies["session"]
        signed_in = await other.post("/sign-in", data={"csrf": csrf_of(home), "user": "alice"})
        assert other.cookies["session"] != known
        other.cookies.set("session", known)
        assert (await other.get("/profile")).status_code == 303
    for answer in (home, signed_in):
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie


async def test_pages_are_kept_out_of_frames_referrers_and_caches(client: httpx.AsyncClient) -> None:
    """Every answer has the headers; the policy allows no script at all."""
    for path in ("/", "/profile", "/spotify/callback?code=x&state=y", "/style.css"):
        answer = await client.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "script-src" not in policy
        assert answer.headers["referrer-policy"] == ("no-referrer" if "/spotify" in path else "same-origin")
        assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/sign-in", "/sign-out"])
async def test_a_form_without_its_token_is_refused(
    client: httpx.AsyncClient, admin: asyncpg.Connection, path: str
) -> None:
    """Without the session's own token, with another's, and without a session nothing happens."""
    async with httpx.AsyncClient(base_url=client.base_url, timeout=60) as other:
        strange = csrf_of(await other.get("/"))
        for form in ({}, {"csrf": ""}, {"csrf": strange}, {"csrf": "\u00e9"}):
            assert (await client.post(path, data=form | {"user": "alice"})).status_code == 403
        assert (await other.post(path, data={"user": "alice"})).status_code == 403
    assert (await client.get("/profile")).status_code == 200
    assert (await client.get(path)).status_code == 405


@pytest.mark.parametrize("path", ["/spotify/connect", "/spotify/disconnect"])
async def test_a_form_of_another_site_is_refused(
    client: httpx.AsyncClient, admin: asyncpg.Connection, user: UUID, path: str
) -> None:
    """By what each browser says of the page that sends it; without a session nothing happens either."""
    await admin.execute(
        "insert into public.spotify_connections (user_id, spotify_user_id, access_token, refresh_token, expires_at) "
        "values ($1, 'a', 'x', 'x', now() + interval '1 h')",
        user,
    )
    for headers in (
        {"sec-fetch-site": "cross-site", "origin": "http://localhost"},
        {"sec-fetch-site": "same-site", "origin": "http://evil.example"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
    ):
        assert (await client.post(path, data={"show_dialog": "true"}, headers=headers)).status_code == 403
    async with httpx.AsyncClient(base_url=client.base_url, timeout=60) as other:
        assert (await other.post(path, data={"show_dialog": ""})).headers["location"] == "/profile?spotify=signed_out"
    assert (await client.get(path)).status_code == 405
    assert (len(await rows(admin)), await pending(admin)) == (1, 0)


async def test_an_address_without_a_page_has_one_that_leads_back(client: httpx.AsyncClient) -> None:
    """A mistyped address, and one that only forms are sent to, with the headers of the other pages."""
    for path, status in (("/nothing", 404), ("/sign-in", 405)):
        answer = await client.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html; charset=utf-8"), path
        assert "There is no page at this address." in answer.text
        assert 'href="/"' in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]


async def test_a_stranger_sees_nothing(client: httpx.AsyncClient, admin: asyncpg.Connection, user: UUID) -> None:
    """Without a session every page leads to the sign-in; nobody signs in as a user that is not offered."""
    async with httpx.AsyncClient(base_url=client.base_url, timeout=60) as other:
        assert (await other.get("/profile")).headers["location"] == "/"
        back = await other.get("/spotify/callback?code=x&state=y")
        assert back.headers["location"] == "/profile?spotify=state_mismatch"
        csrf = csrf_of(await other.get("/"))
        assert (await other.post("/sign-in", data={"csrf": csrf, "user": "mallory"})).status_code == 403
        assert (await other.get("/spotify/connection")).status_code == 401
        assert (await other.get("/", headers={"host": "evil.example"})).status_code == 400
    assert await pending(admin) == 0


async def test_what_spotify_says_is_text(client: httpx.AsyncClient, admin: asyncpg.Connection, user: UUID) -> None:
    """A display name with markup in it is shown as it is written."""
    await admin.execute(
        "insert into public.spotify_connections "
        "(user_id, spotify_user_id, access_token, refresh_token, expires_at, display_name) "
        "values ($1, '\"><b>', 'x', 'x', now() + interval '1 h', '<script>alert(1)</script>')",
        user,
    )
    page = (await client.get("/profile")).text
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page
    assert "<b>" not in page


async def test_a_page_of_another_site_can_send_no_form_but_spotify_can_send_the_browser_back(
    shared_chromium: str, url: str, admin: asyncpg.Connection
) -> None:
    """The cookie stays away from a cross-site POST and comes along with a cross-site link, as a callback is one."""

    async def evil(request: Request) -> Response:
        target = request.query_params["target"]
        return HTMLResponse(
            f'<link rel="icon" href="data:,"><a href="{target}/profile">Profile</a>'
            f'<form method="post" action="{target}/spotify/disconnect"><button>Win</button></form>'
        )

    async with (
        connected_to(shared_chromium) as browser,
        serve(Starlette(routes=[Route("/", evil)])) as other,
        await browser.new_context() as context,
    ):
        person = Person(url, context)
        page = await person.sign_in("Alice")
        await press(page, "Connect Spotify")
        await agree(page, "Alice")
        site = other.replace("127.0.0.1", "localhost")  # another site, as a browser counts
        await page.goto(f"{site}/?target={url}")
        async with page.expect_response("**/disconnect") as answer:
            await page.get_by_role("button", name="Win").click()
        assert (await answer.value).status == 403
        assert "cookie" not in await (await answer.value).request.all_headers()
        assert len(await rows(admin)) == 1
        await page.goto(f"{site}/?target={url}")
        await page.get_by_role("link", name="Profile").click()
        await page.wait_for_url("**/profile")
        assert await page.locator("#account").text_content() == "Alice"


@pytest.mark.parametrize(
    "way",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.long),
        pytest.param(signal.SIGINT, marks=pytest.mark.long),
    ],
)
async def test_stopped_in_whatever_way_it_leaves_nothing(prepared: Database, open_folder: Path, way: int) -> None:
    """With its own Postgres: after the end of the process the server and its folder are gone."""
    async with profile_app(settings={"TMPDIR": str(open_folder)}) as (url, process):
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            assert "Alice" in (await client.get("/")).text
        helpers = await descendants(process.pid)
        process.send_signal(way)
        await process.wait()
        async with asyncio.timeout(20):
            while any(Path(f"/proc/{pid}").exists() for pid in helpers) or list(open_folder.iterdir()):
                await asyncio.sleep(0.02)


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "settings", "named"),
    [
        ([], {"DATABASE_URL": "postgresql://app:hush@127.0.0.1:1/db"}, "NAME=UUID"),
        (["alice=hush"], {"DATABASE_URL": "postgresql://app:hush@127.0.0.1:1/db"}, "ValueError"),
        ([], {"SPOTIFY_CLIENT_ID": "0123456789abcdef"}, "DATABASE_URL"),
    ],
)
async def test_what_is_missing_is_named(
    prepared: Database, arguments: list[str], settings: dict[str, str], named: str
) -> None:
    """Users or settings that are missing end the app with one line that says which."""
    with pytest.raises(AssertionError) as ended:
        async with profile_app(*arguments, settings=settings):
            pass
    assert named in str(ended.value)
    assert "hush" not in str(ended.value)
