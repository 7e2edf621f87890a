"""Authorizations that were started and not yet finished, in the database, each for its own user only."""

import hashlib
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

from spotconn._database.bound_pool import BoundPool

_START = "select $1::uuid as user_id, spotconn.start_connect($1, $2, $3, $4)"
_TAKE = "select $1::uuid as user_id, * from spotconn.take_connect($1, $2)"


@dataclass(frozen=True)
class PendingConnect:
    """A started authorization that was taken out.

    Attributes:
        code_verifier: the PKCE secret it was started with.
        expired: whether it was taken too late.
    """

    code_verifier: str = field(repr=False)
    expired: bool


class PendingConnects:
    """What a started authorization needs at its end; of the state only its hash is stored.

    Args:
        pool: of the store.
    """

    def __init__(self, pool: BoundPool) -> None:
        self._pool = pool

    async def put(self, user_id: UUID, state: str, code_verifier: str, *, life: float) -> None:
        """Keep a started authorization for `life` seconds; whatever has expired, of anybody, is cleared away.

        Raises:
            ValueError: no such user in auth.users.
            DatabaseUnavailable, SchemaMismatch, RowSecurityError: it was not kept, as far as is known.
        """
        await self._pool.row_of(user_id, _START, _hashed(state), code_verifier, timedelta(seconds=life))

    async def take(self, user_id: UUID, state: str) -> PendingConnect | None:
        """Take a started authorization out, in one statement; it cannot be taken again.

        Returns:
            None where this user has started none with this state, or it was taken before.
        """
        row = await self._pool.row_of(user_id, _TAKE, _hashed(state))
        return None if row is None else PendingConnect(row["code_verifier"], row["expired"])


def _hashed(state: str) -> bytes:
    return hashlib.sha256(state.encode("utf-8", "backslashreplace")).digest()
