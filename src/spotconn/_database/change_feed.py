"""What changes in the table, by whomever: the notifications of its trigger, over a connection of their own."""

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
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
"""What a notification of `spotconn.heartbeat` begins with."""


class ChangeHandler(Protocol):
    """Who is told of changes; no method may raise."""

    def on_change(self, user_id: UUID, version: datetime) -> None:
        """That version of a user's connection is stored."""
        ...

    def invalidate(self, user_id: UUID) -> None:
        """A user's connection is gone."""
        ...

    def clear(self) -> None:
        """Any connection may have changed."""
        ...


class ChangeFeed:
    """Where changes are heard of.

    Args:
        pool: of the database whose changes they are.
        dsn: of the same database. Through a transaction pooler nothing would be heard.
        options: of `asyncpg.create_pool`; those of a connection count.
        timeout: seconds to wait for a connection, and again for a proof.
    """

    def __init__(self, pool: asyncpg.Pool, dsn: str, options: dict[str, Any], *, timeout: float = TIMEOUT) -> None:
        self._pool = BoundPool(pool, name="ConnectionStore", timeout=timeout)
        self._dsn = dsn
        self._options = options
        self._timeout = timeout

    @asynccontextmanager
    async def subscribe(self, handler: ChangeHandler) -> AsyncGenerator["Subscription"]:
        """Within: changes are told, as far as `Subscription.heartbeat` proves.

        Raises:
            ConfigurationError: the DSN is malformed, or the login is refused.
            DatabaseUnavailable: no connection in time.
        """
        own = await open_single(self._dsn, self._options, seconds=self._timeout)
        bound = BoundPool(own, name="ConnectionStore", timeout=self._timeout)
        try:
            session = await map_errors(own.acquire(timeout=self._timeout))
            subscription = Subscription(self._pool, session, timeout=self._timeout)
            await subscription.start(handler)
            yield subscription
        finally:
            bound.terminate()


class Subscription:
    """A connection that listens, and the proof that it hears."""

    def __init__(self, pool: BoundPool, session: Session, *, timeout: float) -> None:
        self._pool = pool
        self._session = session
        self._timeout = timeout
        self._nonce = secrets.token_hex(8)
        self._heard = asyncio.Event()
        self._lost = asyncio.Event()
        self._delivered = False

    async def start(self, handler: ChangeHandler) -> None:
        """Listen.

        Raises:
            DatabaseUnavailable: not in time.
        """

        def notified(_session: object, _pid: object, _channel: object, payload: object) -> None:
            text = str(payload)
            if not text.startswith(_HEARTBEAT):
                _dispatch(handler, text)
            elif text == _HEARTBEAT + self._nonce:
                self._heard.set()

        self._session.add_termination_listener(self._end)
        async with _within(self._timeout):
            await map_errors(self._session.add_listener(CHANNEL, notified))

    async def heartbeat(self) -> None:
        """Prove that all changes before this call have been told; the first time also that any are.

        Raises:
            DatabaseUnavailable: there is no proof in time.
            SchemaMismatch: the database does not tell of changes.
        """
        self._heard.clear()
        if self._delivered:
            await self._ask(self._session)
        else:
            # Behind a transaction pooler, or at another database, one would hear oneself and nobody else.
            async with self._pool.acquire() as elsewhere:
                await self._ask(elsewhere)
        async with _within(self._timeout):
            await self._heard.wait()
        if self._lost.is_set():
            raise DatabaseUnavailable("the connection that listens for changes was lost")
        self._delivered = True

    async def wait(self, *, seconds: float) -> None:
        """Wait.

        Raises:
            DatabaseUnavailable: the connection was lost meanwhile.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._lost.wait()
            raise DatabaseUnavailable("the connection that listens for changes was lost")

    async def _ask(self, session: Session) -> None:
        query = "select spotconn.heartbeat($1)"
        if not await map_errors(session.fetchval(query, self._nonce, timeout=self._timeout)):
            raise SchemaMismatch(f"the triggers that tell of changes are gone or disabled: {APPLY_SCHEMA}")

    def _end(self, _session: object) -> None:
        self._lost.set()
        self._heard.set()


@asynccontextmanager
async def _within(seconds: float) -> AsyncGenerator[None]:
    late = False
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        late = True
    if late:
        raise DatabaseUnavailable(
            "the connection that listens for changes hears nothing in time: it was cut, leads to another database, or "
            "a transaction pooler is in between"
        )


def _dispatch(handler: ChangeHandler, payload: str) -> None:
    """Tell what `spotconn.notify_change` says; what nobody understands may mean anything."""
    try:
        change = json.loads(payload)
        user_id = UUID(change["user_id"])
        version = datetime.fromisoformat(change["expires_at"]) if "expires_at" in change else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        handler.clear()
        return
    if version is None:
        handler.invalidate(user_id)
    else:
        handler.on_change(user_id, version)
