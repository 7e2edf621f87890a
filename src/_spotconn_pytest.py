"""The plugin for pytest: fixtures for a simulated Spotify, a private Postgres and a connected user.

Every run of pytest in the environment loads this module. So it is outside of the package, whose import takes time and
would come before coverage is measured, and it imports the library only when a fixture is used.
"""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from functools import partialmethod
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

if TYPE_CHECKING:
    from spotconn import ConnectFlow, ConnectionStore, SpotifyAccounts, TokenManager
    from spotconn.testing import EmbeddedPostgres, FakeClock, FakeSpotify

if TYPE_CHECKING or find_spec("pytest_asyncio"):
    from pytest_asyncio import fixture as async_fixture
else:  # the fixtures exist, and fail with the name of what is missing
    async_fixture = pytest.fixture


@pytest.fixture(scope="session")
def _spotconn_extra() -> None:
    """Fail where the extra is not installed; all other fixtures need it."""
    required = ("pytest_asyncio", "python_multipart", "starlette", "uvicorn")
    if missing := [name for name in required if find_spec(name) is None]:
        text = (
            f'the fixtures of spotconn need an extra: pip install "spotconn[testing]" (without: {", ".join(missing)})'
        )
        pytest.fail(text, pytrace=False)


@pytest.fixture
def spotconn_clock(_spotconn_extra: None) -> "FakeClock":
    """Return the clock of the manager and the simulated Spotify: it stands at the present until the test steps it."""
    from spotconn.testing import FakeClock

    return FakeClock(time.time())


@pytest.fixture
def spotify_client_id() -> str:
    """Return the client id of the app; override it with a fixture of the same name."""
    return "democlient"


@pytest.fixture
def spotify_redirect_uris() -> tuple[str, ...]:
    """Return the redirect URIs registered for the app, first that of the service; override it."""
    return ("http://127.0.0.1/callback",)


@pytest.fixture
def spotify_fake(
    spotconn_clock: "FakeClock", spotify_client_id: str, spotify_redirect_uris: tuple[str, ...]
) -> "FakeSpotify":
    """Return a simulated Spotify.

    Its refresh tokens are strictly single-use: code that works with these works with reusable ones too.
    """
    from spotconn.testing import FakeSpotify

    return FakeSpotify(
        client_id=spotify_client_id,
        client_secret="demosecret",  # noqa: S106  of an app that does not exist
        redirect_uris=spotify_redirect_uris,
        rotation=True,
        clock=spotconn_clock,
    )


@pytest.fixture
def spotify_url(spotify_fake: "FakeSpotify", monkeypatch: pytest.MonkeyPatch) -> Generator[str]:
    """Serve the simulated Spotify on loopback; return its base URL, both as accounts service and as Web API.

    It answers in a thread of its own, whatever event loop the test or its service runs, and without one.
    """
    # A proxy of the environment cannot reach this host.
    exceptions = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    monkeypatch.setenv("no_proxy", f"{exceptions},127.0.0.1" if exceptions else "127.0.0.1")
    with spotify_fake.serve_in_thread() as url:
        yield url


@pytest.fixture
def spotify_scopes() -> frozenset[str]:
    """Return the scopes of the connected user; override it with a fixture of the same name."""
    return frozenset({"user-read-email", "user-top-read"})


@pytest.fixture(scope="session")
def spotconn_postgres(_spotconn_extra: None) -> "Generator[EmbeddedPostgres]":
    """Run a private Postgres with the schema applied, one for the whole run."""
    from spotconn.testing import EmbeddedPostgres, apply_schema

    with EmbeddedPostgres() as server:
        with pytest.MonkeyPatch.context() as monkeypatch:
            _delete_variables(monkeypatch, "PG")
            _run(apply_schema(server.dsn()))
        yield server


