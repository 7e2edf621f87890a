"""A grant that this process has saved, and the rows that are earlier than it."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from spotconn._stopwatch import Stopwatch
from spotconn.models import Connection, StoredTexts, digest

LOST_DIGITS = timedelta(seconds=1)
"""What a date may differ by and still be that of the same authorization; a user takes longer for two."""


@dataclass(eq=False, repr=False, slots=True)
class SavedGrant:
    """The last grant of a user.

    Attributes:
        spotify_user_id: of the authorization.
        connected_at: of the authorization.
        texts: the tokens as they are stored.
        access_digest: hash of the access token.
        saves: the count of the row that holds them.
        family: in which it counts.
        client_id: of the app with which it was granted.
        expires_in: seconds that the access token lives from the request on.
        requested: runs since the request.
        replaced: hashes of the refresh tokens that this process knows to be replaced.
        rejected: whether the Web API has refused the access token.
    """

    spotify_user_id: str
    connected_at: datetime | None
    texts: StoredTexts
    access_digest: bytes
    saves: int
    family: UUID | None
    client_id: str | None
    expires_in: float
    requested: Stopwatch
    replaced: tuple[bytes, ...]
    rejected: bool = False

    @property
    def ended(self) -> bool:
        """Whether the access token has ended."""
        return self.requested.elapsed >= self.expires_in

    def is_of(self, current: Connection) -> bool:
        """Return whether a row is of the same authorization.

        A client that writes a row back may have lost digits of its times: a Date of JavaScript holds milliseconds.
        """
        if current.connected_at is None or self.connected_at is None:
            is_same_time = current.connected_at is self.connected_at
        else:
            is_same_time = abs(current.connected_at - self.connected_at) < LOST_DIGITS
        return is_same_time and current.spotify_user_id == self.spotify_user_id

    def is_lost_by(self, current: Connection) -> bool:
        """Return whether a row is an earlier state of the one that this grant was saved in."""
        if not self.is_of(current):
            return False
        counts_fewer = (
            current.family is not None and current.family == self.family and (current.saves or 0) < self.saves
        )
        return counts_fewer or digest(current.refresh_token) in self.replaced
