"""A stored access token as a process sees it, with its end by the clock of that process."""

from dataclasses import dataclass, field
from typing import Self

from spotconn.errors import ReauthorizationRequired
from spotconn.models import Connection, RecordedFailure


@dataclass(slots=True)
class StoredToken:
    """An access token of a user.

    Attributes:
        access_token: for the Web API.
        fingerprint: of its text as stored; of the token itself where it is not saved yet.
        ends: when it ends, in seconds since the epoch by the clock of this process.
        scope: the granted scopes; None where they were never recorded.
        refusal: that of the refresh token beside it, if Spotify has refused that with the app that it belongs to.
    """

    access_token: str = field(repr=False)
    fingerprint: str
    ends: float
    scope: frozenset[str] | None
    refusal: RecordedFailure | None

    @classmethod
    def of(cls, connection: Connection, read_at: float) -> Self:
        """Return the token of a connection.

        Args:
            connection: as read.
            read_at: a moment before the read, in seconds since the epoch by the clock of this process. The clock of
                the database has counted what is left, so an offset between the two does not matter.
        """
        return cls(
            connection.access_token,
            connection.fingerprint,
            read_at + connection.remaining,
            connection.scope,
            connection.failure if connection.reauthorization and connection.client_id is not None else None,
        )

    def final_refusal(self) -> ReauthorizationRequired | None:
        """Return the error of a refresh token that Spotify is not to be asked about again, or None."""
        if self.refusal is None or self.refusal.retry_at is not None:
            return None
        return reauthorization(self.refusal)


def reauthorization(failure: RecordedFailure | None) -> ReauthorizationRequired | None:
    """Return the error for a recorded refusal; None for another failure or none."""
    if failure is None or failure.reason == "unavailable":
        return None
    return ReauthorizationRequired(failure.reason, failure.since)
