"""Operator's work on the connections of all users: the only part of the library that sees more than one user.

It acts as `service_role`, which sees the rows of all users, in one short transaction after the other. It does
not belong in a service that answers users.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Self

import asyncpg

from spotconn._arguments import CENTURY, check_client_id, check_connected_at, several, since_in_utc
from spotconn._database.app_assignment import AppAssignment
from spotconn._database.bound_pool import BoundPool
from spotconn._database.migration import Migration, Options
from spotconn._database.move import Mover
from spotconn._database.overview_rows import overview, statistics
from spotconn._database.pool import may_convert, open_pool
from spotconn._database.prune import Prune
from spotconn._database.rekey import Rekey
from spotconn._database.reminders import Reminders
from spotconn._database.service_role import ServiceRole
from spotconn._database.source_tokens import TokenReader
from spotconn._database.statements import APPS, EXPIRING, FAILING, KEYS, RECHECK, STATS
from spotconn._tracebacks import scrubbed, scrubbed_context
from spotconn._user_ids import UserId, parse_user_id, parse_user_ids
from spotconn.cipher import AesGcmSivCipher, NoCipher
from spotconn.errors import ConfigurationError
from spotconn.overview import ConnectionOverview, ConnectionStats, MigratedRow, PruneProgress, RekeyProgress


@scrubbed
class ConnectionAdmin:
    """Lists, counts, rekeys, rechecks, prunes, migrates and moves all users' connections; records apps and reminders.

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
        cls, dsn: str, *, cipher: AesGcmSivCipher | None = None, **pool_options: Any
    ) -> AsyncGenerator[Self]:
        """Context manager: open an admin with a pool of its own, and close it at the end of the block.

        Args:
            dsn: a postgresql:// URL.
            cipher: the ring of keys that `rekey` and `move` need.
            pool_options: of `asyncpg.create_pool`, as for `ConnectionStore.open`. By default 1 or 2 connections.

        Raises:
            ConfigurationError: the DSN is malformed, or the login is refused.
            DatabaseUnavailable: the database does not answer in time.
        """
        pool = await open_pool(dsn, {"max_size": 2} | pool_options)
        admin = cls(pool, cipher=cipher)
        admin._pool.checked = not may_convert(pool_options)
        try:
            yield admin
        finally:
            await admin._pool.close()

    def expiring(
        self, *, within: timedelta, retired_client_ids: Iterable[str] = (), not_asked_since: datetime | None = None
    ) -> AsyncIterator[ConnectionOverview]:
        """Yield connections whose refresh token ends soon, or should have ended: users to be asked to connect again.

        Those that Spotify has refused already are left out; see `failing`.

        Args:
            within: time from now until the end, six months after `connected_at`; at most a century.
            retired_client_ids: of apps that are given up for good: all their connections are listed.
            not_asked_since: leave out users of whom `mark_asked` has recorded since then that they were asked.

        Returns:
            An async iterator in the order of the user ids; memory does not grow with their number.

        Raises:
            ValueError: `within` is longer, `retired_client_ids` is one string, or `not_asked_since` has no time zone.
            RowSecurityError: the login may not become service_role, or a policy hides rows from it.
            DatabaseUnavailable, SchemaMismatch: it ended early.
        """
        if abs(within) > CENTURY:
            raise ValueError("within: expected at most a century")
        retired = several(retired_client_ids, name="retired_client_ids")
        since = None if not_asked_since is None else since_in_utc(not_asked_since, name="not_asked_since")
        # In seconds: in the time zone of the session a day may have 23 or 25 hours.
        return self._overviews(EXPIRING, within.total_seconds(), list(retired), since)

    async def mark_asked(self, user_ids: Iterable[UserId], *, not_asked_since: datetime | None = None) -> int:
        """Record that users are asked to connect again, now and about the connection that they have.

        A refresh leaves the record as it is, a reconnect and a disconnect end it. A job that marks a user with
        `not_asked_since` before it writes, and writes only where 1 is returned, never writes twice, wherever it runs.

        Args:
            user_ids: the users; those who have no connection are left out.
            not_asked_since: leave out users who were asked since then, or have connected since then.

        Returns:
            How many users were recorded.

        Raises:
            ValueError: a user id is none, `user_ids` is a single one, or `not_asked_since` has no time zone.
            RowSecurityError: the login may not become service_role, or a policy hides rows from it.
            DatabaseUnavailable, SchemaMismatch: it ended early; some may be recorded.
        """
        since = None if not_asked_since is None else since_in_utc(not_asked_since, name="not_asked_since")
        return await Reminders(self._database, since).mark(parse_user_ids(user_ids))

    def failing(self, *, since: datetime | None = None) -> AsyncIterator[ConnectionOverview]:
        """Yield connections whose last refresh failed, temporarily or for good; `failure` says which.

        Args:
            since: only failures that began at this moment or later, with a time zone.

        Returns and raises:
            The same as `expiring`.
        """
        return self._overviews(FAILING, None if since is None else since_in_utc(since))

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
        found = sum([len(rows) async for rows in self._database.batches(RECHECK, moment)])
        await self._database.confirm()
        return found

    async def prune(
        self,
        *,
        dead_for: timedelta,
        retired_client_ids: Iterable[str] = (),
        write: bool = False,
        progress: Callable[[PruneProgress], object] | None = None,
    ) -> PruneProgress:
        """Delete connections that Spotify has refused for good, and those of apps that are given up, after a while.

        One that Spotify is to be asked about once more stays, also after a `recheck`; so does one of an unknown app,
        see `assign_app`. A reconnect or a refresh beside it is never undone. Processes are notified as of a disconnect.

        Args:
            dead_for: since the last refusal, the last save and the end of the access token; at most a century.
            retired_client_ids: of apps that are given up for good: their connections go without a refusal.
            write: whether to delete them; else they are only counted.
            progress: called after each batch.

        Returns:
            The counts of what is deleted, or would be.

        Raises:
            ValueError: `dead_for` is negative or longer, or `retired_client_ids` is one string.
            RowSecurityError: the login may not become service_role, or a policy hides rows from it.
            DatabaseUnavailable, SchemaMismatch: it ended early; run it again.
        """
        return await Prune(self._database, dead_for, retired_client_ids, write=write).run(progress)

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
        return await AppAssignment(self._database, client_id).run()

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
        async for row in migration.rows(source, columns or {}, write=write):
            yield row

    async def _overviews(self, query: str, *args: object) -> AsyncIterator[ConnectionOverview]:
        async for rows in self._database.batches(query, *args):
            for row in rows:
                yield overview(row)
