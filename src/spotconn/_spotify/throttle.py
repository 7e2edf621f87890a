"""A throttle and circuit breaker for all calls of one app to one service of Spotify."""

import math

from spotconn._backoff import Backoff
from spotconn._spotify.marks import Mark, has_mark, marked
from spotconn._tracebacks import renewed
from spotconn.errors import ConfigurationError, SpotconnError, SpotifyUnavailable

LONGEST_RETRY_AFTER = 86_400.0
"""Seconds; a greater Retry-After counts as this, or one broken answer would end all calls for ever."""


class Throttle:
    """Admits calls, unless Spotify has asked this app to wait or refuses its credentials.

    Retry-After holds for the app, so one answer with it stops every call of the process until then. An app that is
    refused is refused for every user: one call per growing pause, 1 s to 5 min, probes whether it still is.
    All times are seconds of one monotonic clock.
    """

    def __init__(self) -> None:
        self._blocked_until = -math.inf
        self._refusal: ConfigurationError | None = None
        self._backoff = Backoff(first=1, longest=300)

    def check(self, now: float) -> None:
        """Check whether a call may be made now.

        Raises:
            SpotifyUnavailable: Spotify has asked to wait.
            ConfigurationError: Spotify refuses this app, and it is not yet time to try again.
        """
        if now < self._blocked_until:
            remaining = self._blocked_until - now
            throttled = SpotifyUnavailable("Spotify asked this app to wait", retry_after=remaining, answered=False)
            raise marked(throttled, Mark.OF_ONE_APP)
        if self._refusal is None:
            return
        if self._backoff.remaining(now):
            raise renewed(self._refusal)
        # This call is the probe; others are refused until its answer is recorded or the pause is over.
        self._backoff.failed(now)

    def record(self, outcome: SpotconnError | None, now: float) -> None:
        """Record the outcome of a call: its error, or None for a grant or a profile."""
        if isinstance(outcome, SpotifyUnavailable):
            if outcome.answered and outcome.retry_after is not None:
                self._blocked_until = now + min(outcome.retry_after, LONGEST_RETRY_AFTER)
            return
        if has_mark(outcome, Mark.NOT_PROCESSED):  # a fault of this host: Spotify has not judged the app
            return
        if isinstance(outcome, ConfigurationError) and has_mark(outcome, Mark.OF_ONE_APP):
            if self._refusal is None:
                self._backoff.failed(now)
            self._refusal = renewed(outcome)
            return
        # A success, or a refusal that is not of the app: Spotify accepts the app again.
        self._refusal = None
        self._backoff = Backoff(first=1, longest=300)
