"""`spotconn connect`: a user connects with a browser of this machine, and nothing else reaches the port meanwhile."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
from typer.testing import CliRunner

from spotconn import ConfigurationError, ConnectFailed, ConnectionStore, SpotconnError, TryLater
from spotconn._command.callback_server import MOST_SILENT, listen
from spotconn._command.connect import started
from spotconn.cli import app
from spotconn.testing import FakeSpotify
from support import browser
from support.consent import agree, altered, pending, state_of
from support.database import Database
from support.programs import environment


@pytest.fixture
def spotify() -> FakeSpotify:
    """One that knows an account, and another that the app may not have."""
    spotify = FakeSpotify(rotation=True)
    spotify.add_account("alice", display_name="Alice", email="alice@example.com")
    spotify.add_account("unlisted", refusal="User not registered in the Developer Dashboard")
    return spotify


@pytest.fixture
def settings(database: Database, spotify: FakeSpotify) -> Iterator[dict[str, str]]:
    """Of an operator; the redirect URI names no port, so a free one is taken."""
    with spotify.serve_in_thread() as url:
        yield {
            "DATABASE_URL": database.dsn,
            "SPOTCONN_SPOTIFY_URL": url,
            "SPOTIFY_CLIENT_ID": "demo-client",
            "SPOTIFY_CLIENT_SECRET": "demo-secret",
            "SPOTIFY_REDIRECT_URI": "http://127.0.0.1/callback",
        }


@asynccontextmanager
async def command(
    settings: dict[str, str], *arguments: str
) -> AsyncGenerator[tuple[asyncio.subprocess.Process, asyncio.StreamReader]]:
    """The command as a process, with its standard error; it has ended when the block ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "spotconn", "connect", *arguments,
        env=environment(**settings), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        yield process, process.stderr
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def callback_of(url: str) -> str:
    """The redirect URI of an authorization."""
    return parse_qs(urlsplit(url).query)["redirect_uri"][0]


async def answer_to(url: str, *lines: str) -> str:
    """What the server of a URL answers to lines of a request."""
    parts = urlsplit(url)
    async with asyncio.timeout(60):
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write("\r\n".join((*lines, "", "")).encode())
        answer = (await reader.read()).decode()
    writer.close()
    return answer


async def test_a_user_is_connected_in_a_browser(
    settings: dict[str, str], user: UUID, store: ConnectionStore, shared_chromium: str, tmp_path: Path
) -> None:
    """The browser that opens comes back to a page of the command, which shows the connection and ends."""
    opened, opener = tmp_path / "opened", tmp_path / "browser"
    opener.write_text(f'#!/bin/sh\nprintf %s "$1" > {opened}.part && mv {opened}.part {opened}\n')
    opener.chmod(0o755)
    arguments = str(user), "--scope", "user-read-email user-top-read", "--json"
    async with (
        command(settings | {"BROWSER": str(opener)}, *arguments) as (process, _),
        browser.connected_to(shared_chromium) as chromium,
        await chromium.new_context() as context,
    ):
        while not opened.exists():
            await asyncio.sleep(0.02)
        page = await context.new_page()
        await page.goto(opened.read_text())
        await browser.agree(page, "Alice", back=f"{callback_of(opened.read_text())}*")
        assert await page.get_by_role("heading").inner_text() == "Connected"
        code = parse_qs(urlsplit(page.url).query)["code"][0]
        assert code not in await page.content()
        output, messages = (text.decode() for text in await process.communicate())
    stored = await store.get(user)
    shown = json.loads(output)
    assert (process.returncode, shown["spotify_user_id"]) == (0, "alice")
    assert shown["scope"] == ["user-read-email", "user-top-read"]
    assert messages == f"open this address in a browser, and agree: {opened.read_text()}\n"
    assert [secret for secret in (code, stored.access_token, stored.refresh_token) if secret in output + messages] == []


