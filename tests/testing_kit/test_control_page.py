"""The control page of the simulated Spotify: for a person without scripts, for a program, and for no other site."""

from collections.abc import AsyncIterator

import httpx
import pytest
from playwright.async_api import expect

from spotconn import TokenGrant
from spotconn.testing import FakeSpotify
from support.browser import Person, connected_to, press


@pytest.fixture
def fake() -> FakeSpotify:
    """Two apps, of which the first has the consent of Ann, and both that of Ben."""
    made = FakeSpotify(other_apps={"second": "demo-secret"})
    made.add_account("ann", display_name="<Ann>")
    made.add_account("ben")
    return made


@pytest.fixture
async def program(fake: FakeSpotify) -> AsyncIterator[httpx.AsyncClient]:
    """What is no browser."""
    transport = httpx.ASGITransport(app=fake)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8769") as client:
        yield client


async def refreshed(program: httpx.AsyncClient, grant: TokenGrant, client_id: str = "demo-client") -> str:
    """Use a refresh token: the description of the error, or "" if there is none."""
    form = {"grant_type": "refresh_token", "refresh_token": grant.refresh_token or ""}
    answer = await program.post("/api/token", data=form, auth=(client_id, "demo-secret"))
    described: str = answer.json().get("error_description", "")
    return described


async def status_of(program: httpx.AsyncClient, access_token: str) -> int:
    return (await program.get("/v1/me", headers={"Authorization": f"Bearer {access_token}"})).status_code


@pytest.mark.parametrize(
    ("action", "described", "status"),
    [
        ("revoke", "Refresh token revoked", 200),
        ("expire-refresh", "Refresh token expired", 200),
        ("expire-access", "", 401),
    ],
)
async def test_what_ends_for_one_app_ends_for_no_other(
    program: httpx.AsyncClient, fake: FakeSpotify, action: str, described: str, status: int
) -> None:
    """A consent, the access tokens or the refresh tokens of an account end for the app that the form names."""
    mine, other, of_ann = fake.authorize("ben"), fake.authorize("ben", client_id="second"), fake.authorize("ann")
    done = await program.post("/", data={"action": action, "account": "ben", "client_id": "demo-client"})
    assert (done.status_code, done.headers["location"]) == (303, f"/?done={action}")
    assert await refreshed(program, mine) == described
    assert await status_of(program, mine.access_token) == status
    assert await refreshed(program, other, "second") == ""
    assert await refreshed(program, of_ann) == ""
    assert await status_of(program, other.access_token) == 200
    everywhere = await program.post("/", data={"action": action, "account": "ben"})
    assert everywhere.status_code == 303
    assert await refreshed(program, other, "second") == described


async def test_requests_fail_as_often_as_asked(program: httpx.AsyncClient, fake: FakeSpotify) -> None:
    """The next requests of the kind that the form names fail, until their number is reached or it is taken back."""
    granted = fake.authorize("ann")
    await program.post("/", data={"action": "fail", "failure": "web-quota", "count": "2"})
    assert [await status_of(program, granted.access_token) for _ in range(3)] == [429, 429, 200]
    await program.post("/", data={"action": "fail", "failure": "token-429", "count": "2"})
    form = {"grant_type": "refresh_token", "refresh_token": granted.refresh_token or ""}
    answer = await program.post("/api/token", data=form, auth=("demo-client", "demo-secret"))
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "60")
    assert "1 of the token endpoint, 0 of the Web API" in (await program.get("/")).text
    await program.post("/", data={"action": "reset"})
    assert await refreshed(program, granted) == ""


