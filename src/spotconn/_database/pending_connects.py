"""Storage of authorizations that were started and not finished yet, each visible to its own user only."""

import hashlib
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

from spotconn._database.bound_pool import BoundPool

_START = "select $1::uuid as user_id, spotconn.start_connect($1, $2, $3, $4)"
_COUNT = "select $1::uuid as user_id, spotconn.pending_connects($1) as count"
_TAKE = "select $1::uuid as user_id, * from spotconn.take_connect($1, $2)"

MOST = 10
"""Started authorizations of a user that wait at once, as `spotconn.start_connect` has it; the oldest gives way."""


@dataclass(frozen=True)
class PendingConnect:
    """A started authorization, as `take` returns it.

    Attributes:
        code_verifier: the PKCE secret it was started with.
        expired: whether its time was over when it was taken.
    """

    code_verifier: str = field(repr=False)
    expired: bool


class PendingConnects:
    """Stores started authorizations. Of the state only the hash is stored.

    Args:
        pool: of the store.
    """

    def __init__(self, pool: BoundPool) -> None:
        self._pool = pool

    async def put(self, user_id: UUID, state: str, code_verifier: str, *, life: float) -> None:
        """Store a started authorization for `life` seconds, and delete the expired ones of all users.

        Raises:
            ValueError: no such user in auth.users.
            DatabaseUnavailable, SchemaMismatch, RowSecurityError: it was not stored, as far as is known.
        """
        await self._pool.row_of(user_id, _START, _hashed(state), code_verifier, timedelta(seconds=life))

    async def take(self, user_id: UUID, state: str) -> PendingConnect | None:
        """Return and delete a started authorization in one statement, so that it can be used once.

        Returns:
            None if this user has started none with this state, or it was taken before.
        """
        row = await self._pool.row_of(user_id, _TAKE, _hashed(state))
        return None if row is None else PendingConnect(row["code_verifier"], row["expired"])

    async def is_full(self, user_id: UUID) -> bool:
        """Return whether so many of a user wait that earlier ones have given way."""
        row = await self._pool.row_of(user_id, _COUNT)
        return row is not None and row["count"] >= MOST


def _hashed(state: str) -> bytes:
    return hashlib.sha256(state.encode("utf-8", "backslashreplace")).digest()
