"""The documented checks, done by a person's hand in a real browser, each one looked up in the database."""

import os
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest
from playwright.async_api import Page, Route, expect

from support.browser import Person, agree, connected_to, press, profile_app
from support.connections import rows
from support.consent import pending
from support.database import Database

SCREENSHOTS = "SPOTCONN_SCREENSHOTS"
"""Names a folder that gets the pictures of the README."""


SHORT_LIFE = "3"
"""Seconds that access tokens are good for where a test waits for their end: one just granted is served until then."""


@pytest.fixture
async def users(users_of_profile_app: list[UUID]) -> list[UUID]:
    """Those that the app knows."""
    return users_of_profile_app


@asynccontextmanager
async def arriving(address: str, url: str) -> AsyncGenerator[Person]:
    """Somebody before the app, whose browser has reached nothing but this machine and reports no error at the end."""
    async with (
        connected_to(address) as browser,
        await browser.new_context(viewport={"width": 1000, "height": 900}) as context,
    ):
        someone = Person(url, context)
        yield someone
        assert someone.hosts <= {"127.0.0.1", "localhost"}
        assert someone.errors == []


@pytest.fixture
async def person(shared_chromium: str, shared_profile_app: str, users: list[UUID]) -> AsyncIterator[Person]:
    """A person before the running app, where they may be Alice or Bob."""
    async with arriving(shared_chromium, shared_profile_app) as someone:
        yield someone


async def connected(page: Page, account: str) -> None:
    """Connect from the profile page."""
    await press(page, "Connect Spotify")
    await agree(page, account)


async def test_the_documented_checks(person: Person, admin: asyncpg.Connection, user: UUID, tmp_path: Path) -> None:
    """Connect, see it, disconnect, see the row gone, reconnect with another account, see all of it replaced."""
    page = await person.sign_in("Alice")
    await expect(page.locator("#state")).to_have_text("Not connected")

    # 1. connect from the Profile view
    await press(page, "Connect Spotify")
    assert await pending(admin) == 1
    await agree(page, "Alice")
    await expect(page.get_by_role("status")).to_have_text("Connected to Alice.")
    (first,) = await rows(admin)
    assert (first["user_id"], first["spotify_user_id"], first["display_name"]) == (user, "alice", "Alice")
    assert await pending(admin) == 0
    assert "code=" not in page.url

    # 2. the connection appears
    await page.goto(f"{person.url}/profile")
    await expect(page.locator("#state")).to_have_text("Connected")
    await expect(page.locator("#account")).to_have_text("Alice")
    await expect(page.locator("#spotify-id")).to_have_text("alice")
    await expect(page.locator("dl")).to_contain_text("What you listen to most")
    await expect(page.locator("dl")).to_contain_text(f"{first['connected_at']:%-d %B %Y}")
    await expect(page.locator("dl")).to_contain_text("Authorize again by")
    await expect(page.locator("#due")).to_have_count(0)
    await expect(page.locator(".tracks li")).to_have_count(5)
    assert first["access_token"] not in await page.content()
    await pictured(page, tmp_path)

    # 3. disconnect from the Profile view
    await press(page, "Disconnect")
    await expect(page.get_by_role("status")).to_contain_text("www.spotify.com/account/apps")
    await expect(page.locator("#state")).to_have_text("Not connected")

    # 4. the row is gone
    assert await rows(admin) == []

    # 5. reconnect, then again with another Spotify account
    await connected(page, "Alice")
    (second,) = await rows(admin)
    await press(page, "Reconnect")
    assert "show_dialog=true" in page.url
    await agree(page, "Bob")

    # 6. tokens and account are updated
    await expect(page.locator("#account")).to_have_text("Bob")
    (third,) = await rows(admin)
    assert (third["id"], third["spotify_user_id"], third["email"]) == (second["id"], "bob", "bob@example.com")
    for column in ("access_token", "refresh_token", "expires_at"):
        assert third[column] != second[column]
    assert third["connected_at"] > second["connected_at"]
    await expect(page.locator(".tracks li")).to_have_count(5)


