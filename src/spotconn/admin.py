"""Operator's work on the connections of all users: the only part of the library that sees more than one user.

It acts as `service_role`, which sees the rows of all users, in one short transaction after the other. It does
not belong in a service that answers users.
"""

import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Self
from uuid import UUID

import asyncpg

from spotconn._arguments import check_client_id, check_connected_at, several, since_in_utc
from spotconn._database.acquire import TIMEOUT as CONNECT_TIMEOUT
from spotconn._database.bound_pool import BoundPool, check_users
from spotconn._database.errors import map_errors
from spotconn._database.idle_sessions import Session
from spotconn._database.migration import Migration, Options
from spotconn._database.move import Mover
from spotconn._database.pool import may_convert, open_pool
from spotconn._database.rekey import Rekey
from spotconn._database.rows import overview, statistics
from spotconn._database.service_role import TIMEOUT, ServiceRole
from spotconn._database.source_tokens import TokenReader
from spotconn._database.statements import (
    ADD_STATES,
    APPS,
    ASSIGN_APP,
    CLEAR_REFUSALS,
    CONNECTED,
    EXPIRING,
    FAILING,
    KEYS,
    LOCK_ROWS,
    OF_NO_APP,
    RECHECK,
    STATS,
    VOID_STATES,
)
from spotconn._tracebacks import scrub, scrubbed, scrubbed_context
from spotconn._user_ids import UserId, parse_user_id
from spotconn.cipher import AesGcmSivCipher, NoCipher
from spotconn.errors import ConfigurationError, DatabaseUnavailable, UnknownUser
from spotconn.overview import ConnectionOverview, ConnectionStats, MigratedRow, RekeyProgress

_CENTURY = timedelta(days=36_525)


