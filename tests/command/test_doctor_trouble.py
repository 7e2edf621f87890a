"""The doctor in trouble: a database that takes no writes, a session that is cut, an unexpected error of a check."""

import asyncio
import json
from collections.abc import AsyncIterator

import asyncpg
import pytest
from typer.testing import CliRunner

from spotconn._command.checks import CHECKS
from spotconn._command.doctor import examine
from spotconn._command.finding import Finding
from spotconn._command.probe import Probe
from spotconn.cli import app
from spotconn.testing import EmbeddedPostgres, apply_schema
from support.database import Database
from support.doctor import HEALTHY, look
from support.lock_waits import until_someone_waits

LOST = "not examined: the connection to the database was lost"
SETTING = "default_transaction_read_only"
BACKENDS = "select pid from pg_stat_activity where usename = 'app' and backend_type = 'client backend'"


@pytest.mark.parametrize(
    ("where", "remedy"),
    [
        ("role app", "ALTER ROLE app RESET"),
        ("database spotconn", "ALTER DATABASE spotconn RESET"),
        ("role app in database spotconn", "ALTER ROLE app IN DATABASE spotconn RESET"),
    ],
)
async def test_a_read_only_database_is_named(
    database: Database, admin: asyncpg.Connection, where: str, remedy: str
) -> None:
    """By a finding of its own with what undoes it, in such a session, too; isolation is left out with the reason."""
    await admin.execute(f"alter {where} set {SETTING} = on")
    try:
        found = await look(database.dsn)
        session = await asyncpg.connect(database.admin_dsn)
        for statement in str(found["writing"].remedy).split("; ")[0].split(", then "):
            await session.execute(statement)
        await session.close()
        assert (await look(database.dsn))["writing"].state == "ok"
    finally:
        await admin.execute(f"set transaction read write; alter {where} reset {SETTING}")
    assert {subject for subject, one in found.items() if one.state == "fail"} == {"writing"}
    assert "read-only" in found["writing"].text
    assert f"{remedy} {SETTING}; on Supabase" in str(found["writing"].remedy)
    assert found["isolation"].state == "skip"
    assert found["isolation"].text.endswith("cannot be tried, see writing")


@pytest.mark.long
async def test_a_replica_is_told_from_a_read_only_database() -> None:
    """The remedy is the primary; what a replica cannot do is left out."""
    with EmbeddedPostgres() as server:
        await apply_schema(server.dsn())
        admin = await asyncpg.connect(server.dsn())
        await admin.execute("create role app login password 'app'; grant spotconn to app")
        folder = await admin.fetchval("show data_directory")
        await admin.execute(f"copy (select '') to '{folder}/standby.signal'")
        await admin.close()
        await asyncio.to_thread(server.restart)
        found = await look(server.dsn(user="app", password="app"))
    assert {subject for subject, one in found.items() if one.state == "fail"} == {"writing"}
    assert "replica" in found["writing"].text
    assert "primary" in str(found["writing"].remedy)
    assert (found["isolation"].state, found["changes"].state) == ("skip", "skip")


async def cut_at(subject: str, dsn: str, admin: asyncpg.Connection) -> AsyncIterator[Finding]:
    """Yield the findings; the session of the doctor ends after that of a subject."""
    async for finding in examine(HEALTHY | {"DATABASE_URL": dsn}):
        yield finding
        if finding.subject == subject:
            await admin.execute(f"select pg_terminate_backend(pid, 10000) from ({BACKENDS}) as backend")


async def test_a_session_that_is_cut_between_checks(database: Database, admin: asyncpg.Connection) -> None:
    """The next check says so and fails; one more line names those that it keeps from being examined."""
    found = {one.subject: one async for one in cut_at("schema", database.dsn, admin)}
    examined = [*list(CHECKS)[: list(CHECKS).index("schema") + 1]]
    remaining = [*list(CHECKS)[len(examined) :], "decryption", "apps"]
    assert {found[subject].state for subject in examined} <= {"ok", "warn"}
    failed = [subject for subject in remaining if subject in found]
    assert failed in (remaining[:1], remaining[:2])  # the first may see the last words of the server
    assert found[failed[-1]].text == LOST
    assert found["not examined"].text == f"{', '.join(remaining[len(failed) :])}: see {failed[-1]}"


async def test_a_session_that_is_cut_within_a_check(database: Database, admin: asyncpg.Connection) -> None:
    """The command ends with 1, says once that the session was lost, and shows no traceback."""
    runner = CliRunner()
    env = HEALTHY | {"DATABASE_URL": database.dsn, "SPOTCONN_DATABASE_URL": ""}
    async with admin.transaction():
        await admin.execute("lock table public.spotify_connections in access exclusive mode")
        task = asyncio.create_task(asyncio.to_thread(lambda: runner.invoke(app, ["doctor", "--json"], env=env)))
        pid = await until_someone_waits(admin, "public.spotify_connections")
        await admin.execute("select pg_terminate_backend($1, 10000)", pid)
    done = await task
    assert isinstance(done.exception, SystemExit)
    assert (done.exit_code, done.stderr) == (1, "")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["text"] for one in found].count(LOST) <= 1
    assert [one["subject"] for one in found if one["state"] == "fail"]
    assert found[-1]["subject"] == "not examined"


@pytest.mark.parametrize("error", [ValueError("marked"), asyncpg.InternalClientError("marked"), KeyError("marked")])
async def test_an_unexpected_error_of_a_check_is_its_finding(
    database: Database, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It names the class and not the text, which may hold a secret; the other checks go on."""

    async def check(_probe: Probe) -> Finding:
        raise error

    monkeypatch.setitem(CHECKS, "schema", check)
    found = await look(database.dsn)
    assert found["schema"].text == f"not examined: unexpected {type(error).__name__}"
    assert "report it" in str(found["schema"].remedy)
    assert {subject for subject, one in found.items() if one.state == "fail"} == {"schema"}
    assert "marked" not in repr(found)