async def pictured(page: Page, tmp_path: Path) -> None:
    """A picture of the page in light and dark, and on a phone, where nothing may stick out to the side."""
    folder = Path(os.environ.get(SCREENSHOTS, tmp_path))
    await page.emulate_media(color_scheme="dark")
    await page.screenshot(path=folder / "profile-dark.png", full_page=True)
    await page.emulate_media(color_scheme="light")
    await page.screenshot(path=folder / "profile.png", full_page=True)
    assert (folder / "profile.png").stat().st_size > 10_000
    await page.set_viewport_size({"width": 360, "height": 740})
    await page.screenshot(path=folder / "profile-phone.png", full_page=True)
    assert await page.evaluate("document.documentElement.scrollWidth") == 360
    for button in await page.get_by_role("button").all():
        box = await button.bounding_box()
        assert box is not None
        assert box["height"] >= 40, "too small for a thumb"
    await page.set_viewport_size({"width": 1000, "height": 900})


async def test_cancel_on_the_consent_page_changes_nothing(person: Person, admin: asyncpg.Connection) -> None:
    """Who says no, without a connection or with one, is told so and keeps what there was."""
    page = await person.sign_in("Alice")
    await press(page, "Connect Spotify")
    await agree(page, "Alice", decision="Cancel")
    await expect(page.get_by_role("alert")).to_contain_text("did not agree")
    assert await rows(admin) == []
    await connected(page, "Alice")
    before = await rows(admin)
    await press(page, "Reconnect")
    await agree(page, "Bob", decision="Cancel")
    await expect(page.locator("#account")).to_have_text("Alice")
    assert await rows(admin) == before
    assert await pending(admin) == 0


async def test_a_replayed_callback_changes_nothing(person: Person, admin: asyncpg.Connection) -> None:
    """The callback's URL, opened a second time, is refused."""
    page = await person.sign_in("Alice")
    await connected(page, "Alice")
    before = await rows(admin)
    (callback,) = [url for url in person.requested if "/callback?" in url]
    await page.goto(callback)
    await expect(page.get_by_role("alert")).to_contain_text("was used before")
    await expect(page.locator("#state")).to_have_text("Connected")
    assert await rows(admin) == before


async def test_a_callback_lured_into_another_session_changes_nothing(
    person: Person, admin: asyncpg.Connection, users: list[UUID]
) -> None:
    """Bob agrees, keeps his callback unspent, and has Alice open it: she stays unconnected, and it stays his."""
    alice = await person.sign_in("Alice")
    assert person.context.browser is not None
    async with await person.context.browser.new_context() as context:
        attacker = Person(person.url, context)
        bob = await attacker.sign_in("Bob")
        await press(bob, "Connect Spotify")
        callbacks: list[str] = []

        async def stop(route: Route) -> None:
            callbacks.append((await route.fetch(max_redirects=0)).headers["location"])
            await route.fulfill(body="He does not follow the redirect.")

        await context.route("**/authorize", stop)
        await agree(bob, "Bob", back="**/authorize")
        (callback,) = callbacks

        await alice.goto(callback)
        await expect(alice.get_by_role("alert")).to_contain_text("does not belong")
        await expect(alice.locator("#state")).to_have_text("Not connected")
        assert await rows(admin) == []

        await bob.goto(callback)
        await expect(bob.locator("#account")).to_have_text("Bob")
    assert [row["user_id"] for row in await rows(admin)] == [users[1]]


async def test_two_tabs_connect_at_once(person: Person, admin: asyncpg.Connection) -> None:
    """Two tabs on the consent page at the same time both finish; the later one counts."""
    first = await person.sign_in("Alice")
    second = await person.context.new_page()
    await second.goto(f"{person.url}/profile")
    await press(first, "Connect Spotify")
    await press(second, "Connect Spotify")
    assert await pending(admin) == 2
    await agree(first, "Alice")
    await expect(first.locator("#account")).to_have_text("Alice")
    await agree(second, "Bob")
    await expect(second.locator("#account")).to_have_text("Bob")
    await first.reload()
    await expect(first.locator("#account")).to_have_text("Bob")
    assert [row["spotify_user_id"] for row in await rows(admin)] == ["bob"]
    assert await pending(admin) == 0


