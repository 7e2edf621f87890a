"""The tokens of another table in plain text, or why one is of no use."""

from collections.abc import Callable
from uuid import UUID

from spotconn.cipher import MARK, TokenCipher, TokenColumn
from spotconn.errors import DecryptionError
from spotconn.models import LARGEST_TOKEN, is_token

Decrypt = Callable[[str], str | None]
"""Returns the plain text of a token of the table, or None where it does not decrypt."""

_BY_PYTHON = "ConnectionAdmin.migrate takes decrypt="
# By what a value begins with that is visible ASCII and no token of Spotify's.
_OTHERS = {
    # In base64 the version 0x80 and the upper octets of the time, which are 0 until 2106.
    "gAAAA": "looks encrypted with Fernet: --fernet-key-env",
    "U2FsdGVkX1": f"looks encrypted with OpenSSL or CryptoJS: {_BY_PYTHON}",  # "Salted__" in base64
    "vault:": f"looks encrypted with Vault: {_BY_PYTHON}",
    "eyJ": f"is JSON in base64, such as a JWT or what Laravel encrypts: {_BY_PYTHON}",
}


class TokenReader:
    """Reads the tokens of another table.

    Args:
        decrypt: what another program has encrypted; None where they are plain text.
        cipher: opens what this library has encrypted for the same user, as in a table that was renamed.
    """

    def __init__(self, decrypt: Decrypt | None, cipher: TokenCipher) -> None:
        self._decrypt = decrypt
        self._cipher = cipher

    def read(self, text: str, user_id: UUID, column: TokenColumn) -> tuple[str, str]:
        """Return a token and an empty text, or an empty token and why it is of no use, if that can be told."""
        if text.startswith(MARK):
            try:
                text = self._cipher.decrypt(text, user_id=user_id, column=column)
            except DecryptionError as error:
                return "", str(error)
        elif text and self._decrypt is not None:
            decrypted = self._decrypt(text)
            if decrypted is None:
                return "", "does not decrypt"
            text = decrypted
        for start, what in _OTHERS.items():
            if text.lstrip().startswith(start):
                return "", what
        return (text if is_token(text) and len(text) <= LARGEST_TOKEN else ""), ""
