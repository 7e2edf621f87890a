"""A session that listens for changes of the table, and the heartbeats that show whether notifications arrive."""

import asyncio
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Protocol
from uuid import UUID

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
        async with _arriving_within(self._timeout):
            await map_errors(self._session.add_listener(CHANNEL, notified))

    async def heartbeat(self) -> None:
        """Send a notification and wait until it arrives. All changes before this call have then arrived.

        The first one is sent from another session, which shows that notifications of others arrive, too.

        Raises:
            DatabaseUnavailable: it does not arrive in time, or changes since the last one were not notified.
            SchemaMismatch: the triggers are missing or disabled.
        """
        self._arrived.clear()
        if self._confirmed:
            await self._send(self._session)
        else:
            # Behind a transaction pooler, or at another database, only its own notifications would arrive.
            async with self._pool.acquire() as other:
                await self._send(other)
        async with _arriving_within(self._timeout):
            await self._arrived.wait()
        self._check()
        self._confirmed = True

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

    async def _send(self, session: Session) -> None:
        query = "select spotconn.heartbeat($1)"
        skipped: int | None = await map_errors(session.fetchval(query, self._nonce, timeout=self._timeout))
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


@asynccontextmanager
async def _arriving_within(seconds: float) -> AsyncGenerator[None]:
    timed_out = False
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        timed_out = True
    if timed_out:
        raise DatabaseUnavailable(
            "the connection that listens for changes hears nothing in time: it was cut, leads to another database, or "
            "a transaction pooler is in between"
        )


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
