"""What strangers do to the profile app: sign others out, set a cookie, send forms."""

import asyncio
import re
from uuid import UUID

import httpx
import pytest

from support.browser import profile_app
from support.database import Database

ANONYMOUS = 10_100
"""Requests without a cookie: the app kept 10,000 sessions, of whoever came last."""


@pytest.fixture
async def users(users_of_profile_app: list[UUID]) -> list[UUID]:
    """Those that the app knows."""
    return users_of_profile_app


@pytest.fixture
def url(shared_profile_app: str, users: list[UUID]) -> str:
    """Of the running app, where Alice and Bob may sign in."""
    return shared_profile_app


def csrf_of(page: httpx.Response) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', page.text)
    assert found is not None
    return found[1]


async def sign_in(client: httpx.AsyncClient, user: str) -> None:
    form = {"csrf": csrf_of(await client.get("/")), "user": user}
    assert (await client.post("/sign-in", data=form)).headers["location"] == "/profile"


@pytest.mark.long
async def test_anonymous_requests_sign_nobody_out(url: str) -> None:
    """However many visitors come, who has signed in stays so."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as alice:
        await sign_in(alice, "alice")

        async def visit(times: int) -> None:
            async with httpx.AsyncClient(base_url=url, timeout=60) as stranger:
                for _ in range(times):
                    await stranger.get("/")
                    stranger.cookies.clear()

        await asyncio.gather(*(visit(ANONYMOUS // 10) for _ in range(10)))
        assert (await alice.get("/profile")).status_code == 200


async def test_one_user_signs_nobody_else_out(url: str) -> None:
    """Ten sessions of one user are kept, and those of others are not counted."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as alice, httpx.AsyncClient(base_url=url) as first:
        await sign_in(alice, "alice")
        await sign_in(first, "bob")
        for _ in range(10):
            async with httpx.AsyncClient(base_url=url, timeout=60) as bob:
                await sign_in(bob, "bob")
        assert (await alice.get("/profile")).status_code == 200
        assert (await first.get("/profile")).headers["location"] == "/"


async def test_a_cookie_that_a_stranger_has_set_is_of_no_use_to_them(url: str) -> None:
    """The sign-in gives a new name (session fixation), and a sign-out ends it; odd values are no names."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as victim, httpx.AsyncClient(base_url=url) as stranger:
        await stranger.get("/")
        planted = stranger.cookies["session"]
        victim.cookies.set("session", planted)
        form = {"csrf": csrf_of(await victim.get("/")), "user": "alice"}
        answer = await victim.post("/sign-in", data=form)
        named = answer.headers["set-cookie"].partition("=")[2].partition(";")[0]
        assert named != planted
        assert (await stranger.get("/profile")).headers["location"] == "/"

        own = {"cookie": f"session={named}"}
        async with httpx.AsyncClient(base_url=url, headers=own) as alice:
            assert (await alice.post("/sign-out", data={"csrf": csrf_of(await alice.get("/profile"))})).is_redirect
            assert (await alice.get("/profile")).headers["location"] == "/"

        for odd in ("x" * 4000, "a;b", '"', "a" * 42):
            page = await stranger.get("/", headers={"cookie": f"session={odd}"})
            assert odd not in page.headers["set-cookie"]


async def test_a_stranger_cannot_use_the_token_of_their_own_form_in_anothers_session(
    url: str,
) -> None:
    """A form is bound to its session, also that of a visitor: no forced sign-in or sign-out."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as victim, httpx.AsyncClient(base_url=url) as stranger:
        theirs = csrf_of(await stranger.get("/"))
        await victim.get("/")
        assert (await victim.post("/sign-in", data={"csrf": theirs, "user": "bob"})).status_code == 403
        await sign_in(victim, "alice")
        assert (await victim.post("/sign-out", data={"csrf": theirs})).status_code == 403
        assert (await victim.get("/profile")).status_code == 200


async def test_the_cookie_of_https_can_be_set_by_this_host_alone(database: Database, users: list[UUID]) -> None:
    """`__Host-`, Secure, the whole path and no domain; on http of loopback the plain name."""
    settings = {
        "DATABASE_URL": database.dsn,
        "SPOTIFY_CLIENT_ID": "0123456789abcdef0123456789abcdef",
        "SPOTIFY_CLIENT_SECRET": "secret",
        "SPOTIFY_REDIRECT_URI": "https://profile.example/spotify/callback",
    }
    async with profile_app(f"alice={users[0]}", settings=settings) as (url, _), httpx.AsyncClient() as client:
        cookie = (await client.get(url, headers={"host": "profile.example"})).headers["set-cookie"]
    assert cookie.startswith("__Host-session=")
    assert {"Secure", "HttpOnly", "Path=/", "SameSite=lax"} <= set(cookie.split("; "))
    assert "domain" not in cookie.lower()
