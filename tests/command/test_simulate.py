"""`spotconn simulate` as a process of its own, and services of other processes that it is the Spotify of."""

import asyncio
import os
import signal
import socket
import sys
import tomllib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import asyncpg
import httpx
import pytest
import yaml
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from spotconn import ConnectFlow, TokenManager
from spotconn._command.simulate import CLIENT_ID, PORT, SECRET
from spotconn._settings import Settings
from spotconn.cli import app
from support.database import Database
from support.doc_blocks import blocks
from support.programs import environment

ROOT = Path(__file__).parents[2]
README = {block.title: block.code for block in blocks(ROOT / "README.md") if block.title}


@asynccontextmanager
async def simulating(*arguments: str) -> AsyncGenerator[tuple[dict[str, str], asyncio.subprocess.Process]]:
    """The command as a process, with the settings that it has printed; it has ended when the block ends."""
    process = await started("-m", "spotconn", "simulate", "--port", "0", *arguments)
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        assert b"control page" in await process.stderr.readline()
        printed = [await process.stdout.readline() for _ in range(4 if "--app" in arguments else 3)]
        yield dict(line.decode().strip().split("=", 1) for line in printed), process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def started(*words: str, **settings: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        *words,
        env=environment(**settings),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def printed_by(*words: str, **settings: str) -> tuple[int | None, str, str]:
    """Run a program: how it ends, and what it prints to standard output and standard error."""
    process = await started(*words, **settings)
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    return process.returncode, out.decode(), err.decode()


@pytest.mark.long
async def test_the_ten_lines_of_the_readme_without_spotify(
    database: Database, user: UUID, admin: asyncpg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user connects, the token is refreshed, Spotify asks to wait, the consent ends: the README says what comes."""
    script = tmp_path / "show_token.py"
    script.write_text(README["show_token.py"])
    async with (
        simulating("--rotate", "--token-ttl", "600", "--account", "ann") as (printed, process),
        httpx.AsyncClient() as http,
    ):
        url = printed["SPOTCONN_SPOTIFY_URL"]
        settings = printed | {
            "DATABASE_URL": database.dsn,
            "SPOTIFY_REDIRECT_URI": "http://127.0.0.1:8000/spotify/callback",
        }
        for name in [name for name in os.environ if name.startswith(("SPOT", "DATABASE"))]:
            monkeypatch.delenv(name)
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        async with (
            TokenManager.from_env() as tokens,
            ConnectFlow.from_env(tokens.store, tokens.accounts, scopes=["user-read-email"]) as flow,
        ):
            agreed = await http.post(await flow.start(user), data={"account": "ann", "decision": "agree"})
            connection = await flow.finish(user, agreed.headers["location"])
        assert (connection.display_name, connection.email) == ("Ann", "ann@example.com")
        assert connection.expires_at < datetime.now(UTC) + timedelta(minutes=30)

        async def shown() -> str:
            """What the ten lines print once the stored token has ended."""
            await admin.execute("update public.spotify_connections set expires_at = now() - interval '1 minute'")
            status, out, err = await printed_by(str(script), str(user), **settings)
            assert (status, err) == (0, "")
            return out

        assert await shown() == "66 characters of a valid token\n"
        stored = await admin.fetchval("select refresh_token from public.spotify_connections")
        assert stored != connection.refresh_token
        await http.post(url, data={"action": "fail", "failure": "token-429"})
        assert "try later: Spotify" in await shown()
        await admin.execute("delete from spotconn.refresh_state")
        await http.post(url, data={"action": "revoke", "account": "ann"})
        assert "ask the user" in await shown()
        process.send_signal(signal.SIGTERM)
        assert await process.communicate() == (b"", b"")
        assert process.returncode == 0


async def test_several_apps_their_latency_and_ctrl_c() -> None:
    """Each app has its settings; an answer under way does not delay the end."""
    options = ("--app", "demo-client", "--app", "second", "--latency", "3600", "--token-ttl", "60", "--account", "ann")
    async with simulating(*options) as (printed, process), httpx.AsyncClient() as http, asyncio.TaskGroup() as group:
        assert printed["SPOTIFY_CLIENT_ID"] == "demo-client"
        assert printed["SPOTCONN_OTHER_APPS"] == f"second:{printed['SPOTIFY_CLIENT_SECRET']}"
        url = printed["SPOTCONN_SPOTIFY_URL"]

        async def unanswered() -> None:
            with suppress(httpx.TransportError):
                answer = await http.post(f"{url}/api/token", data={"grant_type": "x"}, timeout=60)
                assert answer.status_code == 500

        group.create_task(unanswered())
        assert (await http.get(url, timeout=60)).status_code == 200
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
        assert (process.returncode, err) == (130, b"spotconn: stopped\n")


def test_the_compose_file_has_the_settings() -> None:
    """Those that the command prints are those of the service in the guide, and `from_env` takes them. Nothing starts
    before what it needs answers, and the image has what the services run.
    """
    guide = (ROOT / "docs" / "how-to" / "simulate.md").read_text()
    fences = {token.info.strip(): token.content for token in MarkdownIt().parse(guide) if token.type == "fence"}
    compose, image = fences["yaml"], fences["dockerfile"]
    services = yaml.safe_load(compose)["services"]
    settings = Settings.read(services["app"]["environment"])
    assert settings.spotify_url == f"http://127.0.0.1:{PORT}"
    assert (settings.client_id, settings.client_secret) == (CLIENT_ID, SECRET)
    shared = [name for name, service in services.items() if service.get("network_mode") == "service:app"]
    assert shared == ["spotify", "tests"]
    assert services["spotify"]["command"] == ["spotconn", "simulate"]
    assert services["app"]["depends_on"] == {"schema": {"condition": "service_completed_successfully"}}
    assert services["schema"]["depends_on"] == {"database": {"condition": "service_healthy"}}
    assert services["schema"]["command"] == ["spotconn", "schema", "--apply"]
    assert services["schema"]["environment"].items() <= services["app"]["environment"].items()
    assert services["tests"]["depends_on"] == ["app", "spotify"]
    assert services["database"]["healthcheck"]["test"][:2] == ["CMD", "pg_isready"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert "[cli,crypto,testing]" in image
    assert {"cli", "crypto", "testing"} <= extras.keys()


def test_what_cannot_be_simulated_is_one_line() -> None:
    """A port that is taken and a malformed option are named."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        cases = {
            ("--port", port): f"--port: {port} of 127.0.0.1 cannot be had: Address",
            ("--app", "a_b"): "--app: expected letters, digits and hyphens",
            ("--account", ""): "--account: expected letters, digits and hyphens",
            ("--redirect-uri", "http://localhost/x"): "--redirect-uri must not be localhost",
        }
        for options, text in cases.items():
            result = CliRunner().invoke(app, ["simulate", *options], catch_exceptions=False)
            assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
            assert text in result.stderr


async def test_a_missing_extra_is_named() -> None:
    """Also where only that is missing which Starlette asks for at the first form."""
    code = "import sys; sys.modules['python_multipart'] = None; import spotconn.cli as c; c.main()"
    # Starlette looks for it by its older name, too, which warns.
    status, out, err = await printed_by("-W", "ignore::PendingDeprecationWarning", "-c", code, "simulate")
    assert (status, out) == (2, "")
    assert err == 'spotconn: simulate needs an extra: pip install "spotconn[cli,testing]"\n'
