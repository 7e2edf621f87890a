"""The quickstart as a user runs it: its output, and what it leaves behind when it is killed."""

import signal
from pathlib import Path
from uuid import UUID

import pytest

from demo_services import service
from quickstart import real
from spotconn import user_id
from support.database import Database
from support.processes import descendants, gone
from support.programs import run, started


async def test_it_shows_the_main_job_without_settings() -> None:
    """With no settings it serves, refreshes, isolates and disconnects, and says what is simulated."""
    status, out, err = await run("quickstart.py")
    assert (status, err) == (0, "")
    for words in (
        "Spotify is simulated",
        "Spotify was asked 0 times",
        "does Spotify accept it? True",
        "sees ['ann'] only",
        "answers 'UPDATE 0'",
        "NotConnected",
        "are gone",
    ):
        assert words in out


async def test_with_settings_it_uses_them() -> None:
    """A database that does not answer is named, and the password in its address is not shown."""
    dsn = "postgresql://app:hush@127.0.0.1:1/db"
    status, out, err = await run("quickstart.py", DATABASE_URL=dsn, SPOTIFY_CLIENT_ID="0123456789abcdef")
    assert status == 1
    assert "DatabaseUnavailable" in out
    assert "hush" not in out + err


async def test_an_integer_of_digits_is_a_user_id(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a table of your own, in the quickstart and in the examples that work for given users; beside UUIDs."""
    monkeypatch.setenv("DATABASE_URL", database.dsn)
    monkeypatch.setenv("SPOTIFY_CLIENT_ID", "0123456789abcdef")
    assert await real(["7"]) == 1
    assert "7: NotConnected: " in capsys.readouterr().out
    async with service(["7", str(UUID(int=1))]) as (_, user_ids):
        assert user_ids == [user_id(7), UUID(int=1)]


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(1, id="while the server starts", marks=pytest.mark.long),
        pytest.param(4, id="in the middle"),
    ],
)
async def test_killed_it_leaves_nothing_running_or_lying_about(open_folder: Path, lines: int) -> None:
    """After SIGKILL its server and the server's folder are gone."""
    async with started("quickstart.py", TMPDIR=str(open_folder)) as process:
        assert process.stdout is not None
        for _ in range(lines):
            await process.stdout.readline()
        helpers = await descendants(process.pid)
        process.send_signal(signal.SIGKILL)
        await process.wait()
    await gone(helpers, open_folder)
