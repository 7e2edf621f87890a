"""A real browser, and the profile app as a real process, for tests of what a person does."""

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, BrowserContext, Page, Request, async_playwright

PROFILE_APP = Path(__file__).parents[2] / "examples" / "profile_app"
REQUIRED = "SPOTCONN_REQUIRE_BROWSER"
"""Set where a missing browser is a failure, as in CI."""

NO_OUTSIDE_CALLS = (
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
)


def chromium() -> str:
    """The path of a Chromium of this system; without one the test is skipped, or fails where one is required."""
    named = os.environ.get("CHROMIUM")
    found = next(
        (path for name in (named, "chromium", "chromium-browser", "google-chrome") if (path := _which(name))), None
    )
    if found is None:
        reason = "no Chromium on this system (Debian: apt-get install chromium; elsewhere set CHROMIUM to its path)"
        if os.environ.get(REQUIRED):
            pytest.fail(f"{reason}, and {REQUIRED} is set")
        pytest.skip(reason)
    return found


def _which(name: str | None) -> str | None:
    return shutil.which(name) if name else None


@asynccontextmanager
async def launched() -> AsyncGenerator[Browser]:
    """A headless browser that can reach nothing but this machine."""
    path = chromium()
    # As root Chromium does not start with its sandbox.
    args = [*NO_OUTSIDE_CALLS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=args)
        try:
            yield browser
        finally:
            await browser.close()


class Person:
    """Somebody with a browser of their own, who signs in to the profile app."""

    def __init__(self, url: str, context: BrowserContext) -> None:
        self.url = url
        self.context = context
        self.requested: list[str] = []
        self.errors: list[str] = []
        context.on("request", self._note)
        context.on("weberror", lambda error: self.errors.append(str(error.error)))
        context.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)

    def _note(self, request: Request) -> None:
        self.requested.append(request.url)

    @property
    def hosts(self) -> set[str | None]:
        """Every host that the browser asked for something."""
        return {urlsplit(url).hostname for url in self.requested}

    async def sign_in(self, name: str) -> Page:
        """Open the app and choose a user: their profile page."""
        page = await self.context.new_page()
        await page.goto(self.url)
        await page.get_by_role("button", name=name).click()
        await page.wait_for_url("**/profile")
        return page


async def press(page: Page, button: str) -> None:
    """Press a button by its words and wait for the page that follows."""
    async with page.expect_navigation():
        await page.get_by_role("button", name=button, exact=True).click()


async def agree(page: Page, account: str, *, decision: str = "Agree") -> None:
    """Answer on the consent page, until the browser is back on the profile page."""
    await page.get_by_label(account).check()
    await page.get_by_role("button", name=decision, exact=True).click()
    await page.wait_for_url("**/profile")


@asynccontextmanager
async def profile_app(
    *arguments: str, settings: Mapping[str, str]
) -> AsyncGenerator[tuple[str, asyncio.subprocess.Process]]:
    """The app as a process of its own: its URL and itself. It has ended when the block ends."""
    hidden = ("DATABASE_URL", "SPOTCONN_", "SPOTIFY_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(PROFILE_APP),
        *arguments,
        env=environment | {"PORT": "0", **settings},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield await _url(process), process
    finally:
        if process.returncode is None:
            process.terminate()
        _, complaints = await process.communicate()
    said = complaints.decode()
    assert not [words for words in ("Traceback", "ERROR", "code=", "state=") if words in said], said


async def _url(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    said = ""
    async for line in process.stdout:
        said += line.decode()
        if said.splitlines()[-1].startswith("Open http"):
            return said.splitlines()[-1].split()[1]
    await process.wait()
    raise AssertionError(said)