@scrubbed
class ConnectionAdmin:
    """Lists, counts, re-encrypts, rechecks, migrates and moves connections of all users, and assigns them to their app.

    Args:
        pool: of a login that may become `service_role` (on Supabase, `postgres`); behind a transaction pooler, made
            with `statement_cache_size=0`. The admin does not close it.
        cipher: the ring of keys that `rekey`, `move` and `migrate` write with; no other method reads a token.
    """

    def __init__(self, pool: asyncpg.Pool, *, cipher: AesGcmSivCipher | None = None) -> None:
        self._pool = BoundPool(pool, name="ConnectionAdmin")
        self._database = ServiceRole(self._pool)
        self._cipher = cipher

    @classmethod
    @scrubbed_context
    async def open(
        cls,
        dsn: str,
        *,
        cipher: AesGcmSivCipher | None = None,
        timeout: float = CONNECT_TIMEOUT,  # noqa: ASYNC109  of the pool
        **pool_options: Any,
    ) -> AsyncGenerator[Self]:
        """Context manager: open an admin with a pool of its own, and close it at the end of the block.

        Args:
            dsn: a postgresql:// URL.
            cipher: the ring of keys that `rekey` and `move` need.
            timeout: seconds to wait for the first connection.
            pool_options: of `asyncpg.create_pool`, as for `ConnectionStore.open`. By default 1 or 2 connections.

        Raises:
            ConfigurationError: the DSN is malformed, or the login is refused.
            DatabaseUnavailable: the database does not answer in time.
        """
        pool = await open_pool(dsn, {"max_size": 2} | pool_options, seconds=timeout)
        admin = cls(pool, cipher=cipher)
        admin._pool.checked = not may_convert(pool_options)
        try:
            yield admin
        finally:
            await admin._pool.close()

    def expiring(
        self, *, within: timedelta, retired_client_ids: Iterable[str] = ()
    ) -> AsyncIterator[ConnectionOverview]:
        """Yield connections whose refresh token ends soon, or should have ended: users to be asked to connect again.

        Those that Spotify has refused already are left out; see `failing`.

        Args:
            within: time from now until the end, six months after `connected_at`; at most a century.
            retired_client_ids: of apps that are given up for good: all their connections are listed.

        Returns:
            An async iterator in the order of the user ids; memory does not grow with their number.

        Raises:
            ValueError: `within` is longer, or `retired_client_ids` is one string.
            RowSecurityError: the login may not become service_role, or a policy hides rows from it.
            DatabaseUnavailable, SchemaMismatch: it ended early.
        """
        if abs(within) > _CENTURY:
            raise ValueError("within: expected at most a century")
        retired = several(retired_client_ids, name="retired_client_ids")
        # In seconds: in the time zone of the session a day may have 23 or 25 hours.
        return self._overviews(EXPIRING, within.total_seconds(), list(retired))

    def failing(self) -> AsyncIterator[ConnectionOverview]:
        """Yield connections whose last refresh failed, temporarily or for good; `failure` says which.

        Returns and raises:
            The same as `expiring`.
        """
        return self._overviews(FAILING)

    async def stats(self) -> ConnectionStats:
        """Count the connections by state and app, and the stored tokens by key. Reads every row.

        Raises:
            RowSecurityError: the login may not become service_role, or a policy hides rows from it.
            DatabaseUnavailable, SchemaMismatch: it could not be read.
        """
        return statistics(*[await self._database.fetch(query) for query in (STATS, KEYS, APPS)])

    async def rekey(self, *, progress: Callable[[RekeyProgress], object] | None = None) -> RekeyProgress:
        """Encrypt every stored token with the first key of the ring.

        Plain text is encrypted, too, unless the cipher requires encryption: then it may be a stranger's, and is left.
        It may run beside live refreshes, which win and are waited for, and may be stopped and run again. Give every
        process the new ring first: if one still encrypts with another key, the rekey ends with ConfigurationError.

        Args:
            progress: called after each batch.

        Returns:
            The counts, once a last look has found nothing more to rewrite; also of what does not decrypt and is left.

        Raises:
            ConfigurationError: there is no cipher, or others keep writing under another key.
            RowSecurityError: the login may not become service_role, or a policy hides rows from it.
            DatabaseUnavailable, SchemaMismatch: it ended early; run it again.
        """
        if self._cipher is None:
            raise ConfigurationError("rekey needs keys: set SPOTCONN_ENCRYPTION_KEYS, or pass a cipher")
        return await Rekey(self._database, self._cipher).run(progress)

    async def recheck(self, *, since: datetime) -> int:
        """Let connections that Spotify refused be tried again, after refusals that an outage may have caused.

        The next request for such a user asks Spotify; a refusal is then recorded anew.

        Args:
            since: refusals recorded from this moment on, with a time zone.

        Returns:
            How many connections will be tried again.

        Raises:
            ValueError: `since` has no time zone, or is no time in UTC.
            RowSecurityError: the login may not become service_role, or a policy hides rows from it.
            DatabaseUnavailable, SchemaMismatch: it ended early; run it again.
        """
        moment = since_in_utc(since)
        return sum([len(rows) async for rows in self._database.batches(RECHECK, moment)])

    async def assign_app(self, client_id: str) -> int:
        """Record the app of all connections whose app is not known, such as those from before an upgrade.

        A connection whose app is known stays as it is. What Spotify has refused with other apps is tried with this one.
        It may run beside live refreshes, and be stopped and run again.

        Args:
            client_id: of the app that their refresh tokens were issued to.

        Returns:
            How many connections were assigned.

        Raises:
            ValueError: `client_id` is malformed.
            RowSecurityError: the login may not become service_role, or a policy hides rows from it.
            DatabaseUnavailable, SchemaMismatch: it ended early; run it again.
        """
        check_client_id(client_id or "")  # None is for connections whose app is not known
        assigned = 0
        async for rows in self._database.batches(CONNECTED):
            users = [row["user_id"] for row in rows]
            await self._add_states(users)
            assigned += await self._assign(users, client_id)
        return assigned

    async def move(self, from_user: UserId, to_user: UserId) -> bool:
        """Move the connection of one user to another who has none, as where two accounts are merged.

        Its tokens are encrypted anew, because they are bound to their user, and what is known of them goes with them:
        the app, a failure. It waits up to 30 seconds for a refresh under way. It also mends a row that was given to
        `to_user` by SQL and whose tokens are still bound to `from_user`. Both users' cached tokens are dropped.

        Args:
            from_user: who has the connection.
            to_user: who gets it.

        Returns:
            Whether `from_user` had a connection.

        Raises:
            ValueError: a user id is no UUID, both are the same, or `to_user` has a connection.
            UnknownUser: `to_user` is no user of auth.users.
            RefreshInProgress: a refresh is under way, or was cut off less than a minute ago.
            DecryptionError: a token is not under these keys, or not bound to `from_user`.
            RowSecurityError: the login may not become service_role, or a policy hides rows from it.
            DatabaseUnavailable, SchemaMismatch: nothing was moved; run it again.
        """
        users = [parse_user_id(from_user, name="from_user"), parse_user_id(to_user, name="to_user")]
        if users[0] == users[1]:
            raise ValueError("to_user: expected another user than from_user")
        return await Mover(self._database, self._cipher or NoCipher(), *users).move()

    async def migrate(
        self,
        source: str,
        columns: Mapping[str, str] | None = None,
        *,
        write: bool = False,
        connected_at: datetime | None = None,
        decrypt: Callable[[str], str | None] | None = None,
        needs_account: bool = True,
    ) -> AsyncIterator[MigratedRow]:
        """Bring connections over from another table or view, and yield what becomes of each row.

        A user who has a connection keeps it, so it may be run again. The login of the pool must see all rows and users.

        Args:
            source: its name as in SQL.
            columns: names of its columns by ours; one that is not named is the one of the same name, an empty one none.
            write: whether to store them; else they are only looked at.
            connected_at: when users authorized whose row does not say so; None for not known.
            decrypt: returns a token of the table in plain text, or None where it cannot.
            needs_account: whether rows without a Spotify account are left. Else `verify_connection` fills it in.

        Raises:
            ValueError: the table, a column or `connected_at` is not what is expected; the text says which.
            ConfigurationError, RowSecurityError: the login may not read the table, or may not become service_role.
            DatabaseUnavailable, SchemaMismatch: it ended early; run it again.
        """
        check_connected_at(connected_at)
        cipher = self._cipher or NoCipher()
        options = Options(connected_at, TokenReader(decrypt, cipher), needs_account)
        migration = Migration(self._pool, self._database, cipher, options)
        handled = sys.exc_info()[1]
        try:
            async for row in migration.rows(source, columns or {}, write=write):
                yield row
        except Exception as error:
            scrub(error, handled)  # frames below hold rows with tokens
            raise

    async def _add_states(self, users: list[UUID]) -> None:
        texts = [str(user) for user in users]
        try:
            async with self._database.transaction() as connection:
                # A turn at a refresh waits half a second for these states.
                await map_errors(connection.execute("set local lock_timeout = '200ms'", timeout=TIMEOUT))
                await map_errors(connection.execute(ADD_STATES, texts, timeout=TIMEOUT))
        except (UnknownUser, DatabaseUnavailable):
            # A user is being deleted, or has been. Live refreshes of the others must not wait for that.
            for text in texts:
                with suppress(UnknownUser):
                    await self._database.fetch(ADD_STATES, [text])

    async def _assign(self, connected: list[UUID], client_id: str) -> int:
        found = await self._database.fetch(OF_NO_APP, [str(user) for user in connected])
        users = [str(row["user_id"]) for row in found]
        if not users:
            return 0

        async def write(session: Session) -> int:
            await map_errors(session.execute(LOCK_ROWS, users, timeout=TIMEOUT))
            await map_errors(session.execute(VOID_STATES, users, timeout=TIMEOUT))
            await map_errors(session.execute(CLEAR_REFUSALS, users, client_id, timeout=TIMEOUT))
            assigned = await map_errors(session.fetch(ASSIGN_APP, users, client_id, timeout=TIMEOUT))
            check_users(session, {str(row["user_id"]) for row in assigned} <= set(users))
            return len(assigned)

        return await self._database.run(write)

    async def _overviews(self, query: str, *args: object) -> AsyncIterator[ConnectionOverview]:
        async for rows in self._database.batches(query, *args):
            for row in rows:
                yield overview(row)
