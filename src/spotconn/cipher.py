"""How tokens are kept unreadable in the database: the protocol that a store's cipher follows."""

from typing import Literal, Protocol
from uuid import UUID

TokenColumn = Literal["access_token", "refresh_token"]


class TokenCipher(Protocol):
    """Encrypts and decrypts single token values.

    The user id and the column are associated data: a value moved to another row or column must not decrypt.
    """

    def encrypt(self, token: str, *, user_id: UUID, column: TokenColumn) -> str:
        """The text to store for a token."""
        ...

    def decrypt(self, stored: str, *, user_id: UUID, column: TokenColumn) -> str:
        """The token behind a stored text.

        Raises:
            DecryptionError: the key is unknown, or the value was altered or moved.
        """
        ...
