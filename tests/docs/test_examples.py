"""The examples as programs: without any settings, with settings of a real service, and ended by a signal."""

import asyncio
import re
import signal
import sys
from datetime import UTC, datetime
from importlib import import_module
from typing import get_args
from uuid import UUID

import httpx
import pytest

from spotconn import ConnectionStatus
from spotconn.errors import ReauthorizationReason
from support.processes import descendants, gone
from support.programs import EXAMPLES, environment, line_with, run, started


@pytest.mark.parametrize("name", ["tekore_client.py", "spotipy_client.py"])
async def test_the_clients_run_without_settings(name: str) -> None:
    """It works for a user with a good token and one with a token that has run out, also behind a proxy."""
    status, out, err = await run(name, http_proxy="http://127.0.0.1:1")
    assert (status, err) == (0, "")
    assert "Ann listens to Half Past Summer, " in out
    assert "Bob listens to Cobalt, " in out


@pytest.mark.parametrize("name", ["tekore_client.py", "spotipy_client.py", "nightly_job.py"])
async def test_with_settings_users_have_to_be_named(name: str) -> None:
    """Which users to work for has to be said; the address of the database is not shown."""
    settings = {"DATABASE_URL": "postgresql://app:hush@127.0.0.1:1/db", "SPOTIFY_CLIENT_ID": "0123456789abcdef"}
    status, out, err = await run(name, **settings)
    assert (status, err) == (1, "")
    assert "give the ids of connected users" in out
    status, out, err = await run(name, str(UUID(int=1)), **settings)
    assert status == 1
    assert "DatabaseUnavailable" in out
    assert "hush" not in out + err


async def test_the_service_runs_without_settings_and_ends_by_sigterm() -> None:
    """As a process of its own it serves one user, asks the other to connect, and leaves nothing running."""
    async with started("fastapi_app.py", PORT="0") as process:
        served: list[tuple[str, str]] = []
        for _ in range(2):
            line = await line_with(process, "curl")
            found = re.fullmatch(r"curl -i -H 'X-User: (\S+)' (\S+)\n", line)
            assert found is not None
            served.append((found[1], found[2]))
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(retries=5), timeout=60) as client:
            answers = [await client.get(url, headers={"X-User": user}) for user, url in served]
        assert [answer.status_code for answer in answers] == [200, 409]
        helpers = await descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        _, err = await process.communicate()
    assert b"Traceback" not in err
    assert process.returncode in {0, -signal.SIGTERM}
    await gone(helpers)


async def test_the_service_can_be_started_as_its_first_lines_say() -> None:
    """The command of uvicorn works from the folder of the project; here it gets as far as the database."""
    (command,) = re.findall(r"`uvicorn (.*?)`", (EXAMPLES / "fastapi_app.py").read_text())
    settings = {"DATABASE_URL": "postgresql://app:hush@127.0.0.1:1/db", "SPOTIFY_CLIENT_ID": "0123456789abcdef"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "uvicorn", "--port", "0", *command.split(),
        cwd=EXAMPLES.parent, env=environment(**settings), stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, err = await process.communicate()
    assert "DatabaseUnavailable" in err.decode()
    assert "hush" not in err.decode()


async def test_the_job_runs_without_settings() -> None:
    """Forty users, two of whom have to be asked."""
    status, out, err = await run("nightly_job.py")
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "38 done, 2 to ask, 0 to try later, 0 failed, 0 not begun"


async def test_a_job_that_gets_sigterm_says_how_far_it_came() -> None:
    """The process ends by itself, with the status that has it run again, and leaves nothing running."""
    async with started("nightly_job.py") as process:
        await line_with(process, ": ")
        await line_with(process, ": ")
        helpers = await descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        out, err = await process.communicate()
    assert (process.returncode, err) == (1, b"")
    assert 0 < int(out.decode().splitlines()[-1].split()[-3]) < 40
    await gone(helpers)


async def test_the_import_runs_without_settings() -> None:
    """It shows both sources and a refusal, and warns of nothing."""
    status, out, err = await run("import_tokens.py")
    assert (status, err) == (0, "")
    assert "1. Signed in through Supabase: Ann" in out
    assert "2. From a cache file of spotipy: Ann" in out
    assert "3. Refused: spotipy's cache: refresh_token: " in out


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ([], "expected USER_ID CACHE_FILE AUTHORIZED_ON"),
        ([str(UUID(int=1)), "cache", "yesterday"], "yesterday"),
        ([str(UUID(int=1)), "no-such-file", "2026-10-01"], "no-such-file"),
    ],
)
async def test_with_settings_the_arguments_of_the_import_are_checked(arguments: list[str], fault: str) -> None:
    """What is missing or malformed is named before anything is asked."""
    settings = {"DATABASE_URL": "postgresql://app:hush@127.0.0.1:1/db", "SPOTIFY_CLIENT_ID": "0123456789abcdef"}
    status, out, err = await run("import_tokens.py", *arguments, **settings)
    assert (status, err) == (1, "")
    assert fault in out


def test_the_profile_page_has_words_for_every_reason_to_connect_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also that the app is retired, which has no moment at which it was noticed."""
    monkeypatch.setattr(sys, "path", [str(EXAMPLES / "profile_app"), *sys.path])
    pages, sessions = import_module("pages"), import_module("sessions")
    now = datetime.now(UTC)
    for reason in get_args(ReauthorizationReason):
        since = None if reason == "other_app" else now
        status = ConnectionStatus(connected=True, reauthorization=reason, reauthorization_since=since)
        page = pages.profile_page(sessions.Session(user="ann"), status, [], apps_url="/apps", now=now)
        assert (pages.ENDED[reason] in page, "It was noticed on" in page) == (True, since is not None)
