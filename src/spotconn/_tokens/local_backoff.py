"""The pauses that this process keeps for itself, user by user."""

from uuid import UUID

from spotconn._backoff import Pause
from spotconn._tracebacks import renewed
from spotconn.errors import SpotconnError, TryLater

MOST_PAUSES = 10_000


class HostPauses:
    """Which users this host has reason not to ask Spotify for, until when, and the error that tells why.

    Kept for the last `MOST_PAUSES` of them. Times are seconds of one steady clock.
    """

    def __init__(self) -> None:
        self._pauses: dict[UUID, tuple[Pause, SpotconnError]] = {}

    def error(self, user_id: UUID, now: float) -> SpotconnError | None:
        """A new error like the one that began the pause of a user; None where there is no pause."""
        pause, error = self._pauses.get(user_id, (None, None))
        if pause is None or error is None or not (left := pause.left(now)):
            return None
        again = renewed(error)
        if isinstance(again, TryLater):
            again.retry_after = left
        return again

    def begin(self, user_id: UUID, error: SpotconnError, now: float) -> None:
        """Begin a pause: as long as the error says, else longer with each failure in a row, 1 s to 30 s."""
        pause, _ = self._pauses.pop(user_id, (Pause(first=1, longest=30), None))
        if isinstance(error, TryLater) and error.retry_after is not None:
            pause.until = now + error.retry_after
        else:
            pause.grow(now)
        if len(self._pauses) >= MOST_PAUSES:
            del self._pauses[next(iter(self._pauses))]
        self._pauses[user_id] = (pause, renewed(error))

    def end(self, user_id: UUID) -> None:
        """Spotify has answered: there is no reason any more."""
        self._pauses.pop(user_id, None)
