"""No error that nobody foresaw ends a task of the library: it is logged by its class, and the work is tried again."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore, SpotifyAccounts, TokenManager
from spotconn._tokens import source
from spotconn.testing import FakeSpotify
from support.connections import connect
from support.database import Database
from support.listening import trusted, until

SECRET = "marked-text-of-the-callable"
OTHERS = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'"


class Password:
    """A callable for the password, as for the tokens of an IAM, whose service is away at times."""

    def __init__(self) -> None:
        self.away = False
        self.refusals = 0

    def __call__(self) -> str:
        if self.away:
            self.refusals += 1
            raise LookupError(SECRET)
        return "app"

    async def refuse(self, admin: asyncpg.Connection) -> None:
        """Be away, and let every session of the store end."""
        self.away = True
        async with asyncio.timeout(20):
            while await admin.fetch(OTHERS):
                await asyncio.sleep(0.01)


@pytest.fixture
def password() -> Password:
    return Password()


@pytest.fixture
async def store(database: Database, password: Password) -> AsyncIterator[ConnectionStore]:
    async with ConnectionStore.open(database.dsn, password=password, min_size=0, max_size=2) as opened:
        yield opened


@pytest.mark.parametrize("closing", [False, True])
async def test_a_password_that_fails_for_a_while_loses_no_grant(
    store: ConnectionStore, password: Password, accounts: SpotifyAccounts, spotify: FakeSpotify,
    admin: asyncpg.Connection, user: UUID, caplog: pytest.LogCaptureFixture, *, closing: bool,
) -> None:  # fmt: skip
    """Spotify has replaced the refresh token: the grant is served, and saved in the end, also by `aclose`."""
    await connect(store, spotify, user, ttl=-1)
    tokens = TokenManager(store, accounts, cache_ttl=0)
    with spotify.hold() as held:
        caller = asyncio.create_task(tokens.get_valid_token(user))
        await held.reached()
        await password.refuse(admin)
    granted = await caller
    closed = asyncio.create_task(tokens.aclose()) if closing else None
    refusals = password.refusals
    await until(lambda: password.refusals >= refusals + 4)
    assert closed is None or not closed.done()
    password.away = False
    if closed is None:
        await until(lambda: tokens._source.refresher.unsaved.get(user) is None)
    await (closed or tokens.aclose())
    saved = await store.get(user)
    assert saved.access_token == granted
    assert spotify.accepts_refresh(saved.refresh_token)
    assert not [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert SECRET not in _logged(caplog)


async def test_a_password_that_fails_for_a_while_ends_no_comparison(
    store: ConnectionStore, password: Password, accounts: SpotifyAccounts, spotify: FakeSpotify,
    admin: asyncpg.Connection, user: UUID, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A row that has gone back in time is mended once the database can be reached again, also by `aclose`."""
    monkeypatch.setattr(source, "COMPARE_TIMEOUT", 30)
    before = await connect(store, spotify, user, ttl=-1)
    tokens = TokenManager(store, accounts, cache_ttl=0)
    granted = await tokens.get_valid_token(user)
    old = before.texts
    query = "update public.spotify_connections set access_token = $1, refresh_token = $2"
    await admin.execute(query, old.access_token, old.refresh_token)
    await password.refuse(admin)
    tokens._source.refresher.saved.compare()
    await until(lambda: password.refusals > 0)
    closed = asyncio.create_task(tokens.aclose())
    await until(lambda: password.refusals > 3)
    assert not closed.done()
    password.away = False
    await closed
    assert (await store.get(user)).access_token == granted
    assert SECRET not in _logged(caplog)


async def test_a_password_that_fails_for_a_while_ends_no_listening(
    store: ConnectionStore, password: Password, accounts: SpotifyAccounts, spotify: FakeSpotify,
    admin: asyncpg.Connection, user: UUID, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Notifications of changes arrive again afterwards."""
    caplog.set_level(logging.DEBUG, "spotconn")
    await connect(store, spotify, user)
    async with TokenManager(store, accounts) as tokens:
        await trusted(tokens, user)
        await password.refuse(admin)
        await until(lambda: not tokens._cache.trusted)
        refusals = password.refusals
        await until(lambda: password.refusals >= refusals + 2)
        password.away = False
        await until(lambda: tokens._cache.trusted)
    assert "notifications of changes do not arrive" in caplog.text
    assert SECRET not in _logged(caplog)


class Handler:
    """Receives changes; `distrust` raises while it `fails`, as a clock of the caller's may."""

    ttl = 30.0

    def __init__(self) -> None:
        self.fails = True
        self.heartbeats = 0

    def now(self) -> float:
        return time.time()

    def trust(self, sent: float, life: str) -> None:  # noqa: ARG002
        self.heartbeats += 1

    def distrust(self) -> None:
        if self.fails:
            raise LookupError(SECRET)

    def invalidate(self, user_id: UUID) -> None: ...

    def clear(self) -> None: ...


async def test_a_handler_that_fails_ends_no_listening(
    store: ConnectionStore, admin: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """An error while a lost session is handled is logged by its class, and the feed listens again."""
    handler = Handler()
    assert store.changes is not None
    store.changes.add(handler)
    await until(lambda: handler.heartbeats > 0)
    heartbeats = handler.heartbeats
    await admin.execute(OTHERS)
    await until(lambda: handler.heartbeats > heartbeats)
    handler.fails = False
    assert "cached for 30 s: LookupError" in caplog.text
    assert SECRET not in _logged(caplog)


def _logged(caplog: pytest.LogCaptureFixture) -> str:
    """What the library has logged, without asyncpg's own words."""
    return "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("spotconn"))
