"""Grants received from Spotify and not saved yet."""

import asyncio
import logging
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from uuid import UUID

from spotconn import events
from spotconn._backoff import Backoff
from spotconn._stopwatch import Stopwatch
from spotconn._tokens.cache import ConnectionCache
from spotconn._tokens.saved_grants import SavedGrants
from spotconn._tokens.server_watch import ServerWatch
from spotconn._tokens.stored_token import StoredToken
from spotconn.errors import SpotconnError
from spotconn.models import Connection, TokenGrant
from spotconn.store import ConnectionStore
from spotconn.turns import RefreshTurn

_log = logging.getLogger("spotconn")

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 4.0
"""Seconds between two attempts to save a grant."""
MOST_SAVERS = 3
"""Grants that are saved at once again, so that rows that are locked do not take all connections of the pool."""
STOP_TIMEOUT = 1.0
"""Seconds that a cancelled attempt has to end."""


@dataclass(eq=False, repr=False)
class UnsavedGrant:
    """A grant of Spotify for a turn at a refresh.

    Attributes:
        turn: in which it was granted.
        grant: as Spotify gave it.
        client_id: of the app with which it was granted.
        requested: runs since Spotify was asked.
        token: what is served until it is saved.
        rejected: whether the Web API has refused the access token that it replaces.
        useless: whether the Web API has refused its own access token.
        doubtful: whether the user has connected or disconnected since, or may have: then it is not served.
        settled: whether an attempt has saved it, or has found that another write came first.
        saved: the connection, once it is saved.
    """

    turn: RefreshTurn
    grant: TokenGrant
    client_id: str
    requested: Stopwatch
    token: StoredToken
    rejected: bool = False
    useless: bool = False
    doubtful: bool = False
    settled: bool = False
    saved: Connection | None = None

    @property
    def age(self) -> Stopwatch | float:
        """Seconds since Spotify was asked; the whole life of a useless token."""
        return self.grant.expires_in or 0.0 if self.useless else self.requested


