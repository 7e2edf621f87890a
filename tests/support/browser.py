"""A real browser, and the profile app as a real process, for tests of what a person does."""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
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


SUPERVISED = """
"$@" &
cat > /dev/null
kill $!
wait
rm -rf "$0"
"""
"""Runs a program until standard input ends, as it does when its parent is killed, and removes a folder."""


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


def _flags() -> list[str]:
    # As root Chromium does not start with its sandbox.
    return [*NO_OUTSIDE_CALLS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]


def _which(name: str | None) -> str | None:
    return shutil.which(name) if name else None


@contextmanager
def chromium_running() -> Generator[str]:
    """A headless Chromium for the tests of several event loops: its address. It ends with this process."""
    folder = tempfile.mkdtemp()
    flags = ["--headless", "--remote-debugging-port=0", f"--user-data-dir={folder}", *_flags()]
    with subprocess.Popen(
        ["sh", "-c", SUPERVISED, folder, chromium(), *flags], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        with process.stderr:
            address = next(line for line in process.stderr if "DevTools listening on" in line).split()[-1]
        yield address


@contextmanager
def profile_app_running(*arguments: str, settings: Mapping[str, str]) -> Generator[tuple[str, Path]]:
    """The app for the tests of several event loops: its URL, and the file of its complaints."""
    folder = Path(tempfile.mkdtemp())
    with (
        (folder / "complaints").open("w") as complaints,
        subprocess.Popen(
            ["sh", "-c", SUPERVISED, folder, sys.executable, PROFILE_APP, *arguments],
            env=_environment(settings),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        yield next(line for line in process.stdout if line.startswith("Open http")).split()[1], folder / "complaints"


def check_complaints(text: str) -> None:
    """Fail where the app has logged an error, or what must not be in a log."""
    assert not [words for words in ("Traceback", "ERROR", "code=", "state=") if words in text], text


@asynccontextmanager
async def connected_to(address: str) -> AsyncGenerator[Browser]:
    """A running Chromium; the contexts of the block are closed by who opens them."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.connect_over_cdp(address)
        yield browser
        await browser.close()


@asynccontextmanager
async def launched() -> AsyncGenerator[Browser]:
    """A headless browser that can reach nothing but this machine."""
    path = chromium()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=_flags())
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


async def agree(page: Page, account: str, *, decision: str = "Agree", back: str = "**/profile*") -> None:
    """Answer on the consent page, until the browser is back on the profile page."""
    await page.get_by_label(account).check()
    await page.get_by_role("button", name=decision, exact=True).click()
    await page.wait_for_url(back)


@asynccontextmanager
async def profile_app(
    *arguments: str, settings: Mapping[str, str]
) -> AsyncGenerator[tuple[str, asyncio.subprocess.Process]]:
    """The app as a process of its own: its URL and itself. It has ended when the block ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(PROFILE_APP),
        *arguments,
        env=_environment(settings),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield await _url(process), process
    finally:
        if process.returncode is None:
            process.terminate()
        _, complaints = await process.communicate()
    check_complaints(complaints.decode())


def _environment(settings: Mapping[str, str]) -> dict[str, str]:
    hidden = ("DATABASE_URL", "SPOTCONN_", "SPOTIFY_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    return inherited | {"PORT": "0", **settings}


async def _url(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    said = ""
    async for line in process.stdout:
        said += line.decode()
        if said.splitlines()[-1].startswith("Open http"):
            return said.splitlines()[-1].split()[1]
    await process.wait()
    raise AssertionError(said)
