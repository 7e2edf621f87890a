"""Refreshes in the background while the database fails: few, quiet, and there again within seconds."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore, DatabaseUnavailable, SpotifyAccounts, TokenManager
from spotconn.testing import Answer, FakeSpotify
from support.connections import connect
from support.database import Database
from support.fault_proxy import FaultProxy
from support.listening import SOON, until

USERS = 20
SECONDS = 4.0
"""Of an outage."""
FAILED = "a refresh in the background failed"


@pytest.fixture
async def tokens(database: Database, proxy: FaultProxy, accounts: SpotifyAccounts) -> AsyncIterator[TokenManager]:
    """One that reads each token anew."""
    async with (
        ConnectionStore.open(proxy.dsn(database.dsn), timeout=2, max_size=4) as store,
        TokenManager(store, accounts, cache_ttl=0) as manager,
    ):
        store.changes = None
        yield manager


async def stale_users(store: ConnectionStore, spotify: FakeSpotify, admin: asyncpg.Connection) -> dict[UUID, str]:
    """Connect users whose tokens are good for some minutes, and due for a refresh."""
    query = "insert into auth.users (email) select gen_random_uuid() from generate_series(1, $1) returning id"
    users = [row["id"] for row in await admin.fetch(query, USERS)]
    return {user: (await connect(store, spotify, user, account=str(user), ttl=100)).access_token for user in users}


async def refuse_writes(admin: asyncpg.Connection, *, refuse: bool) -> None:
    """Let the database be read-only, as after a demotion, for sessions that stand, too."""
    await admin.execute(f"alter system set default_transaction_read_only = {'on' if refuse else 'off'}")
    await admin.execute("select pg_reload_conf()")
    await until_shown(admin, "on" if refuse else "off")


async def until_shown(admin: asyncpg.Connection, value: str) -> None:
    async with asyncio.timeout(SOON):
        while await admin.fetchval("show default_transaction_read_only") != value:
            await asyncio.sleep(0.01)


def logged(caplog: pytest.LogCaptureFixture, text: str, level: int) -> int:
    return sum(text in record.getMessage() for record in caplog.records if record.levelno >= level)


async def test_an_outage_is_warned_of_once_and_over_within_seconds(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, proxy: FaultProxy, admin: asyncpg.Connection,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """All are served meanwhile; one attempt at a time shows whether it goes on; one line tells that it is over."""
    caplog.set_level(logging.DEBUG, "spotconn")
    users = await stale_users(store, spotify, admin)
    try:
        await refuse_writes(admin, refuse=True)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            for user, token in users.items():
                assert await tokens.get_valid_token(user) == token
            await asyncio.sleep(0.02)
    finally:
        await refuse_writes(admin, refuse=False)
    assert logged(caplog, FAILED, logging.WARNING) == 1
    assert logged(caplog, FAILED, logging.DEBUG) <= 2 * USERS
    attempts = sum(b"begin_refresh" in statement for statement in proxy.executed)
    assert attempts <= 3 * USERS  # a statement that was refused is perhaps repeated
    healed = time.monotonic()
    async with asyncio.timeout(SOON):
        while any([await tokens.get_valid_token(user) == token for user, token in users.items()]):
            await asyncio.sleep(0.02)
    assert time.monotonic() - healed < 12
    assert logged(caplog, "refreshes succeed again", logging.INFO) == 1


async def test_it_holds_back_nobody_whose_token_has_ended(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, admin: asyncpg.Connection, user: UUID
) -> None:
    """Such a caller has the error of the database at once, and a token with the first call after the outage."""
    before = await connect(store, spotify, user, ttl=-1)
    users = await stale_users(store, spotify, admin)
    try:
        await refuse_writes(admin, refuse=True)
        for other in users:
            await tokens.get_valid_token(other)
        await asyncio.gather(*tokens._source.refreshes.tasks)
        with pytest.raises(DatabaseUnavailable):
            await tokens.get_valid_token(user)
    finally:
        await refuse_writes(admin, refuse=False)
    assert await tokens.get_valid_token(user) != before.access_token


async def test_what_one_user_is_held_back_for_ends_with_a_rejected_token(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """A token that was granted just now pauses its refresh in the background, until the Web API refuses it."""
    stale = await connect(store, spotify, user, ttl=100)
    spotify.script(*[Answer(status=503)] * 20)
    await tokens.get_valid_token(user)
    await asyncio.gather(*tokens._source.refreshes.tasks)
    assert tokens._source._background.backoffs.error(user, stale.fingerprint, asyncio.get_running_loop().time())
    spotify._script.clear()
    async with asyncio.timeout(SOON):
        while True:
            try:
                await tokens.replace_rejected(user, stale.access_token)
                break
            except Exception:  # noqa: BLE001  Spotify has paused
                await asyncio.sleep(0.1)
    await until(lambda: not tokens._source._background.backoffs._backoffs)
