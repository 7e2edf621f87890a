"""The move of a connection from one user to another, as where a project merges two accounts.

The tokens are bound to their user where they are encrypted, so they are encrypted anew, and what is known of the
refresh token is carried over to its new text. While a refresh is under way the row is left: its grant would be saved
for a user who has no row any more.
"""

import asyncio
from uuid import UUID

import asyncpg

from spotconn._backoff import Backoff
from spotconn._database.errors import map_errors
from spotconn._database.idle_sessions import Session
from spotconn._database.row_owners import check_users
from spotconn._database.service_role import TIMEOUT, ServiceRole
from spotconn.cipher import TokenCipher, TokenColumn
from spotconn.errors import DecryptionError, RefreshInProgress, UnknownUser
from spotconn.models import digest

LONGEST_WAIT = 30.0
"""Seconds that a move waits for a refresh under way at most."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
"""Seconds between two looks at a connection that is being refreshed."""

_LOCK_TIMEOUT = "set local lock_timeout = '5s'"
# As every other writer: the connection first, then what is known of its refresh token.
_LOCK_ROWS = """
select user_id, access_token, refresh_token from public.spotify_connections
where user_id = any($1::text[]::uuid[]) order by user_id for update
"""
# In a statement of its own, after the row is locked: nobody acquires a lease without that lock. A holder who let its
# lease lapse may still save what replaced the refresh token; a minute is what spotconn.fail_refresh allows it, too.
_UNDER_WAY = """
select extract(epoch from ends - spotconn.now())::float8 as remaining
from (
    select fingerprint, coalesce(leased_at, paused_at) as since,
        greatest(lease_until, case when lapsed then paused_at end) + interval '1 minute' as ends
    from spotconn.refresh_state where user_id = $1
) as state
where fingerprint = $2 and spotconn.runs(since, ends, spotconn.now())
"""
_MOVE = """
update public.spotify_connections set user_id = $2, access_token = $3, refresh_token = $4
where user_id = $1
returning user_id
"""
_KNOWN = "select from spotconn.refresh_state where user_id = $1 and fingerprint = $2 for update"
_FORGET = "delete from spotconn.refresh_state where user_id = $1"
_CARRY = "update spotconn.refresh_state set user_id = $3, fingerprint = $4 where user_id = $1 and fingerprint = $2"
# When the user was asked to connect again: it is about an authorization, which is the connection's.
_CARRY_REMINDER = """
with carried as (delete from spotconn.reminder where user_id = $1 returning connected_at, asked_at)
insert into spotconn.reminder as reminder (user_id, connected_at, asked_at)
select $2, connected_at, asked_at from carried
on conflict (user_id) do update set connected_at = excluded.connected_at, asked_at = excluded.asked_at
where reminder.connected_at is distinct from excluded.connected_at or reminder.asked_at < excluded.asked_at
"""


class Mover:
    """Moves the connection of one user to another who has none.

    Args:
        database: of the admin.
        cipher: of the admin.
        from_user: who has it.
        to_user: who gets it.
    """

    def __init__(self, database: ServiceRole, cipher: TokenCipher, from_user: UUID, to_user: UUID) -> None:
        self._database = database
        self._cipher = cipher
        self._from_user = from_user
        self._to_user = to_user

    async def move(self) -> bool:
        """Wait for a refresh under way, and return whether there was a connection.

        Raises:
            UnknownUser: `to_user` is no user of auth.users.
            ValueError: `to_user` has a connection.
            RefreshInProgress: it took too long.
            DecryptionError: a token does not decrypt.
            RowSecurityError, DatabaseUnavailable, SchemaMismatch: as `ServiceRole.fetch`.
        """
        backoff, waited = Backoff(first=FIRST_PAUSE, longest=LONGEST_PAUSE), 0.0
        while not isinstance(outcome := await self._database.run(self._attempt), bool):
            delay = backoff.next_pause()
            if waited + delay > LONGEST_WAIT:
                text = "the connection of from_user is being refreshed, or a refresh was cut off less than a minute ago"
                raise RefreshInProgress(text, retry_after=outcome)
            await asyncio.sleep(delay)
            waited += delay
        if not outcome:
            await self._database.confirm()
        return outcome

    async def _attempt(self, session: Session) -> bool | float:
        """Return whether there was a connection, or the seconds after which a refresh under way is over."""
        row = await self._locked(session)
        if row is None:
            return False
        before = digest(row["refresh_token"])
        if remaining := await self._remaining(session, before):
            return remaining
        access_token, refresh_token = self._encrypted(row, "access_token"), self._encrypted(row, "refresh_token")
        if row["user_id"] == self._to_user and access_token is None and refresh_token is None:
            return False
        texts = access_token or row["access_token"], refresh_token or row["refresh_token"]
        await map_errors(_update(session, row["user_id"], self._to_user, *texts))
        await self._carry(session, before, digest(texts[1]))
        return True

    async def _locked(self, session: Session) -> asyncpg.Record | None:
        """Return the row to be moved; one of `to_user` if it may have been moved without this library."""
        await map_errors(session.execute(_LOCK_TIMEOUT, timeout=TIMEOUT))
        users = [self._from_user, self._to_user]
        found = await map_errors(session.fetch(_LOCK_ROWS, [str(user) for user in users], timeout=TIMEOUT))
        check_users(session, {row["user_id"] for row in found} <= set(users))
        if len(found) > 1:
            raise _taken()
        return found[0] if found else None

    async def _remaining(self, session: Session, before: bytes) -> float:
        rows = await map_errors(session.fetch(_UNDER_WAY, self._from_user, before, timeout=TIMEOUT))
        return rows[0]["remaining"] if rows else 0.0

    def _encrypted(self, row: asyncpg.Record, column: TokenColumn) -> str | None:
        """Return the text to store; None for one that is bound to `to_user` already.

        Raises:
            DecryptionError: it is bound to neither.
        """
        stored: str = row[column]
        if row["user_id"] == self._to_user and self._is_bound(stored, self._to_user, column):
            return None
        token = self._cipher.decrypt(stored, user_id=self._from_user, column=column)
        return self._cipher.encrypt(token, user_id=self._to_user, column=column)

    def _is_bound(self, stored: str, user_id: UUID, column: TokenColumn) -> bool:
        try:
            self._cipher.decrypt(stored, user_id=user_id, column=column)
        except DecryptionError:
            return False
        return True

    async def _carry(self, session: Session, before: bytes, after: bytes) -> None:
        """Let what is known of the refresh token speak of its new text, and of its new user."""
        known = await map_errors(session.fetch(_KNOWN, self._from_user, before, timeout=TIMEOUT))
        user_id = self._from_user if known else self._to_user
        if known:
            await map_errors(session.execute(_FORGET, self._to_user, timeout=TIMEOUT))
        await map_errors(session.execute(_CARRY, user_id, before, self._to_user, after, timeout=TIMEOUT))
        await map_errors(session.execute(_FORGET, self._from_user, timeout=TIMEOUT))
        await map_errors(session.execute(_CARRY_REMINDER, self._from_user, self._to_user, timeout=TIMEOUT))


async def _update(session: Session, holder: UUID, to_user: UUID, access_token: str, refresh_token: str) -> None:
    failure: ValueError | UnknownUser | None = None
    try:
        moved = await session.fetch(_MOVE, holder, to_user, access_token, refresh_token, timeout=TIMEOUT)
        check_users(session, [row["user_id"] for row in moved] == [to_user])
    except asyncpg.ForeignKeyViolationError as error:
        if error.table_name != "spotify_connections":
            raise
        failure = UnknownUser("to_user: no such user in auth.users")
    except asyncpg.UniqueViolationError as error:  # connected while the row of `from_user` was locked
        if error.table_name != "spotify_connections":
            raise
        failure = _taken()
    if failure is not None:
        raise failure


def _taken() -> ValueError:
    return ValueError("to_user: has a connection of their own; disconnect it first")
