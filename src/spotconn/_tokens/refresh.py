"""The refresh protocol: how one process reads a connection, and gets another in place of one found wanting.

The database decides who refreshes; no connection to it is held while Spotify is asked. Every write is a
compare-and-set on `expires_at`, the version of a connection, so a disconnect or a reconnect always wins. A grant is
kept from Spotify's answer until it is saved.
"""

import asyncio
import logging
import random
from datetime import datetime
from typing import NamedTuple, assert_never
from uuid import UUID

from spotconn import events
from spotconn._observer import NOBODY
from spotconn._tokens.local_backoff import LocalBackoffs
from spotconn._tokens.unsaved_grants import UnsavedGrants
from spotconn.accounts import SpotifyAccounts
from spotconn.errors import (
    ConfigurationError,
    NotConnected,
    ReauthorizationRequired,
    RefreshInProgress,
    SpotconnError,
    SpotifyUnavailable,
)
from spotconn.models import Connection, Outcome, RefreshFailure, RefreshTurn, TokenGrant
from spotconn.store import ConnectionStore

_log = logging.getLogger("spotconn")

FIRST_PAUSE = 0.05
"""Seconds before the first second look at a busy connection; each next pause is twice as long."""
LONGEST_PAUSE = 1.0
"""Seconds of the longest such pause."""
LAPSED_PAUSE = 1.0
"""Seconds that an earlier holder of a lapsed lease is given to save what it got."""


class Replacement(NamedTuple):
    """What came in place of a connection found wanting.

    Attributes:
        connection: the other one.
        just_granted: whether its token comes straight from Spotify, so that there is no better one.
    """

    connection: Connection
    just_granted: bool


