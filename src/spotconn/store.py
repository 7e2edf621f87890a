"""Stored connections over asyncpg: one user at a time, always under row level security.

Every operation but `as_user` is one statement, one round trip and one implicit transaction: it calls a function of
the schema `spotconn`, which takes the role and the claims for that transaction only.
"""

from collections.abc import AsyncGenerator, Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

import asyncpg

from spotconn._arguments import check_client_id, check_connected_at
from spotconn._database import statements
from spotconn._database.access_tokens import AccessTokens
from spotconn._database.acquire import TIMEOUT
from spotconn._database.bound_pool import BoundPool
from spotconn._database.change_feed import ChangeFeed
from spotconn._database.errors import APPLY_SCHEMA, map_errors
from spotconn._database.halves import read_in_halves
from spotconn._database.pending_connects import PendingConnects
from spotconn._database.pool import connect_pool, may_convert
from spotconn._database.refreshes import Refreshes
from spotconn._database.rows import RowConverter
from spotconn._database.session import borrow
from spotconn._database.statement_cache import StatementCache
from spotconn._database.verification import verify
from spotconn._tracebacks import scrubbed, scrubbed_context
from spotconn._user_ids import UserId, parse_user_id
from spotconn.cipher import NoCipher, TokenCipher
from spotconn.errors import NotConnected, SchemaMismatch, SpotconnError
from spotconn.events import Events
from spotconn.models import Connection, Profile, RecordedFailure, TokenGrant
from spotconn.turns import RefreshFailure, RefreshTurn

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy


