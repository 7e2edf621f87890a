"""The time that a pass over many users waits because Spotify has asked for it."""

import math
from collections.abc import Callable

from spotconn._spotify.marks import Mark, has_mark
from spotconn.errors import SpotifyUnavailable

SHORTEST = 1.0
"""Seconds of the shortest wait, and by which waits for one Retry-After differ: each user's answer comes at its time."""


class ThrottleWait:
    """Decides whether a pass waits for what Spotify has asked for. Waits that overlap count once.

    Args:
        seconds: for all waits of the pass together.
        on_wait: is called when a wait begins, or grows.

    Raises:
        ValueError: `seconds` is out of range; the text names the argument of `get_valid_tokens`.
    """

    def __init__(self, seconds: float, on_wait: Callable[[], object]) -> None:
        if not 0 <= seconds < math.inf:
            raise ValueError("throttle_timeout: expected 0 or more seconds, and not without end")
        self._budget = seconds
        self._on_wait = on_wait
        self._until = -math.inf

    def remaining(self, now: float) -> float:
        """Return the seconds until the last of the waits is over; 0 if there is none."""
        return max(0.0, self._until - now)

    def until(self, answer: object, now: float) -> float | None:
        """Return when to ask again for a user, or None where `answer` stands.

        Args:
            answer: the user's; only a Retry-After is worth a wait, as it holds for every user of an app. The backoff of
                one user is not: it would use up the time for all.
            now: seconds of a monotonic clock, as what is returned.
        """
        if not isinstance(answer, SpotifyUnavailable) or answer.retry_after is None:
            return None
        if not has_mark(answer, Mark.OF_ONE_APP):
            return None
        end = now + max(answer.retry_after, SHORTEST)
        longer = end - max(self._until, now)
        if now < self._until and longer < SHORTEST:
            return end
        if longer > self._budget:
            return None
        self._budget -= longer
        self._until = end
        self._on_wait()
        return end
