"""The examples as programs: without any settings, with settings of a real service, and ended by a signal."""

import asyncio
import re
import signal
import socket
import sys
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import get_args
from uuid import UUID

import httpx
import pytest

from spotconn import ConnectionStatus
from spotconn.errors import ReauthorizationReason
from support.consent import agree
from support.processes import descendants, gone
from support.programs import EXAMPLES, environment, line_with, run, started


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port


@pytest.mark.long
@pytest.mark.parametrize("name", ["tekore_client.py", pytest.param("spotipy_client.py", marks=pytest.mark.long)])
async def test_the_clients_run_without_settings(name: str) -> None:
    """It works for a user with a good token and one with a token that has run out, also behind a proxy."""
    status, out, err = await run(name, http_proxy="http://127.0.0.1:1")
    assert (status, err) == (0, "")
    assert "Ann listens to Half Past Summer, " in out
    assert "Bob listens to Cobalt, " in out


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        "tekore_client.py",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("spotipy_client.py", "nightly_job.py")),
    ],
)
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


@pytest.mark.long
async def test_the_service_runs_without_settings_and_ends_by_sigterm() -> None:
    """As a process of its own it serves one user, asks the other to connect, and leaves nothing running."""
    async with started("fastapi_app.py", PORT="0") as process:
        served: list[tuple[str, str]] = []
        for _ in range(2):
            line = await line_with(process, "curl")
            found = re.fullmatch(r"curl -i -H 'Authorization: (Bearer \S+)' (\S+)\n", line)
            assert found is not None
            served.append((found[1], found[2]))
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(retries=5), timeout=60) as client:
            answers = [await client.get(url, headers={"Authorization": bearer}) for bearer, url in served]
        assert [answer.status_code for answer in answers] == [200, 409]
        helpers = await descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        _, err = await process.communicate()
    assert b"Traceback" not in err
    assert process.returncode in {0, -signal.SIGTERM}
    await gone(helpers)


@pytest.mark.long
async def test_the_flask_service_runs_without_settings_and_ends_by_ctrl_c(open_folder: Path) -> None:
    """A user signs in, connects, is served and disconnects, and the private server and its folder are gone."""
    async with started("flask_app.py", PORT=str(free_port()), TMPDIR=str(open_folder)) as process:
        found = re.search(r"http\S+", await line_with(process, "Open http"))
        assert found is not None
        async with httpx.AsyncClient(base_url=found[0].partition("/sign-in")[0], timeout=60) as client:
            await client.get(found[0])
            callback = await agree((await client.post("/connect")).headers["location"], "ann")
            await client.get(callback)
            assert "Connected to Spotify" in (await client.get("/profile")).text
            assert len((await client.get("/top-tracks")).json()) == 5
            await client.post("/disconnect")
            assert "Not connected" in (await client.get("/profile")).text
            assert "Not connected" in (await client.get("/sign-in/7", follow_redirects=True)).text
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    await gone([], open_folder)


def test_the_guide_counts_the_lines_of_the_flask_service() -> None:
    """Without blank lines, and without what only demonstrates it."""
    service, _, _ = (EXAMPLES / "flask_app.py").read_text().partition("def demonstrate")
    guide = (EXAMPLES.parent / "docs" / "how-to" / "workers.md").read_text()
    assert f"in {sum(bool(line.strip()) for line in service.splitlines())} lines, none of which" in guide


@pytest.mark.long
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


@pytest.mark.long
async def test_the_job_runs_without_settings() -> None:
    """Forty users, two of whom have to be asked."""
    status, out, err = await run("nightly_job.py")
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "38 done, 2 to ask, 0 to try later, 0 failed, 0 not begun"


@pytest.mark.long
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


@pytest.mark.long
async def test_the_import_runs_without_settings() -> None:
    """It shows both sources and a refusal, and warns of nothing."""
    status, out, err = await run("import_tokens.py")
    assert (status, err) == (0, "")
    assert "1. Signed in through Supabase: Ann" in out
    assert "2. From a cache file of spotipy: Ann" in out
    assert "3. Refused: spotipy's cache: refresh_token: " in out


@pytest.mark.long
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
        page = pages.profile_page(sessions.Session(user="ann"), status, [], notice=None, apps_url="/apps", now=now)
        assert (pages.ENDED[reason] in page, "It was noticed on" in page) == (True, since is not None)
