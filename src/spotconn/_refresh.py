"""The refresh protocol: how one process gets a connection that is good past a given moment.

The database decides who refreshes; no connection to it is held while Spotify is asked. Every write is a
compare-and-set on `expires_at`, the version of a connection, so a disconnect or a reconnect always wins.
"""

import asyncio
import logging
import random
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, assert_never
from uuid import UUID

from spotconn.accounts import SpotifyAccounts
from spotconn.errors import (
    ConfigurationError,
    NotConnected,
    ReauthorizationRequired,
    RefreshInProgress,
    SpotconnError,
    SpotifyUnavailable,
)
from spotconn.models import Connection, Outcome, RefreshFailure, RefreshTurn
from spotconn.store import ConnectionStore

_log = logging.getLogger("spotconn")

FIRST_PAUSE = 0.05
"""Seconds before the first second look at a busy connection; each next pause is twice as long."""
LONGEST_PAUSE = 1.0
"""Seconds of the longest such pause."""
LAPSED_PAUSE = 1.0
"""Seconds that an earlier holder of a lapsed lease is given to save what it got."""


@dataclass(frozen=True)
class Refresher:
    """Reads connections and refreshes those that end too early.

    Attributes:
        store: where the connections are.
        accounts: where they are refreshed.
        timeout: seconds for one call of `obtain`, up to Spotify's answer.
        lease: seconds after which another process may take a refresh over.
    """

    store: ConnectionStore
    accounts: SpotifyAccounts
    timeout: float
    lease: float

    async def obtain(self, user_id: UUID, seen: datetime) -> Connection:
        """A connection newer than `seen`: as stored, or refreshed by this process or another.

        Raises:
            NotConnected, ReauthorizationRequired: the user must connect.
            SpotifyUnavailable, RefreshInProgress, DatabaseUnavailable: not now.
            ConfigurationError, SchemaMismatch, RowSecurityError, DecryptionError: something is wrong here.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.timeout
        pause = FIRST_PAUSE
        while True:
            turn = await self.store.begin_refresh(user_id, seen=seen, lease=self.lease)
            left = deadline - loop.time()
            connection = await self._act(turn, left)
            if connection is not None:
                return connection
            # Jittered, so that the processes that wait do not all look at the same moment.
            wait = pause * random.uniform(0.5, 1)  # noqa: S311  no secret hangs on it
            if left <= wait:
                raise RefreshInProgress("another process is refreshing this connection", retry_after=turn.retry_after)
            await asyncio.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _act(self, turn: RefreshTurn, left: float) -> Connection | None:
        """Do what the database decided; None means look again."""
        match turn.outcome:
            case Outcome.GONE:
                raise NotConnected("no Spotify connection is stored for this user")
            case Outcome.SUPERSEDED:
                return turn.connection
            case Outcome.BLOCKED:
                raise blocked(turn)
            case Outcome.BUSY:
                return None
            case Outcome.GRANTED:
                return await self._refresh(turn, left)
            case _:
                assert_never(turn.outcome)

    async def _refresh(self, turn: RefreshTurn, left: float) -> Connection | None:
        """Ask Spotify, as the holder of the lease; None where another's write came first."""
        stored = stored_connection(turn)
        try:
            grant = await self.accounts.refresh(stored.refresh_token, timeout=max(left, 0.0))
        except ReauthorizationRequired as refusal:
            return await self._second_look(turn, refusal)
        except SpotifyUnavailable as failure:
            # What Spotify answered counts for every process; a fault of this host's network does not.
            reason: Literal["unavailable"] | None = "unavailable" if failure.answered else None
            await self._release(turn, RefreshFailure(reason=reason, retry_after=failure.retry_after))
            raise
        except ConfigurationError:
            await self._release(turn, RefreshFailure())
            raise
        return await self.store.finish_refresh(turn, grant)

    async def _second_look(self, turn: RefreshTurn, refusal: ReauthorizationRequired) -> Connection | None:
        """Record that the user must authorize again, unless the refused token is no longer the stored one."""
        stored = stored_connection(turn)
        if turn.lapsed:
            # An earlier holder let its lease run out; it may be saving the token that replaced the refused one.
            await asyncio.sleep(LAPSED_PAUSE)
        current = await self.store.get(turn.user_id)
        if current.expires_at != stored.expires_at:
            return None
        await self._release(turn, RefreshFailure(reason=refusal.reason))
        raise refusal

    async def _release(self, turn: RefreshTurn, failure: RefreshFailure) -> None:
        """End the lease. If the database is away it ends by itself; the caller's error is the one that counts."""
        try:
            await self.store.fail_refresh(turn, failure)
        except SpotconnError as error:
            _log.warning("a failed refresh could not be recorded: %s", error)


def stored_connection(turn: RefreshTurn) -> Connection:
    """The connection of a turn that has one."""
    if turn.connection is None:
        raise ValueError(f"turn: no connection in one that is {turn.outcome.value}")
    return turn.connection


def blocked(turn: RefreshTurn) -> SpotconnError:
    """The error for a connection whose recorded failure still counts."""
    connection = stored_connection(turn)
    if connection.failure is None or connection.reauthorization is None:
        return SpotifyUnavailable("Spotify did not refresh this connection lately", retry_after=turn.retry_after)
    return ReauthorizationRequired(connection.reauthorization, connection.failure.since)
