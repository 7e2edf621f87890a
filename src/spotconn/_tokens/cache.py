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
class Remembered:
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
class Fill:
    """A read under way, and what was heard of its user meanwhile.

    Attributes:
        user_id: as the caller has it: a look-up with the same object is the cheapest.
        covered: whether all changes have been heard of since it began.
        void: whether what it brings is out of date, whatever that is.
        heard: the version that was heard of last.
    """

    user_id: UUID
    covered: bool
    void: bool = False
    heard: datetime | None = None

    def brings(self, version: datetime) -> bool:
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
        self._fills: dict[UUID, list[Fill]] = {}
        self.entries: dict[object, Remembered] = {}
        self.horizon = math.inf
        self.epoch = 0

    def __len__(self) -> int:
        """How many are remembered, also too long ago."""
        return len(self.entries)

    @property
    def covered(self) -> bool:
        """Whether changes are heard of."""
        return self.horizon < math.inf

    def get(self, user_id: UUID, now: float) -> Remembered | None:
        """What is remembered of a user, if it is still to be trusted."""
        entry = self.entries.get(user_id)
        if entry is None or now >= self.horizon or not entry.since <= now < entry.until:
            return None
        return entry

    @contextmanager
    def filling(self, user_id: UUID) -> Generator[Fill]:
        """Within: the connection of a user is read, to be `put` by what this gives."""
        fill = Fill(user_id, self.covered)
        self._fills.setdefault(user_id, []).append(fill)
        try:
            yield fill
        finally:
            self._fills[user_id].remove(fill)
            if not self._fills[user_id]:
                del self._fills[user_id]

    def put(self, connection: Connection, fill: Fill, *, now: float, stale_at: float) -> None:
        """Remember a connection that was read, unless it is out of date already.

        Args:
            connection: as it was read.
            fill: of the read.
            now: seconds since the epoch.
            stale_at: when the token is to be refreshed, likewise.
        """
        if not self._size or not fill.brings(connection.expires_at):
            return
        until = now + self._ttl
        if fill.covered:
            until = max(until, stale_at)
        self.entries.pop(fill.user_id, None)
        if len(self.entries) >= self._size:
            del self.entries[next(iter(self.entries))]
        self.entries[fill.user_id] = Remembered(
            connection.access_token,
            connection.expires_at,
            connection.scope,
            connection.reauthorization,
            since=now,
            fresh_until=min(stale_at, until),
            until=until,
        )

    def hear(self, user_id: UUID, version: datetime) -> None:
        """That version of a user's connection is stored: forget any other, also one that a read under way may bring."""
        self.epoch += 1
        for fill in self._fills.get(user_id, ()):
            fill.heard = version
        entry = self.entries.get(user_id)
        if entry is not None and entry.expires_at != version:
            del self.entries[user_id]

    def outdate(self, fill: Fill) -> None:
        """Forget a user, and what any read but `fill` brings: that one has a row which was just written."""
        void = fill.void
        self.discard(fill.user_id)
        fill.void = void

    def discard(self, user_id: UUID) -> None:
        """Forget a user, and what any read now under way brings."""
        self.epoch += 1
        for fill in self._fills.get(user_id, ()):
            fill.void = True
        self.entries.pop(user_id, None)

    def clear(self) -> None:
        """Forget everybody, and what any read now under way brings."""
        self.epoch += 1
        for fills in self._fills.values():
            for fill in fills:
                fill.void = True
        self.entries.clear()

    def cover(self, until: float) -> None:
        """Lend cover until a moment, in seconds since the epoch."""
        self.horizon = until

    def uncover(self) -> None:
        """Changes are no longer heard of; some may have been missed."""
        if self.covered:
            self.horizon = math.inf
            self.clear()

    def close(self) -> None:
        """Forget everybody for good."""
        self._size = 0
        self.clear()
