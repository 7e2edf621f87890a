"""How tokens are kept unreadable in the database: the protocol that a store's cipher follows, and AES-256-GCM-SIV.

A stored value is `spotconn1.KEY.DATA`: the version of this format, the id of the key, and unpadded base64url of the
nonce (12 bytes), the ciphertext and the tag (16 bytes). The associated data are the version, the key id, the column
and the user id, so a value that is moved to another row or column does not decrypt.
"""

import hashlib
import re
import secrets
from base64 import urlsafe_b64encode
from binascii import a2b_base64
from collections.abc import Iterable
from contextlib import suppress
from string import ascii_lowercase, ascii_uppercase, digits
from typing import TYPE_CHECKING, Literal, NoReturn, Protocol
from uuid import UUID

from spotconn._tracebacks import scrubbed
from spotconn.errors import ConfigurationError, DecryptionError

if TYPE_CHECKING:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

TokenColumn = Literal["access_token", "refresh_token", "code_verifier"]
"""What a value is: a token of a connection, or the PKCE secret of an authorization that is under way."""

MARK = "spotconn"
"""What a value of any version of the format starts with, and no token of Spotify's does."""
VERSION = f"{MARK}1"
KEY_BYTES = 32
NONCE_BYTES = 12

_PREFIX_LENGTH = len(f"{VERSION}.01234567.")
_STORED = re.compile(rf"{VERSION}\.([0-9a-f]{{8}})\.[A-Za-z0-9_-]+", re.ASCII)
_KEY = re.compile(r"[A-Za-z0-9_-]{43}=?", re.ASCII)

_LETTERS = ascii_uppercase + ascii_lowercase + digits + "-_"
# By the number of letters after the last four: what the last one may be, so that its bits beyond the last byte are 0.
_LAST_LETTERS = (_LETTERS, "", _LETTERS[::16], _LETTERS[::4])
# From base64url to base64; what only the latter has becomes what neither has.
_TO_BASE64 = bytes.maketrans(b"-_+/=", b"+/???")


class TokenCipher(Protocol):
    """Encrypts and decrypts single token values.

    The user id and the column are associated data: a value moved to another row or column must not decrypt.
    """

    def encrypt(self, token: str, *, user_id: UUID, column: TokenColumn) -> str:
        """Return the text to store for a token."""
        ...

    def decrypt(self, stored: str, *, user_id: UUID, column: TokenColumn) -> str:
        """Return the token behind a stored text.

        Raises:
            DecryptionError: the key is unknown, or the value was altered or moved.
        """
        ...


@scrubbed
class NoCipher:
    """Stores tokens as they are, and refuses to hand out as a token what a cipher has encrypted."""

    def encrypt(self, token: str, *, user_id: UUID, column: TokenColumn) -> str:  # noqa: ARG002
        """Return the token itself."""
        return token

    def decrypt(self, stored: str, *, user_id: UUID, column: TokenColumn) -> str:  # noqa: ARG002
        """Return the stored text itself.

        Raises:
            DecryptionError: it is encrypted.
        """
        if stored.startswith(MARK):
            raise DecryptionError(f"the stored {column} is encrypted: set SPOTCONN_ENCRYPTION_KEYS, or pass a cipher")
        return stored


