"""The command `spotconn connect`: a user's way to Spotify's consent page and back, without a service."""

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager, nullcontext
from typing import Annotated
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import typer

from spotconn._command.arguments import Json, User, read_scopes, read_user
from spotconn._command.callback_server import CallbackServer, Page, listen, receiving
from spotconn._command.console import run
from spotconn._command.one_user import write_status
from spotconn._command.output import print_line
from spotconn._settings import read_redirect_uri
from spotconn._tokens.environment import opened
from spotconn._tokens.status import ConnectionStatus
from spotconn.connect import ConnectFlow
from spotconn.errors import SpotconnError, TryLater, UnknownUser
from spotconn.manager import TokenManager
from spotconn.models import Connection

BROWSER_TIMEOUT = 10.0
"""Seconds until a browser counts as open. Some programs end with their window only."""

# A process of its own: a browser that it starts gets none of the command's streams, which would stay open with it.
_OPEN = "import sys, webbrowser; sys.exit(not webbrowser.open(sys.argv[1]))"
_NO_BROWSER = "no browser could be opened here"


def connect(
    user: User,
    *,
    scope: Annotated[list[str] | None, typer.Option(help="A scope to ask for; repeatable.")] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address to open.")] = False,
    timeout: Annotated[int, typer.Option(min=1, max=600, help="Seconds to wait for the user to agree.")] = 300,
    as_json: Json = False,
) -> None:
    """Connect a user with your browser; SPOTIFY_REDIRECT_URI must lead to this machine (http://127.0.0.1:8888/...)."""
    found = run(
        _connect(user, scope, seconds=timeout, browser=not no_browser),
        stopped="stopped; spotconn status says whether the user is connected",
    )
    write_status(ConnectionStatus.of(found), as_json=as_json)


async def _connect(user: str, scopes: list[str] | None, *, seconds: float, browser: bool) -> Connection:
    async with started(read_user(user), read_scopes(scopes), os.environ) as authorization:
        print_line(f"open this address in a browser, and agree: {authorization.url}")
        async with _browser(authorization.url) if browser else nullcontext():
            return await authorization.finish(seconds)


class LocalAuthorization:
    """An authorization under way, whose callback this process receives.

    Attributes:
        url: for the browser.
    """

    def __init__(self, flow: ConnectFlow, server: CallbackServer, user_id: UUID, url: str) -> None:
        self._flow = flow
        self._server = server
        self._user_id = user_id
        self.url = url

    async def finish(self, seconds: float) -> Connection:
        """Wait for the callback, save the connection, and show the outcome in the browser.

        Args:
            seconds: for the callback to come.

        Raises:
            TryLater: none came.
            SpotconnError: as `ConnectFlow.finish`.
        """
        callback = await self._callback(seconds)
        try:
            connection = await self._flow.finish(self._user_id, callback)
        except SpotconnError as error:
            self._server.answer(Page("400 Bad Request", "Not connected", str(error)))
            raise
        self._server.answer(Page("200 OK", "Connected", "The connection is saved. You can close this page."))
        return connection

    async def _callback(self, seconds: float) -> str:
        try:
            async with asyncio.timeout(seconds):
                return await self._server.callback()
        except TimeoutError:
            raise TryLater(
                f"nobody agreed within {seconds:.0f} s; where Spotify shows an error, compare SPOTIFY_CLIENT_ID and "
                f"the redirect URI {self._flow.redirect_uri} with the app in Spotify's dashboard"
            ) from None


@asynccontextmanager
async def started(
    user_id: UUID, scopes: Iterable[str], environ: Mapping[str, str]
) -> AsyncGenerator[LocalAuthorization]:
    """Context manager: start an authorization with the app of the environment, and listen on its redirect URI.

    Args:
        user_id: who is to be connected.
        scopes: to ask for.
        environ: as `os.environ`.

    Raises:
        ConfigurationError: a setting is missing or malformed, or the redirect URI is not on this machine.
        TryLater: another process listens there.
        SpotconnError: as `ConnectionStore.open` and `ConnectFlow.start`.
    """
    listener, redirect_uri = listen(read_redirect_uri(environ))
    with listener:
        async with (
            opened(TokenManager, environ, {"min_size": 0, "max_size": 1}) as (store, accounts, _),
            ConnectFlow(store, accounts, redirect_uri=redirect_uri, scopes=scopes) as flow,
        ):
            url = await _start(flow, user_id)
            (state,) = parse_qs(urlsplit(url).query)["state"]
            async with receiving(listener, redirect_uri, state) as server:
                yield LocalAuthorization(flow, server, user_id, url)


async def _start(flow: ConnectFlow, user_id: UUID) -> str:
    try:
        return await flow.start(user_id)
    except UnknownUser:
        raise UnknownUser(
            "USER: no such user in auth.users: insert the row there, or into your own table if --users has tied one"
        ) from None


@asynccontextmanager
async def _browser(url: str) -> AsyncGenerator[None]:
    """Context manager: open a browser beside the block."""
    opening = asyncio.create_task(_open_browser(url))
    try:
        yield
    finally:
        opening.cancel()
        await asyncio.wait({opening}, timeout=BROWSER_TIMEOUT)


async def _open_browser(url: str) -> None:
    """Open a browser, and say so where none opens."""
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-c", _OPEN, url,
            stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, start_new_session=True,
        )  # fmt: skip
    except OSError:  # the limit of processes, or of memory
        print_line(_NO_BROWSER)
        return
    try:
        async with asyncio.timeout(BROWSER_TIMEOUT):
            if await process.wait():
                print_line(_NO_BROWSER)
    except TimeoutError:
        pass
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
