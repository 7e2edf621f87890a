"""Output: every text reaches every stream, nothing in it steers a terminal, and a stream that fails ends in a line."""

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest
from typer.testing import CliRunner, Result

from spotconn import ConnectionStore, Profile, RefreshFailure, __version__
from spotconn._printable import printable
from spotconn.cli import app
from spotconn.models import fingerprint
from support.bulk import add_connections
from support.connections import grant
from support.doctor import HEALTHY

HOSTILE = "Eve\x1b]0;owned\x07\nreauthorization: revoked\r\x9b31m\u202eevil\u2028\x7f"
SHOWN = r"Eve\x1b]0;owned\x07\nreauthorization: revoked\r\x9b31m\u202eevil\u2028\x7f"
ZOE = Profile(spotify_user_id="zoë🎧", display_name="Zoë 🎧 名前", email="zoë@example.org")
ENCODINGS = ["utf-8", "latin-1", "ascii", "cp1252", "utf-16"]
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


@pytest.fixture
def environ(chief: str) -> dict[str, str]:
    """The settings of an operator, and nothing else of this process that speaks of a database."""
    hidden = ("SPOT", "DATABASE", "PG", "PYTHON", "LC_", "LANG")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    return inherited | HEALTHY | {"DATABASE_URL": chief, "PYTHONPATH": os.pathsep.join(sys.path)}


async def invoke(environ: dict[str, str], *arguments: str, encoding: str = "utf-8") -> Result:
    """Run the command in this process, with an output of an encoding."""
    runner = CliRunner(charset=encoding)
    return await asyncio.to_thread(lambda: runner.invoke(app, arguments, env=environ, catch_exceptions=False))


