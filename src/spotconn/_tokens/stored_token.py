"""A stored access token as a process sees it, with its end by the clock of that process."""

from typing import Self

from spotconn.errors import ReauthorizationRequired
from spotconn.models import Connection, RecordedFailure, StoredAccessToken, digest


class StoredToken:
    """An access token of a user. It is no dataclass, which a crash reporter might write out with the token.

    Args:
        access_token: for the Web API.
        digest: of its text as stored; of the token itself where it is not saved yet.
        ends: when it ends, in seconds since the epoch by the clock of this process.
        scope: the granted scopes; None where they were never recorded.
    """

    __slots__ = ("access_token", "digest", "ends", "scope")

    def __init__(self, access_token: str, digest: bytes, ends: float, scope: frozenset[str] | None) -> None:
        self.access_token: str = access_token
        self.digest: bytes = digest  # a third of the size of its hexadecimal, for each cached user
        self.ends: float = ends
        self.scope: frozenset[str] | None = scope

    @classmethod
    def of(cls, stored: Connection | StoredAccessToken, read_at: float) -> Self:
        """Return a token that was read.

        Args:
            stored: as read.
            read_at: a moment before the read, in seconds since the epoch by the clock of this process. The clock of
                the database has counted what is left, so an offset between the two does not matter.
        """
        name = digest(stored.texts.access_token) if isinstance(stored, Connection) else stored.digest
        return cls(stored.access_token, name, read_at + stored.remaining, stored.scope)

    @property
    def fingerprint(self) -> str:
        """The name of the token by its content, as `Connection.fingerprint`."""
        return self.digest.hex()


def reauthorization(failure: RecordedFailure | None) -> ReauthorizationRequired | None:
    """Return the error for a recorded refusal; None for another failure or none."""
    if failure is None or failure.reason == "unavailable":
        return None
    return ReauthorizationRequired(failure.reason, failure.since)