@scrubbed
class AesGcmSivCipher:
    """AES-256-GCM-SIV (RFC 8452) with a ring of keys; needs the extra `crypto`.

    Random nonces are safe with it for more messages than any service writes, unlike AES-GCM's 2^32 for one key.

    Args:
        keys: of `generate_key`, the newest first: it encrypts, all decrypt.
        require_encrypted: refuse values that are stored as plain text; without it they are read as they are, so that
            a database can be encrypted while it is used.

    Raises:
        ConfigurationError: a key is malformed or there twice, there is none, or the extra is not installed; the text
            holds no key.
    """

    def __init__(self, keys: Iterable[str], *, require_encrypted: bool = False) -> None:
        # By what the values of a key start with.
        self._ring: dict[str, AESGCMSIV] = {}
        self._require_encrypted = require_encrypted
        for position, text in enumerate(keys, start=1):
            prefix, key = _read_key(text, position)
            if prefix in self._ring:
                raise ConfigurationError(f"encryption key {position} is in the ring twice: leave one out")
            self._ring[prefix] = key
        if not self._ring:
            raise ConfigurationError("the ring of encryption keys is empty: give it a key of `spotconn keygen`")

    @staticmethod
    def generate_key() -> str:
        """Return a new key: 32 random bytes as base64url."""
        return urlsafe_b64encode(secrets.token_bytes(KEY_BYTES)).decode()

    @property
    def key_ids(self) -> tuple[str, ...]:
        """Return the ids of the keys in the ring, the one that encrypts first; they are no secret."""
        return tuple(prefix.split(".")[1] for prefix in self._ring)

    @property
    def current_prefix(self) -> str:
        """Return what every value starts with that the first key has encrypted."""
        return next(iter(self._ring))

    def encrypt(self, token: str, *, user_id: UUID, column: TokenColumn) -> str:
        """Return the text to store for a token, under the first key and with a nonce of its own."""
        prefix = self.current_prefix
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = self._ring[prefix].encrypt(nonce, token.encode(), _bound_to(prefix, user_id, column))
        return prefix + urlsafe_b64encode(nonce + sealed).decode().rstrip("=")

    def decrypt(self, stored: str, *, user_id: UUID, column: TokenColumn) -> str:
        """Return the token behind a stored text.

        Raises:
            DecryptionError: the key is unknown, the value was altered or moved, or it is plain text where that is
                refused, as it always is for a code verifier.
        """
        if not stored.startswith(MARK):
            # No transition is needed for what lives ten minutes.
            if column == "code_verifier":
                raise DecryptionError(
                    f"the stored {column} is not encrypted: it was started without encryption keys, or put there by "
                    "another writer of the database; start again"
                )
            if self._require_encrypted:
                raise DecryptionError(
                    f"the stored {column} is not encrypted, which this service requires: somebody else has written it, "
                    "or spotconn rekey was not run before SPOTCONN_REQUIRE_ENCRYPTED was set; look at the row first"
                )
            return stored
        prefix, data = stored[:_PREFIX_LENGTH], stored[_PREFIX_LENGTH:]
        key = self._ring.get(prefix)
        token = None if key is None else _open(key, data, _bound_to(prefix, user_id, column))
        if token is None:
            raise DecryptionError(self._what_is_wrong(stored, column))
        return token

    def __repr__(self) -> str:
        """Return the ids of the keys."""
        return f"<{type(self).__name__} keys={', '.join(self.key_ids)}>"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied: that would carry the keys along."""
        raise TypeError(f"a {type(self).__name__} cannot be pickled: it holds keys")

    def _what_is_wrong(self, stored: str, column: TokenColumn) -> str:
        """Return what is wrong with a value that did not decrypt; of it only the id of the key is told."""
        parts = _STORED.fullmatch(stored)
        if parts is None:
            return (
                f"the stored {column} is damaged, or of a later version of spotconn: upgrade, or have the user connect "
                "again"
            )
        if parts[1] not in self.key_ids:
            return (
                f"the stored {column} is encrypted with key {parts[1]}, which is not in the ring: put that key behind "
                "the others in SPOTCONN_ENCRYPTION_KEYS"
            )
        if column == "code_verifier":
            return f"the stored {column} was altered, or is that of another user: something else writes the database"
        return f"the stored {column} was altered, or is that of another user or column: spotconn doctor says what to do"


def cipher_for(keys: Iterable[str], *, require_encrypted: bool) -> AesGcmSivCipher | None:
    """Return the cipher of a ring of keys, or None for an empty one."""
    keys = tuple(keys)
    return AesGcmSivCipher(keys, require_encrypted=require_encrypted) if keys else None


def _read_key(text: str, position: int) -> "tuple[str, AESGCMSIV]":
    if _KEY.fullmatch(text) is None or (raw := _decoded(text.rstrip("="))) is None:
        raise ConfigurationError(
            f"encryption key {position} is malformed: expected 32 bytes as base64url, from `spotconn keygen`"
        )
    return f"{VERSION}.{_identify(raw)}.", _with_key(raw)


def _identify(raw: bytes) -> str:
    return hashlib.sha256(b"spotconn key id\0" + raw).hexdigest()[:8]


def _with_key(raw: bytes) -> "AESGCMSIV":
    try:
        from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415  an extra
        from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV  # noqa: PLC0415  an extra
    except ImportError:
        pass
    else:
        with suppress(UnsupportedAlgorithm):
            return AESGCMSIV(raw)
        raise ConfigurationError("the installed OpenSSL cannot do AES-GCM-SIV: it takes version 3.2 or later")
    raise ConfigurationError('encryption needs an extra: pip install "spotconn[crypto]"')


def _bound_to(prefix: str, user_id: UUID, column: TokenColumn) -> bytes:
    return f"{prefix}{column}.{user_id}".encode()


def _open(key: "AESGCMSIV", data: str, associated: bytes) -> str | None:
    """Return the token, or None if it is not authentic."""
    raw = _decoded(data)
    if raw is None:
        return None
    try:
        return key.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], associated).decode()
    except _refusals():
        return None


def _refusals() -> "tuple[type[InvalidTag], type[ValueError]]":
    """Return what to raise for a value that is not authentic, too short or no text; looked up only then."""
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415  an extra, installed where there is a key

    return InvalidTag, ValueError


def _decoded(text: str) -> bytes | None:
    """Return the bytes behind unpadded base64url, or None where it is not the one way of writing them."""
    if text[-1:] not in _LAST_LETTERS[len(text) % 4]:
        return None
    try:
        return a2b_base64(text.encode().translate(_TO_BASE64) + b"=" * (-len(text) % 4), strict_mode=True)
    except ValueError:
        return None
