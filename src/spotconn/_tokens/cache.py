"""The connections that one process caches: in bounded number, and no longer than they may be trusted.

While the cache is trusted, notifications of all changes arrive, and an entry is good until it is stale. Otherwise it
is good for `ttl` seconds. Trust ends at a time and has to be renewed, so a process that stood still does not rely on
what it has missed. What was trusted when notifications cease is good until that time, also if they arrive again: those
in between were missed.
"""

import math
from itertools import islice
from typing import Self
from uuid import UUID

from spotconn._tokens.stored_token import StoredToken
from spotconn.errors import AskUser

MOST_EVICTED = 1_000
"""Entries that go at once to make room, and a hundredth of all at most. The first key of a dict takes as long to find
as there were entries before it, up to twice as many as there are: for each entry that goes by itself, that is long."""
SWEPT = 10_000
"""Entries that are dropped in one step: it takes some milliseconds."""


class Trust:
    """For how long the entries that share it may be used.

    Attributes:
        until: seconds since the epoch; infinite while notifications do not arrive and each has an end of its own.
    """

    __slots__ = ("until",)

    def __init__(self, until: float = math.inf) -> None:
        self.until = until


class CacheEntry(StoredToken):
    """A cached token. Its times are seconds since the epoch by the clock of this process.

    Args:
        token: as it was read.
        trust: shared with the other entries of the time between two losses of notifications.
        since: when it was cached. It does not count before that, by a clock that was set back.
        fresh_until: the end of the time in which the hot path serves it.
        until: the end of the time in which it counts at all.
    """

    __slots__ = ("fresh_until", "since", "trust", "until")

    def __init__(self, token: StoredToken, trust: Trust, *, since: float, fresh_until: float, until: float) -> None:
        super().__init__(token.access_token, token.digest, token.ends, token.scope)
        self.trust = trust
        self.since = since
        self.fresh_until = fresh_until
        self.until = until


