"""What an operator does with all connections at once; the only part of the library that sees more than one user.

It acts as `service_role`, which row level security does not bind, one short transaction after the other. Nothing of
it belongs in a service that answers users.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

import asyncpg

from spotconn._pool import APPLY_SCHEMA, acquired, close_pool, open_pool, translated
from spotconn.errors import RowSecurityError

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

BATCH = 1000
"""Rows read or changed in one statement."""
BATCH_TIMEOUT = 60.0
"""Seconds for the statement of one batch."""

_ACT = "select set_config('role', 'service_role', true), set_config('search_path', '', true)"

# Keyset batches: a connection that is refused again meanwhile is not asked about twice.
_RECHECK = """
with batch as (
    select state.user_id from spotconn.refresh_state as state
    join public.spotify_connections as stored
        on stored.user_id = state.user_id and stored.expires_at = state.version
    where state.user_id > $1 and state.failure in ('expired', 'revoked', 'invalid') and state.failed_at >= $2
    order by state.user_id
    limit $3
    for update of state
), changed as (
    update spotconn.refresh_state as state
    set failure = 'unavailable', failures = 0, retry_at = pg_catalog.now()
    from batch where state.user_id = batch.user_id
)
select batch.user_id from batch order by batch.user_id
"""


class ConnectionAdmin:
    """Looks over and mends the connections of all users.

    Args:
        pool: of a login that may become `service_role` (on Supabase, `postgres`). It is not closed here.
    """

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    @classmethod
    @asynccontextmanager
    async def open(cls, dsn: str, **pool_options: Any) -> AsyncIterator[Self]:
        """An admin over a pool of its own, which is closed at the end.

        Args:
            dsn: a postgresql:// URL.
            pool_options: of `asyncpg.create_pool`. By default 1 or 2 connections.

        Raises:
            ConfigurationError: the DSN is malformed, or the login is refused.
            DatabaseUnavailable: the database does not answer in time.
        """
        pool = await open_pool(dsn, {"max_size": 2} | pool_options)
        try:
            yield cls(pool)
        finally:
            await close_pool(pool)

    async def recheck(self, *, since: datetime) -> int:
        """Let connections that Spotify refused be tried again, where an outage is thought to have refused them.

        The next request for such a user asks Spotify; a refusal is then recorded anew.

        Args:
            since: refusals recorded from this moment on, with a time zone.

        Returns:
            How many connections will be tried again.

        Raises:
            ValueError: `since` has no time zone.
            RowSecurityError: the login may not become service_role.
            DatabaseUnavailable, SchemaMismatch: it ended early; run it again.
        """
        _check_aware("since", since)
        after, count = UUID(int=0), 0
        while rows := await self._batch(_RECHECK, after, since, BATCH):
            after, count = rows[-1]["user_id"], count + len(rows)
        return count

    async def _batch(self, query: str, *args: object) -> list[asyncpg.Record]:
        async with self._acting() as connection:
            return await translated(connection.fetch(query, *args, timeout=BATCH_TIMEOUT))

    @asynccontextmanager
    async def _acting(self) -> "AsyncIterator[PoolConnectionProxy[asyncpg.Record]]":
        """A transaction as service_role."""
        async with acquired(self._pool) as connection:
            transaction = connection.transaction()
            await translated(transaction.start())
            try:
                await _become_service_role(connection)
                yield connection
            except BaseException:
                await translated(transaction.rollback())
                raise
            await translated(transaction.commit())


async def _become_service_role(connection: "PoolConnectionProxy[asyncpg.Record]") -> None:
    allowed = False
    try:
        await translated(connection.execute(_ACT, timeout=BATCH_TIMEOUT))
        allowed = True
    except RowSecurityError:
        pass
    if not allowed:
        raise RowSecurityError(f"the login may not become service_role: GRANT service_role TO it, or {APPLY_SCHEMA}")


def _check_aware(name: str, moment: datetime) -> None:
    if moment.utcoffset() is None:
        raise ValueError(f"{name}: expected a time with a time zone")
