"""A circuit breaker for all calls that prove the credentials of one app."""

from collections.abc import Hashable

from spotconn._backoff import Backoff
from spotconn._spotify.marks import Mark, has_mark, marked
from spotconn._tracebacks import renewed
from spotconn.errors import ConfigurationError, SpotconnError, SpotifyUnavailable

MOST_REFUSED = 1_000
"""Users remembered whose calls were refused."""


class CircuitBreaker:
    """Stops the calls of an app whose credentials Spotify refuses.

    What a call sends is written by its user, and may be the cause of its refusal. So a refusal stops the calls of that
    user alone, for pauses that grow from 1 s to 5 min. Once the calls of two users are refused and none is accepted in
    between, the circuit is open for all others too: one call per such a pause probes whether it still is. A user whose
    call was refused probes in pauses of its own, which keep no other user from probing. The first call that Spotify
    does not refuse closes the circuit. All times are seconds of one monotonic clock.
    """

    def __init__(self) -> None:
        self._refusal: ConfigurationError | None = None
        self._refused: dict[Hashable, Backoff] = {}
        self._others = _new_backoff()

    @property
    def has_refusal(self) -> bool:
        """Whether a call was refused, and none accepted since."""
        return self._refusal is not None

    def check(self, now: float, user: Hashable) -> None:
        """Check whether a call of a user may be made now.

        Raises:
            ConfigurationError: Spotify refuses this app, and it is not yet time to try again.
        """
        self.look(now, user)
        if (backoff := self._backoff(user)) is not None:
            # This call is the probe; the others are refused until its answer is recorded or the pause is over.
            backoff.failed(now)

    def look(self, now: float, user: Hashable) -> None:
        """Do the same as `check` for a call that is not made, and so is no probe."""
        backoff = self._backoff(user)
        if self._refusal is not None and backoff is not None and backoff.remaining(now):
            error = renewed(self._refusal)
            raise error if self.is_open else marked(error, Mark.OF_ONE_CALL)

    def record(self, outcome: SpotconnError | None, now: float, user: Hashable) -> bool | None:
        """Record the outcome of a call of a user: its error, or None for a grant.

        The refusal of a call is marked as that of one call. Return whether Spotify accepts the app; None where the
        outcome does not tell.
        """
        if isinstance(outcome, SpotifyUnavailable) or has_mark(outcome, Mark.NOT_PROCESSED):
            return None  # Spotify has not judged the app
        if isinstance(outcome, ConfigurationError):
            if not has_mark(outcome, Mark.OF_ONE_APP):
                return None  # a malformed request may be refused before that
            self._refusal = renewed(outcome)
            self._refuse(user, now)
            marked(outcome, Mark.OF_ONE_CALL)
            return False
        # A success, or a refusal of something else: Spotify accepts the app.
        self._refusal = None
        self._refused.clear()
        self._others = _new_backoff()
        return True

    @property
    def is_open(self) -> bool:
        """Whether the calls of all users are refused."""
        return len(self._refused) > 1

    def _backoff(self, user: Hashable) -> Backoff | None:
        """Return the pauses that a call of a user has to keep to; None for none."""
        return self._refused.get(user, self._others if self.is_open else None)

    def _refuse(self, user: Hashable, now: float) -> None:
        if user in self._refused:
            return  # its pause has begun with the call
        if len(self._refused) >= MOST_REFUSED:
            del self._refused[next(iter(self._refused))]
        self._refused[user] = _new_backoff()
        self._refused[user].failed(now)


def _new_backoff() -> Backoff:
    return Backoff(first=1, longest=300)