@pytest.fixture
def spotconn_dsn(spotconn_postgres: "EmbeddedPostgres", monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the URL of that Postgres for its superuser, without the users and clock steps of earlier tests.

    The variables of libpq (PGHOST, PGSSLMODE, PGOPTIONS, ...), which would alter connections, are deleted for the test.
    """
    from spotconn.testing._database import reset

    _delete_variables(monkeypatch, "PG")
    dsn = spotconn_postgres.dsn()
    _run(reset(dsn))
    return dsn


def _delete_variables(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    for name in [name for name in os.environ if name.startswith(prefix)]:
        monkeypatch.delenv(name)


def _run(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine in a thread: the one of the test may have an event loop, running or not."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, coroutine).result()


@async_fixture
async def spotconn_store(spotconn_dsn: str) -> "AsyncGenerator[ConnectionStore]":
    """Open a `ConnectionStore` on that Postgres."""
    from spotconn import ConnectionStore

    async with ConnectionStore.open(spotconn_dsn) as store:
        yield store


@async_fixture
async def spotconn_accounts(
    spotify_fake: "FakeSpotify", spotify_url: str, spotconn_clock: "FakeClock"
) -> "AsyncGenerator[SpotifyAccounts]":
    """Open `SpotifyAccounts` for the app of the simulated Spotify."""
    from spotconn import SpotifyAccounts

    async with SpotifyAccounts(
        spotify_fake.client_id,
        spotify_fake.client_secret,
        accounts_url=spotify_url,
        api_url=spotify_url,
        clock=spotconn_clock,
    ) as accounts:
        yield accounts


@async_fixture
async def spotconn_tokens(
    spotconn_store: "ConnectionStore", spotconn_accounts: "SpotifyAccounts", spotconn_clock: "FakeClock"
) -> "AsyncGenerator[TokenManager]":
    """Open a `TokenManager` over that store and those accounts."""
    from spotconn import TokenManager

    async with TokenManager(spotconn_store, spotconn_accounts, clock=spotconn_clock) as tokens:
        yield tokens


@async_fixture
async def spotconn_flow(
    spotconn_store: "ConnectionStore",
    spotconn_accounts: "SpotifyAccounts",
    spotify_fake: "FakeSpotify",
    spotify_scopes: frozenset[str],
    spotconn_clock: "FakeClock",
) -> "AsyncGenerator[ConnectFlow]":
    """Open a `ConnectFlow` over that store and those accounts; it asks for `spotify_scopes`."""
    from spotconn import ConnectFlow

    async with ConnectFlow(
        spotconn_store,
        spotconn_accounts,
        redirect_uri=spotify_fake.redirect_uris[0],
        scopes=sorted(spotify_scopes),
        clock=spotconn_clock,
    ) as flow:
        yield flow


@pytest.fixture
def spotconn_env(
    monkeypatch: pytest.MonkeyPatch,
    spotconn_dsn: str,
    spotify_url: str,
    spotify_fake: "FakeSpotify",
    spotconn_clock: "FakeClock",
) -> None:
    """Set the environment of a service for the test: `from_env` then leads to that Postgres and the simulated Spotify.

    DATABASE_URL, SPOTCONN_SPOTIFY_URL and the SPOTIFY_ variables are set, others that begin with SPOTCONN_ are deleted.
    Programs that the test starts inherit them. Within the process of the test `spotconn_clock` is the clock.
    """
    from spotconn import ConnectFlow, SpotifyAccounts, TokenManager

    _delete_variables(monkeypatch, "SPOTCONN_")
    monkeypatch.setenv("DATABASE_URL", spotconn_dsn)
    monkeypatch.setenv("SPOTCONN_SPOTIFY_URL", spotify_url)
    monkeypatch.setenv("SPOTIFY_CLIENT_ID", spotify_fake.client_id)
    monkeypatch.setenv("SPOTIFY_CLIENT_SECRET", spotify_fake.client_secret or "")
    monkeypatch.setenv("SPOTIFY_REDIRECT_URI", spotify_fake.redirect_uris[0])
    for made in (SpotifyAccounts, TokenManager, ConnectFlow):
        monkeypatch.setattr(made, "__init__", partialmethod(made.__init__, clock=spotconn_clock))


@async_fixture
async def spotconn_user(
    spotconn_store: "ConnectionStore", spotify_fake: "FakeSpotify", spotify_scopes: frozenset[str], spotconn_dsn: str
) -> UUID:
    """Return the id of a user who has connected the account "alice"; the access token is good for an hour."""
    from spotconn import Profile
    from spotconn.testing import add_user

    user_id = await add_user(spotconn_dsn)
    alice = spotify_fake.add_account("alice", display_name="Alice", email="alice@example.com")
    profile = Profile(spotify_user_id=alice.spotify_user_id, display_name=alice.display_name, email=alice.email)
    await spotconn_store.save(user_id, spotify_fake.authorize("alice", spotify_scopes), profile)
    return user_id
