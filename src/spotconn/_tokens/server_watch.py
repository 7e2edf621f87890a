"""Which server the rows come from: another one than before may have lost commits.

A process need not meet an error to be connected with another server: the pool opens lost sessions again, a pooler keeps
its own. So the server is asked once per interval.
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

INTERVAL = 10.0
"""Seconds from one look at the server to the next."""
LATELY = 60.0
"""Seconds after a change in which a row may still be an earlier one, which another process is about to mend."""


class ServerWatch:
    """Compares saved grants with their rows when the server is another one, or the same one restarted.

    Args:
        store: of the connections.
        saved: the grants. Without any there is nothing to watch for.
    """

    def __init__(self, store: ConnectionStore, saved: SavedGrants) -> None:
        self._store = store
        self._saved = saved
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._life: str | None = None
        self._changed_at = -math.inf
        self._look_again = False

    def start(self) -> None:
        """Watch the server as long as there are saved grants. May be repeated."""
        if not self._closed and (self._task is None or self._task.done()):
            # In a context of its own: it outlives the call that starts it, and is no part of its trace.
            self._task = asyncio.create_task(self._watch(), name="spotconn-watch", context=Context())

    async def changed_lately(self) -> bool:
        """Return whether the rows come from another server than a minute ago, asked now.

        Raises:
            SpotconnError: it does not answer.
        """
        if self._life is None:  # nothing to compare it with
            return False
        await self._look()
        return loop_time() - self._changed_at < LATELY

    async def aclose(self) -> None:
        """Stop, and start no more: grants are still saved after that."""
        self._closed = True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task], timeout=STOP_TIMEOUT)

    async def _watch(self) -> None:
        while self._saved.prune():
            try:
                await self._look()
            except DatabaseUnavailable:
                self._saved.database_lost()
            except Exception as error:  # noqa: BLE001  also of an option of the caller's pool
                _log.debug("the server does not say which one it is: %s", type(error).__name__)
            else:
                self._saved.database_answered()
            await asyncio.sleep(INTERVAL)
        self._life = None  # what happens from now on is not seen

    async def _look(self) -> None:
        """Compare all grants with their rows where the server is another one than before.

        After the first look, too: commits may have been lost between a grant and that.
        """
        life = await self._store.refreshes.server_life()
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
