"""The command: what it prints, how it ends, and that one line says what to do."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest
from typer.testing import CliRunner, Result

from spotconn import AesGcmSivCipher, ConnectionStore, Outcome, Profile, RefreshFailure, TokenGrant
from spotconn.cli import app
from spotconn.models import fingerprint
from support.bulk import add_connections
from support.database import Database

Command = Callable[..., Awaitable[Result]]
ALICE = Profile(spotify_user_id="alice", display_name="Alice", email="alice@example.org")
KEYS = [AesGcmSivCipher.generate_key() for _ in range(2)]
APP = {"SPOTIFY_CLIENT_ID": "0123456789abcdef" * 2, "SPOTIFY_CLIENT_SECRET": "fedcba9876543210" * 2}


def grant(minutes: float = 60) -> TokenGrant:
    ends = datetime.now(UTC) + timedelta(minutes=minutes)
    return TokenGrant(access_token="access-marked", refresh_token="refresh-marked", expires_at=ends)


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch, chief: str) -> dict[str, str]:
    """The environment of an operator whose login is one of the store and may become service_role."""
    for name in [name for name in os.environ if name.startswith(("SPOT", "DATABASE", "PG"))]:
        monkeypatch.delenv(name)
    return {"DATABASE_URL": chief, **APP}


@pytest.fixture
def command(environ: dict[str, str]) -> Command:
    """Runs the command in this process."""

    async def run(*arguments: str, **changes: str) -> Result:
        env = environ | changes
        return await asyncio.to_thread(lambda: CliRunner().invoke(app, arguments, env=env, catch_exceptions=False))

    return run


def said(result: Result) -> str:
    """The one line of an error."""
    assert result.stdout == ""
    assert result.stderr.startswith("spotconn: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


async def test_a_key_goes_to_a_pipe_alone(command: Command) -> None:
    """Standard output holds the key and nothing else; its id is told beside it."""
    made = await command("keygen")
    cipher = AesGcmSivCipher([made.stdout.strip()])
    assert cipher.key_ids[0] in made.stderr
    as_json = json.loads((await command("keygen", "--json")).stdout)
    assert AesGcmSivCipher([as_json["key"]]).key_ids == (as_json["id"],)
    assert as_json["key"] != made.stdout.strip()


@pytest.mark.parametrize("words", ["status 1", "stats", "schema --check", "doctor"])
async def test_the_time_for_the_database_is_that_of_the_environment(command: Command, words: str) -> None:
    """SPOTCONN_TIMEOUT: by every way to the database a wrong one is named, and its value is not shown."""
    result = await command(*words.split(), SPOTCONN_TIMEOUT="hush")
    assert result.exit_code in {1, 5}
    assert "SPOTCONN_TIMEOUT is malformed" in result.output
    assert "hush" not in result.output


async def test_the_status_of_a_user(command: Command, store: ConnectionStore, user: UUID) -> None:
    """For a person and for a program; without a connection it is no error; never a token."""
    assert json.loads((await command("status", str(user), "--json")).stdout)["connected"] is False
    assert (await command("status", str(user))).stdout == "connected: False\n"
    await store.save(user, grant(), ALICE)
    shown = await command("status", str(user), SPOTCONN_ENCRYPTION_KEYS="malformed")
    assert "display name: Alice\n" in shown.stdout
    assert json.loads((await command("status", str(user), "--json")).stdout)["spotify_user_id"] == "alice"
    assert "marked" not in shown.output


async def test_the_status_needs_no_key(command: Command, database: Database, user: UUID) -> None:
    """It shows no token, so it reads none; nor does a disconnect."""
    async with ConnectionStore.open(database.dsn, cipher=AesGcmSivCipher(KEYS)) as store:
        await store.save(user, grant(), ALICE)
    assert "display name: Alice\n" in (await command("status", str(user))).stdout
    assert (await command("disconnect", str(user))).stdout == "disconnected\n"


async def test_a_token_for_a_pipe(command: Command, store: ConnectionStore, users: list[UUID]) -> None:
    """Standard output is the token and a line end; who must connect is code 3."""
    await store.save(users[0], grant().model_copy(update={"scope": frozenset("a")}), ALICE)
    assert (await command("token", str(users[0]))).stdout == "access-marked\n"
    assert json.loads((await command("token", str(users[0]), "--json")).stdout) == {"access_token": "access-marked"}
    lacking = await command("token", str(users[0]), "--scope", "a b", "--scope", "c")
    assert (lacking.exit_code, said(lacking)) == (3, "spotconn: not granted: b c; connect again and ask for a b c\n")
    nobody = await command("token", str(users[1]))
    assert nobody.exit_code == 3
    assert "no Spotify connection" in said(nobody)


async def test_a_disconnect(command: Command, store: ConnectionStore, user: UUID) -> None:
    """It says whether there was a connection."""
    await store.save(user, grant(), ALICE)
    assert (await command("disconnect", str(user))).stdout == "disconnected\n"
    assert (await command("disconnect", str(user))).stdout == "there was no connection\n"
    assert json.loads((await command("disconnect", str(user), "--json")).stdout) == {"disconnected": False}


async def test_the_lists_of_an_operator(
    command: Command, store: ConnectionStore, users: list[UUID], admin: asyncpg.Connection
) -> None:
    """Who must connect again soon, who failed, and a recheck of those; a line each, or an object each."""
    due, dead = users[:2]
    for user in (due, dead):
        await store.save(user, grant(-1), ALICE)
    await admin.execute("update public.spotify_connections set connected_at = now() - interval '170 days'")
    turn = await store.begin_refresh(dead, seen=fingerprint(""))
    await store.fail_refresh(turn, RefreshFailure(reason="refused"))
    listed = await command("expiring", "--within", "30d")
    assert re.fullmatch(rf"{due}  connect again by \d{{4}}-\d\d-\d\d  alice\n", listed.stdout)
    assert listed.stderr == "1 connection\n"
    (line,) = (await command("expiring", "--json")).stdout.splitlines()
    assert json.loads(line)["user_id"] == str(due)
    assert json.loads(line)["reauthorize_by"] is not None
    assert (await command("expiring", "--within", "1m")).stdout == ""
    assert "revoked since" in (await command("failing")).stdout
    assert json.loads((await command("failing", "--json")).stdout)["failure"]["reason"] == "revoked"
    assert "revoked: 1\n" in (await command("stats")).stdout
    since = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    assert json.loads((await command("recheck", "--since", since, "--json")).stdout) == {"rechecked": 1}
    assert (await command("recheck", "--since", "2h")).stdout == "0 connections will be tried again\n"
    assert json.loads((await command("stats", "--json")).stdout)["revoked"] == 1  # until Spotify says otherwise
    assert (await store.begin_refresh(dead, seen=fingerprint(""))).outcome is Outcome.GRANTED


async def test_an_app_is_assigned_and_retired(command: Command, store: ConnectionStore, users: list[UUID]) -> None:
    """Once; the lists, the counts and the status of a user show it, and that of a retired one says what is to do."""
    first, second = sorted(users)[:2]
    await store.save(first, grant(), ALICE)
    await store.save(second, grant(), ALICE, client_id="other")
    assert "app unknown: 1\nof app other: 1\n" in (await command("stats")).stdout
    assigned = await command("assign-app", "mine")
    assert (assigned.stdout, assigned.stderr) == ("1 connection assigned to the app mine\n", "")
    assert json.loads((await command("assign-app", "mine", "--json")).stdout) == {"assigned": 0}
    stats = json.loads((await command("stats", "--json")).stdout)
    assert (stats["by_app"], stats["app_unknown"]) == ({"mine": 1, "other": 1}, 0)
    assert "client id: mine\n" in (await command("status", str(first))).stdout
    assert (await command("expiring")).stdout == ""
    retired = {"SPOTCONN_RETIRED_CLIENT_IDS": "older, mine"}
    assert (await command("expiring", **retired)).stdout == f"{first}  connect again now, its app is retired  alice\n"
    assert json.loads((await command("expiring", "--json", **retired)).stdout)["client_id"] == "mine"
    shown = (await command("status", str(first), **retired)).stdout
    assert "reauthorization: other_app\n" in shown
    assert "reauthorization" not in (await command("status", str(second), **retired)).stdout


async def test_a_prune(command: Command, store: ConnectionStore, users: list[UUID], admin: asyncpg.Connection) -> None:
    """It counts by reason, also connections of retired apps, and deletes nothing without --yes."""
    for user in users[:2]:
        await store.save(user, grant(-1), ALICE, client_id="mine")
    turn = await store.begin_refresh(users[0], seen=fingerprint(""))
    await admin.execute("update public.spotify_connections set connected_at = now() - interval '190 days'")
    await store.fail_refresh(turn, RefreshFailure(reason="refused"))
    looked = await command("prune", "--dead-for", "0m")
    assert looked.stdout == (
        "expired: 1\nrevoked: 0\ninvalid: 0\nretired app: 0\nrefused, but not for good: 0 (these stay)\n"
        "dead, but not for so long: 0 (these stay)\n"
    )
    assert looked.stderr == "nothing was deleted; --yes deletes 1\n"
    retired = {"SPOTCONN_RETIRED_CLIENT_IDS": "mine"}
    counts = {"expired": 1, "revoked": 0, "invalid": 0, "retired_app": 1, "not_final": 0, "too_recent": 0}
    as_json = await command("prune", "--dead-for", "0m", "--json", **retired)
    assert json.loads(as_json.stdout) == counts | {"deleted": False}
    assert await admin.fetchval("select count(*) from public.spotify_connections") == 2
    early = await command("prune", "--dead-for", "1m", "--yes", **retired)
    assert "dead, but not for so long: 2 (these stay)\n" in early.stdout
    assert early.stderr == "deleted: 0\n"
    as_json = await command("prune", "--dead-for", "0m", "--yes", "--json", **retired)
    assert json.loads(as_json.stdout) == counts | {"deleted": True}
    assert await admin.fetchval("select count(*) from public.spotify_connections") == 0


async def test_a_rekey(command: Command, store: ConnectionStore, user: UUID) -> None:
    """From plain text to a key, and to another; what it may not encrypt or cannot read is left, and ends with 7."""
    await store.save(user, grant(), ALICE)
    assert "SPOTCONN_ENCRYPTION_KEYS" in said(await command("rekey"))
    one = {"SPOTCONN_ENCRYPTION_KEYS": KEYS[0]}
    refused = await command("rekey", **one, SPOTCONN_REQUIRE_ENCRYPTED="1")
    assert (refused.exit_code, refused.stdout) == (7, "0 connections rewritten, 0 of them from plain text\n")
    assert "1 connection is left as before: 1 in plain text, which this service refuses, 0 under" in refused.stderr
    encrypted = await command("rekey", **one)
    assert (encrypted.exit_code, encrypted.stdout) == (0, "1 connection rewritten, 1 of them from plain text\n")
    two = {"SPOTCONN_ENCRYPTION_KEYS": ",".join(reversed(KEYS))}
    done = json.loads((await command("rekey", "--json", **two)).stdout)
    assert {name for name, count in done.items() if count} == {"total", "done"}
    assert f"under key {AesGcmSivCipher([KEYS[1]]).key_ids[0]}: 2\n" in (await command("stats", **two)).stdout
    lacking = await command("rekey", SPOTCONN_ENCRYPTION_KEYS=AesGcmSivCipher.generate_key())
    assert lacking.exit_code == 7
    assert "1 under keys that the ring lacks" in lacking.stderr


async def test_a_move(command: Command, database: Database, users: list[UUID]) -> None:
    """Under the keys of the environment; it says whether there was a connection, and refuses a user who has one."""
    keys = {"SPOTCONN_ENCRYPTION_KEYS": KEYS[0]}
    first, second, third = map(str, users)
    async with ConnectionStore.open(database.dsn, cipher=AesGcmSivCipher(KEYS[:1])) as store:
        await store.save(first, grant(), ALICE)
        await store.save(third, grant(), ALICE)
        assert "set SPOTCONN_ENCRYPTION_KEYS" in said(await command("move", first, second))
        assert (await command("move", first, second, **keys)).stdout == "moved\n"
        assert (await store.get(second)).access_token == "access-marked"
    assert (await command("move", first, second, **keys)).stdout == "there was no connection\n"
    assert json.loads((await command("move", second, first, "--json", **keys)).stdout) == {"moved": True}
    unknown = await command("move", first, str(UUID(int=1)), **keys)
    assert unknown.exit_code == 3
    assert "to_user: no such user in auth.users" in said(unknown)
    refused = await command("move", first, third, **keys)
    assert (refused.exit_code, said(refused)) == (
        2, "spotconn: to_user: has a connection of their own; disconnect it first\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "changes", "code", "told"),
    [
        (("status", "marked"), {}, 2, "USER: expected a UUID, an integer of 64 bits, or text:"),
        (("status", "5b0c9d1e-0f0a-4a52-8a55"), {}, 2, "USER: expected a UUID"),
        (("status", "9" * 19), {}, 2, "USER: expected a UUID"),
        (("disconnect", ""), {}, 2, "USER: expected a UUID"),
        (("move", "1", "marked"), {}, 2, "TO: expected a UUID"),
        (("assign-app", "an app"), {}, 2, "client_id: expected the id of an app"),
        (("expiring",), {"SPOTCONN_RETIRED_CLIENT_IDS": "marked!"}, 5, "SPOTCONN_RETIRED_CLIENT_IDS is malformed"),
        (("expiring", "--within", "soon"), {}, 2, "expected such as 30d"),
        (("expiring", "--within", "99999w"), {}, 2, "within: expected at most a century"),
        (("prune", "--dead-for", "99999w"), {}, 2, "dead_for: expected no negative time"),
        (("recheck", "--since", "9999-12-31T23:59-14:00"), {}, 2, "since: expected a time with a time zone"),
        (("token", "1", "--scope", " "), {}, 2, "--scope: expected the name of a scope"),
        (("schema", "--lock-down", "--undo-lock-down"), {}, 2, "--undo-lock-down and --lock-down do not go together"),
        (("schema", "--apply", "--undo-lock-down", "--client-id", "a"), {}, 2, "goes together with --apply alone"),
        (("schema", "--undo-lock-down", "--users", "a.b(c uuid)"), {}, 2, "--undo-lock-down goes together with --app"),
        (("schema", "--json"), {}, 2, "--json goes together with --apply or --check"),
        (("recheck", "--since", "soon"), {}, 2, "expected such as 2026-11-24T10:00Z"),
        (("recheck", "--since", "2026-11-24T10:00"), {}, 2, "put Z behind it"),
        (("status", str(uuid4())), {"DATABASE_URL": ""}, 5, "DATABASE_URL is not set"),
        (("status", str(uuid4())), {"DATABASE_URL": "postgresql://a:marked@127.0.0.1:1/x"}, 4, "cannot be reached"),
        (("stats",), {"SPOTCONN_ENCRYPTION_KEYS": "marked"}, 5, "SPOTCONN_ENCRYPTION_KEYS is malformed"),
    ],
)
async def test_an_error_is_one_line_with_its_code(
    command: Command, arguments: tuple[str, ...], changes: dict[str, str], code: int, told: str
) -> None:
    """It says what to do, and repeats no secret."""
    result = await command(*arguments, **changes)
    assert result.exit_code == code
    assert told in said(result)
    assert "marked" not in result.output


async def test_a_login_without_service_role_is_told(command: Command, database: Database) -> None:
    """The commands that see several users say which grant they need."""
    result = await command("failing", DATABASE_URL=database.dsn)
    assert result.exit_code == 5
    assert "GRANT service_role TO" in said(result)


@pytest.mark.long
@pytest.mark.timeout(120)
async def test_a_rekey_is_stopped_with_ctrl_c_and_resumed(
    command: Command, environ: dict[str, str], admin: asyncpg.Connection
) -> None:
    """It ends in one line and code 130, what was done stays done, and the next run finishes."""
    await add_connections(admin, 20_000)
    environ["SPOTCONN_ENCRYPTION_KEYS"] = KEYS[0]
    left = "select count(*) from public.spotify_connections where access_token like 'BQ%'"
    async with admin.transaction():
        # The last one is held, so that it cannot be done before it is stopped.
        await admin.execute("select from public.spotify_connections order by user_id desc limit 1 for update")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "spotconn", "rekey", env=os.environ | environ, stderr=subprocess.PIPE
        )
        while await admin.fetchval(left) == 20_000:
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, error = await process.communicate()
    assert process.returncode == 130
    assert error.decode().strip().endswith("spotconn: stopped; what was done stays done, run it again to go on")
    assert "Traceback" not in error.decode()
    remaining = await admin.fetchval(left)
    assert 0 < remaining < 20_000
    assert f"{remaining} connections rewritten" in (await command("rekey")).stdout


def test_a_reader_that_goes_away_is_no_error(environ: dict[str, str]) -> None:
    """`spotconn schema | head -1` ends without a word."""
    shell = f"{sys.executable} -m spotconn schema | head -1"
    done = subprocess.run(shell, shell=True, capture_output=True, text=True, check=True, env=os.environ | environ)
    assert done.stdout.startswith("begin;")
    assert done.stderr == ""


def test_without_the_extra_the_command_says_what_to_install() -> None:
    """The entry point works without typer and rich."""
    code = "import sys; sys.modules['typer'] = None; import spotconn.__main__ as m; m.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, 'spotconn: the command needs an extra: pip install "spotconn[cli]"\n')


async def test_help_names_every_exit_code(command: Command) -> None:
    """The codes are a contract with scripts."""
    text = " ".join((await command("--help")).stdout.split())
    codes = "0 done", "1 doctor", "2 wrong usage", "3 the user must", "4 try later", "5 settings", "6 the output"
    for code in (*codes, "130 stopped"):
        assert code in text