@pytest.mark.parametrize(
    ("account", "changes", "kind", "told"),
    [
        ("alice", {"SPOTIFY_CLIENT_SECRET": "other-secret"}, ConfigurationError, "Spotify refuses"),
        ("unlisted", {}, ConnectFailed, "not registered"),
        ("cancel", {}, ConnectFailed, "the user did not agree"),
        ("server_error", {}, TryLater, "Spotify ended the authorization (server_error)"),
    ],
)
async def test_a_refusal_is_shown_on_the_page_and_in_the_terminal(
    settings: dict[str, str], user: UUID, account: str, changes: dict[str, str], kind: type[SpotconnError], told: str
) -> None:
    """The same sentence, without the code and the state."""
    async with httpx.AsyncClient(timeout=60) as client:
        async with started(user, [], settings | changes) as authorization:
            known = account in {"alice", "unlisted"}
            callback = await agree(authorization.url, account, decision="agree" if known else "cancel")
            if account == "server_error":
                callback = altered(callback, error=account)
            page = asyncio.create_task(client.get(callback))
            with pytest.raises(kind) as raised:
                await authorization.finish(60)
        answer = await page
    assert told in str(raised.value)
    assert (answer.status_code, told in answer.text) == (400, True)
    for secret in (state_of(callback), parse_qs(urlsplit(callback).query).get("code", ["no code"])[0]):
        assert secret not in answer.text + str(raised.value)


