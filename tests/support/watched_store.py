"""Stores that tell what is asked of them, and calls that make a manager export everything it can."""

import asyncio
from collections.abc import Iterable
from uuid import UUID

import asyncpg
import pytest

from spotconn import (
    Connection,
    ConnectionStore,
    DatabaseUnavailable,
    Outcome,
    ReauthorizationRequired,
    RefreshFailure,
    RefreshTurn,
    SpotconnError,
    TokenManager,
    UserId,
)
from spotconn.testing import FakeSpotify
from support.connections import connect
from support.listening import until


class WatchedStore(ConnectionStore):
    """A store that tells when a turn is asked for and when it was denied."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        super().__init__(pool)
        self.requested, self.busy = asyncio.Event(), asyncio.Event()
        self.turns = 0

    async def begin_refresh(
        self, user_id: UserId, *, seen: str, lease: float = 15, client_ids: Iterable[str] = ()
    ) -> RefreshTurn:
        self.requested.set()
        self.turns += 1
        turn = await super().begin_refresh(user_id, seen=seen, lease=lease, client_ids=client_ids)
        if turn.outcome is Outcome.BUSY:
            self.busy.set()
        return turn


class LostStore(ConnectionStore):
    """A store whose database does not answer to the reading of many users."""

    reads = 0

    async def get_many(self, user_ids: Iterable[UserId]) -> dict[UUID, Connection | SpotconnError]:
        self.reads += len(set(user_ids))
        raise DatabaseUnavailable("no answer in time")


async def report(tokens: TokenManager, user: UUID, status: int, body: str = "") -> None:
    """Report an answer of the Web API, and wait until it is recorded."""
    tokens.report_answer(user, status, body)
    await until(lambda: not tokens._source.answers.tasks)


async def everything(tokens: TokenManager, store: WatchedStore, spotify: FakeSpotify, users: list[UUID]) -> None:
    """A read, a refresh, a hit of the cache, a wait for a lease, a connection that has ended and an app refused."""
    await connect(store, spotify, users[1], account="bob")
    await tokens.get_valid_token(users[1])
    stored = await connect(store, spotify, users[0], ttl=-1)
    turn = await store.begin_refresh(users[0], seen=stored.fingerprint, lease=30)
    call = asyncio.create_task(tokens.get_valid_token(users[0]))
    await store.busy.wait()
    await store.fail_refresh(turn, RefreshFailure())
    token = await call
    assert await tokens.get_valid_token(users[0]) == token
    await connect(store, spotify, users[1], account="bob", ttl=-1)
    spotify.revoke("bob")
    with pytest.raises(ReauthorizationRequired):
        await tokens.get_valid_token(users[1])
    await report(tokens, users[0], 403, "Active premium subscription required for the owner of the app.")
    with pytest.raises(ValueError, match="UUID"):
        await tokens.get_valid_token(token)
