"""What one answer of Spotify tells this process about all its next calls to the same service."""

import math

from spotconn._backoff import Pause
from spotconn._spotify.oauth import AppRefused
from spotconn._tracebacks import renewed
from spotconn.errors import SpotconnError, SpotifyUnavailable

LONGEST_RETRY_AFTER = 86_400.0
"""Seconds: no Retry-After counts for more than a day, or one broken answer would end all calls for ever."""


class Gate:
    """Lets calls pass, unless Spotify has asked this app to wait or refuses its credentials.

    Retry-After holds for the app, so one answer that has it silences every call of the process until then. An app
    that is refused is refused for every user: one call in a growing pause, 1 s to 5 min, finds out whether it still is.
    All times are seconds of one steady clock.
    """

    def __init__(self) -> None:
        self._quiet_until = -math.inf
        self._refusal: AppRefused | None = None
        self._pause = Pause(first=1, longest=300)

    def enter(self, now: float) -> None:
        """Pass, to ask Spotify.

        Raises:
            SpotifyUnavailable: Spotify has asked to wait.
            ConfigurationError: Spotify refuses this app, and it is not yet time to try again.
        """
        if now < self._quiet_until:
            left = self._quiet_until - now
            raise SpotifyUnavailable("Spotify asked this app to wait", retry_after=left, answered=False)
        if self._refusal is None:
            return
        if self._pause.left(now):
            raise renewed(self._refusal)
        # This call is the probe; the others are refused until it is back.
        self._pause.grow(now)

    def answered(self, outcome: SpotconnError | None, now: float) -> None:
        """Take note of what Spotify answered: None for a grant."""
        if isinstance(outcome, AppRefused):
            if self._refusal is None:
                self._pause.grow(now)
            self._refusal = renewed(outcome)
            return
        if isinstance(outcome, SpotifyUnavailable):
            if outcome.answered and outcome.retry_after is not None:
                self._quiet_until = now + min(outcome.retry_after, LONGEST_RETRY_AFTER)
            return
        # A grant, or a refusal of something else than the app: the app is known again.
        self._refusal = None
        self._pause = Pause(first=1, longest=300)
