"""The command `spotconn simulate`: the simulated Spotify of the test kit, on a port of this host."""

import asyncio
import os
import re
import signal
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from spotconn._command.console import run
from spotconn._command.output import USAGE, fail, print_line, write_line
from spotconn._spotify.redirect import checked_redirect_uri
from spotconn.errors import ConfigurationError

if TYPE_CHECKING:
    from spotconn.testing import FakeSpotify

PORT = 8769
CLIENT_ID = "demo-client"
SECRET = "demo-secret"  # noqa: S105  of apps that do not exist
ACCOUNTS = ("alice", "bob")
REDIRECT_URIS = ("http://127.0.0.1/callback", "http://127.0.0.1/spotify/callback")


def simulate(
    *,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of 127.0.0.1; 0 for a free one.")] = PORT,
    account: Annotated[
        list[str] | None, typer.Option(help="A Spotify account; repeatable. By default alice and bob.")
    ] = None,
    app: Annotated[
        list[str] | None, typer.Option(help="Client id of an app; repeatable. By default demo-client.")
    ] = None,
    redirect_uri: Annotated[
        list[str] | None,
        typer.Option(help="A registered one; repeatable. By default /callback and /spotify/callback of 127.0.0.1."),
    ] = None,
    rotate: Annotated[bool, typer.Option("--rotate", help="Let each refresh token work once.")] = False,
    latency: Annotated[float, typer.Option(min=0, max=3600, help="Seconds before each answer with tokens.")] = 0,
    token_ttl: Annotated[int, typer.Option(min=1, max=86400, help="Seconds that an access token is good for.")] = 3600,
) -> None:
    """Serve a simulated Spotify on this host, and print the settings that lead a service to it."""
    first, *others = _names("--app", app or (CLIENT_ID,))
    spotify = _fake_spotify()(
        client_id=first,
        client_secret=SECRET,
        other_apps=dict.fromkeys(others, SECRET),
        rotation=rotate,
        latency=(latency, latency),
        token_ttl=token_ttl,
        redirect_uris=_redirect_uris(redirect_uri or REDIRECT_URIS),
    )
    for name in _names("--account", account or ACCOUNTS):
        spotify.add_account(name, display_name=name.title(), email=f"{name}@example.com")
    run(_serve(spotify, port))


def _fake_spotify() -> "type[FakeSpotify]":
    try:
        from spotconn.testing import FakeSpotify  # noqa: PLC0415  it imports the extra
    except ImportError:
        fail('simulate needs an extra: pip install "spotconn[cli,testing]"', USAGE)
    return FakeSpotify


def _names(option: str, names: Iterable[str]) -> list[str]:
    """Return each name once. Settings separate the ids of apps by commas and colons."""
    found = list(dict.fromkeys(names))
    if not all(re.fullmatch(r"[A-Za-z0-9-]+", name, re.ASCII) for name in found):
        fail(f"{option}: expected letters, digits and hyphens", USAGE)
    return found


def _redirect_uris(uris: Iterable[str]) -> list[str]:
    try:
        return [checked_redirect_uri(uri, name="--redirect-uri") for uri in uris]
    except ConfigurationError as error:
        fail(str(error), USAGE)


async def _serve(spotify: "FakeSpotify", port: int) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    try:
        async with spotify.serve(port) as url:
            _print_settings(spotify, url)
            await stopped.wait()
    except OSError as error:
        fail(f"--port: {port} of 127.0.0.1 cannot be had: {os.strerror(error.errno or 0)}", USAGE)


def _print_settings(spotify: "FakeSpotify", url: str) -> None:
    write_line(f"SPOTCONN_SPOTIFY_URL={url}")
    first, *others = spotify.apps
    write_line(f"SPOTIFY_CLIENT_ID={first}")
    write_line(f"SPOTIFY_CLIENT_SECRET={SECRET}")
    if others:
        write_line("SPOTCONN_OTHER_APPS=" + ",".join(f"{client_id}:{SECRET}" for client_id in others))
    print_line(f"Spotify is simulated at {url}, where a browser finds its control page; stop with Ctrl-C")
