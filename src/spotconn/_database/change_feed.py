"""The changes of the table, for all managers of a store: one session listens for them, in one task."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from contextvars import Context
from typing import Any, Protocol
from uuid import UUID

import asyncpg

from spotconn._backoff import Backoff
from spotconn._database.acquire import TIMEOUT
from spotconn._database.bound_pool import BoundPool
from spotconn._database.errors import map_errors
from spotconn._database.given_up import HOLD
from spotconn._database.pool import open_single
from spotconn._database.subscription import ChangeHandler, Subscription
from spotconn.errors import ConfigurationError, SpotconnError

_log = logging.getLogger("spotconn")

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 60.0
"""Seconds before an attempt to listen again."""
HEARTBEATS = 3
"""Heartbeats in the shortest time for which one is trusted, so that two may be late."""
SHORTEST_WAIT = 0.1
"""Seconds between two heartbeats at least, even if a cache is not trusted in between."""
STOP_TIMEOUT = HOLD + 1.0
"""Seconds that the task has to end. A session that is given up takes most of it."""


class TrustingHandler(ChangeHandler, Protocol):
    """Receives changes, and learns for how long it may rely on that. No method may raise."""

    @property
    def ttl(self) -> float:
        """Seconds for which one heartbeat is trusted."""
        ...

    def now(self) -> float:
        """Return the time by the handler's own clock."""
        ...

    def trust(self, sent: float) -> None:
        """Handle that a heartbeat has arrived: all changes before `sent`, which `now` returned, were handled."""
        ...

    def distrust(self) -> None:
        """Handle that changes may have been missed since the last heartbeat."""
        ...


class ChangeFeed:
    """Passes the changes of one database on to handlers. It listens while there are any.

    A new handler is trusted from the next heartbeat on, which is sent at once. Before it was added it had read
    nothing, so it has missed nothing that counts.

    Args:
        pool: of the database.
        dsn: of the same database. A transaction pooler would deliver no notifications.
        options: of `asyncpg.create_pool`; those of a connection are used.
        timeout: seconds to wait for a connection, and again for a heartbeat.
    """

    def __init__(self, pool: asyncpg.Pool, dsn: str, options: dict[str, Any], *, timeout: float = TIMEOUT) -> None:
        # Not the store's, whose observer would count the listener's waits among those of calls.
        self._pool = BoundPool(pool, name="ConnectionStore", timeout=timeout)
        self._pool.checked = True  # the store looks
        self._dsn = dsn
        self._options = options
        self._timeout = timeout
        self._handlers: dict[TrustingHandler, None] = {}
        self._backoff = Backoff(first=FIRST_PAUSE, longest=LONGEST_PAUSE)
        self._task: asyncio.Task[None] | None = None
        self._subscription: Subscription | None = None
        self._refused = False

    def add(self, handler: TrustingHandler) -> None:
        """Pass changes on to a handler from now on. May be repeated.

        Raises:
            RuntimeError: the store is closed, or belongs to another process or event loop.
        """
        if handler in self._handlers and self._task is not None and not self._task.done():
            return
        self._pool.affinity.check()
        self._handlers[handler] = None
        if self._task is None or self._task.done():
            self._backoff.failures = 0
            # In a context of its own: it outlives the first call, and is no part of its trace.
            self._task = asyncio.create_task(self._run(), name="spotconn-subscriber", context=Context())
        elif self._subscription is not None:
            self._subscription.wake()

    async def remove(self, handler: TrustingHandler) -> None:
        """Pass nothing on to a handler any more. Without one left, stop listening. May be repeated."""
        self._handlers.pop(handler, None)
        if not self._handlers:
            await self._stop()

    async def close(self) -> None:
        """Remove all handlers and accept no more. In a child of fork do nothing: the task is the parent's."""
        if self._pool.affinity.close():
            self._distrust()
            self._handlers.clear()
            await self._stop()
            await self._pool.given_up.aclose()

    def invalidate(self, user_id: UUID) -> None:
        """Tell all handlers that the connection of a user has changed."""
        for handler in self._handlers:
            handler.invalidate(user_id)

    def clear(self) -> None:
        """Tell all handlers that any connection may have changed."""
        for handler in self._handlers:
            handler.clear()

    @asynccontextmanager
    async def subscribe(self, handler: ChangeHandler) -> AsyncGenerator[Subscription]:
        """Context manager: pass changes to `handler`. `Subscription.heartbeat` tells whether they arrive.

        Raises:
            ConfigurationError: the DSN is malformed, or the login or LISTEN is refused.
            DatabaseUnavailable: no connection in time.
        """
        pool = await open_single(self._dsn, self._options, seconds=self._timeout)
        bound = BoundPool(pool, name="ConnectionStore", timeout=self._timeout)
        try:
            session = await map_errors(pool.acquire(timeout=self._timeout))
            subscription = Subscription(self._pool, session, timeout=self._timeout)
            try:
                await subscription.start(handler)
            except ConfigurationError:
                self._refused = True
                raise
            yield subscription
        finally:
            await bound.end()

    @property
    def _needed(self) -> bool:
        """Whether to listen: a child of fork that goes on with its parent's event loop has the task, too."""
        return bool(self._handlers) and not self._pool.affinity.forked

    async def _run(self) -> None:
        while self._needed:
            self._refused = False
            try:
                await self._listen()
            except SpotconnError as error:
                self._log_loss(error)
            except Exception as error:  # noqa: BLE001  of the caller's: a callable for the password, or a clock
                self._log_loss(type(error).__name__)
            if self._needed:
                # Jittered, so that a fleet does not come back all at once. A pooler that refuses LISTEN is
                # not asked again soon: it would cost a login each time, and be refused again.
                delay = self._backoff.next_pause()
                await asyncio.sleep(LONGEST_PAUSE if self._refused else delay)

    async def _listen(self) -> None:
        """Pass changes on until the session is lost or none is needed."""
        try:
            async with self.subscribe(self) as self._subscription:
                await self._beat(self._subscription)
        finally:
            self._distrust()

    async def _beat(self, subscription: Subscription) -> None:
        """Send heartbeats, often enough for each handler, until one fails or none is needed."""
        confirmed = False
        while self._needed:
            interval = min(handler.ttl for handler in self._handlers) / HEARTBEATS
            sent = {handler: handler.now() for handler in self._handlers}
            await subscription.heartbeat()
            if not confirmed:
                confirmed = True
                self._backoff.failures = 0
                _log.info("notifications of changes arrive")
            for handler in self._handlers.keys() & sent:
                handler.trust(sent[handler])
            await asyncio.sleep(SHORTEST_WAIT)
            await subscription.wait(seconds=max(interval - SHORTEST_WAIT, 0))

    def _distrust(self) -> None:
        for handler in self._handlers:
            handler.distrust()

    async def _stop(self) -> None:
        """Stop the task. A handler that is added meanwhile starts another."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task], timeout=STOP_TIMEOUT)

    def _log_loss(self, reason: object) -> None:
        """Log the first failure as a warning and repeats at debug level."""
        level = logging.WARNING if not self._backoff.failures else logging.DEBUG
        text = "notifications of changes do not arrive, connections are cached for %g s: %s"
        _log.log(level, text, max((handler.ttl for handler in self._handlers), default=0), reason)
