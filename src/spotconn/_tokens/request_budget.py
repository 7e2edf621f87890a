"""How often one user's connection has this process ask Spotify, whose limit holds for all users of an app."""

from uuid import UUID

from spotconn.errors import SpotifyUnavailable

BURST, EVERY = 10, 6.0
"""Requests at once, and seconds after which one more is due. A connection needs one an hour; one whose row is written
again and again, by its user or another program, could ask for any number."""
MOST_USERS = 10_000
"""Users remembered."""


class RequestBudget:
    """Bounds the requests of each user. Times are seconds of one steady clock."""

    def __init__(self) -> None:
        self._spent_until: dict[UUID, float] = {}

    def spend(self, user_id: UUID, now: float) -> SpotifyUnavailable | None:
        """Count a request of a user, or return the error that says when the next one may be made."""
        spent_until = max(self._spent_until.pop(user_id, now), now)
        wait = spent_until - now - (BURST - 1) * EVERY
        if len(self._spent_until) >= MOST_USERS:
            del self._spent_until[next(iter(self._spent_until))]
        self._spent_until[user_id] = spent_until if wait > 0 else spent_until + EVERY
        if wait <= 0:
            return None
        text = "this connection was refreshed too often lately: its row is written again and again"
        return SpotifyUnavailable(text, retry_after=wait, answered=False)