@pytest.mark.long
async def test_a_revoked_connection_is_shown_and_mended(
    shared_chromium: str, database: Database, admin: asyncpg.Connection, user: UUID
) -> None:
    """The user removes the app at Spotify: once the token has run out the page says so, and connecting mends it."""
    settings = {"DATABASE_URL": database.dsn, "TOKEN_TTL": SHORT_LIFE}
    async with profile_app(f"alice={user}", settings=settings) as (url, _), arriving(shared_chromium, url) as person:
        page = await person.sign_in("Alice")
        await connected(page, "Alice")
        await page.get_by_role("link", name="www.spotify.com/account/apps").click()
        await press(page, "Remove access")
        await expect(page.get_by_text("No account has agreed")).to_be_visible()
        await page.goto(f"{person.url}/profile")
        while await page.locator("#state").text_content() != "Connect again":
            await page.reload()
        await expect(page.locator("#ended")).to_contain_text("You removed this app")
        assert await admin.fetchval("select failure from spotconn.refresh_state where user_id = $1", user) == "revoked"
        assert len(await rows(admin)) == 1

        await press(page, "Connect again")
        await agree(page, "Alice")
        await expect(page.locator("#state")).to_have_text("Connected")
        await expect(page.locator(".tracks li")).to_have_count(5)
        assert await admin.fetchval("select count(*) from spotconn.refresh_state where failure is not null") == 0


@pytest.mark.parametrize(("remaining", "shown"), [("34 days", 0), ("29 days", 1)])
async def test_the_page_warns_thirty_days_before(
    person: Person, admin: asyncpg.Connection, remaining: str, shown: int
) -> None:
    """From thirty days before Spotify ends a connection a banner asks to reconnect; reconnecting ends it.

    Six months back and forth may be three days less: February has no 31st.
    """
    page = await person.sign_in("Alice")
    await connected(page, "Alice")
    await admin.execute(
        f"update public.spotify_connections set connected_at = now() + interval '{remaining}' - interval '6 months'"
    )
    await page.reload()
    await expect(page.locator("#due")).to_have_count(shown)
    await press(page, "Reconnect")
    await agree(page, "Alice")
    await expect(page.locator("#due")).to_have_count(0)


async def test_an_account_that_is_not_allowed_is_reported_why(person: Person, admin: asyncpg.Connection) -> None:
    """The page says that Spotify does not let it, and nothing is saved."""
    page = await person.sign_in("Alice")
    await press(page, "Connect Spotify")
    await agree(page, "Not on the app's list")
    await expect(page.get_by_role("alert")).to_contain_text("does not let this account use the app")
    assert await rows(admin) == []


async def test_everything_can_be_done_by_keyboard(person: Person, admin: asyncpg.Connection) -> None:
    """Tab and Enter alone sign in, skip to the content, connect and disconnect; the focus can be seen."""
    page = await person.context.new_page()
    await page.goto(person.url)
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    await page.keyboard.press("Enter")
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("button", name="Alice")).to_be_focused()
    await page.keyboard.press("Enter")
    await page.wait_for_url("**/profile")
    await tab_to(page, "Connect Spotify")
    style = "getComputedStyle(document.activeElement).outlineStyle"
    assert await page.evaluate(style) == "solid"
    await page.keyboard.press("Enter")
    await page.wait_for_url("**/authorize?*")
    await page.keyboard.press("Tab")
    await page.keyboard.press("ArrowDown")
    await tab_to(page, "Agree")
    await page.keyboard.press("Enter")
    await page.wait_for_url("**/profile*")
    assert [row["spotify_user_id"] for row in await rows(admin)] == ["bob"]
    await tab_to(page, "Disconnect")
    async with page.expect_navigation():
        await page.keyboard.press("Enter")
    assert await rows(admin) == []


async def tab_to(page: Page, button: str) -> None:
    """Press Tab until a button has the focus."""
    for _ in range(20):
        await page.keyboard.press("Tab")
        if await page.evaluate("document.activeElement.textContent") == button:
            return
    raise AssertionError(f"the Tab key does not reach {button}")


async def test_every_field_and_landmark_has_a_name(person: Person) -> None:
    """One main heading, a language, a title, labels, and no control without a name."""
    page = await person.sign_in("Alice")
    await connected(page, "Alice")
    tree = await page.locator("body").aria_snapshot()
    assert re.search(r'heading "Alice" \[level=1\]', tree)
    assert not re.search(r"- (button|link|textbox|radio)( \[.*\])?:?$", tree, re.MULTILINE), tree
    assert await page.locator("html").get_attribute("lang") == "en"
    assert await page.title() == "Profile"
