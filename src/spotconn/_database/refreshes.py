"""The three statements of the refresh protocol: begin, and finish or fail."""

import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import asyncpg

from spotconn._arguments import several
from spotconn._database import statements
from spotconn._database.bound_pool import BoundPool
from spotconn._database.errors import APPLY_SCHEMA
from spotconn._database.idle_sessions import Session
from spotconn._database.rows import RowConverter, recorded_failure, scope_text
from spotconn._stopwatch import Stopwatch
from spotconn.errors import SchemaMismatch
from spotconn.models import Connection, RecordedFailure, StoredTexts, TokenGrant, digest
from spotconn.turns import RefreshFailure, RefreshTurn

MOST_UNANSWERED = 10_000
"""Users of whose last turn the answer was lost."""
MOST_SAVES = 3
"""Attempts to save one grant where a rekey changes the stored text in between."""
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


class Refreshes:
    """Begins and ends refreshes of stored connections.

    Args:
        pool: of the store.
        rows: of the store.
    """

    def __init__(self, pool: BoundPool, rows: RowConverter) -> None:
        self._pool = pool
        self._rows = rows
        # Of each only one caller at a time, who takes it out, may ask with it.
        self._unanswered: dict[UUID, UUID] = {}

    async def begin(self, user_id: UUID, seen: str, lease: float, client_ids: Iterable[str]) -> RefreshTurn:
        """Return the answer of the database to a process that found an access token wanting.

        Args:
            user_id: whose.
            seen: fingerprint of that token.
            lease: seconds.
            client_ids: of the apps of the process; none where it does not say.

        Raises:
            ValueError: `seen` is no fingerprint, or `client_ids` a single string.
        """
        apps = several(client_ids, name="client_ids")
        if not _FINGERPRINT.fullmatch(seen):
            raise ValueError("seen: expected the fingerprint of a connection")
        values = bytes.fromhex(seen), timedelta(seconds=lease), list(apps) or None
        lease_id = self._unanswered.pop(user_id, None) or uuid4()
        try:
            row = await self._pool.row_of(user_id, statements.BEGIN_REFRESH, *values, lease_id)
        except BaseException:  # also a cancellation
            self._note_unanswered(user_id, lease_id)
            raise
        if row is None:
            raise SchemaMismatch(f"spotconn.begin_refresh gave no answer; {APPLY_SCHEMA}")
        return self._rows.turn(row, user_id)

    def _note_unanswered(self, user_id: UUID, lease_id: UUID) -> None:
        """Ask with the same lease the next time: it may have been granted, and the answer lost."""
        self._unanswered.setdefault(user_id, lease_id)
        if len(self._unanswered) > MOST_UNANSWERED:
            del self._unanswered[next(iter(self._unanswered))]

    async def server_life(self) -> str | None:
        """Return what names the server that a session of the pool has, and its life; None on a standby."""
        life: str | None = await self._pool.value(statements.SERVER_LIFE)
        return life

    async def finish(
        self,
        turn: RefreshTurn,
        grant: TokenGrant,
        *,
        age: Stopwatch | float,
        rejected: bool = False,
        client_id: str | None = None,
    ) -> Connection | None:
        """Save a grant where the row still holds the refresh token that it replaces; None if it does not.

        Args:
            turn: a granted one.
            grant: of Spotify.
            age: seconds since Spotify was asked.
            rejected: whether the Web API has refused the access token that is replaced.
            client_id: of the app with which it was granted; None for the one that the turn names.
        """
        before, _ = _granted(turn)
        if client_id is None and len(turn.client_ids) == 1:
            (client_id,) = turn.client_ids
        texts = self.encrypt(before, grant)
        replaced, held = before.texts.refresh_token, before.texts.access_token
        for _ in range(MOST_SAVES):
            row = await self._save(
                turn.user_id,
                StoredTexts(held, replaced),
                texts.access_token,
                None if texts.refresh_token == before.texts.refresh_token else texts.refresh_token,
                expires_at=grant.expires_at,
                expires_in=grant.expires_in,
                age=age,
                scope=scope_text(grant.scope),
                lease_id=turn.lease_id,
                lease_until=turn.lease_until,
                rejected=rejected,
                client_id=client_id,
            )
            if row is None:
                return None
            connection = self._rows.saved(row, turn.user_id)
            # An acknowledgement that was lost: the row holds this very grant.
            if row["saved"] or connection.refresh_token == _replacement(before, grant):
                recovered = connection.recovered or (before.failure and before.failure.reason)
                return connection.model_copy(update={"recovered": recovered})
            # A rekey stores another text of the same refresh token; any other text belongs to another writer.
            if connection.refresh_token != before.refresh_token:
                return None
            replaced = connection.texts.refresh_token
            if connection.access_token == before.access_token:
                held = connection.texts.access_token
        return None

    def encrypt(self, before: Connection, grant: TokenGrant) -> StoredTexts:
        """Return the texts to store for a grant: its refresh token only if it is another than before."""
        replacement = _replacement(before, grant)
        return StoredTexts(
            self._rows.encrypt(grant.access_token, before.user_id, "access_token"),
            before.texts.refresh_token
            if replacement is None
            else self._rows.encrypt(replacement, before.user_id, "refresh_token"),
        )

    async def fail(self, turn: RefreshTurn, failure: RefreshFailure) -> RecordedFailure | None:
        """End the lease without a grant; return what is recorded then, or None if another refresh token is stored."""
        before, lease_id = _granted(turn)
        refused_by = failure.refused_by or (turn.client_ids if failure.reason == "refused" else ())
        row = await self._pool.row_of(
            turn.user_id,
            statements.FAIL_REFRESH,
            digest(before.texts.refresh_token),
            lease_id,
            failure.reason,
            failure.retry_after,
            list(refused_by),
        )
        return None if row is None else recorded_failure(row)

    async def restore(
        self,
        current: Connection,
        texts: StoredTexts,
        *,
        expires_in: float,
        age: Stopwatch | float,
        saves: int,
        family: UUID | None,
        client_id: str | None,
        lease_id: UUID | None = None,
        session: "Session | None" = None,
    ) -> Connection | None:
        """Save tokens that this process had saved before, over a row that has gone back in time.

        Args:
            current: the row as it was just read.
            texts: the tokens as they were stored.
            expires_in: seconds that the access token lived from the request on.
            age: seconds since then.
            saves: the count that goes with them.
            family: in which it counts.
            client_id: of the app to which they belong.
            lease_id: of the lease that this process holds, which ends.
            session: of the pool, where the caller has acquired one.

        Returns:
            The saved connection, or None if the row holds another refresh token by now.
        """
        row = await self._save(
            current.user_id,
            current.texts,
            texts.access_token,
            texts.refresh_token,
            expires_in=expires_in,
            age=age,
            lease_id=lease_id,
            saves=saves,
            family=family,
            client_id=client_id,
            session=session,
        )
        return self._rows.saved(row, current.user_id) if row is not None and row["saved"] else None

    async def _save(
        self,
        user_id: UUID,
        stored: StoredTexts,
        access_text: str,
        refresh_text: str | None,
        *,
        expires_at: datetime | None = None,
        expires_in: float | None,
        age: Stopwatch | float,
        scope: str | None = None,
        lease_id: UUID | None,
        lease_until: datetime | None = None,
        rejected: bool = False,
        saves: int | None = None,
        family: UUID | None = None,
        client_id: str | None,
        session: "Session | None" = None,
    ) -> asyncpg.Record | None:
        """Return the answer of `spotconn.finish_refresh`, whose arguments these are in its order."""
        replaced, held = digest(stored.refresh_token), digest(stored.access_token)
        life = expires_at, expires_in, age
        lease = lease_id, lease_until
        return await self._pool.row_of(
            user_id,
            statements.FINISH_REFRESH,
            *(replaced, held, access_text, refresh_text, *life, scope, *lease, rejected, saves, family, client_id),
            ahead=True,  # what Spotify has granted is saved first
            session=session,
        )


def _granted(turn: RefreshTurn) -> tuple[Connection, UUID]:
    if turn.connection is None or turn.lease_id is None:
        raise ValueError(f"turn: expected a granted one, not {turn.outcome.value}")
    return turn.connection, turn.lease_id


def _replacement(before: Connection, grant: TokenGrant) -> str | None:
    """Return the refresh token that replaces the one before; one that the answer repeats counts as none."""
    return None if grant.refresh_token == before.refresh_token else grant.refresh_token
