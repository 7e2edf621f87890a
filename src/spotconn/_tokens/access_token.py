"""An access token with what belongs to it, as a caller gets it."""

from datetime import UTC, datetime
from typing import Self

from pydantic import AwareDatetime, Field

from spotconn._tokens.stored_token import StoredToken
from spotconn._value import Value


class AccessToken(Value):
    """An access token, its end and its scopes: all three of one and the same token.

    `model_dump`, JSON and what a web framework makes of them leave `value` out.

    Attributes:
        value: the token, for the Web API.
        expires_at: when it ends, by the clock of this host: `expires_at - datetime.now(UTC)` is the time that it has.
            The seconds were counted by the clock of the database, so it does not matter whether the two agree.
        scope: the granted scopes; None where they were never recorded.
    """

    value: str = Field(repr=False, exclude=True)
    expires_at: AwareDatetime
    scope: frozenset[str] | None

    @classmethod
    def of(cls, token: StoredToken) -> Self:
        """Return what a process has of a token."""
        expires_at = datetime.fromtimestamp(token.ends, UTC)
        return cls(value=token.access_token, expires_at=expires_at, scope=token.scope)
