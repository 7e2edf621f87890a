"""A session that listens for changes of the table, and the heartbeats that show whether notifications arrive."""

import asyncio
import secrets
from contextlib import suppress
from typing import Protocol
from uuid import UUID

import asyncpg

from spotconn._database.acquire import within
from spotconn._database.bound_pool import BoundPool
from spotconn._database.errors import APPLY_SCHEMA, map_errors
from spotconn._database.idle_sessions import Session
from spotconn.errors import DatabaseUnavailable, SchemaMismatch

CHANNEL = "spotconn"
_HEARTBEAT = "heartbeat "
"""The first characters of a notification of `spotconn.heartbeat`."""
QUEUE_FILLED = (
    "changes are not notified while the queue of NOTIFY is half full: a session that listens sits in a transaction; "
    "find it with spotconn doctor and end it"
)
_ALL = "*"
"""The notification of a change of all rows."""
OTHER_SERVER = "the connection that listens for changes leads to another server than the one where changes are made"


UNDELIVERED = (
    "the connection that listens for changes hears nothing in time: it was cut, leads to another database, or a "
    "transaction pooler is in between"
)
LASTING = frozenset({QUEUE_FILLED, UNDELIVERED})
"""Texts of errors where the database answers, and notifications do not arrive."""


class ChangeHandler(Protocol):
    """Receives changes. No method may raise."""

    def invalidate(self, user_id: UUID) -> None:
        """Handle that the connection of a user has changed."""
        ...

    def clear(self) -> None:
        """Handle that any connection may have changed."""
        ...


class Subscription:
    """A connection that listens, and the heartbeats that show whether notifications arrive.

    Args:
        pool: of the same database, for the first heartbeat.
        session: to listen on.
        timeout: seconds to wait for an answer, and again for a heartbeat.
    """

    def __init__(self, pool: BoundPool, session: Session, *, timeout: float) -> None:
        self._pool = pool
        self._session = session
        self._timeout = timeout
        self._nonce = secrets.token_hex(8)
        self._arrived = asyncio.Event()
        self._woken = asyncio.Event()
        self._lost = False
        self._confirmed = False
        self._skipped: int | None = None

    async def start(self, handler: ChangeHandler) -> None:
        """Begin to listen.

        Raises:
            DatabaseUnavailable: no answer in time.
            ConfigurationError: a pooler in between refuses it.
        """

        def notified(_session: object, _pid: object, _channel: object, payload: object) -> None:
            text = str(payload)
            if not text.startswith(_HEARTBEAT):
                _dispatch(handler, text)
            elif text == _HEARTBEAT + self._nonce:
                self._arrived.set()

        self._session.add_termination_listener(self._end)
        await map_errors(within(self._session.add_listener(CHANNEL, notified), seconds=self._timeout))

    async def heartbeat(self) -> str:
        """Ask the session for its server. All changes that were committed before this call have then arrived.

        PostgreSQL sends what was notified to an idle session before it says that the next statement has ended
        (ReadyForQuery), and asyncpg calls handlers in the order of arrival. A commit is answered after the listening
        sessions were signalled, so no change whose writer knows of it can be missing.

        With the first one, a notification is sent from another session: only that shows that those of others arrive.

        Returns:
            the life of the server, as `spotconn.server_life` has it.

        Raises:
            DatabaseUnavailable: it does not arrive in time, or changes since the last one were not notified.
            SchemaMismatch: the triggers are missing or disabled.
        """
        notified = None if self._confirmed else await self._notify()
        life, skipped = await self._ask()
        self._check()
        if notified is not None:
            if life != notified[0]:  # looked at first: another server has another count
                raise DatabaseUnavailable(OTHER_SERVER, answered=True)
            self._count(notified[1])
        self._count(skipped)
        if notified is not None:
            await self._await_notification()
        if life is None:
            raise DatabaseUnavailable("the connection that listens for changes leads to a standby")
        self._confirmed = True
        return life

    async def wait(self, *, seconds: float) -> None:
        """Wait for `seconds`, or until `wake` was called.

        Raises:
            DatabaseUnavailable: the connection was lost.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        self._woken.clear()
        self._check()

    def wake(self) -> None:
        """End the wait under way, or the next one."""
        self._woken.set()

    async def _notify(self) -> tuple[str | None, int | None]:
        """Send a notification from a session of the pool, and return what `_ask` does, of its server."""
        # Behind a transaction pooler, or at another database, only the session's own notifications would arrive.
        query = "select spotconn.server_life(), spotconn.heartbeat($1)"
        async with self._pool.acquire() as other:
            row = await map_errors(other.fetchrow(query, self._nonce, timeout=self._timeout))
        return _answer(row)

    async def _await_notification(self) -> None:
        with suppress(TimeoutError):
            await within(self._arrived.wait(), seconds=self._timeout)
        self._check()
        if not self._arrived.is_set():
            raise DatabaseUnavailable(UNDELIVERED)

    async def _ask(self) -> tuple[str | None, int | None]:
        """Return the life of the server, None of a standby, and the number of changes that were not notified."""
        query = "select spotconn.server_life(), spotconn.count_skipped()"
        row = await map_errors(within(self._session.fetchrow(query), seconds=self._timeout))
        return _answer(row)

    def _count(self, skipped: int | None) -> None:
        if skipped is None:
            raise SchemaMismatch(f"the triggers that tell of changes are gone or disabled: {APPLY_SCHEMA}")
        # A change that was skipped may be one that a cached token does not show.
        if not skipped or self._skipped not in {None, skipped}:
            raise DatabaseUnavailable(QUEUE_FILLED, answered=True)
        self._skipped = skipped

    def _check(self) -> None:
        if self._lost:
            raise DatabaseUnavailable("the connection that listens for changes was lost")

    def _end(self, _session: object) -> None:
        self._lost = True
        self._arrived.set()
        self._woken.set()


def _answer(row: asyncpg.Record | None) -> tuple[str | None, int | None]:
    life, skipped = row or (None, None)
    return life, skipped


def _dispatch(handler: ChangeHandler, payload: str) -> None:
    """Pass on a notification of `spotconn.notify_change`.

    Any other is ignored: the trigger sends a user's id or `*`, so it is not from there and no row has changed. Any
    login of the database may notify, and nonsense must not empty the cache of every process.
    """
    if payload == _ALL:
        handler.clear()
        return
    with suppress(ValueError):
        handler.invalidate(UUID(payload))
