"""Storage of authorizations that were started and not finished yet, each visible to its own user only."""

import hashlib
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

from spotconn._database.bound_pool import BoundPool
from spotconn._database.rows import RowConverter
from spotconn.errors import ConnectFailed, TryLater

_START = "select $1::uuid as user_id, spotconn.start_connect($1, $2, $3, $4) as retry_after"
_TAKE = "select $1::uuid as user_id, * from spotconn.take_connect($1, $2)"


@dataclass(frozen=True)
class PendingConnect:
    """A started authorization, as `take` returns it.

    Attributes:
        code_verifier: the PKCE secret it was started with; "" where it cannot be finished.
        used: whether it was taken before, or the user has disconnected since it was started.
        expired: whether its time was over when it was taken.
    """

    code_verifier: str = field(repr=False)
    used: bool
    expired: bool


class PendingConnects:
    """Stores started authorizations. Of the state only the hash is stored, and the code verifier is bound to it.

    Args:
        pool: of the store.
        rows: of the store; encrypts the code verifiers.
    """

    def __init__(self, pool: BoundPool, rows: RowConverter) -> None:
        self._pool = pool
        self._rows = rows

    async def put(self, user_id: UUID, state: str, code_verifier: str, *, life: float) -> None:
        """Store a started authorization for `life` seconds, and delete the expired ones of all users.

        Raises:
            ValueError: no such user in auth.users.
            TryLater: the user has started 20 that have not expired; those that were finished count.
            DatabaseUnavailable, SchemaMismatch, RowSecurityError: it was not stored, as far as is known.
        """
        state_hash = _hashed(state)
        bound = f"{state_hash.hex()}.{code_verifier}"
        stored = self._rows.encrypt(bound, user_id, "code_verifier")
        row = await self._pool.row_of(user_id, _START, state_hash, stored, timedelta(seconds=life))
        if row is not None and row["retry_after"] is not None:
            raise TryLater(
                "this user has started 20 authorizations within ten minutes; start again later",
                retry_after=row["retry_after"],
            )

    async def take(self, user_id: UUID, state: str) -> PendingConnect | None:
        """Claim a started authorization in one statement, so that it can be used once.

        Returns:
            None if this user has started none with this state, or it has expired and was deleted.

        Raises:
            ConnectFailed: what is stored was started with another state ("state_mismatch").
            DecryptionError: what is stored does not decrypt as this user's.
            DatabaseUnavailable, SchemaMismatch, RowSecurityError: it was not claimed, as far as is known.
        """
        state_hash = _hashed(state)
        row = await self._pool.row_of(user_id, _TAKE, state_hash)
        if row is None:
            return None
        used, expired = row["used"], row["expired"]
        code_verifier = "" if used or expired else self._opened(row["code_verifier"], user_id, state_hash)
        return PendingConnect(code_verifier, used=used, expired=expired)

    def _opened(self, stored: str, user_id: UUID, state_hash: bytes) -> str:
        """Return the code verifier of a stored text, which another writer of the database may have put there."""
        bound = self._rows.cipher.decrypt(stored, user_id=user_id, column="code_verifier")
        started_with, _, code_verifier = bound.partition(".")
        if started_with != state_hash.hex() or not code_verifier:
            raise ConnectFailed(
                "state_mismatch", "what is stored for this authorization was started with another state; start again"
            )
        return code_verifier


def _hashed(state: str) -> bytes:
    return hashlib.sha256(state.encode("utf-8", "backslashreplace")).digest()
