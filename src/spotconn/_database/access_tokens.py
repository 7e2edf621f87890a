"""Access tokens as they are stored, without the rest of their connections: what most callers need."""

from collections.abc import Iterable
from uuid import UUID

from spotconn._database import statements
from spotconn._database.bound_pool import BoundPool
from spotconn._database.halves import read_in_halves
from spotconn._database.rows import RowConverter
from spotconn._database.shared_reads import SharedReads
from spotconn.errors import NotConnected, SpotconnError
from spotconn.models import StoredAccessToken


class AccessTokens:
    """Reads access tokens, and decrypts nothing else.

    Args:
        pool: of the store.
        rows: of the store.
    """

    def __init__(self, pool: BoundPool, rows: RowConverter) -> None:
        self._pool = pool
        self._rows = rows
        self._reads = SharedReads(pool)

    async def get(self, user_id: UUID) -> StoredAccessToken:
        """Return the access token of a user, in a statement that callers share.

        Raises:
            NotConnected: there is none.
            DatabaseUnavailable, SchemaMismatch, RowSecurityError, DecryptionError: it could not be read.
        """
        row = await self._reads.row(user_id)
        if row is None:
            raise NotConnected("no Spotify connection is stored for this user")
        return self._rows.access_token(row, user_id)

    async def get_many(self, user_ids: Iterable[UUID]) -> dict[UUID, StoredAccessToken | SpotconnError]:
        """Return those of several users in one statement, with the error in place of one that cannot be read.

        Raises:
            DatabaseUnavailable, SchemaMismatch, RowSecurityError: none could be read.
        """
        rows, errors = await read_in_halves(
            lambda some: self._pool.rows_of(some, statements.GET_ACCESS_TOKENS), list(set(user_ids))
        )
        return errors | {row["user_id"]: self._rows.access_token_or_error(row) for row in rows}

    def check_decryption(self) -> None:
        """Check that the tokens of most users that were read lately decrypt. Nothing is read.

        Raises:
            DecryptionError: they do not.
        """
        self._rows.decryptions.check()
