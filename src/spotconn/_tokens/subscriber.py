"""What one manager does with the notifications of changes that its store receives."""

import asyncio
from collections.abc import Callable, Iterable
from contextvars import Context
from uuid import UUID

from spotconn._database.change_feed import ChangeFeed
from spotconn._stopwatch import Stopwatch
from spotconn._tokens.cache import ConnectionCache
from spotconn._tokens.local_backoff import LocalBackoffs
from spotconn._tokens.saved_grants import SavedGrants
from spotconn._tokens.server_watch import ServerWatch

LARGEST_DRIFT = 1.0
"""Seconds by which the wall clock and the monotonic clock may disagree before cached entries are dropped."""


class Subscriber:
    """Keeps a cache trusted while notifications arrive, once it is started and until it is closed.

    Args:
        changes: the notifications, or None if the server cannot deliver them.
        cache: handles them.
        saved: is compared with the rows when a new session listens: others may have written meanwhile.
        watch: is told the life of the server.
        backoffs: end for a user whose connection changes.
        ttl: seconds for which a heartbeat makes the cache trusted.
        clock: gives seconds since the epoch.

    Attributes:
        ttl: as given.
        now: the clock.
    """

    def __init__(
        self,
        changes: ChangeFeed | None,
        cache: ConnectionCache,
        saved: SavedGrants,
        watch: ServerWatch,
        backoffs: Iterable[LocalBackoffs],
        *,
        ttl: float,
        clock: Callable[[], float],
    ) -> None:
        self._changes = changes
        self._cache = cache
        self._saved = saved
        self._watch = watch
        self._backoffs = tuple(backoffs)
        self._stopwatch = Stopwatch(clock)
        self._closed = False
        self.ttl = ttl
        self.now = clock

    def start(self) -> None:
        """Subscribe in the running event loop. May be repeated."""
        if self._changes is not None and not self._closed:
            self._changes.add(self)

    def abandon(self) -> None:
        """Start nothing any more."""
        self._closed = True

    async def close(self) -> None:
        """Unsubscribe. The last manager of a store that does so ends its listening."""
        self._closed = True
        self._cache.distrust()
        if self._changes is not None:
            await self._changes.remove(self)

    def invalidate(self, user_id: UUID) -> None:
        """Handle that the connection of a user has changed: it may be an earlier one."""
        self._cache.invalidate(user_id)
        for backoffs in self._backoffs:
            backoffs.end(user_id)
        self._saved.compare([user_id])

    def clear(self) -> None:
        """Handle that any connection may have changed."""
        self._clear()
        self._saved.compare()

    def trust(self, sent: float, life: str) -> None:
        """Trust the cache for `ttl` seconds from the time at which a heartbeat was sent."""
        self._check_clock()
        if not self._cache.trusted:
            self._saved.compare()
        self._cache.trust(sent + self.ttl)
        self._watch.observe(life)

    def distrust(self) -> None:
        """Stop trusting the cache."""
        self._check_clock()
        self._cache.distrust()

    def _check_clock(self) -> None:
        """Drop what is cached if the clock that the ends of tokens are counted by was set."""
        if abs(self._stopwatch.drift) > LARGEST_DRIFT:
            self._clear()
            self._stopwatch = Stopwatch(self.now)

    def _clear(self) -> None:
        """Drop what is cached, in steps between which others have their turn."""
        self._cache.clear()
        self._sweep()

    def _sweep(self) -> None:
        if self._cache.sweep():
            asyncio.get_running_loop().call_soon(self._sweep, context=Context())
