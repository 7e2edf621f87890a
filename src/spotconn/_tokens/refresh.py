"""The refresh protocol: how one process reads a token, and gets another in place of one found wanting.

The database decides who refreshes; no connection to it is held while Spotify is asked. A refresh is saved where the row
still holds the refresh token that was sent, so a disconnect or a reconnect always wins. A grant is kept from Spotify's
answer until it is saved.
"""

import asyncio
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import TypeVar, assert_never
from uuid import UUID

from spotconn import events
from spotconn._affinity import Affinity
from spotconn._backoff import Backoff
from spotconn._observer import NOBODY, Observer
from spotconn._stopwatch import Stopwatch, loop_time
from spotconn._tokens.apps import Apps
from spotconn._tokens.arguments import Times
from spotconn._tokens.cache import ConnectionCache
from spotconn._tokens.lease_holder import LeaseHolder
from spotconn._tokens.local_backoff import LocalBackoffs
from spotconn._tokens.replacement import Attempt, Replacement
from spotconn._tokens.saved_grants import MOST_RESTORES, SavedGrants
from spotconn._tokens.server_watch import ServerWatch
from spotconn._tokens.stored_token import StoredToken, reauthorization
from spotconn._tokens.unsaved_grants import UnsavedGrants
from spotconn.errors import DatabaseUnavailable, NotConnected, RefreshInProgress, SpotconnError, SpotifyUnavailable
from spotconn.models import Connection
from spotconn.store import ConnectionStore
from spotconn.turns import Outcome, RefreshTurn

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds between two looks at a connection that another process refreshes."""


class Refresher:
    """Reads tokens and replaces those found wanting.

    Args:
        store: holds the connections.
        apps: refresh them.
        cache: holds the tokens that this process has read.
        emitter: emits what happens to them.
        affinity: of the manager: once that is closed, no new refresh begins.
        times: of the manager.
        clock: gives seconds since the epoch.

    Attributes:
        backoffs: of this host, by user.
        unsaved: grants that are not saved yet.
        saved: grants that this process has saved.
        watch: looks for another server.
        observer: is told of refreshes and of waits for those of others.
    """

    def __init__(  # noqa: PLR0917  the parts that it puts together
        self,
        store: ConnectionStore,
        apps: Apps,
        cache: ConnectionCache,
        emitter: events.Events,
        affinity: Affinity,
        times: Times,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._apps = apps
        self._affinity = affinity
        self._times = times
        self._clock = clock
        self.backoffs = LocalBackoffs(lambda: apps.secret_changes)
        self.saved = SavedGrants(store, emitter)
        self.watch = ServerWatch(store, self.saved)
        self.unsaved = UnsavedGrants(store, self.saved, self.watch, cache, emitter)
        self._holder = LeaseHolder(
            store, apps, self.unsaved, self.watch, self.backoffs, emitter, affinity, times, clock=clock
        )
        self.observer: Observer = NOBODY

    def observe(self, observer: Observer) -> None:
        """Report to an observer."""
        self.observer = self._holder.observer = self.saved.observer = observer
        self._apps.observe(observer)

    async def read(self, user_id: UUID) -> StoredToken:
        """Return the stored token of a user, or that of an unsaved grant.

        Raises:
            NotConnected: there is none.
            DatabaseUnavailable, SchemaMismatch, RowSecurityError, DecryptionError: it could not be read.
        """
        if self.unsaved.holds(user_id) and (saved := await self._save_first(user_id)) is not None:
            return saved
        read_at = self._clock()
        try:
            return StoredToken.of(await self._answer(self._store.tokens.get(user_id)), read_at)
        except DatabaseUnavailable:
            if (granted := self.unsaved.get(user_id)) is None:  # it may have been granted meanwhile
                raise
        return granted

    async def refresh(self, user_id: UUID, wanting: StoredToken) -> Replacement:
        """Return another token than the one found wanting, granted to this process or to another.

        Raises:
            NotConnected, ReauthorizationRequired: the user must connect.
            SpotifyUnavailable, RefreshInProgress, DatabaseUnavailable: not now.
            ConfigurationError, SchemaMismatch, RowSecurityError, DecryptionError: something is wrong here.
            RuntimeError: the manager or the accounts are closed.
        """
        self._apps.check()  # before a lease is taken
        ours = await self._save_first(user_id, wanting)
        if ours is not None and ours.access_token != wanting.access_token:
            return Replacement(ours, best=True)
        wanting = ours or wanting
        if self.paused(user_id, wanting):
            await self._apps.reread_secrets()  # another one ends the pause
        if error := self.backoffs.error(user_id, wanting.fingerprint, loop_time()):
            wanting, remaining = await self._other_stored(user_id, wanting, error)
            if remaining > 0:
                return Replacement(wanting, best=False)
        attempt = Attempt(user_id, wanting, Stopwatch(self._clock))
        try:
            return await self._take_turns(attempt)
        finally:
            if attempt.waited:
                self.observer.leased(user_id, attempt.waited)

    def paused(self, user_id: UUID, found: StoredToken) -> bool:
        """Return whether this host has reason not to ask Spotify now for another token than the one found."""
        return self.backoffs.error(user_id, found.fingerprint, loop_time()) is not None

    @contextmanager
    def rejecting(self, user_id: UUID, access_token: str) -> Generator[None]:
        """Context manager: a caller waits for another token than one that the Web API has refused."""
        self.unsaved.reject(user_id, access_token)
        self.saved.reject(user_id, access_token)
        with self._holder.rejecting(access_token):
            yield

    def on_write(self, user_id: UUID) -> None:
        """Handle that a user has connected or disconnected through this process, or may have."""
        self.unsaved.doubt(user_id)
        self.saved.forget(user_id)  # a row that a failover brings back is not what the user has chosen last
        self._holder.doubt(user_id)
        self.backoffs.end(user_id)

    async def _save_first(self, user_id: UUID, wanting: StoredToken | None = None) -> StoredToken | None:
        """Save the unsaved grant of a user, if there is one, and return its token, saved or not.

        Raises:
            SpotconnError: it could not be saved, and its token is the one found wanting, or may not be served.
        """
        unsaved = self.unsaved.get(user_id)
        read_at = self._clock()
        try:
            saved = await self.unsaved.save(user_id)
        except Exception:
            unsaved = unsaved and self.unsaved.get(user_id)  # the user may have disconnected meanwhile
            if unsaved is None or (wanting is not None and unsaved.access_token == wanting.access_token):
                raise
            return unsaved
        return None if saved is None else StoredToken.of(saved, read_at)

    async def _answer(self, call: Awaitable[T]) -> T:
        """Return the answer of the database; after it was away, compare what this process has saved with the rows."""
        try:
            answer = await call
        except DatabaseUnavailable as error:
            if not error.locked:
                self.saved.database_lost()
            raise
        self.saved.database_answered()
        self.watch.start()
        return answer

    async def _other_stored(
        self, user_id: UUID, wanting: StoredToken, error: SpotconnError
    ) -> tuple[StoredToken, float]:
        """Return the stored token and the seconds left of it, if it is another one than Spotify was asked about."""
        read_at = self._clock()
        connection = await self._answer(self._store.get(user_id))
        found = StoredToken.of(connection, read_at)
        if found.access_token != wanting.access_token:
            return found, connection.remaining
        failure = connection.failure
        if failure is not None and failure.retry_at is None and connection.is_refused_to(self._apps.accounts):
            raise reauthorization(failure) or error
        raise error

    async def _take_turns(self, attempt: Attempt) -> Replacement:
        backoff = Backoff(first=FIRST_PAUSE, longest=LONGEST_PAUSE)
        looks = 0
        while True:
            looks += 1
            self._affinity.check()
            # Another flight of this user may have been granted a token meanwhile, of which the database does not know.
            ours = await self._save_first(attempt.user_id, attempt.wanting)
            if ours is not None and ours.access_token != attempt.wanting.access_token:
                return Replacement(ours, best=True)
            leased = Stopwatch(self._clock)  # the lease begins no earlier
            turn = await self._answer(
                self._store.begin_refresh(
                    attempt.user_id,
                    seen=attempt.wanting.fingerprint,
                    lease=self._times.lease,
                    client_ids=self._apps.accounts,
                )
            )
            replacement = await self._act(turn, attempt, leased)
            if replacement is not None:
                return replacement
            delay = backoff.next_pause()
            if attempt.begun.elapsed + delay >= self._times.timeout and (turn.outcome is Outcome.BUSY or looks > 1):
                raise _late(turn)
            await asyncio.sleep(delay)
            if turn.outcome is Outcome.BUSY:
                attempt.waited += delay

    async def _act(self, turn: RefreshTurn, attempt: Attempt, leased: Stopwatch) -> Replacement | None:
        """Do what the database decided. None means: look again."""
        if turn.connection is None:
            raise NotConnected("no Spotify connection is stored for this user")
        if attempt.restored < MOST_RESTORES and await self.saved.restore(turn.connection, turn.lease_id):
            attempt.restored += 1
            return None
        found = StoredToken.of(turn.connection, leased.began)
        match turn.outcome:
            case Outcome.SUPERSEDED if found.access_token == attempt.wanting.access_token:
                attempt.wanting = found  # a rekey has stored another text of the same token
                return None
            case Outcome.SUPERSEDED:
                return Replacement(found, best=attempt.waited > 0)  # who has waited has what was just granted
            case Outcome.JUST_SAVED:
                return Replacement(found, best=True, retry_after=turn.retry_after)
            case Outcome.REFUSED | Outcome.OTHER_APP | Outcome.PAUSED:
                raise self._blocked(turn, turn.connection)
            case Outcome.GRANTED:
                if turn.lease_until is not None:  # the lease began by the clock of the database
                    self.observer.clock(turn.lease_until.timestamp() - self._times.lease - leased.began)
                with self.observer.refreshing(turn.user_id):
                    token = await self._holder.refresh(turn, turn.connection, leased)
                return None if token is None else Replacement(token, best=True)
            case Outcome.BUSY | Outcome.GONE:  # gone has no connection
                return None
            case _:
                assert_never(turn.outcome)

    def _blocked(self, turn: RefreshTurn, connection: Connection) -> SpotconnError:
        """Return the error for a connection that this process may not refresh now."""
        error: SpotconnError
        if turn.outcome is Outcome.OTHER_APP and connection.client_id is not None:
            error = self._apps.error_without(connection.client_id, connection)
        elif refusal := reauthorization(connection.failure):
            return refusal
        else:
            error = SpotifyUnavailable("Spotify did not refresh this connection lately", retry_after=turn.retry_after)
        self.backoffs.begin(turn.user_id, connection.fingerprint, error, loop_time())
        return error


def _late(turn: RefreshTurn) -> SpotconnError:
    """Return the error of a caller whose time is over."""
    if turn.outcome is Outcome.BUSY:
        return RefreshInProgress("another process is refreshing this connection", retry_after=turn.retry_after)
    return DatabaseUnavailable("the database answers too slowly to refresh within a lease; try again later")
