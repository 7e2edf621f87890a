"""A profile page with "Connect Spotify": run it with no settings at all.

It then starts a private Postgres and a simulated Spotify on loopback. With SPOTIFY_CLIENT_ID and the other settings of
the README it works on the real ones, and with DATABASE_URL alone on that database and the simulated Spotify. The users
of such a database are given as arguments: NAME=UUID, each an id of auth.users. PORT is where it listens; TOKEN_TTL, in
seconds, lets the access tokens of the simulated Spotify end sooner than after an hour, to watch them being refreshed.
With the settings that `spotconn simulate` prints it works on that one.

Signing in is a stand-in: anybody who reaches the page may be any of the users, so it listens on 127.0.0.1 only.
"""

import asyncio
import os
import socket
import sys
from contextlib import AsyncExitStack, suppress
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import uvicorn

from service import Service
from spotconn import ConnectFlow, SpotconnError, TokenManager
from spotconn.testing import EmbeddedPostgres, FakeSpotify, add_user, apply_schema
from web import build_app

PORT = 8765
TOKEN_TTL = 3600
SCOPES = ("user-read-email", "user-top-read")


def print_line(text: str) -> None:
    print(text, flush=True)


def database_is_given() -> bool:
    return bool(os.environ.get("SPOTCONN_DATABASE_URL") or os.environ.get("DATABASE_URL"))


def given_users(arguments: list[str]) -> dict[str, UUID]:
    users = {name: UUID(user_id) for name, _, user_id in (argument.partition("=") for argument in arguments)}
    if not users:
        raise ValueError("give the users that may sign in as arguments: NAME=UUID, each an id of auth.users")
    return users


async def serve_spotify(stack: AsyncExitStack, port: int) -> None:
    """Serve a simulated Spotify, and set what leads to it."""
    print_line("No SPOTIFY_CLIENT_ID: Spotify is simulated.")
    spotify = FakeSpotify(
        token_ttl=int(os.environ.get("TOKEN_TTL") or TOKEN_TTL), redirect_uris=["http://127.0.0.1/spotify/callback"]
    )
    spotify.add_account("alice", display_name="Alice", email="alice@example.com")
    spotify.add_account("bob", display_name="Bob", email="bob@example.com")
    refusal = "User not registered in the Developer Dashboard"
    spotify.add_account("unlisted", display_name="Not on the app's list", refusal=refusal)
    url = await stack.enter_async_context(spotify.serve())
    print_line(f"It has a control page on {url}.")
    os.environ |= {
        "SPOTCONN_SPOTIFY_URL": url,
        "SPOTIFY_CLIENT_ID": "demo-client",
        "SPOTIFY_CLIENT_SECRET": "demo-secret",
        "SPOTIFY_REDIRECT_URI": f"http://127.0.0.1:{port}/spotify/callback",
    }


async def serve_database(stack: AsyncExitStack) -> dict[str, UUID]:
    """Serve a private Postgres, set what leads to it, and return its users."""
    print_line("No DATABASE_URL: a private Postgres is started.")
    os.environ["DATABASE_URL"] = dsn = stack.enter_context(EmbeddedPostgres()).dsn()
    await apply_schema(dsn)
    return {name: await add_user(dsn, email=f"{name}@example.com") for name in ("alice", "bob")}


async def opened(stack: AsyncExitStack, users: dict[str, UUID] | None, arguments: list[str]) -> Service:
    """What the pages work with, by the settings of the environment."""
    tokens = await stack.enter_async_context(TokenManager.from_env())
    flow = ConnectFlow.from_env(tokens.store, tokens.accounts, scopes=SCOPES)
    redirect_uri = urlsplit(flow.redirect_uri)
    url, simulated = tokens.accounts.api_url, bool(os.environ.get("SPOTCONN_SPOTIFY_URL"))
    http = httpx.AsyncClient(base_url=url, timeout=10, trust_env=not simulated)  # a proxy cannot reach this host
    return Service(
        tokens=tokens,
        flow=await stack.enter_async_context(flow),
        http=await stack.enter_async_context(http),
        users=users or given_users(arguments),
        host=redirect_uri.hostname or "",
        secure=redirect_uri.scheme == "https",
        **({"spotify_url": url, "apps_url": f"{url}/account/apps"} if simulated else {}),
    )


async def run(arguments: list[str]) -> None:
    async with AsyncExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", int(os.environ.get("PORT") or PORT))))
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or each answer takes 40 ms
        port = listening.getsockname()[1]
        users: dict[str, UUID] | None = None
        if not os.environ.get("SPOTIFY_CLIENT_ID"):
            users = given_users(arguments) if database_is_given() else await serve_database(stack)
            await serve_spotify(stack, port)
        service = await opened(stack, users, arguments)
        # The URL of the callback holds a code: no log of requests.
        config = uvicorn.Config(build_app(service), log_level="warning", access_log=False, timeout_graceful_shutdown=5)
        print_line(f"Open http://127.0.0.1:{port} in a browser; stop with Ctrl-C.")
        await uvicorn.Server(config).serve(sockets=[listening])


def main() -> int:
    with suppress(KeyboardInterrupt):
        try:
            asyncio.run(run(sys.argv[1:]))
        except (SpotconnError, ValueError, OSError) as error:
            print_line(f"{type(error).__name__}: {error}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