async def test_nothing_but_the_callback_is_answered(
    settings: dict[str, str],
    user: UUID,
    store: ConnectionStore,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Another Host, path, method or state, a request that is none, silent connections: none ends the wait, or it."""
    async with started(user, [], settings) as authorization:
        callback = await agree(authorization.url)
        parts = urlsplit(callback)
        get, host = f"GET {parts.path}?{parts.query} HTTP/1.1", f"Host: {parts.netloc}"
        refused: dict[str, list[tuple[str, ...]]] = {
            "421 Misdirected Request": [
                (get,), (get, f"Host: rebound.example:{parts.port}"), (get, host, host), (get, "Host: 127.0.0.1:1"),
            ],
            "404 Not Found": [
                ("GET / HTTP/1.1", host), ("GET /favicon.ico HTTP/1.1", host), (get.replace("/cal", "//cal"), host),
                (f"GET {callback} HTTP/1.1", host),
            ],
            "405 Method Not Allowed": [(get.replace("GET", "POST"), host), (get.replace("GET", "HEAD"), host)],
            "400 Bad Request": [
                (get.replace("state=", "state=0"), host), (get.replace("code=", "state="), host),
                (get.replace("code=", "other="), host), (f"GET {parts.path} HTTP/1.1", host), ("\x16\x03\x01",),
                (get.replace("HTTP/1.1", "HTTP/3"), host), (get, host, f"Cookie: {'c' * 50_000}"),
            ],
        }  # fmt: skip
        silent = [await asyncio.open_connection(parts.hostname, parts.port) for _ in range(MOST_SILENT + 1)]
        async with asyncio.timeout(60):
            assert await silent[0][0].read() == b""  # the oldest has made room
        for status, requests in refused.items():
            for lines in requests:
                answer = await answer_to(callback, *lines)
                assert answer.startswith(f"HTTP/1.1 {status}\r\n"), lines
                assert [
                    secret for values in parse_qs(parts.query).values() for secret in values if secret in answer
                ] == []
        finished = asyncio.create_task(authorization.finish(60))
        first, second = await asyncio.gather(answer_to(callback, get, host), answer_to(callback, get, host))
        assert (await finished).spotify_user_id == "alice"
    for _, writer in silent:
        writer.close()
    assert caplog.records == []  # asyncio tells of no task that has failed
    assert first == second  # of a browser that sends the request again
    assert "HTTP/1.1 200 OK\r\n" in first
    assert "\r\nCache-Control: no-store\r\n" in first
    assert "\r\nReferrer-Policy: no-referrer\r\n" in first
    assert (await store.get(user)).display_name == "Alice"
    assert capsys.readouterr().err.count("a callback with another state was refused") == 1
    with suppress(ConnectionRefusedError):  # unless another process has got the port meanwhile
        assert "Referrer-Policy" not in await answer_to(callback, get, host)


async def test_what_cannot_begin_ends_with_one_line(
    settings: dict[str, str], user: UUID, admin: asyncpg.Connection
) -> None:
    """No redirect URI, one of another host, a port that is taken, a user who is not there: nothing was started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cases: list[tuple[str, dict[str, str], int, str]] = [
            (str(user), {"SPOTIFY_REDIRECT_URI": ""}, 5, "SPOTIFY_REDIRECT_URI is not set"),
            (str(user), {"SPOTIFY_REDIRECT_URI": "https://example.org/callback"}, 5, "is not on this machine"),
            (
                str(user),
                {"SPOTIFY_REDIRECT_URI": f"http://127.0.0.1:{port}/callback"},
                4,
                f"port {port} of SPOTIFY_RED",
            ),
            (str(user), {"SPOTIFY_CLIENT_ID": ""}, 5, "SPOTIFY_CLIENT_ID is not set"),
            (str(uuid4()), {}, 3, "auth.users: insert the row there, or into your own table"),
            ("nobody", {}, 2, "USER: expected a UUID"),
        ]
        for who, changes, code, told in cases:
            arguments = ["connect", who, "--no-browser"]
            result = await asyncio.to_thread(CliRunner().invoke, app, arguments, env=settings | changes)
            assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (code, "", 1), told
            assert result.stderr.startswith("spotconn: ")
            assert told in result.stderr
    assert await pending(admin) == 0


async def test_a_wait_that_is_over_says_what_to_compare(
    settings: dict[str, str], user: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong client id or redirect URI leads to an error page of Spotify's, and to no callback.

    That no program can be started ends no wait.
    """
    monkeypatch.setattr(sys, "executable", os.devnull)
    arguments = ["connect", str(user), "--timeout", "1"]
    result = await asyncio.to_thread(CliRunner().invoke, app, arguments, env=settings)
    address, browser, line = result.stderr.splitlines()
    assert browser == "no browser could be opened here"
    assert (result.exit_code, result.stdout) == (4, "")
    assert line.startswith(
        "spotconn: nobody agreed within 1 s; where Spotify shows an error, compare SPOTIFY_CLIENT_ID"
    )
    assert f"the redirect URI {callback_of(address.split()[-1])} with" in line


async def test_without_a_browser_the_address_is_there_and_ctrl_c_ends_it(settings: dict[str, str], user: UUID) -> None:
    """Where no browser opens that is said; Ctrl-C ends in one line and code 130."""
    hidden = dict.fromkeys(("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"), "")
    async with command(settings | hidden | {"PATH": os.devnull}, str(user)) as (process, messages):
        assert callback_of((await messages.readline()).decode().split()[-1]).startswith("http://127.0.0.1:")
        assert (await messages.readline()).decode() == "no browser could be opened here\n"
        process.send_signal(signal.SIGINT)
        output, last = await process.communicate()
    assert (process.returncode, output) == (130, b"")
    assert last.decode() == "spotconn: stopped; spotconn status says whether the user is connected\n"


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("[::1]", socket.AF_INET6)])
def test_a_free_port_is_added_to_a_redirect_uri_without_one(host: str, family: socket.AddressFamily) -> None:
    """As RFC 8252 has it for loopback redirect URIs, and a port that is given is taken."""
    try:
        socket.create_server((host.strip("[]"), 0), family=family).close()
    except OSError:
        pytest.skip(f"this machine has no {host}")
    listener, uri = listen(f"http://{host}/callback?a=b")
    with listener:
        assert uri == f"http://{host}:{listener.getsockname()[1]}/callback?a=b"
    again, same = listen(uri)
    with again:
        assert same == uri
