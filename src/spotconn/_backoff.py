"""Growing, jittered pauses."""

import random


class Backoff:
    """The pause before the next attempt, which grows with each failure in a row.

    Args:
        first: seconds of the first pause; each next one is twice as long, less a random half.
        longest: seconds of the longest pause.

    Attributes:
        first: as given.
        longest: as given.
        until: when the pause ends, in seconds of the caller's clock.
        failures: failures in a row.
    """

    def __init__(self, *, first: float, longest: float) -> None:
        self.first = first
        self.longest = longest
        self.until = 0.0
        self.failures = 0

    def remaining(self, now: float) -> float:
        """Return the seconds until the pause ends, or 0 if it is over."""
        return max(0.0, self.until - now)

    def failed(self, now: float) -> None:
        """Record a failure and begin the next pause."""
        # At most 2 ** 16: a float overflows.
        full = min(self.longest, self.first * 2 ** min(self.failures, 16))
        # Jitter: calls that failed together must not come back together.
        self.until = now + full * random.uniform(0.5, 1)  # noqa: S311  no secret depends on it
        self.failures += 1

    def next_pause(self) -> float:
        """Record a failure and return the seconds to sleep before the next attempt."""
        self.failed(0.0)
        return self.until
