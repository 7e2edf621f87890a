"""Growing, jittered pauses."""

import random
from dataclasses import dataclass


@dataclass
class Pause:
    """How long to leave something alone: longer with each failure in a row.

    Attributes:
        first: seconds of the first pause; each next one is twice as long, less a random half.
        longest: seconds of the longest pause.
        until: when the pause ends, on the caller's clock.
        failures: failures in a row.
    """

    first: float
    longest: float
    until: float = 0.0
    failures: int = 0

    def left(self, now: float) -> float:
        """Seconds until the pause ends; 0 where it is over."""
        return max(0.0, self.until - now)

    def grow(self, now: float) -> None:
        """Begin the next pause."""
        # No more than 2 ** 16: a float has an end.
        full = min(self.longest, self.first * 2 ** min(self.failures, 16))
        # Jittered: what failed together must not come back together.
        self.until = now + full * random.uniform(0.5, 1)  # noqa: S311  no secret hangs on it
        self.failures += 1
