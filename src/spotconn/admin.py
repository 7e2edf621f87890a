"""What an operator does with all connections at once; the only part of the library that sees more than one user.

It acts as `service_role`, which row level security does not bind, one short transaction after the other. Nothing of
it belongs in a service that answers users.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

import asyncpg

from spotconn._database.acquire import TIMEOUT as ANSWER_TIMEOUT
from spotconn._database.acquire import terminate_on_error, within
from spotconn._database.bound_pool import BoundPool, check_users
from spotconn._database.errors import APPLY_SCHEMA, map_errors
from spotconn._database.pool import open_pool
from spotconn._database.rekey import COUNT_OLD, LOCK, MAX_PASSES, READ_OLD, WRITE, Rewriter
from spotconn._tracebacks import scrubbed, scrubbed_context
from spotconn.cipher import AesGcmSivCipher
from spotconn.errors import ConfigurationError, RowSecurityError
from spotconn.models import RecordedFailure
from spotconn.overview import ConnectionOverview, ConnectionStats, RekeyProgress

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy
    from asyncpg.transaction import Transaction

BATCH = 1000
"""Rows read or changed in one statement."""
TIMEOUT = 300.0
"""Seconds for one statement; some look at every row."""

_ACT = "select set_config('role', 'service_role', true), set_config('search_path', '', true)"

# All lists are read in batches by user id: nothing is held between two of them, neither rows here nor a transaction
# there. $1 is the first user id, $2 the size of a batch.
_OVERVIEW = """
select user_id, spotify_user_id, display_name, email, connected_at, expires_at, failure, failed_at, retry_at
from spotconn.connection
where user_id >= $1 and {condition}
order by user_id
limit $2
"""
_EXPIRING = _OVERVIEW.format(
    condition="(failure is null or failure = 'unavailable') and "
    "(connected_at at time zone 'UTC') + interval '6 months' <= (now() + make_interval(secs => $3)) at time zone 'UTC'"
)
_FAILING = _OVERVIEW.format(condition="failure is not null")

# A connection that is refused again meanwhile is not in a later batch.
_RECHECK = """
with batch as (
    select state.user_id from spotconn.refresh_state as state
    join public.spotify_connections as stored
        on stored.user_id = state.user_id and stored.expires_at = state.version
    where state.user_id >= $1 and state.failure in ('expired', 'revoked', 'invalid') and state.failed_at >= $3
    order by state.user_id
    limit $2
    for update of state
), changed as (
    update spotconn.refresh_state as state
    set failure = 'unavailable', failures = 0, retry_at = now()
    from batch where state.user_id = batch.user_id
)
select user_id from batch order by user_id
"""

_STATS = """
select
    count(*) as connections,
    count(*) filter (where lease_until > now()) as refreshing,
    count(*) filter (where failure = 'unavailable') as unavailable,
    count(*) filter (where failure = 'expired') as expired,
    count(*) filter (where failure = 'revoked') as revoked,
    count(*) filter (where failure = 'invalid') as invalid
