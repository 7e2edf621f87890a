"""Grants that this process has saved, for rows that go back in time.

A failover may lose commits, a restored backup or a client that writes a whole old row brings an earlier refresh token
back. Where Spotify has replaced that, only the process that saved its successor still has it.
"""

import asyncio
import logging
import math
from collections.abc import Iterable
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from uuid import UUID

from spotconn import events
from spotconn._backoff import Backoff
from spotconn._stopwatch import Stopwatch, loop_time
from spotconn.errors import DatabaseUnavailable, SpotconnError
from spotconn.models import Connection, StoredTexts, digest
from spotconn.store import ConnectionStore

_log = logging.getLogger("spotconn")

MOST_GRANTS = 10_000
"""Users whose last grant is kept."""
MOST_REPLACED = 16
"""Refresh tokens of a user that are known to be replaced."""
MOST_RESTORES = 5
"""Attempts to save a grant again where other processes do so with earlier ones."""
BATCH = 200
"""Users whose rows are compared in one statement."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 0.5
"""Seconds between two attempts to compare while closing."""
STOP_TIMEOUT = 1.0
"""Seconds that a comparison has to end once it is cancelled."""
LOST_DIGITS = timedelta(seconds=1)
"""What a date may differ by and still be that of the same authorization; a user takes longer for two."""
COMPARISON_INTERVAL = 30.0
"""Seconds from one comparison after a loss of the database to the next."""


@dataclass(slots=True)
class _SavedGrant:
    spotify_user_id: str
    connected_at: datetime | None
    texts: StoredTexts
    access_digest: bytes
    saves: int
    family: UUID | None
    client_id: str | None
    expires_in: float
    requested: Stopwatch
    replaced: tuple[bytes, ...]
    rejected: bool = False

    def is_of(self, current: Connection) -> bool:
        """Return whether a row is of the same authorization.

        A client that writes a row back may have lost digits of its times: a Date of JavaScript holds milliseconds.
        """
        if current.connected_at is None or self.connected_at is None:
            is_same_time = current.connected_at is self.connected_at
        else:
            is_same_time = abs(current.connected_at - self.connected_at) < LOST_DIGITS
        return is_same_time and current.spotify_user_id == self.spotify_user_id

    def is_lost_by(self, current: Connection) -> bool:
        """Return whether a row is an earlier state of the one that this grant was saved in."""
        if not self.is_of(current):
            return False
        counts_fewer = (
            current.family is not None and current.family == self.family and (current.saves or 0) < self.saves
        )
        return counts_fewer or digest(current.refresh_token) in self.replaced


class SavedGrants:
    """Remembers the last grant of each user until its access token ends, and saves it again over an earlier row.

    Args:
        store: of the connections.
        emitter: emits what a grant has ended.
    """

    def __init__(self, store: ConnectionStore, emitter: events.Events) -> None:
        self._store = store
        self._events = emitter
        self._grants: dict[UUID, _SavedGrant] = {}
        self._due: set[UUID] = set()
        self._comparing: asyncio.Task[None] | None = None
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
        self._grants[before.user_id] = _SavedGrant(
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

    def clear(self) -> None:
        """Forget all grants."""
        self._grants.clear()
        self._due.clear()

    async def restore(self, current: Connection, lease_id: UUID | None = None) -> bool:
        """Save the grant of a user again where a row, as it was just read, is an earlier one.

        Args:
            current: the row.
            lease_id: of the lease that this process holds, if it does.

        Returns:
            Whether the row was an earlier one; it is to be read again then.

        Raises:
            SpotconnError: it could not be saved.
        """
        grant = self._grants.get(current.user_id)
        if grant is None:
            return False
        if grant.requested.elapsed >= grant.expires_in:
            self.forget(current.user_id)
            return False
        if not grant.is_lost_by(current):
            return False
        _log.warning("the stored connection of user %s is an earlier one: the last is saved again", current.user_id)
        saved = await self._store.refreshes.restore(
            current,
            grant.texts,
            expires_in=grant.expires_in,
            age=grant.expires_in if grant.rejected else grant.requested,
            saves=grant.saves,
            family=grant.family,
            client_id=grant.client_id,
            lease_id=lease_id,
        )
        if saved is not None and saved.recovered is not None:
            self._events.emit(
                events.Recovered(user_id=saved.user_id, client_id=saved.client_id, failure=saved.recovered)
            )
        return True

    def database_lost(self) -> None:
        """Note that the database was away: it may come back with earlier rows."""
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
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._finish()
        finally:  # also after a cancellation
            if self._comparing is not None:  # its batch is due again then
                self._comparing.cancel()
                await asyncio.wait([self._comparing], timeout=STOP_TIMEOUT)
            if self._due:
                text = "rows could not be compared with their last grants before shutdown, of users: %d"
                _log.critical(text, len(self._due))
            self.clear()

    async def _finish(self) -> None:
        """Compare what is due until nothing is, also while the database is away."""
        backoff = Backoff(first=FIRST_PAUSE, longest=LONGEST_PAUSE)
        self.compare(None if self._lost else ())
        while self._comparing is not None:
            await asyncio.wait([self._comparing])
            if not self._due:
                return
            await asyncio.sleep(backoff.next_pause())
            self.compare(())

    async def _compare(self) -> None:
        while self._due:
            batch = list(islice(self._due, BATCH))
            self._due.difference_update(batch)
            try:
                await self._restore_all(batch)
            except asyncio.CancelledError:
                self._due.update(batch)
                raise
            except Exception as error:  # noqa: BLE001  also of an option of the caller's pool: no error ends comparing
                self._due.update(batch)
                self._lost = True  # an answer of the database starts it again, for all
                if not isinstance(error, DatabaseUnavailable):
                    reason = error if isinstance(error, SpotconnError) else type(error).__name__
                    _log.warning("saved connections cannot be compared with their rows, and will be again: %s", reason)
                return

    async def _restore_all(self, user_ids: list[UUID]) -> None:
        for _ in range(MOST_RESTORES):
            rows = (await self._store.get_many(user_ids)).values()
            # Read again: another process may have come first, with an earlier grant.
            user_ids = [row.user_id for row in rows if isinstance(row, Connection) and await self._try_to_restore(row)]
            if not user_ids:
                return

    async def _try_to_restore(self, row: Connection) -> bool:
        """Restore the grant of one user; what keeps it from being saved concerns no other."""
        try:
            return await self.restore(row)
        except DatabaseUnavailable:
            raise
        except SpotconnError as error:
            _log.warning("the last grant of user %s cannot be saved again: %s", row.user_id, error)
            return False
        except Exception as error:  # noqa: BLE001  of a cipher of the caller's
            _log.warning("the last grant of user %s cannot be saved again: %s", row.user_id, type(error).__name__)
            return False
