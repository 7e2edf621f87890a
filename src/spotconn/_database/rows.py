"""Conversion of rows to the values of the library, and back."""

from datetime import UTC, datetime
from uuid import UUID

import asyncpg

from spotconn._database.decryptions import Decryptions
from spotconn._tracebacks import renewed
from spotconn.cipher import TokenCipher, TokenColumn
from spotconn.errors import DecryptionError
from spotconn.models import (
    Connection,
    Profile,
    RecordedFailure,
    StoredAccessToken,
    StoredTexts,
    TokenGrant,
    digest,
    is_token,
    read_scope,
)
from spotconn.turns import Outcome, RefreshTurn


class RowConverter:
    """Decrypts the tokens of rows that were read, and encrypts those to be written.

    Args:
        cipher: of the store.

    Attributes:
        cipher: as given.
        decryptions: what came of those of stored tokens.
    """

    def __init__(self, cipher: TokenCipher) -> None:
        self.cipher = cipher
        self.decryptions: Decryptions = Decryptions()

    def encrypt(self, token: str, user_id: UUID, column: TokenColumn) -> str:
        """Return the text to store for a token."""
        return self.cipher.encrypt(token, user_id=user_id, column=column)

    def values(self, user_id: UUID, grant: TokenGrant, profile: Profile) -> tuple[object, ...]:
        """Return the columns to store for a grant and its account, in the sequence of `spotconn.save_connection`.

        Raises:
            ValueError: the grant has no refresh token.
        """
        if grant.refresh_token is None:
            raise ValueError("grant: a connection needs a refresh token")
        return (
            profile.spotify_user_id,
            self.encrypt(grant.access_token, user_id, "access_token"),
            self.encrypt(grant.refresh_token, user_id, "refresh_token"),
            grant.expires_at,
            scope_text(grant.scope),
            profile.display_name,
            profile.email,
        )

    def connection(self, row: asyncpg.Record, user_id: UUID) -> Connection:
        """Return the connection of a row, decrypted as that of the user it was requested for.

        Raises:
            DecryptionError: a token does not decrypt as one of this user's.
        """
        access_token = self._decrypt(row["access_token"], user_id, "access_token")
        return Connection(
            id=row["id"],
            user_id=user_id,
            spotify_user_id=row["spotify_user_id"],
            access_token=access_token,
            refresh_token=self._decrypt(row["refresh_token"], user_id, "refresh_token"),
            expires_at=aware(row["expires_at"]),
            remaining=_remaining(row, access_token),
            connected_at=connected_at(row),
            display_name=row["display_name"],
            email=row["email"],
            scope=read_scope(row["scope"]),
            client_id=row["client_id"],
            refused_by=frozenset(name for name in row["refused_by"] or () if isinstance(name, str)),
            failure=recorded_failure(row),
            saves=row["saves"],
            family=row["family"],
            account_id=row["account_id"],
            previous_spotify_user_id=row["previous_spotify_user_id"],
            texts=StoredTexts(row["access_token"], row["refresh_token"]),
        )

    def access_token(self, row: asyncpg.Record, user_id: UUID) -> StoredAccessToken:
        """Return the access token of a row, decrypted as that of the user it was requested for.

        Raises:
            DecryptionError: it does not decrypt as one of this user's.
        """
        text: str = row["access_token"]
        access_token = self._decrypt(text, user_id, "access_token")
        return StoredAccessToken(
            access_token=access_token,
            digest=digest(text),
            remaining=_remaining(row, access_token),
            scope=read_scope(row["scope"]),
        )

    def access_token_or_error(self, row: asyncpg.Record) -> StoredAccessToken | DecryptionError:
        """Return the access token of a row, or the error of one that does not decrypt."""
        try:
            return self.access_token(row, row["user_id"])
        except DecryptionError as error:
            return renewed(error)

    def saved(self, row: asyncpg.Record, user_id: UUID) -> Connection:
        """Return the connection of an answer of `spotconn.finish_refresh`, with the failure that it has ended.

        Raises:
            DecryptionError: a token does not decrypt as one of this user's.
        """
        return self.connection(row, user_id).model_copy(update={"recovered": row["recovered"]})

    def connections(self, rows: list[asyncpg.Record]) -> dict[UUID, Connection | DecryptionError]:
        """Return the connections of rows by user id, with the error in place of one that does not decrypt."""
        return {row["user_id"]: self._connection_or_error(row) for row in rows}

    def turn(self, row: asyncpg.Record, user_id: UUID) -> RefreshTurn:
        """Return the answer of `spotconn.begin_refresh`.

        Raises:
            DecryptionError: a token does not decrypt as one of this user's.
        """
        outcome = Outcome(row["outcome"])
        return RefreshTurn(
            outcome=outcome,
            user_id=user_id,
            connection=None if outcome is Outcome.GONE else self.connection(row, user_id),
            lease_id=row["lease_id"],
            lease_until=row["lease_until"],
            client_ids=tuple(row["client_ids"] or ()),
            retry_after=row["retry_after"],
        )

    def _decrypt(self, text: str, user_id: UUID, column: TokenColumn) -> str:
        try:
            token = self.cipher.decrypt(text, user_id=user_id, column=column)
        except DecryptionError:
            self.decryptions.fail(user_id)
            raise
        if self.decryptions:
            self.decryptions.succeed(user_id)
        return token

    def _connection_or_error(self, row: asyncpg.Record) -> Connection | DecryptionError:
        try:
            return self.connection(row, row["user_id"])
        except DecryptionError as error:
            return renewed(error)


def scope_text(scope: frozenset[str] | None) -> str | None:
    """Return the text to store for a scope."""
    return None if scope is None else " ".join(sorted(scope))


def recorded_failure(row: asyncpg.Record) -> RecordedFailure | None:
    """Return the failure recorded in a row, if there is one."""
    if row["failure"] is None:
        return None
    return RecordedFailure(reason=row["failure"], since=row["failed_at"], retry_at=row["retry_at"])


def _remaining(row: asyncpg.Record, access_token: str) -> float:
    """Return the seconds until an access token ends. One that cannot be sent counts as ended."""
    remaining: float = row["remaining"]
    return remaining if is_token(access_token) else min(remaining, 0.0)


def connected_at(row: asyncpg.Record) -> datetime | None:
    """Return when the user of a row authorized, if that is known."""
    moment: datetime | None = row["connected_at"]
    return None if moment is None else aware(moment)


def aware(moment: datetime) -> datetime:
    """Return a time with its time zone: UTC for that of a column without one."""
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
