"""The command that records who is asked: from arguments and from a pipe, and what the lists then leave out."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from uuid import UUID, uuid4

import asyncpg
import pytest
from typer.testing import CliRunner, Result

from spotconn import ConnectionStore, Profile, RefreshFailure
from spotconn.cli import app
from spotconn.models import fingerprint
from support.connections import grant

Command = Callable[..., Awaitable[Result]]
SINCE = ("--not-asked-since", "1h")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, operator: str) -> Command:
    """Runs the command in this process, as an operator; `given` is its standard input."""
    for name in [name for name in os.environ if name.startswith(("SPOT", "DATABASE", "PG"))]:
        monkeypatch.delenv(name)

    async def run(*arguments: str, given: bytes = b"") -> Result:
        env = {"DATABASE_URL": operator}
        return await asyncio.to_thread(
            lambda: CliRunner().invoke(app, arguments, env=env, input=given, catch_exceptions=False)
        )

    return run


@pytest.fixture
async def due(store: ConnectionStore, users: list[UUID], admin: asyncpg.Connection) -> list[str]:
    """Three users to be asked, in the order of the list."""
    for user in users:
        await store.save(user, grant("a", minutes=-1), Profile(spotify_user_id="alice"))
    await admin.execute("update public.spotify_connections set connected_at = now() - interval '170 days'")
    return [str(user) for user in sorted(users)]


async def listed(command: Command, *options: str) -> list[str]:
    printed = (await command("expiring", "--json", *options)).stdout
    return [json.loads(line)["user_id"] for line in printed.splitlines()]


async def test_users_are_named_or_come_by_a_pipe(command: Command, due: list[str]) -> None:
    """Ids as arguments, one a line, or the lines of the list itself; each way says how many were recorded."""
    assert await listed(command, *SINCE) == due
    marked = await command("mark-asked", due[0])
    assert (marked.stdout, marked.exit_code) == ("1 user marked\n", 0)
    assert await listed(command, *SINCE) == due[1:]
    marked = await command("mark-asked", "--json", given=f"\n{due[1]}\r\n{uuid4()}\n".encode())
    assert json.loads(marked.stdout) == {"marked": 1}
    list_itself = (await command("expiring", "--json", *SINCE)).stdout
    assert (await command("mark-asked", given=list_itself.encode())).stdout == "1 user marked\n"
    assert await listed(command, *SINCE) == []
    assert await listed(command) == due
    asked = json.loads((await command("expiring", "--json")).stdout.splitlines()[0])["asked_at"]
    assert await listed(command, "--not-asked-since", asked) == due[:0]
    assert (await command("mark-asked", *due, *SINCE)).stdout == "0 users marked\n"
    assert (await command("mark-asked", given=b"")).stdout == "0 users marked\n"
    wrong = await command("mark-asked", due[0], "nobody")
    assert (wrong.stdout, wrong.exit_code, wrong.stderr.count("\n")) == ("", 2, 1)
    assert wrong.stderr.startswith("spotconn: USER: expected a UUID")


@pytest.mark.parametrize(
    "line",
    [b"marked", b"\xff", b"{}", b'{"user_id": 5}', b'{"marked', b"text:\xff", b"{[1]}", b'{"marked":' * 100_000],
    ids=range(8),
)
async def test_a_line_that_names_nobody_ends_it(command: Command, due: list[str], line: bytes) -> None:
    """Its number is told, not its text, and nobody is recorded."""
    result = await command("mark-asked", given=due[0].encode() + b"\n" + line + b"\n")
    assert (result.stdout, result.exit_code) == ("", 2)
    assert result.stderr.startswith("spotconn: line 2 of standard input: expected the id of a user")
    assert "marked" not in result.stderr
    assert await listed(command, *SINCE) == due


async def test_the_help_says_that_users_may_be_left_out(command: Command) -> None:
    """In the form of the other commands."""
    usage = (await command("mark-asked", "--help")).stdout
    assert " mark-asked [OPTIONS] [USER]" in usage  # and dots behind it with a newer typer


async def test_failures_since(command: Command, store: ConnectionStore, due: list[str]) -> None:
    """A time ago or a moment; one that is none is wrong usage."""
    turn = await store.begin_refresh(UUID(due[0]), seen=fingerprint("access-a"))
    await store.fail_refresh(turn, RefreshFailure(reason="refused"))
    assert "revoked since" in (await command("failing", "--since", "1h")).stdout
    assert (await command("failing", "--since", "2126-01-01T00:00Z")).stdout == ""
    for arguments in (("failing", "--since"), ("expiring", "--not-asked-since"), ("mark-asked", "--not-asked-since")):
        wrong = await command(*arguments, "soon")
        assert (wrong.exit_code, wrong.stderr) == (2, (await command("recheck", "--since", "soon")).stderr)