class PendingRead:
    """Context manager: a read under way, and whether its user was notified of meanwhile.

    Attributes:
        user_id: the caller's own object, because a look-up with the same object is cheapest.
        trusted: whether notifications have arrived since it began.
        void: whether its result is out of date.
    """

    __slots__ = ("_cache", "trusted", "user_id", "void")

    def __init__(self, cache: "ConnectionCache", user_id: UUID, *, trusted: bool) -> None:
        self._cache = cache
        self.user_id = user_id
        self.trusted = trusted
        self.void = False

    def __enter__(self) -> Self:
        """Begin."""
        self._cache.pending.setdefault(self.user_id, []).append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End. After an error that only the user can mend, what is cached is out of date."""
        pending = self._cache.pending[self.user_id]
        pending.remove(self)
        if not pending:
            del self._cache.pending[self.user_id]
        if kind is not None and issubclass(kind, AskUser):
            self._cache.invalidate(self.user_id)


class ConnectionCache:
    """Caches tokens by user. Beyond `size`, the oldest entries go.

    No step takes longer the more entries there are: a process with a million must not stand still.

    Args:
        ttl: seconds that an entry is good for while the cache is not trusted; 0 turns the cache off.
        size: number of connections.

    Attributes:
        ttl: as given.
        size: as given; 0 while it is off.
        entries: by user id, a UUID; for the look-up of the hot path. Each counts only as long as its `trust`.
        pending: reads under way, by user id.
    """

    def __init__(self, *, ttl: float, size: int) -> None:
        self.ttl = ttl
        self.size = size if ttl else 0
        self.pending: dict[UUID, list[PendingRead]] = {}
        self.entries: dict[object, CacheEntry] = {}
        self._trust = Trust()
        self._ended: list[Trust] = []

    def __len__(self) -> int:
        """Return the number of entries, also of those that are out of date."""
        return len(self.entries)

    @property
    def trusted_until(self) -> float:
        """The end of the time in which the cache is trusted, in seconds since the epoch; infinite while it is not."""
        return self._trust.until

    @property
    def trusted(self) -> bool:
        """Whether notifications of changes arrive."""
        return self.trusted_until < math.inf

    def get(self, user_id: UUID, now: float) -> CacheEntry | None:
        """Return the entry of a user, if it may still be used."""
        entry = self.entries.get(user_id)
        if entry is None or now >= entry.trust.until or not entry.since <= now < entry.until:
            return None
        return entry

    def fresh(self, user_id: UUID, now: float) -> CacheEntry | None:
        """Return the entry that the hot path serves. May be called in any thread."""
        entry = self.entries.get(user_id)
        if entry is None or now >= entry.trust.until or not entry.since <= now < entry.fresh_until:
            return None
        return entry

    def reading(self, user_id: UUID) -> PendingRead:
        """Track a read of `user_id` while it is under way. Pass its result to `put` with the value of the block."""
        return PendingRead(self, user_id, trusted=self.trusted)

    def put(self, token: StoredToken, pending: PendingRead, *, now: float, stale_at: float) -> None:
        """Cache a token that was read, unless it is out of date already.

        Args:
            token: the result of the read.
            pending: of the read.
            now: seconds since the epoch.
            stale_at: when the token is due for a refresh, in seconds since the epoch.
        """
        if not self.size or pending.void:
            return
        until = now + self.ttl
        if pending.trusted:
            until = max(until, stale_at)
        self.entries.pop(pending.user_id, None)
        if len(self.entries) >= self.size:
            self._make_room()
        self.entries[pending.user_id] = CacheEntry(
            token, self._trust, since=now, fresh_until=min(stale_at, until), until=until
        )

    def supersede(self, pending: PendingRead) -> None:
        """Invalidate a user, except for the read whose row was just written by this process."""
        void = pending.void
        self.invalidate(pending.user_id)
        pending.void = void

    def invalidate(self, user_id: UUID) -> None:
        """Drop the entry of a user and void the reads under way."""
        for pending in self.pending.get(user_id, ()):
            pending.void = True
        self.entries.pop(user_id, None)

    def clear(self) -> None:
        """Let no entry count any more, and void all reads under way. What `sweep` has not dropped yet is not used."""
        for pending_reads in self.pending.values():
            for pending in pending_reads:
                pending.void = True
        until = self._trust.until
        for trust in (*self._ended, self._trust):
            trust.until = -math.inf
        self._ended, self._trust = [], Trust(until)
        self.sweep()

    def sweep(self) -> bool:
        """Drop some of the entries that do not count since `clear`, and return whether there may be more."""
        first = list(islice(self.entries.items(), SWEPT))
        for user_id, entry in first:
            if entry.trust is self._trust or entry.trust in self._ended:
                return False  # cached since then, as are all after it
            del self.entries[user_id]
        return len(first) == SWEPT

    def trust(self, until: float) -> None:
        """Trust cached entries until `until` (seconds since the epoch)."""
        self._trust.until = until

    def distrust(self) -> None:
        """Stop trusting the cache: notifications may have been missed since the last heartbeat.

        What was trusted counts until the trust would have ended: a loss costs no burst of reads, and a change that was
        missed shows by then. Reads under way are not trusted.
        """
        if not self.trusted:
            return
        for pending_reads in self.pending.values():
            for pending in pending_reads:
                pending.trusted = False
        over = self._trust.until - self.ttl  # what has ended by then does not count any more
        self._ended = [trust for trust in self._ended if trust.until > over] + [self._trust]
        self._trust = Trust()

    def close(self) -> None:
        """Drop all entries and cache nothing any more."""
        self.size = 0
        self.clear()
        self.entries.clear()

    def _make_room(self) -> None:
        """Drop the oldest entries."""
        number = min(max(self.size // 100, 1), MOST_EVICTED)
        for user_id in list(islice(self.entries, number)):
            del self.entries[user_id]