async def test_a_secret_is_rotated_for_one_app(program: httpx.AsyncClient, fake: FakeSpotify) -> None:
    """The former one is refused at once; the other app, and tokens, stay as they are."""
    mine, other = fake.authorize("ben"), fake.authorize("ben", client_id="second")
    form = {"action": "rotate-secret", "client_id": "second", "client_secret": "rotated"}
    done = await program.post("/", data=form)
    assert (done.status_code, done.headers["location"]) == (303, "/?done=rotate-secret")
    assert await refreshed(program, other, "second") == "Invalid client secret"
    assert await refreshed(program, mine) == ""
    await program.post("/", data=form | {"client_secret": "demo-secret"})
    assert await refreshed(program, other, "second") == ""


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({}, "action"),
        ({"action": "revoke", "account": "<nobody>"}, "account"),
        ({"action": "revoke", "account": "ann", "client_id": "third"}, "client_id"),
        ({"action": "rotate-secret", "client_secret": "x", "client_id": "third"}, "client_id"),
        ({"action": "rotate-secret"}, "client_secret"),
        ({"action": "rotate-secret", "client_secret": "<nobody>"}, "client_secret"),
        ({"action": "fail", "failure": "teapot"}, "failure"),
        ({"action": "fail", "failure": "web-503", "count": "101"}, "count"),
        ({"action": "fail", "failure": "web-503", "count": "9" * 5000}, "count"),
    ],
)
async def test_a_form_that_means_nothing_says_so(program: httpx.AsyncClient, form: dict[str, str], words: str) -> None:
    """The answer names the field, and repeats no value."""
    answer = await program.post("/", data=form)
    assert answer.status_code == 400
    assert f"<p>{words}: expected" in answer.text
    assert "nobody" not in answer.text


@pytest.mark.parametrize("path", ["/", "/account/apps", "/authorize"])
@pytest.mark.parametrize(
    ("headers", "is_refused"),
    [
        ({}, False),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "null"}, False),
        ({"Origin": "http://127.0.0.1:8769"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, True),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:8000"}, True),
        ({"Origin": "http://127.0.0.1:8000"}, True),
        ({"Origin": "null"}, True),
        ({"Sec-Fetch-Site": "same-origin", "Host": "rebound.example:8769"}, True),
    ],
)
async def test_a_page_of_another_site_posts_nothing(
    program: httpx.AsyncClient, fake: FakeSpotify, path: str, headers: dict[str, str], *, is_refused: bool
) -> None:
    """Whether by a form, by a request without a body to read, or by a name that it has rebound to this host."""
    granted = fake.authorize("ann")
    answer = await program.post(path, data={"action": "revoke", "account": "ann"}, headers=headers)
    assert (answer.status_code == 403) == is_refused
    assert await refreshed(program, granted) in ({""} if is_refused else {"", "Refresh token revoked"})


async def test_a_program_agrees_by_the_url_of_the_consent_page(program: httpx.AsyncClient, fake: FakeSpotify) -> None:
    """It posts the decision to the URL that `start` gives, and is redirected to the callback."""
    url = "/authorize?client_id=demo-client&response_type=code&redirect_uri=http%3A%2F%2F127.0.0.1%2Fcallback&state=s"
    answer = await program.post(url, data={"account": "ann", "decision": "agree"})
    assert answer.status_code == 302
    assert answer.headers["location"].startswith("http://127.0.0.1/callback?code=")


async def test_a_person_needs_no_script_and_no_mouse(fake: FakeSpotify, shared_chromium: str) -> None:
    """On a phone, without scripts: what can be done is found by its words, and nothing is loaded from elsewhere."""
    token = fake.authorize("ann").refresh_token or ""
    async with (
        fake.serve() as url,
        connected_to(shared_chromium) as browser,
        await browser.new_context(java_script_enabled=False, viewport={"width": 360, "height": 740}) as context,
    ):
        person = Person(url, context)
        page = await context.new_page()
        answer = await page.goto(url)
        assert answer is not None
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        consent = page.get_by_role("group", name="<Ann> ann, app demo-client")
        await page.get_by_label("Answer").select_option(label="Web API: 403, the owner has no Premium")
        await page.get_by_label("Requests").fill("3")
        await press(page, "Let them fail")
        await expect(page.get_by_role("status")).to_have_text("The next requests will fail.")
        await expect(page.locator("main")).to_contain_text("0 of the token endpoint, 3 of the Web API")
        await press(page, "Answer as usual")
        await page.get_by_label("Client secret").fill("rotated")
        await press(page, "Rotate it")
        await expect(page.get_by_role("status")).to_contain_text("the former one is refused")
        await consent.get_by_role("button", name="Remove consent").focus()
        async with page.expect_navigation():
            await page.keyboard.press("Enter")
        await expect(page.get_by_role("status")).to_contain_text("The consent is removed")
        await expect(consent).to_have_count(0)
        assert not fake.accepts_refresh(token)
        for shown in (*await page.get_by_role("button").all(), *await page.get_by_label("Answer").all()):
            box = await shown.bounding_box()
            assert box is not None
            assert box["height"] >= 40
            assert box["x"] + box["width"] <= 360
        assert person.hosts == {"127.0.0.1"}
        assert person.errors == []
