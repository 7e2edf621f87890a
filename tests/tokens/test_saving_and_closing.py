"""Saving goes on and closing does its work, whatever comes in between."""

import asyncio
from uuid import UUID

import pytest

from spotconn import ConnectionStore, SpotifyAccounts, TokenManager
from spotconn.cipher import NoCipher, TokenColumn
from spotconn.testing import FakeSpotify
from support.connections import connect
from support.database import Database


class Moody(NoCipher):
    """A cipher of the caller's whose key service is away at times."""

    away = False

    def encrypt(self, token: str, *, user_id: UUID, column: TokenColumn) -> str:
        if self.away:
            raise OSError("no key service")
        return super().encrypt(token, user_id=user_id, column=column)


async def test_no_error_ends_the_saving(
    database: Database, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID, caplog: pytest.LogCaptureFixture
) -> None:
    """A grant whose cipher fails is served, and saved once the cipher works again."""
    cipher = Moody()
    async with ConnectionStore.open(database.dsn, cipher=cipher) as store, TokenManager(store, accounts) as tokens:
        await connect(store, spotify, user, ttl=-1)
        cipher.away = True
        token = await tokens.get_valid_token(user)
        cipher.away = False
        async with asyncio.timeout(20):
            while tokens._source.refresher.unsaved.get(user) is not None:
                await asyncio.sleep(0.01)
        assert (await store.get(user)).access_token == token
    assert token not in caplog.text


async def test_a_close_that_is_cancelled_does_the_rest_all_the_same(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID
) -> None:
    """Cancelled while it waits for a refresh, it ends the waiting of callers and the task that listens."""
    await connect(store, spotify, user, ttl=-1)
    tokens = TokenManager(store, accounts)
    with spotify.hold() as held:
        caller = asyncio.create_task(tokens.get_valid_token(user))
        await held.reached()
        closing = asyncio.create_task(tokens.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        with pytest.raises(RuntimeError, match="closed"):
            await caller
        assert not tokens._source.refreshes.tasks
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "spotconn-subscriber"]
    async with asyncio.timeout(20):
        while [task for task in asyncio.all_tasks() if task.get_name().startswith("spotconn")]:
            await asyncio.sleep(0.01)
