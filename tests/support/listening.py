"""What a manager remembers while it listens for changes."""

import asyncio
import time
from collections.abc import Callable
from uuid import UUID, uuid4

from spotconn import NotConnected, TokenManager
from spotconn._database.change_feed import ChangeFeed

SECOND = 1.0
"""After the commit of a disconnect, in which every listening process has to know."""
SOON = 20.0


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON):
        while not holds():
            await asyncio.sleep(0.005)


async def trusted(tokens: TokenManager, user: UUID) -> None:
    """Let a manager listen, and then remember the token of a user until it is stale."""
    await tokens.get_valid_token(user)
    await until(lambda: tokens._cache.trusted)
    await passed(tokens)
    tokens._cache.invalidate(user)
    await tokens.get_valid_token(user)
    assert tokens._cache.entries[user].fresh_until > time.time() + 60


async def passed(tokens: TokenManager) -> None:
    """Let a manager that listens handle what was notified before."""
    marker = uuid4()
    with tokens._cache.reading(marker) as pending:
        await tokens.store.pool._pool.execute("select pg_notify('spotconn', $1)", str(marker))
        await until(lambda: pending.void)


def feed_of(tokens: TokenManager) -> ChangeFeed:
    """Return the changes that the store of a manager listens for."""
    assert tokens.store.changes is not None
    return tokens.store.changes


async def served_for(tokens: TokenManager, user: UUID) -> float:
    """Seconds for which the token of a user who was just disconnected is still served."""
    begun = served = time.monotonic()
    async with asyncio.timeout(SOON):
        while True:
            try:
                await tokens.get_valid_token(user)
            except NotConnected:
                return served - begun
            served = time.monotonic()
            await asyncio.sleep(0.001)
