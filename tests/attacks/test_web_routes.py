"""What strangers do to a service with SpotifyRoutes: forged requests, callbacks of others, frames, replays, races.

The browsers send what real ones send along.
"""

import asyncio
import json
import logging
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore
from spotconn.testing import FakeSpotify
from support.connections import connect, rows
from support.consent import altered, pending
from support.web_service import FRONT_END, WebService, back

EVIL = "https://evil.example"
FORGED = {
    "another site": {"Sec-Fetch-Site": "cross-site", "Origin": EVIL},
    "another site, no origin": {"Sec-Fetch-Site": "cross-site"},
    "a sandboxed frame": {"Sec-Fetch-Site": "cross-site", "Origin": "null"},
    "a sibling subdomain": {"Sec-Fetch-Site": "same-site", "Origin": "https://blog.example.com"},
    "a browser without fetch metadata": {"Origin": EVIL},
    "the same without an origin of its own": {"Origin": "null"},
    "an origin that begins like the service's": {"Origin": "http://127.0.0.1:1.evil.example"},
    "a value that no browser sends": {"Sec-Fetch-Site": "Same-Origin, cross-site"},
}
CROSS_SITE = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
REQUESTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("POST", "/connect", {"data": {"next": "/"}}),
    ("POST", "/connect", {"json": {}}),
    ("POST", "/connect", {}),
    ("POST", "/connect", {"content": b"{}", "headers": {"Content-Type": "text/plain"}}),
    ("POST", "/disconnect", {"data": {"next": "/"}}),
    ("POST", "/disconnect", {}),
    ("DELETE", "/connection", {}),
    ("POST", "/callback", {"json": {"url": "/callback?code=c&state=s"}}),
    ("GET", "/token", {}),
    ("GET", "/connection", {}),
)


async def test_no_page_of_another_site_connects_disconnects_or_reads_a_token(
    service: WebService, store: ConnectionStore, spotify: FakeSpotify, admin: asyncpg.Connection, user: UUID
) -> None:
    """CSRF: each route, with the cookies of the victim, in all the ways in which a browser can be made to ask."""
    stored = await connect(store, spotify, user)
    async with service.browser(user) as victim:
        victim.site = None
        for name, headers in FORGED.items():
            for method, path, options in REQUESTS:
                given: dict[str, Any] = {**options, "headers": options.get("headers", {}) | headers}
                answer = await victim.send(method, path, **given)
                assert answer.status_code == 403, (name, method, path)
                assert stored.access_token not in answer.text
        answer = await victim.send("POST", "/disconnect", headers={"Sec-Fetch-Site": "none"})
        assert answer.status_code == 403
    assert (await pending(admin), len(await rows(admin))) == (0, 1)


async def test_programs_typed_addresses_and_the_front_end_are_let_in(service: WebService, user: UUID) -> None:
    """What the refusals are measured against: the same requests from where they may come."""
    allowed: tuple[dict[str, str], ...] = (
        {},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "null"},
        {"Origin": service.url},
        {"Origin": service.url.replace("http:", "https:")},  # behind a proxy that ends TLS
        {"Sec-Fetch-Site": "cross-site", "Origin": FRONT_END},
    )
    async with service.browser(user) as browser:
        browser.site = None
        for headers in allowed:
            assert (await browser.send("GET", "/connection", headers=headers)).status_code == 200, headers
        for headers in (allowed[0], *allowed[2:]):
            assert (await browser.send("DELETE", "/connection", headers=headers)).status_code == 204, headers


async def test_the_callback_of_an_attacker_connects_nobody_else(
    service: WebService, admin: asyncpg.Connection, users: list[UUID]
) -> None:
    """Login CSRF: the victim opens the attacker's callback, and the attacker can still finish it; so for a POST."""
    async with service.browser(users[0]) as victim, service.browser(users[1], "bob") as attacker:
        callback = await attacker.connect()
        assert await victim.come_back(callback) == back("state_mismatch")
        answer = await victim.send("POST", "/callback", json={"url": callback})
        assert (answer.status_code, answer.json()["reason"]) == (409, "state_mismatch")
        assert await rows(admin) == []
        assert await attacker.come_back(callback) == back("connected")
    assert [row["user_id"] for row in await rows(admin)] == [users[1]]


async def test_a_stolen_callback_is_of_no_use_in_another_browser(
    service: WebService, admin: asyncpg.Connection, users: list[UUID]
) -> None:
    """A callback without the cookie, as the thief, as nobody and in another browser of the victim: nothing is spent."""
    async with service.browser(users[0]) as victim:
        callback = await victim.connect()
        for thief in (users[1], None, users[0]):
            async with service.browser(thief) as other:
                assert await other.come_back(callback) == back("state_mismatch")
        async with service.browser(users[1]) as other:
            assert (await other.send("POST", "/callback", json={"url": callback})).status_code == 409
        assert (await rows(admin), service.spotify.token_calls) == ([], 0)
        assert await victim.come_back(callback) == back("connected")


async def test_a_planted_cookie_connects_nobody_else(
    service: WebService, admin: asyncpg.Connection, users: list[UUID]
) -> None:
    """Cookie fixation: with the attacker's cookie and callback, or beside their own cookie, a victim is refused."""
    async with service.browser(users[0]) as victim, service.browser(users[1], "bob") as attacker:
        callback = await attacker.connect()
        planted = [cookie for cookie in attacker.http.cookies.jar if cookie.name != "session"]
        own = await victim.connect()
        for cookie in planted:
            victim.http.cookies.jar.set_cookie(cookie)
        assert await victim.come_back(callback) == back("state_mismatch")
        mine = next(cookie for cookie in victim.http.cookies.jar if cookie.name not in {"session", planted[0].name})
        both = f"session={users[0]}; {mine.name}={planted[0].value}; {mine.name}={mine.value}"
        assert await victim.come_back(own, Cookie=both) == back("state_mismatch")
        assert await rows(admin) == []