class Refresher:
    """Reads connections and refreshes those found wanting.

    Args:
        store: holds the connections.
        accounts: refreshes them.
        emitter: emits what happens to them.
        timeout: seconds to wait for another process, and seconds for Spotify's answer.
        lease: seconds after which another process may take a refresh over.

    Attributes:
        unsaved: grants that are not saved yet.
        observer: is told of refreshes and of waits for those of others.
    """

    def __init__(
        self,
        store: ConnectionStore,
        accounts: SpotifyAccounts,
        emitter: events.Events,
        *,
        timeout: float,
        lease: float,
    ) -> None:
        self._store = store
        self._accounts = accounts
        self._events = emitter
        self._timeout = timeout
        self._lease = lease
        self._backoffs = LocalBackoffs()
        self.unsaved = UnsavedGrants(store)
        self.observer = NOBODY

    async def read(self, user_id: UUID) -> Connection:
        """Return the stored connection of a user, or as it will be once an unsaved grant is saved.

        Raises:
            NotConnected: there is none.
            DatabaseUnavailable, SchemaMismatch, RowSecurityError, DecryptionError: it could not be read.
        """
        saved = None
        try:
            saved = await self.unsaved.save(user_id)
        except Exception:
            if (unsaved := self.unsaved.get(user_id)) is not None:
                return unsaved
            raise
        return saved or await self._store.get(user_id)

    async def refresh(self, user_id: UUID, seen: datetime) -> Replacement:
        """Return another connection than the one found wanting, refreshed by this process or by another.

        Args:
            user_id: whose connection.
            seen: the version (`expires_at`) of the one found wanting; an earlier one is of no use either.

        Raises:
            NotConnected, ReauthorizationRequired: the user must connect.
            SpotifyUnavailable, RefreshInProgress, DatabaseUnavailable: not now.
            ConfigurationError, SchemaMismatch, RowSecurityError, DecryptionError: something is wrong here.
        """
        self._accounts.affinity.check()  # before a lease is taken
        unsaved = self.unsaved.get(user_id)
        try:
            await self.unsaved.save(user_id)
        except Exception:
            if unsaved is None or unsaved.expires_at <= seen:
                raise
            return Replacement(unsaved, just_granted=True)
        if error := self._backoffs.error(user_id, _now()):
            return await self._stored(user_id, seen, error)
        return await self._take_turns(user_id, seen)

    def paused(self, user_id: UUID) -> bool:
        """Return whether this host has reason not to ask Spotify for a user now."""
        return self._backoffs.error(user_id, _now()) is not None

    async def _stored(self, user_id: UUID, seen: datetime, error: SpotconnError) -> Replacement:
        """Return the stored connection if it is newer than `seen`, while this host has reason not to ask Spotify."""
        connection = await self._store.get(user_id)
        if connection.expires_at > seen:
            return Replacement(connection, just_granted=False)
        raise reauthorization(connection) or error

    async def _take_turns(self, user_id: UUID, seen: datetime) -> Replacement:
        deadline = _now() + self._timeout
        interval, waited = FIRST_PAUSE, 0.0
        try:
            while True:
                turn = await self._store.begin_refresh(user_id, seen=seen, lease=self._lease)
                connection = await self._act(turn)
                if connection is not None:
                    # Who had to wait has what another process was just granted.
                    just_granted = turn.outcome is Outcome.GRANTED or waited > 0
                    return Replacement(connection, just_granted)
                # Jittered, so that the processes that wait do not all look at the same moment.
                wait = interval * random.uniform(0.5, 1)  # noqa: S311  no secret hangs on it
                if deadline - _now() <= wait:
                    busy = "another process is refreshing this connection"
                    raise RefreshInProgress(busy, retry_after=turn.retry_after)
                await asyncio.sleep(wait)
                waited += wait
                interval = min(2 * interval, LONGEST_PAUSE)
        finally:
            if waited:
                self.observer.leased(user_id, waited)

    async def _act(self, turn: RefreshTurn) -> Connection | None:
        """Do what the database decided. None means: look again."""
        match turn.outcome:
            case Outcome.GONE:
                raise NotConnected("no Spotify connection is stored for this user")
            case Outcome.SUPERSEDED:
                return turn.connection
            case Outcome.BLOCKED:
                raise self._blocked(turn)
            case Outcome.BUSY:
                return None
            case Outcome.GRANTED:
                with self.observer.refreshing(turn.user_id):
                    return await self._refresh(turn)
            case _:
                assert_never(turn.outcome)

    def _blocked(self, turn: RefreshTurn) -> SpotconnError:
        """Return the error for a connection whose recorded failure still counts."""
        if refusal := reauthorization(_of(turn)):
            return refusal
        error = SpotifyUnavailable("Spotify did not refresh this connection lately", retry_after=turn.retry_after)
        self._backoffs.begin(turn.user_id, error, _now())
        return error

    async def _refresh(self, turn: RefreshTurn) -> Connection | None:
        """Ask Spotify, as the holder of the lease. None means: another write came first.

        The holder of the lease gets the full timeout, however long it waited for it: an answer that comes too late
        for its callers may hold the only refresh token that is still good.
        """
        stored, begun = _of(turn), _now()
        try:
            grant = await self._accounts.refresh(stored.refresh_token, timeout=self._timeout)
        except ReauthorizationRequired as refusal:
            return await self._second_look(turn, refusal)
        except (SpotifyUnavailable, ConfigurationError) as error:
            await self._failed(turn, error)
            raise
        self._backoffs.end(turn.user_id)
        return await self._save(turn, grant, _now() - begun)

    async def _save(self, turn: RefreshTurn, grant: TokenGrant, duration: float) -> Connection | None:
        stored = _of(turn)
        self.unsaved.add(turn, stored, grant)
        try:
            saved = await self.unsaved.save(turn.user_id)
        except Exception:  # noqa: BLE001  also of a cipher of the caller's: the grant is good
            saved = self.unsaved.get(turn.user_id)
        if saved is None:
            return None
        self._events.emit(events.Refreshed(user_id=turn.user_id, expires_at=saved.expires_at, duration=duration))
        if stored.failure is not None:
            self._events.emit(events.Recovered(user_id=turn.user_id, failure=stored.failure.reason))
        return saved

    async def _second_look(self, turn: RefreshTurn, refusal: ReauthorizationRequired) -> Connection | None:
        """Record that the user must authorize again, unless the refused token is no longer the stored one."""
        stored = _of(turn)
        if turn.lapsed:
            # An earlier holder let its lease run out; it may be saving the token that replaced the refused one.
            await asyncio.sleep(LAPSED_PAUSE)
        current = await self._store.get(turn.user_id)
        if current.expires_at != stored.expires_at:
            return None
        if not await self._store.fail_refresh(turn, RefreshFailure(reason=refusal.reason)):
            return None  # the lease has passed to another, who decides
        self._events.emit(events.ReauthorizationRequired(user_id=turn.user_id, reason=refusal.reason))
        raise refusal

    async def _failed(self, turn: RefreshTurn, error: SpotifyUnavailable | ConfigurationError) -> None:
        """End the lease and back off: every process after Spotify's answer, only this one after a fault of its own."""
        # What Spotify answered of this connection counts for every process; a fault of this host's network does not,
        # nor do the app's credentials, which another process may have right.
        if isinstance(error, SpotifyUnavailable) and error.answered:
            failure = RefreshFailure(reason="unavailable", retry_after=error.retry_after)
        else:
            failure = RefreshFailure()
            self._backoffs.begin(turn.user_id, error, _now())
        try:
            await self._store.fail_refresh(turn, failure)
        except SpotconnError as unrecorded:
            # The lease ends by itself; the caller's error is the one that counts.
            _log.warning("a failed refresh could not be recorded: %s", unrecorded)
        self._events.emit(
            events.RefreshFailed(
                user_id=turn.user_id,
                error=type(error).__name__,
                message=str(error),
                retry_after=error.retry_after if isinstance(error, SpotifyUnavailable) else None,
            )
        )


def _now() -> float:
    return asyncio.get_running_loop().time()


def _of(turn: RefreshTurn) -> Connection:
    if turn.connection is None:
        raise ValueError(f"turn: no connection in one that is {turn.outcome.value}")
    return turn.connection


def reauthorization(connection: Connection) -> ReauthorizationRequired | None:
    """Return the error for a connection whose recorded failure is final, or None."""
    if connection.failure is None or connection.reauthorization is None:
        return None
    return ReauthorizationRequired(connection.reauthorization, connection.failure.since)
