"""A tenant writes into the own row, for the terminal of the operator who lists, counts and looks at connections."""

import asyncio
import json
import re
from uuid import UUID

import asyncpg
import pytest
from typer.testing import CliRunner, Result

from spotconn import ConnectionStore, OtherApp, Profile
from spotconn._command.output import print_line, write_field
from spotconn._printable import LONGEST_FIELD, printable, shown
from spotconn.cli import app
from support.connections import grant
from support.database import Database
from support.doctor import HEALTHY
from support.tenant import signed_in

FORGED = {
    "ANSI": "\x1b[2J\x1b[31mok",
    "title": "\x1b]0;owned\x07",
    "link": "\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "C1": "\x9b31m\x85\x90q\x9c",
    "lines": "x\nfail database: gone\r\n\v\f\u2028\u2029y",
    "overwrites": "\r\b\b\bok   keys",
    "bidi": "\u202egnp\u202c\u2066x\u2069\u200f\u061c",
    "invisible": "a\u200db\u200bc\u2060d\ufeffe\u00adf\u3164g\u2800h\U000e0041",
    "blanks": "a" + " " * 150 + "b\u00a0\u3000c\t",
    "long": "A" * 900,
    "surrogate": "\ud800",
}


@pytest.fixture
def environ(chief: str) -> dict[str, str]:
    """The settings of an operator."""
    return HEALTHY | {"DATABASE_URL": chief}


async def invoke(environ: dict[str, str], *arguments: str) -> Result:
    """Run the command as the operator does."""
    return await asyncio.to_thread(lambda: CliRunner().invoke(app, arguments, env=environ, catch_exceptions=False))


@pytest.mark.parametrize("text", FORGED.values(), ids=FORGED)
def test_a_text_is_one_short_field(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In a field of a result, a message and an error: printable, without runs of blanks, cut with its length."""
    write_field("name", text)
    print_line(text)
    result, message = capsys.readouterr()
    for line in (result, message, f"{OtherApp(text, ['app'])}\n"):
        assert line.count("\n") == 1
        assert line[:-1].isprintable()
        assert "  " not in line
        assert not set(line) & set("\u200d\u3164\u2800")
    assert len(result) < 6 * LONGEST_FIELD
    if len(text) > LONGEST_FIELD:
        assert result.endswith(f"... ({len(text)} characters)\n")


def test_megabytes_are_cut_before_they_are_escaped() -> None:
    """What is printed of them is the beginning, for each field and each message."""
    assert len(shown("\x1b" * 10_000_000)) < 1_000
    assert shown("\x1b[2J") == printable("\x1b[2J") == r"\x1b[2J"
    assert printable("👨\u200d👩 म\u200cम") == "👨\u200d👩 म\u200cम"


async def check_output(environ: dict[str, str], *arguments: str, most: int) -> None:
    """Check that a command writes something, in no more lines than that, and nothing that steers a terminal."""
    done = await invoke(environ, *arguments)
    lines = done.stdout.splitlines()
    assert 1 <= len(lines) <= most, done.stderr
    for line in lines + done.stderr.splitlines():
        assert line.isprintable()
        assert not set(line) & set("\u200d\u3164\u2800")
        assert len(line) < 3_000
        assert " " * 10 not in line
        assert not line.startswith("fail database: gone")


@pytest.mark.parametrize("kind", [name for name in FORGED if name != "surrogate"])
async def test_no_command_is_steered_by_a_row(
    environ: dict[str, str],
    database: Database,
    store: ConnectionStore,
    users: list[UUID],
    admin: asyncpg.Connection,
    request: pytest.FixtureRequest,
    kind: str,
) -> None:
    """A tenant's texts add no line, no escape and no flood to any list, count or finding; JSON has them whole."""
    text, user = FORGED[kind], users[0]
    await store.save(user, grant("a"), Profile(spotify_user_id="alice"), client_id="app")
    texts = {"spotify_user_id": text, "display_name": text, "email": text, "scope": text}
    async with signed_in(database.admin_dsn, user) as tenant:
        if await tenant.patch(**texts) != "UPDATE 1":  # locked down: clients write none of these
            assert request.config.getoption("--locked-down")
            await admin.execute(
                "update public.spotify_connections set spotify_user_id = $1, display_name = $1, email = $1, scope = $1",
                text,
            )
    await admin.execute("update public.spotify_connections set connected_at = now() - interval '170 days'")
    await admin.execute(
        "update spotconn.refresh_state "
        "set failure = 'unavailable', failed_at = now(), retry_at = now(), client_id = $1",
        text,
    )
    shows = {
        ("failing",): 1,
        ("expiring",): 1,
        ("status", str(user)): 14,
        ("move", str(user), str(users[1])): 1,
        ("assign-app", "app"): 1,
    }
    for arguments, most in shows.items():
        await check_output(environ, *arguments, most=most)
    await admin.execute("update public.spotify_connections set access_token = $1", f"spotconn1.{text}.AAAA")
    for arguments, most in {("stats",): 20, ("doctor",): 80, ("rekey",): 1}.items():
        await check_output(environ, *arguments, most=most)
    listed = await invoke(environ, "expiring", "--json")
    assert json.loads(listed.stdout)["spotify_user_id"] == text
    listed = await invoke(environ, "failing", "--json")
    assert listed.stdout.count("\n") == 1
    assert listed.stdout.isascii()
    assert json.loads(listed.stdout)["spotify_user_id"] == text
    key_ids = [line for line in (await invoke(environ, "stats")).stdout.splitlines() if line.startswith("under key")]
    assert len(key_ids) == 1  # of the other token, which the move has encrypted
    assert re.fullmatch(r"under key [0-9a-f]{8}: 1", key_ids[0])
