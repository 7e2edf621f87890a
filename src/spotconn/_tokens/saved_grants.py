"""Grants that this process has saved, for rows that go back in time.

A failover may lose commits, a restored backup or a client that writes a whole old row brings an earlier refresh token
back. Where Spotify has replaced that, only the process that saved its successor still has it.
"""

import asyncio
import logging
import math
from collections.abc import Iterable
from contextvars import Context
from itertools import islice
from uuid import UUID

from spotconn import events
from spotconn._backoff import Backoff
from spotconn._database.idle_sessions import Session
from spotconn._observer import NOBODY, Observer
from spotconn._stopwatch import Stopwatch, loop_time
from spotconn._tokens.saved_grant import SavedGrant
from spotconn.errors import DatabaseUnavailable, SpotconnError
from spotconn.models import Connection, StoredTexts, digest
from spotconn.store import ConnectionStore

_log = logging.getLogger("spotconn")

_RESTORED = (
    "the database has gone back in time: the stored connections of %d user(s) were earlier ones, and the last ones are "
    "saved again. Has a failover lost commits, was a backup restored, or does another client write whole rows?"
)

MOST_GRANTS = 10_000
"""Users whose last grant is kept."""
MOST_REPLACED = 16
"""Refresh tokens of a user that are known to be replaced."""
MOST_RESTORES = 5
"""Attempts to save a grant again where other processes do so with earlier ones."""
BATCH = 200
"""Users whose rows are compared in one statement."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 4.0
"""Seconds between two attempts to compare."""
STOP_TIMEOUT = 1.0
"""Seconds that a task has to end once it is cancelled."""
COMPARISON_INTERVAL = 30.0
"""Seconds from one comparison of all after a loss of the database to the next."""


class SavedGrants:
    """Remembers the last grant of each user until its access token ends, and saves it again over an earlier row.

    Args:
        store: of the connections.
        emitter: emits what was saved again, and what a grant has ended.

    Attributes:
        observer: counts what was saved again.
    """

    def __init__(self, store: ConnectionStore, emitter: events.Events) -> None:
        self._store = store
        self._events = emitter
        self.observer: Observer = NOBODY
        self._grants: dict[UUID, SavedGrant] = {}
        self._due: set[UUID] = set()
        self._comparing: asyncio.Task[None] | None = None
        self._restored = 0
        self._lost = False
        self._next_comparison = -math.inf

    def add(
        self,
        before: Connection,
        texts: StoredTexts,
        access_token: str,
        *,
        saves: int,
        family: UUID | None,
        client_id: str | None,
        expires_in: float,
        requested: Stopwatch,
    ) -> None:
        """Remember a grant.

        Args:
            before: the row whose refresh token was sent to Spotify.
            texts: the tokens as they are stored.
            access_token: the new one.
            saves: the count of the row that holds them.
            family: in which it counts.
            client_id: of the app with which it was granted.
            expires_in: seconds that the access token lives from the request on.
            requested: runs since the request.
        """
        earlier = self._grants.get(before.user_id)
        replaced = earlier.replaced if earlier and earlier.is_of(before) else ()
        if texts.refresh_token != before.texts.refresh_token:
            # By the token itself: a rekey changes the stored text.
            replaced = (*replaced, digest(before.refresh_token))[-MOST_REPLACED:]
        self.forget(before.user_id)
        if len(self._grants) >= MOST_GRANTS:
            self.forget(next(iter(self._grants)))
        self._grants[before.user_id] = SavedGrant(
            before.spotify_user_id,
            before.connected_at,
            texts,
            digest(access_token),
            saves,
            family,
            client_id,
            expires_in,
            requested,
            replaced,
        )

    def reject(self, user_id: UUID, access_token: str) -> None:
        """Save a grant as ended from now on, if the Web API has refused this access token of it."""
        grant = self._grants.get(user_id)
        if grant is not None and grant.access_digest == digest(access_token):
            grant.rejected = True

    def forget(self, user_id: UUID) -> None:
        """Forget the grant of a user."""
        self._grants.pop(user_id, None)

    def prune(self) -> bool:
        """Forget the grants whose access tokens have ended; return whether there are others."""
        for user_id in [user_id for user_id, grant in self._grants.items() if grant.ended]:
            self.forget(user_id)
        return bool(self._grants)

    def clear(self) -> None:
        """Forget all grants."""
        self._grants.clear()
        self._due.clear()

    async def restore(
        self, current: Connection, lease_id: UUID | None = None, *, session: "Session | None" = None
    ) -> bool:
        """Save the grant of a user again where a row, as it was just read, is an earlier one.

        Args:
            current: the row.
            lease_id: of the lease that this process holds, if it does.
            session: of the pool, where the caller has acquired one.

        Returns:
            Whether the row was an earlier one; it is to be read again then.

        Raises:
            SpotconnError: it could not be saved.
        """
        if (grant := self._later_than(current)) is None:
            return False
        saved = await self._store.refreshes.restore(
            current,
            grant.texts,
            expires_in=grant.expires_in,
            age=grant.expires_in if grant.rejected else grant.requested,
            saves=grant.saves,
            family=grant.family,
            client_id=grant.client_id,
            lease_id=lease_id,
            session=session,
        )
        if saved is not None:
            self._report(saved)
        return True

    def _later_than(self, current: Connection) -> SavedGrant | None:
        """Return the grant of a user if the row is an earlier one, and the access token good."""
        grant = self._grants.get(current.user_id)
        return None if grant is None or grant.ended or not grant.is_lost_by(current) else grant

    def _report(self, saved: Connection) -> None:
        """Report a connection that was saved again. One warning tells how many they were: see `_compare`."""
        _log.debug("the stored connection of user %s was an earlier one: the last is saved again", saved.user_id)
        self.observer.restored(saved.client_id)
        self._events.emit(events.ConnectionRestored(user_id=saved.user_id, client_id=saved.client_id))
        if saved.recovered is not None:
            self._events.emit(
                events.Recovered(user_id=saved.user_id, client_id=saved.client_id, failure=saved.recovered)
            )
        self._restored += 1
        self.database_lost()  # where one row has gone back, others may have
        self.database_answered()

    def database_lost(self) -> None:
        """Note that the database was away, or has earlier rows: others may be, too, once it answers."""
        self._lost = True

    def database_answered(self) -> None:
        """Compare all grants with their rows, if the database was away before."""
        if self._lost and loop_time() >= self._next_comparison:
            self._lost = False
            self._next_comparison = loop_time() + COMPARISON_INTERVAL
            self.compare()

    def compare(self, user_ids: Iterable[UUID] | None = None) -> None:
        """Start to compare the grants of some users, or of all, with their rows."""
        self._due.update(self._grants if user_ids is None else self._grants.keys() & set(user_ids))
        if self._due and (self._comparing is None or self._comparing.done()):
            self._comparing = asyncio.create_task(self._compare(), name="spotconn-compare", context=Context())

    async def aclose(self, *, seconds: float) -> None:
        """Finish what is to be compared, for the last time and within `seconds`; then forget all."""
        try:
            await self._stop()  # it may be in a pause
            self.compare(None if self._lost else ())
            if self._comparing is not None:
                await asyncio.wait([self._comparing], timeout=seconds)
        finally:  # also after a cancellation
            await self._stop()
            if self._due:
                text = "rows could not be compared with their last grants before shutdown, of users: %d"
                _log.critical(text, len(self._due))
            self.clear()

    async def _stop(self) -> None:
        """Cancel what is under way; a batch that is being compared is due again then."""
        task, self._comparing = self._comparing, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task], timeout=STOP_TIMEOUT)

    async def _compare(self) -> None:
        """Compare what is due until nothing is, also while the database is away."""
        backoff = Backoff(first=FIRST_PAUSE, longest=LONGEST_PAUSE)
        try:
            while self._due:
                self._due.intersection_update(self._grants)
                batch = list(islice(self._due, BATCH))
                self._due.difference_update(batch)
                try:
                    await self._restore_all(batch)
                except asyncio.CancelledError:
                    self._due.update(batch)
                    raise
                except Exception as error:  # noqa: BLE001  also of an option of the caller's pool: no error ends comparing
                    self._due.update(batch)
                    _log_failure(error, first=not backoff.failures)
                if self._due.isdisjoint(batch):
                    backoff.failures = 0
                else:
                    await asyncio.sleep(backoff.next_pause())
        finally:
            restored, self._restored = self._restored, 0
            if restored:
                _log.warning(_RESTORED, restored)

    async def _restore_all(self, user_ids: list[UUID]) -> None:
        for _ in range(MOST_RESTORES):
            rows = (await self._store.get_many(user_ids)).values()
            earlier = [row for row in rows if isinstance(row, Connection) and self._later_than(row)]
            # Read again: another process may have come first, with an earlier grant.
            user_ids = await self._restore_earlier(earlier)
            if not user_ids:
                return
        self._due.update(user_ids)

    async def _restore_earlier(self, rows: list[Connection]) -> list[UUID]:
        """Restore the grants of users, and return those whose rows are to be read again.

        In one session: in a crowd of callers, who wait for these very rows, each grant would wait for a connection.
        """
        again = list[UUID]()
        while rows:
            async with self._store.pool.acquire() as session:
                while rows:
                    row = rows.pop()
                    again += await self._try_to_restore(row, session)
                    if row.user_id in self._due:  # it was locked for a while, in which others may wait for a connection
                        break
        return again

    async def _try_to_restore(self, row: Connection, session: Session) -> list[UUID]:
        """Restore the grant of one user; what keeps it from being saved concerns no other."""
        reason: object
        try:
            return [row.user_id] if await self.restore(row, session=session) else []
        except DatabaseUnavailable as error:
            if not error.locked:
                raise
            self._due.add(row.user_id)  # another one writes this row
            return []
        except SpotconnError as error:
            reason = error
        except Exception as error:  # noqa: BLE001  of a cipher of the caller's
            reason = type(error).__name__
        _log.warning("the last grant of user %s cannot be saved again: %s", row.user_id, reason)
        return []


def _log_failure(error: Exception, *, first: bool) -> None:
    """Log why rows cannot be compared: once, and not that the database is away, of which all else tells."""
    if first and not isinstance(error, DatabaseUnavailable):
        reason = error if isinstance(error, SpotconnError) else type(error).__name__
        _log.warning("saved connections cannot be compared with their rows, and will be again: %s", reason)
