"""What the examples run on.

With DATABASE_URL and SPOTIFY_CLIENT_ID set: the real database and the real Spotify, for the user ids given as
arguments. Without: a private Postgres and a simulated Spotify on loopback, gone at the end, with users of their own.
"""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import spotconn
from spotconn import ConnectionStore, Profile, SpotconnError, SpotifyAccounts, TokenManager
from spotconn.testing import EmbeddedPostgres, FakeSpotify, add_user, apply_schema

SCOPES = ("user-read-email", "user-top-read")


def print_line(text: str) -> None:
    print(text, flush=True)


def run(main: Callable[[list[str]], Coroutine[Any, Any, int]]) -> int:
    """Run an example with the arguments of the command line: its exit status."""
    try:
        return asyncio.run(main(sys.argv[1:]))
    except (SpotconnError, ValueError, OSError) as error:
        print_line(f"{type(error).__name__}: {error}")
        return 1


async def print_each(user_ids: list[UUID], work: Callable[[UUID], Awaitable[str]]) -> int:
    """Print what `work` returns for each user, or why it does not, and return the exit status."""
    status = 0
    for user_id in user_ids:
        try:
            print_line(await work(user_id))
        except SpotconnError as error:
            print_line(f"{user_id}: {type(error).__name__}: {error}")
            status = 1
        except Exception as error:  # noqa: BLE001  of another package: its text may hold what is the user's
            print_line(f"{user_id}: {type(error).__name__}")
            status = 1
    return status


def has_settings() -> bool:
    database = os.environ.get("SPOTCONN_DATABASE_URL") or os.environ.get("DATABASE_URL")
    return bool(database and os.environ.get("SPOTIFY_CLIENT_ID"))


@dataclass(frozen=True)
class Simulation:
    """A service on a private Postgres, with a simulated Spotify."""

    dsn: str
    spotify: FakeSpotify
    tokens: TokenManager

    async def sign_up(self, name: str) -> UUID:
        """A user of the service who has connected nothing."""
        return await add_user(self.dsn, email=f"{name}@example.com")

    async def connect(self, name: str, *, ttl: int = 3600) -> UUID:
        """A user who has connected Spotify, with an access token good for `ttl` seconds."""
        self.spotify.add_account(name, display_name=name.title())
        grant = self.spotify.authorize(name, SCOPES)
        grant = grant.model_copy(update={"expires_at": datetime.now(UTC) + timedelta(seconds=ttl)})
        user_id = await self.sign_up(name)
        profile = Profile(spotify_user_id=name, display_name=name.title())
        await self.tokens.store.save(user_id, grant, profile, client_id=self.tokens.accounts.client_id)
        return user_id


@asynccontextmanager
async def simulated(**options: Any) -> AsyncGenerator[Simulation]:
    """A simulation.

    Args:
        options: of `FakeSpotify`.
    """
    print_line("No DATABASE_URL and SPOTIFY_CLIENT_ID: a private Postgres is started, and Spotify is simulated.")
    os.environ["no_proxy"] = "127.0.0.1,localhost"  # a proxy of the environment cannot reach this host
    spotify = FakeSpotify(**options)
    with EmbeddedPostgres() as postgres:
        dsn = postgres.dsn()
        await apply_schema(dsn)
        async with (
            spotify.serve() as url,
            SpotifyAccounts("demo-client", "demo-secret", accounts_url=url, api_url=url) as accounts,
            ConnectionStore.open(dsn) as store,
            TokenManager(store, accounts) as tokens,
        ):
            yield Simulation(dsn, spotify, tokens)


@asynccontextmanager
async def service(user_ids: list[str]) -> AsyncGenerator[tuple[TokenManager, list[UUID]]]:
    """The tokens of a service and the users to work for: the given ones, or two of a simulation."""
    if has_settings():
        if not user_ids:
            raise ValueError("give the ids of connected users as arguments")
        async with TokenManager.from_env() as tokens:
            yield tokens, [spotconn.user_id(int(one)) if one.isdecimal() else UUID(one) for one in user_ids]
    else:
        async with simulated() as simulation:
            yield simulation.tokens, [await simulation.connect("ann"), await simulation.connect("bob", ttl=-60)]
