"""A throttle for the calls of one app to one endpoint of Spotify."""

import math

from spotconn._spotify.marks import Mark, has_mark, marked
from spotconn.errors import SpotconnError, SpotifyUnavailable

LONGEST_RETRY_AFTER = 86_400.0
"""Seconds; a greater Retry-After counts as this, or one broken answer would end all calls for ever."""


class Throttle:
    """Admits calls, unless Spotify has asked this app to wait.

    Retry-After of a 429 or 5xx holds for the app, so one answer with it stops every call to this endpoint until then.
    All times are seconds of one monotonic clock.
    """

    def __init__(self) -> None:
        self._blocked_until = -math.inf

    def check(self, now: float) -> None:
        """Check whether a call may be made now.

        Raises:
            SpotifyUnavailable: Spotify has asked to wait.
        """
        if remaining := self.remaining(now):
            throttled = SpotifyUnavailable("Spotify asked this app to wait", retry_after=remaining, answered=False)
            raise marked(throttled, Mark.OF_ONE_APP, Mark.NOT_PROCESSED)

    def remaining(self, now: float) -> float:
        """Return the seconds that Spotify has asked to wait from now on; 0.0 for none."""
        return max(0.0, self._blocked_until - now)

    def record(self, outcome: SpotconnError | None, now: float) -> None:
        """Record the outcome of a call: its error, or None for a grant or a profile."""
        if not isinstance(outcome, SpotifyUnavailable) or not has_mark(outcome, Mark.OF_ONE_APP):
            return
        if outcome.retry_after is not None:
            self._blocked_until = now + min(outcome.retry_after, LONGEST_RETRY_AFTER)