from public.spotify_connections as stored
left join spotconn.refresh_state as state on state.user_id = stored.user_id and state.version = stored.expires_at
"""
_KEYS = """
select case when starts_with(value, 'spotconn') then split_part(value, '.', 2) end as key, count(*)
from public.spotify_connections, lateral (values (access_token), (refresh_token)) as token (value)
group by 1
"""


@scrubbed
class ConnectionAdmin:
    """Looks over and mends the connections of all users.

    Args:
        pool: of a login that may become `service_role` (on Supabase, `postgres`); behind a transaction pooler, made
            with `statement_cache_size=0`. It is not closed here.
        cipher: the ring of keys that `rekey` needs; nothing else here reads a token.
    """

    def __init__(self, pool: asyncpg.Pool, *, cipher: AesGcmSivCipher | None = None) -> None:
        self._pool = BoundPool(pool, name="ConnectionAdmin")
        self._cipher = cipher

    @classmethod
    @scrubbed_context
    async def open(
        cls, dsn: str, *, cipher: AesGcmSivCipher | None = None, **pool_options: Any
    ) -> AsyncGenerator[Self]:
        """An admin over a pool of its own, which is closed at the end.

        Args:
            dsn: a postgresql:// URL.
            cipher: the ring of keys that `rekey` needs.
            pool_options: of `asyncpg.create_pool`, as for `ConnectionStore.open`. By default 1 or 2 connections.

        Raises:
            ConfigurationError: the DSN is malformed, or the login is refused.
            DatabaseUnavailable: the database does not answer in time.
        """
        pool = await open_pool(dsn, {"max_size": 2} | pool_options)
        admin = cls(pool, cipher=cipher)
        try:
            yield admin
        finally:
            await admin._pool.close()

    def expiring(self, *, within: timedelta) -> AsyncIterator[ConnectionOverview]:
        """Connections whose refresh token ends soon, or should have ended: users to be asked to connect again.

        Those that Spotify has refused already are not among them; see `failing`.

        Args:
            within: time from now until the end, six months after `connected_at`.

        Returns:
            An async iterator in the order of the user ids; memory does not grow with their number.

        Raises:
            RowSecurityError: the login may not become service_role.
            DatabaseUnavailable, SchemaMismatch: it ended early.
        """
        # As seconds: a day of an interval may have 23 or 25 hours, by the time zone of the session.
        return self._overviews(_EXPIRING, within.total_seconds())

    def failing(self) -> AsyncIterator[ConnectionOverview]:
        """Connections whose last refresh failed, for a passing reason or for good; `failure` says which.

        Returns and raises:
            The same as `expiring`.
        """
        return self._overviews(_FAILING)

    async def stats(self) -> ConnectionStats:
        """How many connections there are, in which state and under which keys. Looks at every row.

        Raises:
            RowSecurityError: the login may not become service_role.
            DatabaseUnavailable, SchemaMismatch: it could not be read.
        """
        (counts,) = await self._fetch(_STATS)
        keys = {row["key"]: row["count"] for row in await self._fetch(_KEYS)}
        return ConnectionStats(**counts, plain_text=keys.pop(None, 0), by_key=keys)

    async def rekey(self, *, progress: Callable[[RekeyProgress], object] | None = None) -> RekeyProgress:
        """Encrypt every stored token with the first key of the ring, plain text too.

        It may run beside live refreshes, which win, and be stopped and run again. Give every process the new ring
        first: one that goes on encrypting with another key is told at the end.

        Args:
            progress: called after each batch.

        Returns:
            The counts, once a last look has found no value that is not under the first key.

        Raises:
            DecryptionError: some connections do not decrypt; all others are rewritten.
            ConfigurationError: there is no cipher, or live processes keep writing under another key.
            RowSecurityError: the login may not become service_role.
            DatabaseUnavailable, SchemaMismatch: it ended early; run it again.
        """
        cipher = self._cipher
        if cipher is None:
            raise ConfigurationError("rekey needs keys: set SPOTCONN_ENCRYPTION_KEYS, or pass a cipher")
        rewriter = Rewriter(cipher, total=await self._left(cipher))
        left = rewriter.total
        for _ in range(MAX_PASSES):
            rewriter.unreadable.clear()
            async for rows in self._batches(READ_OLD, cipher.current_prefix):
                await self._rewrite(rewriter, rows)
                if progress is not None:
                    progress(rewriter.progress)
            left = await self._left(cipher)
            if left <= len(rewriter.unreadable):
                break
        return rewriter.conclude(left)

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
        if since.utcoffset() is None:
            raise ValueError("since: expected a time with a time zone")
        return sum([len(rows) async for rows in self._batches(_RECHECK, since)])

    async def _overviews(self, query: str, *args: object) -> AsyncIterator[ConnectionOverview]:
        async for rows in self._batches(query, *args):
            for row in rows:
                yield _overview(row)

    async def _batches(self, query: str, *args: object) -> AsyncIterator[list[asyncpg.Record]]:
        start = UUID(int=0)
        while rows := await self._batch(query, start, *args):
            yield rows
            last: UUID = rows[-1]["user_id"]
            if len(rows) < BATCH or last == UUID(int=2**128 - 1):
                return
            start = UUID(int=last.int + 1)

    async def _left(self, cipher: AesGcmSivCipher) -> int:
        """The number of connections with a value that is not under the first key."""
        (row,) = await self._fetch(COUNT_OLD, cipher.current_prefix)
        left: int = row[0]
        return left

    async def _rewrite(self, rewriter: Rewriter, rows: list[asyncpg.Record]) -> None:
        columns = rewriter.rewrite(rows)
        if not columns:
            return
        async with self._acting() as connection:
            await map_errors(connection.execute(LOCK, timeout=TIMEOUT))
            saved = await map_errors(connection.fetch(WRITE, *columns, timeout=TIMEOUT))
            check_users(connection, {row["user_id"] for row in saved} <= set(columns[0]))
        rewriter.saved(len(columns[0]), len(saved))

    async def _batch(self, query: str, start: UUID, *args: object) -> list[asyncpg.Record]:
        """Return the next rows in the order of their user ids, from `start` on."""
        async with self._acting() as connection:
            rows = await map_errors(connection.fetch(query, start, BATCH, *args, timeout=TIMEOUT))
            users = [row["user_id"] for row in rows]
            check_users(connection, users == sorted(users) and all(start <= user for user in users))
        return rows

    async def _fetch(self, query: str, *args: object) -> list[asyncpg.Record]:
        async with self._acting() as connection:
            return await map_errors(connection.fetch(query, *args, timeout=TIMEOUT))

    @asynccontextmanager
    async def _acting(self) -> "AsyncGenerator[PoolConnectionProxy[asyncpg.Record]]":
        """A transaction as service_role."""
        async with self._pool.acquire() as connection:
            transaction = connection.transaction()
            await map_errors(within(transaction.start(), seconds=ANSWER_TIMEOUT))
            try:
                await _become_service_role(connection)
                yield connection
            except BaseException:
                await _roll_back(connection, transaction)
                raise
            await map_errors(within(transaction.commit(), seconds=TIMEOUT))


async def _roll_back(connection: "PoolConnectionProxy[asyncpg.Record]", transaction: "Transaction") -> None:
    """End a failed transaction; where that fails too, the connection, or it would go back to the pool as it is."""
    failures = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
    with suppress(*failures), terminate_on_error(connection):
        await within(transaction.rollback(), seconds=ANSWER_TIMEOUT)


async def _become_service_role(connection: "PoolConnectionProxy[asyncpg.Record]") -> None:
    with suppress(RowSecurityError):
        await map_errors(connection.execute(_ACT, timeout=TIMEOUT))
        return
    raise RowSecurityError(f"the login may not become service_role: GRANT service_role TO it, or {APPLY_SCHEMA}")


def _overview(row: asyncpg.Record) -> ConnectionOverview:
    failure = row["failure"] and RecordedFailure(
        reason=row["failure"], since=row["failed_at"], retry_at=row["retry_at"]
    )
    return ConnectionOverview(
        user_id=row["user_id"],
        spotify_user_id=row["spotify_user_id"],
        display_name=row["display_name"],
        email=row["email"],
        connected_at=row["connected_at"],
        expires_at=row["expires_at"],
        failure=failure,
    )