class UnsavedGrants:
    """Holds each grant until it is saved, so that only the death of this process can lose one.

    Each user's grant is saved by itself: one that cannot be saved holds up no other.

    Args:
        store: saves them.
        saved: remembers each that was saved.
        watch: looks for another server from then on.
        cache: is invalidated where another write came first.
        emitter: emits what a grant has ended.
    """

    def __init__(
        self,
        store: ConnectionStore,
        saved: SavedGrants,
        watch: ServerWatch,
        cache: ConnectionCache,
        emitter: events.Events,
    ) -> None:
        self._store = store
        self._saved = saved
        self._watch = watch
        self._cache = cache
        self._events = emitter
        self._unsaved: dict[UUID, UnsavedGrant] = {}
        self._savers: dict[UUID, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(MOST_SAVERS)

    def add(self, unsaved: UnsavedGrant) -> None:
        """Add a grant, in place of one of the same user for which Spotify was asked earlier.

        Two are under way where another writer has replaced the refresh token since the first was asked for; they may
        come in either sequence, and the later one is of the row that stands.
        """
        other = self._unsaved.get(unsaved.turn.user_id)
        if other is None or other.requested.elapsed >= unsaved.requested.elapsed:
            self._unsaved[unsaved.turn.user_id] = unsaved

    def get(self, user_id: UUID) -> StoredToken | None:
        """Return the token of a user's unsaved grant that may be served, if there is one."""
        unsaved = self._unsaved.get(user_id)
        return None if unsaved is None or unsaved.doubtful else unsaved.token

    def holds(self, user_id: UUID) -> bool:
        """Return whether a user has a grant that is not saved yet."""
        return user_id in self._unsaved

    def doubt(self, user_id: UUID) -> None:
        """Serve the grant of a user no more: they have connected or disconnected, or may have."""
        if (unsaved := self._unsaved.get(user_id)) is not None:
            unsaved.doubtful = True

    def reject(self, user_id: UUID, access_token: str) -> None:
        """Save a grant as ended, if the Web API has refused this access token of it."""
        unsaved = self._unsaved.get(user_id)
        if unsaved is not None and unsaved.grant.access_token == access_token:
            unsaved.useless = True

    def clear(self) -> None:
        """Drop all grants, in a process that must not save them."""
        self._unsaved.clear()

    async def save(self, user_id: UUID) -> Connection | None:
        """Save the grant of a user.

        Returns:
            The saved connection; None if there was no grant, or another write came first.

        Raises:
            SpotconnError: it could not be saved now; a task goes on trying.
        """
        unsaved = self._unsaved.get(user_id)
        if unsaved is None:
            return None
        try:
            return await self._save(unsaved)
        except BaseException as error:  # also a cancellation
            if unsaved.settled and isinstance(error, Exception):
                return unsaved.saved  # another attempt has come through meanwhile
            self._start_saver(user_id)
            raise

    async def flush(self, *, seconds: float) -> None:
        """Try for the last time to save all grants. Log as critical those that cannot be saved within `seconds`."""
        try:
            await self._stop_savers()  # they may be in a pause
            self._savers.clear()
            if savers := [self._start_saver(user_id) for user_id in self._unsaved]:
                await asyncio.wait(savers, timeout=seconds)
        finally:  # also after a cancellation
            await self._stop_savers()
            for user_id in self._unsaved:
                _log.critical(
                    "the refreshed connection of user %s could not be saved before shutdown; if Spotify has replaced "
                    "its refresh token, the user must connect again",
                    user_id,
                )
            self._unsaved.clear()

    async def _stop_savers(self) -> None:
        savers = list(self._savers.values())
        for saver in savers:
            saver.cancel()
        if savers:
            await asyncio.wait(savers, timeout=STOP_TIMEOUT)

    async def _save(self, unsaved: UnsavedGrant) -> Connection | None:
        user_id = unsaved.turn.user_id
        saved = await self._store.refreshes.finish(
            unsaved.turn, unsaved.grant, age=unsaved.age, rejected=unsaved.rejected, client_id=unsaved.client_id
        )
        unsaved.settled, unsaved.saved = True, saved
        if self._unsaved.get(user_id) is unsaved:
            del self._unsaved[user_id]
            self._remember(unsaved, saved)
        return saved

    def _remember(self, unsaved: UnsavedGrant, saved: Connection | None) -> None:
        """Remember a grant that was saved, or that another write has kept from it."""
        before, grant = unsaved.turn.connection, unsaved.grant
        if before is None:
            return
        texts = self._store.refreshes.encrypt(before, grant) if saved is None else saved.texts
        saves = (before.saves or 0) + 1 if saved is None else saved.saves or 0
        family = before.family if saved is None else saved.family
        self._saved.add(
            before,
            texts,
            grant.access_token,
            saves=saves,
            family=family,
            client_id=unsaved.client_id,
            expires_in=grant.expires_in or 0.0,
            requested=unsaved.requested,
        )
        self._watch.start()
        if unsaved.useless:
            self._saved.reject(before.user_id, grant.access_token)
        if saved is None:  # another write came first, or the row has gone back in time
            self._cache.invalidate(before.user_id)
            self._saved.compare([before.user_id])
        elif saved.recovered is not None:
            self._events.emit(
                events.Recovered(user_id=before.user_id, client_id=saved.client_id, failure=saved.recovered)
            )

    def _start_saver(self, user_id: UUID) -> asyncio.Task[None]:
        saver = self._savers.get(user_id)
        if saver is None or saver.done():
            # In a context of its own: it outlives the call that starts it, and is no part of its trace.
            saver = asyncio.create_task(self._keep_saving(user_id), name="spotconn-saver", context=Context())
            self._savers[user_id] = saver
            saver.add_done_callback(partial(self._ended, user_id))
        return saver

    def _ended(self, user_id: UUID, saver: asyncio.Task[None]) -> None:
        if self._savers.get(user_id) is saver:
            del self._savers[user_id]

    async def _keep_saving(self, user_id: UUID) -> None:
        backoff = Backoff(first=FIRST_PAUSE, longest=LONGEST_PAUSE)
        while unsaved := self._unsaved.get(user_id):
            try:
                async with self._slots:
                    await self._save(unsaved)
                continue
            except SpotconnError as error:
                _log_failure(user_id, error, first=not backoff.failures)
            except Exception as error:  # noqa: BLE001  of a cipher of the caller's: nothing ends the saving but `flush`
                _log_failure(user_id, type(error).__name__, first=not backoff.failures)
            await asyncio.sleep(backoff.next_pause())


def _log_failure(user_id: UUID, reason: object, *, first: bool) -> None:
    """Log the first failure as an error and repeats at debug level."""
    text = "the refreshed connection of user %s cannot be saved; it is served all the same, and saving goes on: %s"
    _log.log(logging.ERROR if first else logging.DEBUG, text, user_id, reason)
