"""Backoff that only this process observes, user by user."""

from uuid import UUID

from spotconn._backoff import Backoff
from spotconn._tracebacks import renewed
from spotconn.errors import SpotconnError, TryLater

MOST_BACKOFFS = 10_000


class LocalBackoffs:
    """Holds back requests for single users, each with the error that is the reason.

    The last `MOST_BACKOFFS` users are remembered. Times are seconds of one steady clock.
    """

    def __init__(self) -> None:
        self._backoffs: dict[UUID, tuple[Backoff, SpotconnError]] = {}

    def error(self, user_id: UUID, now: float) -> SpotconnError | None:
        """Return a new error like the one that began the backoff of a user, or None if there is none."""
        backoff, error = self._backoffs.get(user_id, (None, None))
        if backoff is None or error is None or not (remaining := backoff.remaining(now)):
            return None
        again = renewed(error)
        if isinstance(again, TryLater):
            again.retry_after = remaining
        return again

    def begin(self, user_id: UUID, error: SpotconnError, now: float) -> None:
        """Back off: as long as the error says, else longer with each failure in a row, 1 s to 30 s."""
        backoff, _ = self._backoffs.pop(user_id, (Backoff(first=1, longest=30), None))
        if isinstance(error, TryLater) and error.retry_after is not None:
            backoff.until = now + error.retry_after
        else:
            backoff.failed(now)
        if len(self._backoffs) >= MOST_BACKOFFS:
            del self._backoffs[next(iter(self._backoffs))]
        self._backoffs[user_id] = (backoff, renewed(error))

    def end(self, user_id: UUID) -> None:
        """End the backoff of a user, as Spotify has answered."""
        self._backoffs.pop(user_id, None)
