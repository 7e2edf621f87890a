"""What chaos has found, each as a test of its own."""

import asyncio
import gc
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from spotconn import AesGcmSivCipher, ConnectionStore, DatabaseUnavailable, SpotifyAccounts, TokenManager
from spotconn._database.protected_loop import protected
from spotconn.testing import FakeSpotify
from support.connections import connect
from support.database import Database

MOST_STEPS = 40
"""Steps of the event loop within which a connection is made."""


@pytest.mark.parametrize("keys", [(), (AesGcmSivCipher.generate_key(),)], ids=["plain", "encrypted"])
async def test_a_token_that_was_served_unsaved_is_replaced_once_it_is_saved(
    database: Database,
    accounts: SpotifyAccounts,
    spotify: FakeSpotify,
    user: UUID,
    keys: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has no name in the database when it is cached, and the row must be found all the same."""
    cipher = AesGcmSivCipher(keys) if keys else None
    async with ConnectionStore.open(database.dsn, cipher=cipher, max_size=2) as store:
        store.changes = None  # nothing empties the cache
        tokens = TokenManager(store, accounts)
        await connect(store, spotify, user, ttl=-1)
        save = store.finish_refresh
        saved: list[object] = []

        async def unavailable_once(*args: object, **options: object) -> object:
            saved.append(args)
            if len(saved) == 1:
                raise DatabaseUnavailable("not now")
            return await save(*args, **options)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

        monkeypatch.setattr(store, "finish_refresh", unavailable_once)
        served = await tokens.get_valid_token(user)
        await tokens._source.refresher.unsaved.save(user)
        # There is no better one within its first minute.
        assert await tokens.get_valid_token(user, min_ttl=3000) == served
        cached = tokens._source._cache.entries[user]
        assert (await tokens._source.renew(user, cached)).access_token == served
        await tokens.aclose()
    assert spotify.refresh_calls == 1


@pytest.mark.long
async def test_a_log_in_that_is_cancelled_leaves_no_error_behind(database: Database) -> None:
    """At whichever step it is cancelled, the event loop has nothing to log."""
    loop = asyncio.get_running_loop()
    problems: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: problems.append(context))
    connect_protected = protected(asyncpg.connect)
    for steps in range(MOST_STEPS):
        task = asyncio.ensure_future(connect_protected(database.dsn, loop=loop))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(ended, asyncpg.Connection):
            ended.terminate()
        await asyncio.sleep(0.005)  # the end of the connection is read
        del task, ended
        gc.collect()
    assert problems == []
