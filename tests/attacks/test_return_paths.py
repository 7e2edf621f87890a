"""Where strangers would have a service with SpotifyRoutes send a browser, and what they put into a header."""

from itertools import product
from uuid import UUID

import asyncpg
import pytest

from spotconn.testing import FakeSpotify
from support.consent import altered, pending
from support.web_service import FRONT_END, WebService, back, web_service

EVIL = "https://evil.example"
ELSEWHERE = (
    "//evil.example",
    "///evil.example",
    "////evil.example",
    "/\\evil.example",
    "\\\\evil.example",
    "/\t/evil.example",
    "/\n/evil.example",
    "\t//evil.example",
    " //evil.example",
    "/%2f%2fevil.example",
    "/%252f%252fevil.example",
    "/%5cevil.example",
    "/%09/evil.example",
    "/.//evil.example",
    "/x/..//evil.example",
    "https://evil.example/",
    "HTTPS://EVIL.EXAMPLE/",
    "https:evil.example",
    "https:/evil.example",
    "http:///evil.example",
    "javascript:alert(1)",
    "JaVaScRiPt:alert(1)",
    "java\tscript:alert(1)",
    "data:text/html,x",
    "https://app.example.com@evil.example/",
    "https://app.example.com.evil.example/",
    "https://app.example.com:443@evil.example/",
    "https://app.example.com\\@evil.example/",
    "HTTPS://app.example.com@evil.example",
    "http://app.example.com/",
    "/\u2044/evil.example",
    "\uff0f\uff0fevil.example",
    "/\u3002evil.example",
    "evil.example",
    "?next=//evil.example",
    "@evil.example",
    "/\x00/evil.example",
    "/x\r\nSet-Cookie: session=planted",
    "/" + "x" * 900,
)


@pytest.mark.parametrize("front_end", [None, FRONT_END], ids=["alone", "with a front end"])
async def test_no_spelling_of_another_host_is_a_return_path(
    service: WebService, spotify: FakeSpotify, admin: asyncpg.Connection, user: UUID, front_end: str | None
) -> None:
    """Open redirects: refused in a form and in JSON before anything begins, and once more on the way back."""
    settings = {"front_end": front_end, "after": "/me"}
    async with (
        web_service(service.tokens, service.flow, spotify, **settings) as served,
        served.browser(user) as browser,
    ):
        for spelling in ELSEWHERE:
            answer = await browser.send("POST", "/connect", json={"next": spelling})
            assert (answer.status_code, "location" in answer.headers) == (400, False), spelling
            assert "evil" not in answer.text
        for spelling, path in product(ELSEWHERE[:6], ("/connect", "/disconnect")):
            answer = await browser.send("POST", path, data={"next": spelling})
            assert (answer.status_code, "location" in answer.headers) == (400, False), spelling
        assert await pending(admin) == 0


async def test_a_return_path_is_looked_at_again_on_the_way_back(
    service: WebService, spotify: FakeSpotify, user: UUID
) -> None:
    """What was begun where it was allowed, and comes back where it is not, ends at `after`."""
    async with (
        web_service(service.tokens, service.flow, spotify) as other,
        service.browser(user) as browser,
        other.browser(user) as same,
    ):
        callback = await browser.connect(next=f"{FRONT_END}/music")
        same.http.cookies = browser.http.cookies
        assert await same.come_back(callback) == "/me?spotify=connected"


async def test_no_text_of_a_request_gets_into_a_header(service: WebService, user: UUID) -> None:
    """Header injection by the query of a callback, by fields and by a host: the redirect has fixed words alone."""
    async with service.browser(user) as browser:
        callback = await browser.connect()
        for query in (
            "error=x%0d%0aSet-Cookie:%20a=b",
            "code=x&spotify=%0d%0aLocation:%20//evil.example",
            "",
            "state=%00",
        ):
            assert await browser.come_back(f"/callback?{query}") in {back("state_mismatch"), back("code_rejected")}
        assert await browser.come_back(altered(callback, code="x\r\nSet-Cookie: a=b")) == back("code_rejected")
        answer = await browser.send("POST", "/connect", json={"scope": "a\r\nSet-Cookie: a=b"})
        assert (answer.status_code, answer.headers.get("set-cookie")) == (400, None)
        answer = await browser.send("GET", "/connection/", headers={"Host": "evil.example", "X-Forwarded-Host": EVIL})
        assert (answer.status_code, "evil" in str(answer.headers)) == (404, False)
