"""A task that subscribes to changes for a cache, checks by heartbeats that notifications arrive, and reconnects."""

import asyncio
import logging
import random
from collections.abc import Callable
from contextvars import Context

from spotconn._database.change_feed import ChangeFeed, Subscription
from spotconn._tokens.cache import ConnectionCache
from spotconn.errors import SpotconnError

_log = logging.getLogger("spotconn")

FIRST_PAUSE = 0.2
"""Seconds before the first attempt to listen again; each next pause is twice as long."""
LONGEST_PAUSE = 60.0
"""Seconds of the longest such pause."""
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
        ttl: seconds for which a heartbeat makes the cache trusted.
        clock: gives seconds since the epoch.
    """

    def __init__(
        self, changes: ChangeFeed | None, cache: ConnectionCache, *, ttl: float, clock: Callable[[], float]
    ) -> None:
        self._changes = changes
        self._cache = cache
        self._ttl = ttl
        self._clock = clock
        self._interval = FIRST_PAUSE
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
                async with changes.subscribe(self._cache) as subscription:
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
                await asyncio.sleep(self._interval * random.uniform(0.5, 1))  # noqa: S311  no secret hangs on it
                self._interval = min(2 * self._interval, LONGEST_PAUSE)

    async def _trust(self, subscription: Subscription) -> None:
        """Trust the cache from one heartbeat to the next, until one fails."""
        while not self._closed:
            sent = self._clock()
            await subscription.heartbeat()
            if not self._cache.trusted:
                _log.info("notifications of changes arrive")
                self._interval = FIRST_PAUSE
            self._cache.trust(sent + self._ttl)
            await subscription.wait(seconds=max(self._ttl / HEARTBEATS, SHORTEST_WAIT))

    def _log_loss(self, reason: object) -> None:
        """Log the first failure as a warning and repeats at debug level."""
        level = logging.WARNING if self._interval == FIRST_PAUSE else logging.DEBUG
        text = "notifications of changes do not arrive, connections are cached for %g s: %s"
        _log.log(level, text, self._ttl, reason)
