"""A profile page with "Connect Spotify": run it with no settings at all.

It then starts a private Postgres and a simulated Spotify on loopback. With SPOTIFY_CLIENT_ID and the other settings of
the README it works on the real ones, and with DATABASE_URL alone on that database and the simulated Spotify. The users
of such a database are given as arguments: NAME=UUID, each an id of auth.users. PORT is where it listens; TOKEN_TTL, in
seconds, lets the access tokens of the simulated Spotify end sooner than after an hour, to watch them being refreshed.

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
from spotconn import ConnectFlow, ConnectionStore, SpotconnError, SpotifyAccounts, TokenManager
from spotconn.testing import EmbeddedPostgres, FakeSpotify, add_user, apply_schema
from web import build_app

PORT = 8765
TOKEN_TTL = 3600
SCOPES = ("user-read-email", "user-top-read")


def print_line(text: str) -> None:
    print(text, flush=True)


def database_url() -> str | None:
    return os.environ.get("SPOTCONN_DATABASE_URL") or os.environ.get("DATABASE_URL")


def given_users(arguments: list[str]) -> dict[str, UUID]:
    users = {name: UUID(user_id) for name, _, user_id in (argument.partition("=") for argument in arguments)}
    if not users:
        raise ValueError("give the users that may sign in as arguments: NAME=UUID, each an id of auth.users")
    return users


async def private_database(stack: AsyncExitStack) -> tuple[str, dict[str, UUID]]:
    print_line("No DATABASE_URL: a private Postgres is started.")
    dsn = stack.enter_context(EmbeddedPostgres()).dsn()
    await apply_schema(dsn)
    return dsn, {name: await add_user(dsn, email=f"{name}@example.com") for name in ("alice", "bob")}


async def simulated(stack: AsyncExitStack, port: int, arguments: list[str]) -> Service:
    print_line("No SPOTIFY_CLIENT_ID: Spotify is simulated.")
    spotify = FakeSpotify(
        token_ttl=int(os.environ.get("TOKEN_TTL") or TOKEN_TTL), redirect_uris=["http://127.0.0.1/spotify/callback"]
    )
    spotify.add_account("alice", display_name="Alice", email="alice@example.com")
    spotify.add_account("bob", display_name="Bob", email="bob@example.com")
    refusal = "User not registered in the Developer Dashboard"
    spotify.add_account("unlisted", display_name="Not on the app's list", refusal=refusal)
    given = database_url()
    dsn, users = (given, given_users(arguments)) if given else await private_database(stack)
    url = await stack.enter_async_context(spotify.serve())
    accounts = SpotifyAccounts("demo-client", "demo-secret", accounts_url=url, api_url=url)
    tokens = TokenManager(
        await stack.enter_async_context(ConnectionStore.open(dsn)), await stack.enter_async_context(accounts)
    )
    flow = ConnectFlow(
        tokens.store, tokens.accounts, redirect_uri=f"http://127.0.0.1:{port}/spotify/callback", scopes=SCOPES
    )
    return Service(
        tokens=await stack.enter_async_context(tokens),
        flow=await stack.enter_async_context(flow),
        http=await stack.enter_async_context(httpx.AsyncClient(timeout=10, trust_env=False)),
        users=users,
        host="127.0.0.1",
        spotify_url=url,
        api_url=url,
        apps_url=f"{url}/account/apps",
    )


async def real(stack: AsyncExitStack, arguments: list[str]) -> Service:
    tokens = await stack.enter_async_context(TokenManager.from_env())
    flow = ConnectFlow.from_env(tokens.store, tokens.accounts, scopes=SCOPES)
    redirect_uri = urlsplit(os.environ["SPOTIFY_REDIRECT_URI"])
    return Service(
        tokens=tokens,
        flow=await stack.enter_async_context(flow),
        http=await stack.enter_async_context(httpx.AsyncClient(timeout=10)),
        users=given_users(arguments),
        host=redirect_uri.hostname or "",
        secure=redirect_uri.scheme == "https",
    )


async def run(arguments: list[str]) -> None:
    async with AsyncExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", int(os.environ.get("PORT") or PORT))))
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or each answer takes 40 ms
        port = listening.getsockname()[1]
        is_real = bool(os.environ.get("SPOTIFY_CLIENT_ID"))
        service = await (real(stack, arguments) if is_real else simulated(stack, port, arguments))
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
