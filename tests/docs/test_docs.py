"""Every block of Python in the README and in docs/ runs, against a real Postgres and the simulated Spotify.

The names that each block finds are those of the fixture `namespace`. Anything else that a block needs stands in its
page, visible or in a hidden block (see doc_blocks.py).

    user_id        a user who is connected to the account "alice", with a token good for an hour
    new_user_id    a user who has signed up and is not connected
    dsn, listen_dsn
                   of the service's login; operator_dsn: of one that may become service_role; admin_dsn: a superuser's
    store, accounts, tokens, flow
                   a ConnectionStore, SpotifyAccounts, TokenManager and ConnectFlow over that database and that Spotify
    spotify        the FakeSpotify; spotify_url: where it answers
    agree(url)     what a user does on the consent page: the URL that the browser comes back to
    run(*words)    runs a Python program, such as one that stands in the page, and gives what it printed

The settings of the environment (DATABASE_URL and so on) are those of the service.
"""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from spotconn import ConnectFlow, ConnectionStore, SpotifyAccounts, TokenManager
from spotconn.testing import FakeSpotify
from support.connections import connect
from support.consent import REDIRECT_URI, agree
from support.database import Database
from support.doc_blocks import blocks

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
SLOW = [ROOT / "docs/how-to" / f"{name}.md" for name in ("migrations", "testing", "workers")]
"""Pages whose programs take long: they start servers, suites and workers."""
WITH_CODE = [page for page in PAGES if "python" in page.read_text()]


class Programs:
    """The files that a page's blocks are, and how they are run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.waiting: set[str] = set()

    def write(self, title: str, code: str) -> None:
        """Keep a titled block as a file."""
        (self.folder / title).write_text(code)
        self.waiting.add(title)

    async def run(self, *words: object) -> str:
        """Run a Python program in that folder, as its reader would: what it prints."""
        command = [str(word) for word in words]
        self.waiting -= set(command)
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, cwd=self.folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        try:
            async with asyncio.timeout(50):
                printed, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        assert process.returncode == 0, printed.decode()
        return printed.decode()


@pytest.fixture
def environment(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of a service, and no other."""
    for name in os.environ:
        if name.startswith(("DATABASE_URL", "SPOTCONN_", "SPOTIFY_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DATABASE_URL", database.dsn)
    monkeypatch.setenv("SPOTIFY_CLIENT_ID", "0123456789abcdef")
    monkeypatch.setenv("SPOTIFY_CLIENT_SECRET", "fedcba9876543210")
    monkeypatch.setenv("SPOTIFY_REDIRECT_URI", REDIRECT_URI)


@pytest.fixture
async def namespace(
    database: Database,
    environment: None,
    operator: str,
    users: list[UUID],
    store: ConnectionStore,
    spotify: FakeSpotify,
    accounts: SpotifyAccounts,
    flow: ConnectFlow,
) -> AsyncIterator[dict[str, Any]]:
    """What the blocks of a page find."""
    await connect(store, spotify, users[0])
    spotify.add_account("alice", display_name="Alice", email="alice@example.com")
    async with TokenManager(store, accounts) as tokens:
        yield {
            "__name__": "page",
            "user_id": users[0],
            "new_user_id": users[1],
            "dsn": database.dsn,
            "listen_dsn": database.dsn,
            "operator_dsn": operator,
            "admin_dsn": database.admin_dsn,
            "store": store,
            "accounts": accounts,
            "tokens": tokens,
            "flow": flow,
            "spotify": spotify,
            "spotify_url": accounts._accounts_url,
            "agree": agree,
        }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_block_is_left_out(page: Path) -> None:
    """Each block is Python that runs, or says that it is something else."""
    list(blocks(page))


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=lambda page: page.name)
def test_every_link_of_a_page_beside_the_site_leads_somewhere(page: Path) -> None:
    """Links to files of the repository; `site_check.py` looks at those of the site."""
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]*)\)", page.read_text())]
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=str(page.relative_to(ROOT)), marks=[pytest.mark.long] if page in SLOW else [])
        for page in WITH_CODE
    ],
)
async def test_every_block_of_a_page_runs(page: Path, namespace: dict[str, Any], tmp_path: Path) -> None:
    """The blocks of a page run in their order, and each file among them is run by a later one."""
    programs = Programs(tmp_path)
    namespace["run"] = programs.run
    for block in blocks(page):
        if block.title is None:
            await block.run(namespace)
        else:
            programs.write(block.title, block.code)
    assert not programs.waiting, "written and never run"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("```\nx = 1\n```", "a block of no language"),
        ("```py\nx = 1\n```", "a block of py"),
        ("```python {.x}\nx = 1\n```", "a block of python {.x}"),
        ("- list\n\n  ~~~ Python\n  x = 1\n  ~~~", "a block of Python"),
        ("words\n\n    x = 1\n", "an indented block"),
        ("<!--python\nx = 1\n-->", "a comment that nearly is a block of Python"),
    ],
)
def test_a_block_that_would_be_left_out_is_an_error(tmp_path: Path, text: str, fault: str) -> None:
    """A block without a language, an indented one or another spelling of Python is told, with its line."""
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match=rf"page.md:\d: {re.escape(fault)}$"):
        list(blocks(page))


async def test_a_failing_block_names_its_line(tmp_path: Path) -> None:
    """Blocks share a namespace, may await, and fail at the line of the page."""
    page = tmp_path / "page.md"
    page.write_text("<!-- python\nimport asyncio\n-->\n\n```python\nawait asyncio.sleep(0)\nassert False\n```\n")
    hidden, shown = blocks(page)
    namespace: dict[str, Any] = {}
    await hidden.run(namespace)
    with pytest.raises(AssertionError) as raised:
        await shown.run(namespace)
    assert raised.traceback[-1].lineno + 1 == 7
    assert raised.traceback[-1].path == page
