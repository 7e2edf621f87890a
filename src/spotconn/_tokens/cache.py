"""The connections that one process remembers: in bounded number, and no longer than they may be trusted.

While the cache is *covered*, every change of a stored connection is heard of, and what is remembered is good until it
is stale. Otherwise it is good for `ttl` seconds. Cover is lent for a time and has to be renewed, so a process that
stood still does not trust what it has missed.
"""

import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from spotconn.errors import ReauthorizationReason
from spotconn.models import Connection


@dataclass(slots=True)
class CacheEntry:
    """What is remembered of a connection; the refresh token is not.

    Attributes:
        access_token: of the connection.
        expires_at: its end, and the version of the connection.
        scope: of the connection.
        reauthorization: of the connection.
        since: when it was remembered; time before that, by a clock that was set back, is not served.
        fresh_until: when it has to be looked at again before it is served.
        until: when it is forgotten. All times are seconds since the epoch.
    """

    access_token: str = field(repr=False)
    expires_at: datetime
    scope: frozenset[str] | None
    reauthorization: ReauthorizationReason | None
    since: float
    fresh_until: float
    until: float


@dataclass(slots=True, eq=False)
class PendingRead:
    """A read under way, and what was heard of its user meanwhile.

    Attributes:
        user_id: as the caller has it: a look-up with the same object is the cheapest.
        covered: whether all changes have been heard of since it began.
        void: whether what it brings is out of date, whatever that is.
        heard: the version that was heard of last.
    """

    user_id: UUID
    trusted: bool
    void: bool = False
    heard: datetime | None = None

    def is_current(self, version: datetime) -> bool:
        """Whether that version is, as far as is known, the one that is stored."""
        return not self.void and self.heard in {None, version}


class ConnectionCache:
    """Remembers connections by user; with more than `size`, the one remembered longest goes.

    Args:
        ttl: seconds that a connection is good for without cover; 0 remembers nothing.
        size: number of connections.

    Attributes:
        entries: by user, a UUID; for the look-up of the hot path, whatever it is asked with. They count only before
            the horizon.
        horizon: seconds since the epoch until which the cover was lent; infinite without one.
        epoch: how often something was heard or forgotten. A read that began in an earlier one may be out of date.
    """

    def __init__(self, *, ttl: float, size: int) -> None:
        self._ttl = ttl
        self._size = size if ttl else 0
        self._pending_reads: dict[UUID, list[PendingRead]] = {}
        self.entries: dict[object, CacheEntry] = {}
        self.trusted_until = math.inf
        self.epoch = 0

    def __len__(self) -> int:
        """How many are remembered, also too long ago."""
        return len(self.entries)

    @property
    def trusted(self) -> bool:
        """Whether changes are heard of."""
        return self.trusted_until < math.inf

    def get(self, user_id: UUID, now: float) -> CacheEntry | None:
        """What is remembered of a user, if it is still to be trusted."""
        entry = self.entries.get(user_id)
        if entry is None or now >= self.trusted_until or not entry.since <= now < entry.until:
            return None
        return entry

    @contextmanager
    def reading(self, user_id: UUID) -> Generator[PendingRead]:
        """Within: the connection of a user is read, to be `put` by what this gives."""
        pending = PendingRead(user_id, self.trusted)
        self._pending_reads.setdefault(user_id, []).append(pending)
        try:
            yield pending
        finally:
            self._pending_reads[user_id].remove(pending)
            if not self._pending_reads[user_id]:
                del self._pending_reads[user_id]

    def put(self, connection: Connection, pending: PendingRead, *, now: float, stale_at: float) -> None:
        """Remember a connection that was read, unless it is out of date already.

        Args:
            connection: as it was read.
            pending: of the read.
            now: seconds since the epoch.
            stale_at: when the token is to be refreshed, likewise.
        """
        if not self._size or not pending.is_current(connection.expires_at):
            return
        until = now + self._ttl
        if pending.trusted:
            until = max(until, stale_at)
        self.entries.pop(pending.user_id, None)
        if len(self.entries) >= self._size:
            del self.entries[next(iter(self.entries))]
        self.entries[pending.user_id] = CacheEntry(
            connection.access_token,
            connection.expires_at,
            connection.scope,
            connection.reauthorization,
            since=now,
            fresh_until=min(stale_at, until),
            until=until,
        )

    def on_change(self, user_id: UUID, version: datetime) -> None:
        """That version of a user's connection is stored: forget any other, also one that a read under way may bring."""
        self.epoch += 1
        for pending in self._pending_reads.get(user_id, ()):
            pending.heard = version
        entry = self.entries.get(user_id)
        if entry is not None and entry.expires_at != version:
            del self.entries[user_id]

    def outdate(self, pending: PendingRead) -> None:
        """Forget a user, and what any read but `pending` brings: that one has a row which was just written."""
        void = pending.void
        self.invalidate(pending.user_id)
        pending.void = void

    def invalidate(self, user_id: UUID) -> None:
        """Forget a user, and what any read now under way brings."""
        self.epoch += 1
        for pending in self._pending_reads.get(user_id, ()):
            pending.void = True
        self.entries.pop(user_id, None)

    def clear(self) -> None:
        """Forget everybody, and what any read now under way brings."""
        self.epoch += 1
        for pending_reads in self._pending_reads.values():
            for pending in pending_reads:
                pending.void = True
        self.entries.clear()

    def trust(self, until: float) -> None:
        """Lend cover until a moment, in seconds since the epoch."""
        self.trusted_until = until

    def distrust(self) -> None:
        """Changes are no longer heard of; some may have been missed."""
        if self.trusted:
            self.trusted_until = math.inf
            self.clear()

    def close(self) -> None:
        """Forget everybody for good."""
        self._size = 0
        self.clear()
