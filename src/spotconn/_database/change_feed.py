"""The changes of the table, for all managers of a store: one session listens for them, in one task."""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from typing import Any, Protocol
from uuid import UUID

from spotconn._backoff import Backoff
from spotconn._database.bound_pool import BoundPool
from spotconn._database.errors import map_errors
from spotconn._database.given_up import HOLD
from spotconn._database.pool import open_single
from spotconn._database.server_check import ServerCheck
from spotconn._database.subscription import LASTING, OTHER_SERVER, ChangeHandler, Subscription
from spotconn.errors import ConfigurationError, DatabaseUnavailable, SpotconnError

_log = logging.getLogger("spotconn")

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0
"""Seconds before an attempt to listen again, while the database is away: a thousand processes make 133 in a second."""
REFUSED_PAUSE = 60.0
"""Seconds of the longest pause where the database answers, and no notifications come: that rarely passes by itself."""
SPREAD = 1.0
"""Seconds over which the processes come back that the pool's first success wakes."""
HEARTBEATS = 3
"""Heartbeats in the shortest time for which one is trusted. With every second one a new connection is opened."""
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

    def trust(self, sent: float, life: str) -> None:
        """Handle a heartbeat: all changes before `sent`, a time by `now`, have been handled.

        Args:
            sent: when.
            life: of the server where changes are made, as `spotconn.server_life` has it.
        """
        ...

    def distrust(self) -> None:
        """Handle that changes may have been missed since the last heartbeat."""
        ...


class ChangeFeed:
    """Passes the changes of one database on to handlers. It listens while there are any.

    A new handler is trusted from the next heartbeat on, which comes at once. Before it was added it had read
    nothing, so it has missed nothing that counts.

    Args:
        pool: of the database; its timeout holds for a connection, and again for a heartbeat.
        dsn: of the same database. A transaction pooler would deliver no notifications.
        options: of `asyncpg.create_pool`; those of a connection are used.
    """

    def __init__(self, pool: BoundPool, dsn: str, options: dict[str, Any]) -> None:
        self._store_pool = pool
        pool.on_return = self.wake
        pool.on_leave = self.look
        # Its observer would count the listener's waits among those of calls.
        self._pool = pool.beside()
        self._pool.checked = True  # the store looks
        self._dsn = dsn
        self._options = options
        self._timeout = pool.timeout
        self._handlers: dict[TrustingHandler, None] = {}
        self._backoff = Backoff(first=FIRST_PAUSE, longest=LONGEST_PAUSE)
        self._task: asyncio.Task[None] | None = None
        self._subscription: Subscription | None = None
        self._database_back = asyncio.Event()
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

    def wake(self) -> None:
        """End a pause: the pool reaches the database again."""
        self._database_back.set()

    def look(self) -> None:
        """Send the next heartbeat at once: the pool has left its server, and may have another now."""
        if self._subscription is not None:
            self._subscription.wake()

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
            passes = self._refused = False
            self._database_back.clear()
            try:
                await self._listen()
            except SpotconnError as error:
                self._log_loss(error)
                passes = isinstance(error, DatabaseUnavailable) and str(error) not in LASTING
                if str(error) == OTHER_SERVER:
                    await self._store_pool.leave_server()
            except Exception as error:  # noqa: BLE001  of the caller's: a callable for the password, or a clock
                self._log_loss(type(error).__name__)
            if self._needed:
                await self._back_off(passes=passes)

    async def _back_off(self, *, passes: bool) -> None:
        """Wait before the next attempt, jittered, so that a fleet does not come back all at once.

        Args:
            passes: whether the database is away. Else, as where a pooler refuses LISTEN, an attempt costs a login and
                is likely to fail again.
        """
        self._backoff.longest = LONGEST_PAUSE if passes else REFUSED_PAUSE
        delay = self._backoff.next_pause()
        if not passes:
            await asyncio.sleep(REFUSED_PAUSE if self._refused else delay)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._database_back.wait()
                await asyncio.sleep(random.uniform(0, SPREAD))  # noqa: S311  no secret depends on it

    async def _listen(self) -> None:
        """Pass changes on until the session is lost or none is needed."""
        since = asyncio.get_running_loop().time()
        try:
            async with self.subscribe(self) as self._subscription:
                await self._beat(self._subscription, since)
        finally:
            self._subscription = None
            self._distrust()

    async def _beat(self, subscription: Subscription, since: float) -> None:
        """Send heartbeats, often enough for each handler, until one fails or none is needed.

        Args:
            subscription: whose.
            since: when its session was opened, by the clock of the event loop.
        """
        check = ServerCheck(self._pool, self._dsn, self._options, since=since)
        confirmed = False
        while self._needed:
            interval = min(handler.ttl for handler in self._handlers) / HEARTBEATS
            sent = {handler: handler.now() for handler in self._handlers}
            life = await subscription.heartbeat()
            if confirmed:
                age = await check.compare(life, period=2 * interval)
            else:
                confirmed, age = True, check.age(asyncio.get_running_loop().time(), period=2 * interval)
                self._backoff.failures = 0
                _log.info("notifications of changes arrive")
            for handler in self._handlers.keys() & sent:
                handler.trust(sent[handler] - age, life)
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
