"""Storage of authorizations that were started and not finished yet.

Each is visible to its own user, and to a transaction that has its state.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Literal, NamedTuple
from uuid import UUID

from pydantic import TypeAdapter

from spotconn._database.bound_pool import BoundPool
from spotconn._database.rows import RowConverter
from spotconn.errors import ConnectFailed, TryLater

Binding = Literal["user", "cookie", "none"]

_START = "select $1::uuid as user_id, spotconn.start_connect($1, $2, $3, $4, $5) as retry_after"
_TAKE = "select $1::uuid as user_id, * from spotconn.take_connect($1, $2, $3, $4)"

_EXTRAS = TypeAdapter(tuple[Sequence[str] | None, Mapping[str, str]])
"""What is stored behind the code verifier: the scopes and the data of a `PendingConnect`, as JSON."""
_NO_EXTRAS = "[null, {}]"
"""What one that an earlier version has stored counts as."""

_NOBODY = UUID(int=0)
"""Stands in the associated data of a ciphertext for the user of an authorization without one."""


class Claim(NamedTuple):
    """What a callback shows of who has started its authorization.

    Attributes:
        state: of the callback.
        binding: what has to fit: the user, the cookie (and the user, where both are known), or the state alone.
        user_id: who is signed in now, if known.
        cookie: the value of the cookie, if any.
    """

    state: str
    binding: Binding
    user_id: UUID | None = None
    cookie: str | None = None

    def __repr__(self) -> str:
        """Return no value: state and cookie are secrets."""
        return "<Claim>"


class PendingConnect(NamedTuple):
    """A started authorization.

    Attributes:
        user_id: who started it, if known.
        code_verifier: the PKCE secret it was started with.
        scopes: what the user was asked for; None where it was not recorded.
        data: what the caller wants back.
    """

    user_id: UUID | None
    code_verifier: str
    scopes: Sequence[str] | None = None
    data: Mapping[str, str] = {}

    def __repr__(self) -> str:
        """Return no value: the code verifier is a secret."""
        return "<PendingConnect>"


class PendingConnects:
    """Stores started authorizations. Of state and cookie only hashes are stored, and the rest is bound to the state.

    Args:
        pool: of the store.
        rows: of the store; encrypts the code verifiers.
    """

    def __init__(self, pool: BoundPool, rows: RowConverter) -> None:
        self._pool = pool
        self._rows = rows

    async def put(self, pending: PendingConnect, state: str, *, life: float, cookie: str | None = None) -> None:
        """Store a started authorization for `life` seconds, and delete the expired ones of all users.

        Raises:
            UnknownUser: no such user in auth.users.
            TryLater: the user has started 20 that have not expired; those that were finished count.
            DatabaseUnavailable, SchemaMismatch, RowSecurityError: it was not stored, as far as is known.
        """
        state_hash = _hashed(state)
        extras = json.dumps((pending.scopes, dict(pending.data)))
        bound = f"{state_hash.hex()}.{pending.code_verifier}.{extras}"
        stored = self._rows.encrypt(bound, pending.user_id or _NOBODY, "code_verifier")
        values = (state_hash, stored, timedelta(seconds=life), None if cookie is None else _hashed(cookie))
        row = await self._pool.row_of(pending.user_id, _START, *values, queue=state_hash)
        if row is not None and row["retry_after"] is not None:
            raise TryLater(
                "this user has started 20 authorizations within ten minutes; start again later",
                retry_after=row["retry_after"],
            )

    async def take(self, claim: Claim) -> PendingConnect | None:
        """Claim a started authorization in one statement, so that it can be used once.

        Returns:
            None if none was started with this state, or it has expired and was deleted.

        Raises:
            ConnectFailed: the claim does not fit, or what is stored was started with another state ("state_mismatch");
                it was taken before, or the user has disconnected since it was started ("state_used"); its time was over
                ("state_expired").
            DecryptionError: what is stored does not decrypt as this user's.
            DatabaseUnavailable, SchemaMismatch, RowSecurityError: it was not claimed, as far as is known.
        """
        state_hash = _hashed(claim.state)
        cookie_hash = None if claim.cookie is None else _hashed(claim.cookie)
        values = (state_hash, cookie_hash, claim.binding)
        row = await self._pool.row_of(claim.user_id, _TAKE, *values, queue=state_hash)
        if row is None:
            return None
        if row["outcome"] != "claimed":
            raise _refusal(row["outcome"])
        return self._opened(row["code_verifier"], row["owner"], state_hash)

    def _opened(self, stored: str, user_id: UUID | None, state_hash: bytes) -> PendingConnect:
        """Return what is in a stored text, which another writer of the database may have put there."""
        bound = self._rows.cipher.decrypt(stored, user_id=user_id or _NOBODY, column="code_verifier")
        started_with, _, rest = bound.partition(".")
        code_verifier, _, extras = rest.partition(".")
        if started_with == state_hash.hex() and code_verifier:
            with suppress(ValueError):
                return PendingConnect(user_id, code_verifier, *_EXTRAS.validate_json(extras or _NO_EXTRAS))
        raise ConnectFailed(
            "state_mismatch", "what is stored for this authorization was started with another state; start again"
        )


def _refusal(outcome: str) -> ConnectFailed:
    match outcome:
        case "used":
            return ConnectFailed(
                "state_used", "this callback was used before, or the user has disconnected since; start again"
            )
        case "expired":
            return expired()
        case "other_user":
            return ConnectFailed("state_mismatch", "another user has started this authorization; start again")
        case _:
            return ConnectFailed(
                "state_mismatch",
                "this authorization began in another browser, or its cookie did not come along; start again",
            )


def expired() -> ConnectFailed:
    """Return the error for an authorization whose time is over."""
    return ConnectFailed("state_expired", "the authorization took longer than ten minutes; start again")


def _hashed(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).digest()