def run(environ: dict[str, str], redirection: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the command by a shell, which redirects its streams."""
    script = f'"$@" {redirection}'
    command = ["sh", "-c", script, "sh", sys.executable, "-m", "spotconn", *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Zoë 🎧 名前 \\x1b", "Zoë 🎧 名前 \\x1b"),
        ("\x00\t\n\x1b[2J\x7f", r"\x00\t\n\x1b[2J\x7f"),
        ("\x85\x9b\u2028\u2029", r"\x85\x9b\u2028\u2029"),
        ("\u202eevil\u2066\u200f\ufeff", r"\u202eevil\u2066\u200f\ufeff"),
        ("👨\u200d👩 \ud800", "👨\u200d👩 \\ud800"),
    ],
)
def test_what_steers_a_terminal_is_shown(text: str, shown: str) -> None:
    """Controls, line ends, format characters and surrogates as escapes; letters, emoji and what joins them stay."""
    assert printable(text) == shown


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_every_text_reaches_every_encoding(
    environ: dict[str, str], store: ConnectionStore, users: list[UUID], encoding: str
) -> None:
    """What an encoding lacks is escaped; a list goes on to its end; JSON is ASCII and holds the text itself."""
    for user in users:
        await store.save(user, grant("a"), ZOE)
    status = await invoke(environ, "status", str(users[0]), encoding=encoding)
    name = "Zoë 🎧 名前".encode(encoding, "backslashreplace").decode(encoding)
    assert f"display name: {name}\n" in status.stdout
    listed = await invoke(environ, "expiring", "--within", "52w", encoding=encoding)
    account = "zoë🎧".encode(encoding, "backslashreplace").decode(encoding)
    assert [line.split()[-1] for line in listed.stdout.splitlines()] == [account] * 3
    for arguments in (("status", str(users[0])), ("expiring", "--within", "52w")):
        as_json = await invoke(environ, *arguments, "--json", encoding=encoding)
        assert as_json.stdout.isascii()
        assert json.loads(as_json.stdout.splitlines()[0])["display_name"] == "Zoë 🎧 名前"
        assert (as_json.exit_code, listed.exit_code, status.exit_code) == (0, 0, 0)


async def test_a_tenant_writes_no_lines_and_no_escapes(
    environ: dict[str, str], store: ConnectionStore, user: UUID, admin: asyncpg.Connection
) -> None:
    """In the status, in lists, in counts, in the findings of the doctor, and in JSON."""
    hostile = Profile(spotify_user_id=HOSTILE, display_name=HOSTILE, email=HOSTILE)
    await store.save(user, grant("a"), hostile, client_id="app")
    await admin.execute("update spotconn.refresh_state set client_id = $1", HOSTILE)
    status = (await invoke(environ, "status", str(user))).stdout
    assert status.count(SHOWN) == 4
    (line,) = (await invoke(environ, "expiring", "--within", "52w")).stdout.splitlines()
    assert line.endswith(SHOWN)
    assert f"of app {SHOWN}: 1\n" in (await invoke(environ, "stats")).stdout
    doctor = await invoke(environ, "doctor")
    assert f"warn apps: 1 connection belongs to the app {SHOWN}, which" in doctor.stdout
    for output in (status, line, doctor.stdout):
        assert output.replace("\n", "").isprintable()
    for arguments in (("status", str(user)), ("stats",), ("expiring", "--within", "52w"), ("doctor",)):
        text = (await invoke(environ, *arguments, "--json")).stdout
        assert text.replace("\n", "").isprintable()
        assert all(json.loads(line) for line in text.splitlines())


async def test_times_have_one_form_in_json(
    environ: dict[str, str], store: ConnectionStore, user: UUID, admin: asyncpg.Connection
) -> None:
    """UTC, with six digits of the second also where they are 0, in a status and in the lists; sets are in order."""
    await store.save(user, grant("a", -60).model_copy(update={"scope": frozenset({"b", "a"})}), ZOE)
    await admin.execute("update public.spotify_connections set connected_at = '2026-07-01T10:00:00+02:00'")
    await store.fail_refresh(await store.begin_refresh(user, seen=fingerprint("")), RefreshFailure(reason="refused"))
    status = json.loads((await invoke(environ, "status", str(user), "--json")).stdout)
    overview = json.loads((await invoke(environ, "failing", "--json")).stdout)
    assert status["scope"] == ["a", "b"]
    assert {status["connected_at"], overview["connected_at"]} == {"2026-07-01T08:00:00.000000Z"}
    assert {status["reauthorize_by"], overview["reauthorize_by"]} == {"2027-01-01T08:00:00.000000Z"}
    times = status["expires_at"], status["reauthorization_since"], overview["expires_at"], overview["failure"]["since"]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", time) for time in times), times


async def test_the_version_is_printed(environ: dict[str, str]) -> None:
    """Alone, and also before a command."""
    for arguments in (("--version",), ("--version", "schema")):
        assert (await invoke(environ, *arguments)).stdout == f"spotconn {__version__}\n"


@pytest.mark.long
@pytest.mark.parametrize(
    "locale",
    [
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
        pytest.param({"PYTHONIOENCODING": "ascii:strict"}, marks=pytest.mark.long),
    ],
)
async def test_a_process_in_a_plain_locale(
    environ: dict[str, str], store: ConnectionStore, user: UUID, locale: dict[str, str]
) -> None:
    """Results and errors go out as text, also without UTF-8."""
    await store.save(user, grant("a"), ZOE)
    shown = await asyncio.to_thread(run, environ | locale | {"PYTHONUTF8": "0"}, "", "status", str(user))
    assert (shown.returncode, shown.stderr) == (0, "")
    assert r"spotify user id: zo\xeb\U0001f3a7" in shown.stdout
    wrong = await asyncio.to_thread(run, environ | locale, "", "expiring", "--within", "zoë\x1b[2J")
    assert (wrong.returncode, wrong.stderr.count("\n"), "\x1b" in wrong.stderr) == (2, 1, False)


@pytest.mark.long
@needs_full
@pytest.mark.parametrize(
    ("redirection", "why"),
    [(">/dev/full", "No space left on device"), pytest.param(">&-", "it is closed", marks=pytest.mark.long)],
)
async def test_an_output_that_cannot_be_written_has_a_code_of_its_own(
    environ: dict[str, str], store: ConnectionStore, user: UUID, redirection: str, why: str
) -> None:
    """One line and code 6, for a text, a list in JSON and the doctor; never a traceback."""
    await store.save(user, grant("a"), ZOE)
    commands = [("schema",), ("expiring", "--within", "52w", "--json"), ("doctor",)]
    for arguments in commands:
        done = await asyncio.to_thread(run, environ, redirection, *arguments)
        assert (done.returncode, done.stdout) == (6, "")
        line = f"spotconn: standard output cannot be written: {why}; what the command did stays done\n"
        assert done.stderr == line


@pytest.mark.long
@needs_full
def test_messages_that_cannot_be_written_change_no_code(environ: dict[str, str]) -> None:
    """Standard error may be closed or full, also with standard output; help ends like a result."""
    assert run(environ, "2>&-", "status", "marked").returncode == 2
    assert run(environ, "2>/dev/full", "status", "marked").returncode == 2
    assert run(environ, ">&- 2>&-", "schema").returncode == 6
    done = run(environ, ">/dev/full", "--help")
    assert (done.returncode, done.stderr.count("\n")) == (6, 1)


def leave_at(environ: dict[str, str], text: str, *arguments: str) -> tuple[str, str, int]:
    """Read the output up to a line with a text and close it; return that line, the errors and the code."""
    command = [sys.executable, "-m", "spotconn", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environ, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = next(line for line in process.stdout if text in line)
        process.stdout.close()
        return line, process.stderr.read(), process.wait()


async def test_a_reader_that_leaves_in_the_middle_of_a_list(environ: dict[str, str], admin: asyncpg.Connection) -> None:
    """The command ends without a word and with 0."""
    await add_connections(admin, 5_000)
    line, error, code = await asyncio.to_thread(leave_at, environ, "account", "expiring", "--json")
    assert json.loads(line)["spotify_user_id"] == "account"
    assert (error, code) == ("", 0)


async def test_a_reader_that_leaves_the_doctor(environ: dict[str, str]) -> None:
    """Also once its session is open, which is closed before the process ends."""
    line, error, code = await asyncio.to_thread(leave_at, environ, "TLS", "doctor")
    assert line.startswith("ok   TLS")
    assert (error, code) == ("", 0)
