"""Keeps a cache covered: a task that listens for changes, proves again and again that it hears them, and reconnects."""

import asyncio
import logging
import random
from collections.abc import Callable
from contextvars import Context

from spotconn._database.change_feed import Changes, Hearing
from spotconn._tokens.cache import ConnectionCache
from spotconn.errors import SpotconnError

_log = logging.getLogger("spotconn")

FIRST_PAUSE = 0.2
"""Seconds before the first attempt to listen again; each next pause is twice as long."""
LONGEST_PAUSE = 60.0
"""Seconds of the longest such pause."""
PROOFS = 3
"""In the time for which one lends cover, so that two may be late."""
SHORTEST_WAIT = 0.1
"""Seconds between two proofs at least, also where that leaves gaps in the cover."""
STOP_TIMEOUT = 1.0
"""Seconds that the task has to end."""


class Listener:
    """Listens once it is started, until it is closed.

    Args:
        changes: where changes are heard of; None where they cannot be.
        cache: is told of them, and covered meanwhile.
        ttl: seconds for which a proof lends cover.
        clock: gives seconds since the epoch.
    """

    def __init__(
        self, changes: Changes | None, cache: ConnectionCache, *, ttl: float, clock: Callable[[], float]
    ) -> None:
        self._changes = changes
        self._cache = cache
        self._ttl = ttl
        self._clock = clock
        self._pause = FIRST_PAUSE
        self._task: asyncio.Task[None] | None = None
        self._connecting = False
        self._closed = False

    def start(self) -> None:
        """Begin, in the running event loop; may be repeated."""
        if self._task is None and self._changes is not None and not self._closed:
            # In a context of its own: it outlives the call that came first, and is no part of its trace.
            self._task = asyncio.create_task(self._run(self._changes), name="spotconn-listener", context=Context())

    def abandon(self) -> None:
        """Begin nothing any more."""
        self._closed = True

    async def close(self) -> None:
        """End."""
        self._closed = True
        if self._task is None:
            return
        # asyncpg leaves a future with an error behind if it is cancelled while it connects: leave it time.
        late = not self._connecting or (await asyncio.wait([self._task], timeout=STOP_TIMEOUT))[1]
        if late:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=STOP_TIMEOUT)

    async def _run(self, changes: Changes) -> None:
        while not self._closed:
            try:
                self._connecting = True
                async with changes.told(self._cache) as hearing:
                    self._connecting = False
                    await self._cover(hearing)
            except SpotconnError as error:
                self._tell(error)
            except Exception as error:  # noqa: BLE001  of a caller's own option, as a callable for the password
                self._tell(type(error).__name__)
            finally:
                self._connecting = False
                self._cache.uncover()
            if not self._closed:
                # Jittered, so that a fleet does not come back all at once.
                await asyncio.sleep(self._pause * random.uniform(0.5, 1))  # noqa: S311  no secret hangs on it
                self._pause = min(2 * self._pause, LONGEST_PAUSE)

    async def _cover(self, hearing: Hearing) -> None:
        """Lend cover from one proof to the next, until one fails."""
        while not self._closed:
            asked = self._clock()
            await hearing.prove()
            if not self._cache.covered:
                _log.info("changes of connections are heard of")
                self._pause = FIRST_PAUSE
            self._cache.cover(asked + self._ttl)
            await hearing.held(seconds=max(self._ttl / PROOFS, SHORTEST_WAIT))

    def _tell(self, reason: object) -> None:
        """Loudly what is new, quietly what has been said before."""
        level = logging.WARNING if self._pause == FIRST_PAUSE else logging.DEBUG
        text = "changes of connections are not heard of, what is remembered of one lives %g s: %s"
        _log.log(level, text, self._ttl, reason)