@scrubbed
class ConnectionStore:
    """Stored connections, each readable and writable only as the user it belongs to.

    Args:
        pool: of a login role that is a member of the role `spotconn`; behind a transaction pooler, made with
            `statement_cache_size=0`. The store does not close it.
        cipher: encrypts the tokens at rest; without one they are stored as they are.
        timeout: seconds to wait for other writes of the user, again for a connection, and again for an answer.
        listen_dsn: where a `TokenManager` listens for changes: of the same database, complete and without a transaction
            pooler in between. Without it the manager relies on its `cache_ttl`.

    Attributes:
        pool: as the store uses it.
        tokens: the access tokens alone, for `TokenManager`.
        pending: started authorizations, for `ConnectFlow`.
        refreshes: begun and ended, for `TokenManager`.
        changes: notifications of changes to the table, for `TokenManager`; None if the server cannot deliver them.
        events: of the `TokenManager` with a hook that was made last, for a `ConnectFlow` without one.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        *,
        cipher: TokenCipher | None = None,
        timeout: float = TIMEOUT,
        listen_dsn: str | None = None,
    ) -> None:
        self.pool: BoundPool = BoundPool(pool, name="ConnectionStore", timeout=timeout)
        self._rows = RowConverter(cipher or NoCipher())
        self._watchers: list[Callable[[UUID], None]] = []
        self.refreshes: Refreshes = Refreshes(self.pool, self._rows)
        self.tokens: AccessTokens = AccessTokens(self.pool, self._rows)
        self.pending: PendingConnects = PendingConnects(self.pool, self._rows)
        self.changes: ChangeFeed | None = ChangeFeed(self.pool, listen_dsn, {}) if listen_dsn else None
        self.events: Events = Events(None)

    @classmethod
    @scrubbed_context
    async def open(
        cls,
        dsn: str,
        *,
        cipher: TokenCipher | None = None,
        timeout: float = TIMEOUT,  # noqa: ASYNC109  of the store's calls, not of this one
        listen_dsn: str | None = None,
        **pool_options: Any,
    ) -> AsyncGenerator[Self]:
        """Context manager: open a store with a pool of its own, verify it, and close it at the end of the block.

        Args:
            dsn: a postgresql:// URL.
            cipher: encrypts the tokens at rest.
            timeout: seconds to wait for a connection, and again for the answer to a statement.
            listen_dsn: as in the constructor; by default `dsn` itself, unless a transaction pooler is in between.
            pool_options: of `asyncpg.create_pool`. By default 1 to 10 connections, and no named statements behind a
                pooler. Pass `statement_cache_size` to say so yourself: 0 for a pooler, 100 for the server itself.

        Raises:
            ConfigurationError: the DSN is malformed, or the login is refused; and as `verify`.
            DatabaseUnavailable, SchemaMismatch, RowSecurityError: as `verify`.
        """
        statement_cache = StatementCache(pool_options)
        pool = await connect_pool(dsn, pool_options, statement_cache, seconds=timeout)
        store = cls(pool, cipher=cipher, timeout=timeout, listen_dsn=listen_dsn)
        store.pool.checked = not may_convert(pool_options)
        try:
            statement_cache.decide(pool, pooled=await verify(store.pool))
            if listen_dsn is None and statement_cache.size:
                store.changes = ChangeFeed(store.pool, dsn, pool_options)
            yield store
        finally:
            try:
                await store.pool.close()
            finally:
                if store.changes is not None:
                    await store.changes.close()

    async def verify(self) -> None:
        """Check in one round trip that the database has this library's schema and that row level security binds.

        Raises:
            SchemaMismatch: the schema is missing or of another version, or `auth.uid()` does not return the user.
            ConfigurationError: the encoding of the database is not UTF8.
            RowSecurityError: the policies would not bind, or hide rows from the library, or the login lacks a grant.
            DatabaseUnavailable: no answer in time, or the server or the database is read-only.
        """
        await verify(self.pool)

    async def get(self, user_id: UserId) -> Connection:
        """Return the stored connection of a user.

        Raises:
            NotConnected: there is none.
            ValueError: the user id is no UUID.
            DatabaseUnavailable, SchemaMismatch, RowSecurityError, DecryptionError: it could not be read.
        """
        user_id = parse_user_id(user_id)
        row = await self.pool.row_of(user_id, statements.GET, read=True)
        if row is None:
            raise NotConnected("no Spotify connection is stored for this user")
        return self._rows.connection(row, user_id)

    async def get_many(self, user_ids: Iterable[UserId]) -> dict[UUID, Connection | SpotconnError]:
        """Return the connections of several users in one statement, each read under row level security as its user.

        Args:
            user_ids: some hundred at a time, because all rows are in memory together.

        Returns:
            By user id, the connection, or the error of one that cannot be read. Users without one are left out.

        Raises:
            ValueError: a user id is no UUID.
            DatabaseUnavailable, SchemaMismatch, RowSecurityError: none could be read.
        """
        wanted = list({parse_user_id(user_id) for user_id in user_ids})
        rows, errors = await read_in_halves(lambda some: self.pool.rows_of(some, statements.GET_MANY), wanted)
        return errors | self._rows.connections(rows)

    async def save(
        self,
        user_id: UserId,
        grant: TokenGrant,
        profile: Profile,
        *,
        connected_at: datetime | None = None,
        client_id: str | None = None,
        age: float = 0.0,
        same_account: bool = False,
    ) -> Connection:
        """Connect a user, or replace what was stored: tokens, scope, account and `connected_at`.

        Args:
            user_id: an id of auth.users.
            grant: from the code exchange, or from elsewhere; it must hold a refresh token.
            profile: of the account that was connected.
            connected_at: when the user authorized, which is when the six months of the refresh token began. None
                for now; for tokens obtained elsewhere pass the true moment, or the earliest possible one.
            client_id: of the app that the grant was issued to; None if that is not known.
            age: seconds since Spotify was asked for the grant, from which its `expires_in` counts.
            same_account: refuse another account than the stored one, by its `account_id` or else `spotify_user_id`.

        Raises:
            ConnectFailed: `same_account`, and another is stored ("other_account"), which stays.
            ValueError: a malformed argument, a grant without a refresh token, or a `connected_at` in the future.
            UnknownUser: the user id is no user of auth.users.
            DatabaseUnavailable, SchemaMismatch, RowSecurityError: nothing was saved, as far as is known.
        """
        user_id = parse_user_id(user_id)
        check_connected_at(connected_at)
        check_client_id(client_id)
        rest = connected_at, grant.expires_in, age, client_id, profile.account_id, same_account
        try:
            row = await self.pool.row_of(user_id, statements.SAVE, *self._rows.values(user_id, grant, profile), *rest)
        finally:
            self._notify_watchers(user_id)
        if row is None:
            raise SchemaMismatch(f"the saved row does not show; {APPLY_SCHEMA}")
        return self._rows.connection(row, user_id)

    async def check_save(self, user_id: UserId, *, connected_at: datetime | None = None) -> None:
        """Check what `save` would refuse, before a code or a refresh token is spent.

        Raises:
            ValueError: the user id is no UUID, or `connected_at` has no time zone or lies in the future.
            UnknownUser: the user id is no user of auth.users.
            DatabaseUnavailable, SchemaMismatch, RowSecurityError: a connection could not be saved either.
        """
        check_connected_at(connected_at)
        await self.pool.row_of(parse_user_id(user_id), statements.CHECK_SAVE, connected_at)

    async def delete(self, user_id: UserId) -> bool:
        """Disconnect a user, and return whether there was a connection."""
        user_id = parse_user_id(user_id)
        try:
            row = await self.pool.row_of(user_id, statements.DELETE)
        finally:
            self._notify_watchers(user_id)
        return row is not None and bool(row["deleted"])

    def watch(self, watcher: Callable[[UUID], None]) -> None:
        """Call `watcher` with the user id after each `save` and `delete` here, also a failed one.

        Also if `finish_refresh` finds that another write came first. It must neither block nor raise.
        """
        self._watchers.append(watcher)

    def unwatch(self, watcher: Callable[[UUID], None]) -> None:
        """Undo `watch`; may be repeated."""
        self._watchers = [other for other in self._watchers if other != watcher]

    async def begin_refresh(
        self, user_id: UserId, *, seen: str, lease: float = 15, client_ids: Iterable[str] = ()
    ) -> RefreshTurn:
        """Read the connection and, if nothing speaks against it, acquire the lease of its refresh.

        Args:
            user_id: of the connection.
            seen: `Connection.fingerprint` of the one found wanting: of the text of its access token as stored.
            lease: seconds after which another process may acquire the lease.
            client_ids: of the apps that this process can refresh with; none where it can with any.

        Raises:
            ValueError: the user id is no UUID, or `seen` no fingerprint.
            DatabaseUnavailable, SchemaMismatch, RowSecurityError, DecryptionError: it could not be read.
        """
        return await self.refreshes.begin(parse_user_id(user_id), seen, lease, client_ids)

    async def finish_refresh(
        self, turn: RefreshTurn, grant: TokenGrant, *, age: float = 0.0, rejected: bool = False
    ) -> Connection | None:
        """Save a refresh, if the row still holds the refresh token that it replaces, and end the lease.

        Return the saved connection, or None if a disconnect, a reconnect or another writer came first.

        Args:
            turn: a granted one, which names one app at most: the grant is of that.
            grant: of Spotify.
            age: seconds since Spotify was asked, from which `expires_in` of the grant counts.
            rejected: whether the Web API has refused the access token that is replaced: each process drops it then.
        """
        saved = await self.refreshes.finish(turn, grant, age=age, rejected=rejected)
        if saved is None:
            self._notify_watchers(turn.user_id)
        return saved

    async def fail_refresh(self, turn: RefreshTurn, failure: RefreshFailure) -> RecordedFailure | None:
        """End the lease without a grant and record why; return what is recorded of the refresh token then.

        None, without any effect, if another process holds the lease or another refresh token is stored.
        """
        return await self.refreshes.fail(turn, failure)

    @scrubbed_context
    async def as_user(self, user_id: UserId) -> "AsyncGenerator[PoolConnectionProxy[asyncpg.Record]]":
        """Context manager: a transaction for SQL that you wrote, under the same row level security as the store's.

        It does not confine SQL that others wrote, such as injected or generated: one SELECT in it reaches any user, by
        a function of the schema `spotconn` or by another claim. Pass values as arguments only.

        It commits at the end of the block; an exception rolls it back and passes through unchanged. Then the connection
        is closed, so that nothing is left to the next user of the pool; the pool opens another, in some 10 ms. Do not
        end the transaction yourself, and ask for tokens before the block: within, a pool of one has none.

        Raises:
            ValueError: the user id is no UUID.
            DatabaseUnavailable: no connection or no answer in time, or the session was lost, also where the block did
                not fail: the text says whether nothing was saved or the commit may have happened.
            SchemaMismatch, RowSecurityError: the block was not entered.
        """
        user_id = parse_user_id(user_id)
        async with self.pool.acquire(once=True) as connection, borrow(connection, seconds=self.pool.timeout):
            await map_errors(connection.execute(statements.ACT_AS, user_id, timeout=self.pool.timeout))
            yield connection

    def _notify_watchers(self, user_id: UUID) -> None:
        for watcher in self._watchers:
            watcher(user_id)
