"""Encryption of every stored token with the first key of the ring, beside the running service.

A rewrite changes only the text of the tokens, and what is known of a refresh token is carried over to its new text. It
is saved only over the values that were read, so a concurrent refresh, reconnect or disconnect always wins. A row whose
refresh is under way is left for later: that refresh is saved over the text that was sent.
"""

from dataclasses import dataclass, field
from uuid import UUID

import asyncpg

from spotconn.cipher import MARK, AesGcmSivCipher, TokenColumn
from spotconn.errors import ConfigurationError, DecryptionError
from spotconn.models import digest
from spotconn.overview import RekeyProgress

MAX_PASSES = 5
"""Passes over all connections. The second rewrites what the first lost to concurrent writes."""
LONGEST_WAIT = 30.0
"""Seconds that a pass waits for refreshes under way at most."""

COUNT_OLD = """
select count(*) from public.spotify_connections
where not (starts_with(access_token, $1) and starts_with(refresh_token, $1))
"""
READ_OLD = """
select user_id, access_token, refresh_token from public.spotify_connections
where user_id >= $1 and not (starts_with(access_token, $3) and starts_with(refresh_token, $3))
order by user_id
limit $2
"""
# The lock keeps two of these transactions from a deadlock over rows.
LOCK = "select pg_advisory_xact_lock(hashtext('spotconn.rekey'))"
LOCK_ROWS = """
select user_id from public.spotify_connections where user_id = any($1::uuid[]) order by user_id for no key update
"""
# In a statement of its own, after the rows are locked: nobody acquires a lease without that lock.
LEASED = """
select user_id, extract(epoch from lease_until - spotconn.now())::float8 as remaining from spotconn.refresh_state
where user_id = any($1::uuid[]) and spotconn.runs(leased_at, lease_until, spotconn.now())
"""
# The old values are compared by their hash, because the server may log arguments, and these may be plain text.
WRITE = """
with rewritten as (
    update public.spotify_connections as stored
    set access_token = rewritten.access_token, refresh_token = rewritten.refresh_token
    from unnest($1::uuid[], $2::bytea[], $3::bytea[], $4::text[], $5::text[])
        as rewritten (user_id, old, fingerprint, access_token, refresh_token)
    where stored.user_id = rewritten.user_id
        and sha256(convert_to(stored.access_token || ' ' || stored.refresh_token, 'UTF8')) = rewritten.old
    returning stored.user_id, rewritten.fingerprint, stored.refresh_token
), carried as (
    update spotconn.refresh_state as state
    set fingerprint = sha256(convert_to(rewritten.refresh_token, 'UTF8'))
    from rewritten
    where state.user_id = rewritten.user_id and state.fingerprint = rewritten.fingerprint
)
select user_id from rewritten
"""


@dataclass
class Rewriter:
    """Converts rows under old keys to the arguments of `WRITE`, and counts.

    Attributes:
        cipher: with whose first key all tokens are to be encrypted.
        total: connections to rewrite.
        done: connections rewritten.
        lost: rewrites that lost to a concurrent write, or were left for later.
        wait: seconds until the refreshes are over whose rows were left for later in this pass.
        unreadable: users with a value that did not decrypt in this pass.
        plain_text: those of them with a value in plain text, which the cipher refuses.
    """

    cipher: AesGcmSivCipher
    total: int
    done: int = 0
    lost: int = 0
    wait: float = 0.0
    unreadable: set[UUID] = field(default_factory=set[UUID])
    plain_text: set[UUID] = field(default_factory=set[UUID])

    @property
    def progress(self) -> RekeyProgress:
        """The progress so far."""
        return RekeyProgress(total=self.total, done=self.done, lost=self.lost)

    def begin_pass(self) -> None:
        """Begin a pass over all connections."""
        self.unreadable.clear()
        self.plain_text.clear()
        self.wait = 0.0

    def rewrite(self, rows: list[asyncpg.Record]) -> dict[UUID, tuple[object, ...]]:
        """Return the arguments of `WRITE` by user, without the rows that do not decrypt."""
        return {row["user_id"]: arguments for row in rows if (arguments := self._row(row)) is not None}

    def leave(self, rewritten: dict[UUID, tuple[object, ...]], leased: list[asyncpg.Record]) -> None:
        """Leave the rows for later whose refresh is under way."""
        for row in leased:
            if rewritten.pop(row["user_id"], None) is not None:
                self.wait = max(self.wait, row["remaining"])
                self.lost += 1

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
        if remaining > len(self.unreadable) and self.wait:
            raise ConfigurationError(f"{remaining} connections are left, some of them being refreshed: run rekey again")
        if remaining > len(self.unreadable):
            raise ConfigurationError(
                f"{remaining} connections are again under another key: a running process still encrypts with it; "
                "give every process the same SPOTCONN_ENCRYPTION_KEYS, then run rekey again"
            )
        if self.plain_text:
            raise DecryptionError(
                f"{len(self.plain_text)} connections are in plain text, which this service refuses (among them user "
                f"{_some(self.plain_text)}); all that decrypts is rewritten; where your own service wrote them, run "
                "spotconn rekey with SPOTCONN_REQUIRE_ENCRYPTED=0"
            )
        if remaining:
            raise DecryptionError(
                f"{remaining} connections do not decrypt with this ring of keys (among them user "
                f"{_some(self.unreadable)}); all others are rewritten; spotconn doctor says what to do"
            )
        return self.progress

    def _row(self, row: asyncpg.Record) -> tuple[object, ...] | None:
        old = f"{row['access_token']} {row['refresh_token']}"
        access_token, refresh_token = self._value(row, "access_token"), self._value(row, "refresh_token")
        if access_token is None or refresh_token is None:
            return None
        return (row["user_id"], digest(old), digest(row["refresh_token"]), access_token, refresh_token)

    def _value(self, row: asyncpg.Record, column: TokenColumn) -> str | None:
        """Return the text to store; None for one that does not decrypt, whose user is counted."""
        stored: str = row[column]
        if stored.startswith(self.cipher.current_prefix):
            return stored
        user_id = row["user_id"]
        try:
            token = self.cipher.decrypt(stored, user_id=user_id, column=column)
        except DecryptionError:
            self.unreadable.add(user_id)
            if not stored.startswith(MARK):
                self.plain_text.add(user_id)
            return None
        return self.cipher.encrypt(token, user_id=user_id, column=column)


def _some(users: set[UUID]) -> str:
    return ", ".join(map(str, sorted(users)[:3]))
