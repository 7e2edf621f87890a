"""Notifications of changes to the table, sent by its triggers and received on a connection of their own."""

import asyncio
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol
from uuid import UUID

import asyncpg

from spotconn._database.acquire import TIMEOUT, Session
from spotconn._database.bound_pool import BoundPool
from spotconn._database.errors import APPLY_SCHEMA, map_errors
from spotconn._database.pool import open_single
from spotconn.errors import DatabaseUnavailable, SchemaMismatch

CHANNEL = "spotconn"
_HEARTBEAT = "heartbeat "
"""The first characters of a notification of `spotconn.heartbeat`."""


class ChangeHandler(Protocol):
    """Receives changes. No method may raise."""

    def invalidate(self, user_id: UUID) -> None:
        """Handle that the connection of a user has changed."""
        ...

    def clear(self) -> None:
        """Handle that any connection may have changed."""
        ...


class ChangeFeed:
    """The notifications of one database.

    Args:
        pool: of the database.
        dsn: of the same database. A transaction pooler would deliver no notifications.
        options: of `asyncpg.create_pool`; those of a connection are used.
        timeout: seconds to wait for a connection, and again for a heartbeat.
    """

    def __init__(self, pool: asyncpg.Pool, dsn: str, options: dict[str, Any], *, timeout: float = TIMEOUT) -> None:
        self._pool = BoundPool(pool, name="ConnectionStore", timeout=timeout)
        self._dsn = dsn
        self._options = options
        self._timeout = timeout

    @asynccontextmanager
    async def subscribe(self, handler: ChangeHandler) -> AsyncGenerator["Subscription"]:
        """Context manager: pass changes to `handler`. `Subscription.heartbeat` tells whether they arrive.

        Raises:
            ConfigurationError: the DSN is malformed, or the login is refused.
            DatabaseUnavailable: no connection in time.
        """
        pool = await open_single(self._dsn, self._options, seconds=self._timeout)
        bound = BoundPool(pool, name="ConnectionStore", timeout=self._timeout)
        try:
            session = await map_errors(pool.acquire(timeout=self._timeout))
            subscription = Subscription(self._pool, session, timeout=self._timeout)
            await subscription.start(handler)
            yield subscription
        finally:
            bound.terminate()


class Subscription:
    """A connection that listens, and the heartbeats that show whether notifications arrive."""

    def __init__(self, pool: BoundPool, session: Session, *, timeout: float) -> None:
        self._pool = pool
        self._session = session
        self._timeout = timeout
        self._nonce = secrets.token_hex(8)
        self._arrived = asyncio.Event()
        self._lost = asyncio.Event()
        self._confirmed = False

    async def start(self, handler: ChangeHandler) -> None:
        """Begin to listen.

        Raises:
            DatabaseUnavailable: no answer in time.
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
            DatabaseUnavailable: it does not arrive in time.
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
        if self._lost.is_set():
            raise DatabaseUnavailable("the connection that listens for changes was lost")
        self._confirmed = True

    async def wait(self, *, seconds: float) -> None:
        """Wait for `seconds`.

        Raises:
            DatabaseUnavailable: the connection was lost.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._lost.wait()
            raise DatabaseUnavailable("the connection that listens for changes was lost")

    async def _send(self, session: Session) -> None:
        query = "select spotconn.heartbeat($1)"
        if not await map_errors(session.fetchval(query, self._nonce, timeout=self._timeout)):
            raise SchemaMismatch(f"the triggers that tell of changes are gone or disabled: {APPLY_SCHEMA}")

    def _end(self, _session: object) -> None:
        self._lost.set()
        self._arrived.set()


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
    """Pass on a notification of `spotconn.notify_change`; one that cannot be parsed may mean any change."""
    try:
        user_id = UUID(payload)
    except ValueError:
        handler.clear()
        return
    handler.invalidate(user_id)
