"""A task that subscribes to changes for a cache, checks by heartbeats that notifications arrive, and reconnects."""

import asyncio
import logging
from collections.abc import Callable
from contextvars import Context
from uuid import UUID

from spotconn._backoff import Backoff
from spotconn._database.change_feed import ChangeFeed, Subscription
from spotconn._stopwatch import Stopwatch
from spotconn._tokens.cache import ConnectionCache
from spotconn._tokens.local_backoff import LocalBackoffs
from spotconn._tokens.saved_grants import SavedGrants
from spotconn.errors import SpotconnError

_log = logging.getLogger("spotconn")

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 60.0
"""Seconds before an attempt to listen again."""
LARGEST_DRIFT = 1.0
"""Seconds by which the wall clock and the monotonic clock may disagree before cached entries are dropped."""
HEARTBEATS = 3
"""Heartbeats in the time for which one makes the cache trusted, so that two may be late."""
SHORTEST_WAIT = 0.1
"""Seconds between two heartbeats at least, even if the cache is not trusted in between."""
STOP_TIMEOUT = 1.0
"""Seconds that the task has to end."""


class Subscriber:
    """Keeps a cache trusted while notifications arrive, once it is started and until it is closed.

    Args:
        changes: the notifications, or None if the server cannot deliver them.
        cache: handles them.
        saved: is compared with the rows when a new session listens: the server may be another one.
        backoffs: end for a user whose connection changes.
        ttl: seconds for which a heartbeat makes the cache trusted.
        clock: gives seconds since the epoch.
    """

    def __init__(
        self,
        changes: ChangeFeed | None,
        cache: ConnectionCache,
        saved: SavedGrants,
        backoffs: LocalBackoffs,
        *,
        ttl: float,
        clock: Callable[[], float],
    ) -> None:
        self._changes = changes
        self._cache = cache
        self._saved = saved
        self._backoffs = backoffs
        self._ttl = ttl
        self._clock = clock
        self._backoff = Backoff(first=FIRST_PAUSE, longest=LONGEST_PAUSE)
        self._task: asyncio.Task[None] | None = None
        self._connecting = False
        self._closed = False

    def start(self) -> None:
        """Start the task in the running event loop. May be repeated."""
        if self._task is None and self._changes is not None and not self._closed:
            # In a context of its own: it outlives the first call, and is no part of its trace.
            self._task = asyncio.create_task(self._run(self._changes), name="spotconn-subscriber", context=Context())

    def abandon(self) -> None:
        """Start nothing any more."""
        self._closed = True

    def invalidate(self, user_id: UUID) -> None:
        """Handle that the connection of a user has changed: it may be an earlier one."""
        self._cache.invalidate(user_id)
        self._backoffs.end(user_id)
        self._saved.compare([user_id])

    def clear(self) -> None:
        """Handle that any connection may have changed."""
        self._cache.clear()
        self._saved.compare()

    async def close(self) -> None:
        """Stop the task."""
        self._closed = True
        if self._task is None:
            return
        # Cancelled while it connects, asyncpg leaves a future with an error behind: give it time.
        late = not self._connecting or (await asyncio.wait([self._task], timeout=STOP_TIMEOUT))[1]
        if late:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=STOP_TIMEOUT)

    async def _run(self, changes: ChangeFeed) -> None:
        while not self._closed:
            try:
                self._connecting = True
                async with changes.subscribe(self) as subscription:
                    self._connecting = False
                    await self._trust(subscription)
            except SpotconnError as error:
                self._log_loss(error)
            except Exception as error:  # noqa: BLE001  from an option of the caller's, such as a callable for the password
                self._log_loss(type(error).__name__)
            finally:
                self._connecting = False
                self._cache.distrust()
            if not self._closed:
                # Jittered, so that a fleet does not come back all at once.
                await asyncio.sleep(self._backoff.next_pause())

    async def _trust(self, subscription: Subscription) -> None:
        """Trust the cache from one heartbeat to the next, until one fails."""
        stopwatch = Stopwatch(self._clock)
        while not self._closed:
            sent = self._clock()
            await subscription.heartbeat()
            if abs(stopwatch.drift) > LARGEST_DRIFT:
                self._cache.clear()  # the clock that the ends of tokens are counted by was set
                stopwatch = Stopwatch(self._clock)
            if not self._cache.trusted:
                _log.info("notifications of changes arrive")
                self._backoff.failures = 0
                self._saved.compare()
            self._cache.trust(sent + self._ttl)
            await subscription.wait(seconds=max(self._ttl / HEARTBEATS, SHORTEST_WAIT))

    def _log_loss(self, reason: object) -> None:
        """Log the first failure as a warning and repeats at debug level."""
        level = logging.WARNING if not self._backoff.failures else logging.DEBUG
        text = "notifications of changes do not arrive, connections are cached for %g s: %s"
        _log.log(level, text, self._ttl, reason)
