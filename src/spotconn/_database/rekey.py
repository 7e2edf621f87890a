"""Encryption of every stored token with the first key of the ring, beside the running service.

A rewrite changes neither `expires_at` nor the tokens themselves, so it does not make a refresh fail. It is saved only
over the values that were read, so a concurrent refresh, reconnect or disconnect always wins.
"""

import hashlib
from dataclasses import dataclass, field
from uuid import UUID

import asyncpg

from spotconn.cipher import AesGcmSivCipher, TokenColumn
from spotconn.errors import ConfigurationError, DecryptionError
from spotconn.overview import RekeyProgress

MAX_PASSES = 5
"""Passes over all connections. The second rewrites what the first lost to concurrent writes."""

COUNT_OLD = """
select count(*) from public.spotify_connections
where not (starts_with(access_token, $1) and starts_with(refresh_token, $1))
"""
READ_OLD = """
select user_id, expires_at, access_token, refresh_token from public.spotify_connections
where user_id >= $1 and not (starts_with(access_token, $3) and starts_with(refresh_token, $3))
order by user_id
limit $2
"""
# The lock keeps two of these statements from a deadlock over rows. The old values are compared by their hash, because
# the server may log arguments, and these may be plain text.
LOCK = "select pg_advisory_xact_lock(hashtext('spotconn.rekey'))"
WRITE = """
update public.spotify_connections as stored
set access_token = rewritten.access_token, refresh_token = rewritten.refresh_token
from unnest($1::uuid[], $2::timestamptz[], $3::bytea[], $4::text[], $5::text[])
    as rewritten (user_id, version, old, access_token, refresh_token)
where stored.user_id = rewritten.user_id
    and stored.expires_at = rewritten.version
    and sha256(convert_to(stored.access_token || ' ' || stored.refresh_token, 'UTF8')) = rewritten.old
returning stored.user_id
"""


@dataclass
class Rewriter:
    """Converts rows under old keys to the arguments of `WRITE`, and counts.

    Attributes:
        cipher: with whose first key all tokens are to be encrypted.
        total: connections to rewrite.
        done: connections rewritten.
        lost: rewrites that lost to a concurrent write.
        unreadable: users with a value that did not decrypt in this pass.
    """

    cipher: AesGcmSivCipher
    total: int
    done: int = 0
    lost: int = 0
    unreadable: set[UUID] = field(default_factory=set[UUID])

    @property
    def progress(self) -> RekeyProgress:
        """The progress so far."""
        return RekeyProgress(total=self.total, done=self.done, lost=self.lost)

    def rewrite(self, rows: list[asyncpg.Record]) -> list[tuple[object, ...]]:
        """Return the arguments of `WRITE`, by column, without the rows that do not decrypt."""
        rewritten = [arguments for row in rows if (arguments := self._row(row)) is not None]
        return list(zip(*rewritten, strict=True))

    def count(self, *, attempted: int, saved: int) -> None:
        """Count a batch."""
        self.done += saved
        self.lost += attempted - saved

    def conclude(self, remaining: int) -> RekeyProgress:
        """Return the counts, if no value under another key remains.

        Args:
            remaining: connections that have such a value.

        Raises:
            DecryptionError: some values do not decrypt.
            ConfigurationError: live processes keep writing under another key.
        """
        if remaining > len(self.unreadable):
            raise ConfigurationError(
                f"{remaining} connections are again under another key: a running process still encrypts with it; "
                "give every process the same SPOTCONN_ENCRYPTION_KEYS, then run rekey again"
            )
        if remaining:
            some = ", ".join(str(user_id) for user_id in sorted(self.unreadable)[:3])
            raise DecryptionError(
                f"{remaining} connections do not decrypt with this ring of keys (among them user {some}); "
                "all others are rewritten"
            )
        return self.progress

    def _row(self, row: asyncpg.Record) -> tuple[object, ...] | None:
        old = f"{row['access_token']} {row['refresh_token']}".encode()
        try:
            tokens = [self._value(row, "access_token"), self._value(row, "refresh_token")]
        except DecryptionError:
            self.unreadable.add(row["user_id"])
            return None
        return (row["user_id"], row["expires_at"], hashlib.sha256(old).digest(), *tokens)

    def _value(self, row: asyncpg.Record, column: TokenColumn) -> str:
        stored: str = row[column]
        if stored.startswith(self.cipher.current_prefix):
            return stored
        user_id = row["user_id"]
        token = self.cipher.decrypt(stored, user_id=user_id, column=column)
        return self.cipher.encrypt(token, user_id=user_id, column=column)