async def test_the_user_who_comes_back_is_the_one_who_left(
    service: WebService, admin: asyncpg.Connection, users: list[UUID]
) -> None:
    """Where somebody else has signed in meanwhile, in the same browser, nobody gets the other's account."""
    async with service.browser(users[0]) as browser:
        callback = await browser.connect()
        browser.http.cookies.set("session", str(users[1]), domain="127.0.0.1")
        assert await browser.come_back(callback) == back("state_mismatch")
    assert await rows(admin) == []


async def test_no_answer_may_be_framed_cached_or_named_as_a_referrer(
    service: WebService, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """Redirects, JSON, a token and each kind of refusal; a callback in a frame or a picture spends nothing."""
    await connect(store, spotify, user)
    async with service.browser(user) as browser, service.browser() as nobody:
        callback = await browser.connect()
        embeds = ("iframe", "frame", "image", "script", "empty", "object")
        answers = [
            *[await browser.send("GET", callback, headers=CROSS_SITE | {"Sec-Fetch-Dest": dest}) for dest in embeds],
            await nobody.send("GET", "/connection"),
            await browser.send("GET", callback),
            await browser.send("POST", "/connect", data={"next": "/"}),
            await browser.send("POST", "/connect", json={}),
            await browser.send("GET", "/connection"),
            await browser.send("GET", "/token"),
            await browser.send("GET", "/nothing"),
            await browser.send("GET", "/connect"),
            await browser.send("OPTIONS", "/connect"),
            await browser.send("POST", "/callback", json={"url": callback}),
            await browser.send("DELETE", "/connection"),
            await browser.send("GET", "/token"),
        ]
    expected = [403] * 6 + [401, 303, 303, 200, 200, 200, 404, 405, 204, 409, 204, 409]
    assert [answer.status_code for answer in answers] == expected
    for answer in answers:
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_a_replayed_callback_changes_nothing(service: WebService, admin: asyncpg.Connection, user: UUID) -> None:
    """Used once, it is refused by that name; after a disconnect it does not connect again."""
    async with service.browser(user) as browser:
        callback = await browser.connect()
        assert await browser.come_back(callback) == back("connected")
        before = await rows(admin)
        assert await browser.come_back(callback) == back("state_used")
        answer = await browser.send("POST", "/callback", json={"url": callback})
        assert answer.json()["reason"] == "state_used"
        assert await rows(admin) == before
        await browser.send("DELETE", "/connection")
        assert await browser.come_back(callback) == back("state_used")
    assert (await rows(admin), service.spotify.token_calls) == ([], 1)


async def test_two_callbacks_at_once_are_one(service: WebService, admin: asyncpg.Connection, user: UUID) -> None:
    """A race: both are sent on as connected, Spotify was asked once, and a racing thief gets nothing of it."""
    async with service.browser(user) as browser, service.browser() as thief:
        callback = await browser.connect()
        with service.spotify.hold() as hold:
            first = asyncio.ensure_future(browser.come_back(callback))
            await hold.reached()
            second = asyncio.ensure_future(browser.come_back(callback))
            assert await thief.come_back(callback) in {back("state_mismatch"), back("state_used")}
            hold.release()
            assert [await first, await second] == [back("connected")] * 2
    assert (len(await rows(admin)), service.spotify.token_calls) == (1, 1)


async def test_nothing_secret_is_logged_or_answered(
    service: WebService, user: UUID, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither code, state nor cookie, in any log of the service, with success and with errors."""
    caplog.set_level(logging.DEBUG)
    for browsers in ("httpx", "httpx2", "httpcore", "httpcore2"):
        caplog.set_level(logging.WARNING, logger=browsers)
    async with service.browser(user) as browser:
        callback = await browser.connect()
        secrets = [part.partition("=")[2] for part in callback.partition("?")[2].split("&")]
        secrets += [str(cookie.value) for cookie in browser.http.cookies.jar if cookie.name != "session"]
        answers = [await browser.send("GET", callback) for _ in range(2)]
        answers.append(await browser.send("POST", "/callback", json={"url": altered(callback, code="")}))
    texts = [caplog.text, *(json.dumps(dict(answer.headers)) + answer.text for answer in answers)]
    assert len(secrets) == 3
    assert not [secret for secret in secrets for text in texts if secret in text]


async def test_a_browser_has_five_cookies_of_authorizations_at_most(service: WebService, user: UUID) -> None:
    """With the sixth tab the oldest goes: its callback is refused, and those of the five others are completed.

    Of hundreds that another host has planted, five go with each answer, whose headers stay small.
    """
    async with service.browser(user) as browser:
        callbacks = [await browser.connect() for _ in range(6)]
        assert len(browser.http.cookies.jar) == 1 + 5
        outcomes = [await browser.come_back(callback) for callback in callbacks]
        planted = "; ".join(f"spotconn-{number:08x}=x" for number in range(500))
        answer = await browser.send("POST", "/connect", headers={"Cookie": f"session={user}; {planted}"})
        assert len(answer.headers.get_list("set-cookie")) == 1 + 5
    assert outcomes == [back("state_mismatch"), *[back("connected")] * 5]
