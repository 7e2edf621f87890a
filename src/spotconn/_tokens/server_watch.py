"""Which server the rows come from: another one than before may have lost commits.

A process need not meet an error to be connected with another server: the pool opens lost sessions again, a pooler keeps
its own. The heartbeats of a process that listens tell the life of its server; any other asks.
"""

import asyncio
import logging
import math
from contextvars import Context

from spotconn._stopwatch import loop_time
from spotconn._tokens.saved_grants import STOP_TIMEOUT, SavedGrants
from spotconn.errors import DatabaseUnavailable
from spotconn.store import ConnectionStore

_log = logging.getLogger("spotconn")

INTERVAL = 15.0
"""Seconds after which the server is asked where nothing has told its life: heartbeats do it every 10 s."""
LASTING = 120.0
"""Seconds for which it is asked after the last call. What a failover loses was saved shortly before."""
LATELY = 60.0
"""Seconds after a change in which a row may still be an earlier one, which another process is about to mend."""


class ServerWatch:
    """Compares saved grants with their rows when the server is another one, or the same one restarted.

    Args:
        store: of the connections.
        saved: the grants. Without any there is nothing to ask for.
    """

    def __init__(self, store: ConnectionStore, saved: SavedGrants) -> None:
        self._store = store
        self._saved = saved
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._life: str | None = None
        self._changed_at = self._observed_at = self._needed_until = -math.inf
        self._look_again = False

    def start(self) -> None:
        """Watch the server for a while, as long as there are saved grants: a call has used it. May be repeated.

        Not for longer, so that a server which sleeps when it is not used may do so.
        """
        self._needed_until = loop_time() + LASTING
        if not self._closed and (self._task is None or self._task.done()) and self._saved.prune():
            # In a context of its own: it outlives the call that starts it, and is no part of its trace.
            self._task = asyncio.create_task(self._watch(), name="spotconn-watch", context=Context())

    def observe(self, life: str | None) -> None:
        """Compare all grants with their rows where the server is another one than before.

        After the second time, too: commits may have been lost between a grant and the first.

        Args:
            life: of the server, as `spotconn.server_life` has it; None of a standby.
        """
        self._observed_at = loop_time()
        if life is None:
            return
        first, changed = self._life is None, life != self._life
        if changed and not first:
            self._changed_at = loop_time()
            _log.info("the database is another server, or was restarted: what this process has saved is compared")
        self._life = life
        if self._look_again or (changed and not first):
            self._saved.compare()
        self._look_again = first
        self._saved.database_answered()

    async def changed_lately(self) -> bool:
        """Return whether the rows come from another server than a minute ago, asked now.

        Raises:
            SpotconnError: it does not answer.
        """
        if self._life is None:  # nothing to compare it with
            return False
        self.observe(await self._store.refreshes.server_life())
        return loop_time() - self._changed_at < LATELY

    async def aclose(self) -> None:
        """Stop, and start no more: grants are still saved after that."""
        self._closed = True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task], timeout=STOP_TIMEOUT)

    async def _watch(self) -> None:
        while self._saved.prune() and loop_time() < self._needed_until:
            delay = self._observed_at + INTERVAL - loop_time()
            if delay <= 0:
                await self._ask()
                delay = INTERVAL
            await asyncio.sleep(delay)

    async def _ask(self) -> None:
        try:
            self.observe(await self._store.refreshes.server_life())
        except DatabaseUnavailable:
            self._saved.database_lost()
            self._needed_until = loop_time() + LASTING  # the server that answers next may be another one
        except Exception as error:  # noqa: BLE001  also of an option of the caller's pool
            _log.debug("the server does not say which one it is: %s", type(error).__name__)
