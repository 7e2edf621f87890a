"""Elapsed time that neither a clock set back nor a process that stood still can shorten."""

import asyncio
import time
from collections.abc import Callable


class Stopwatch:
    """Counts seconds from now on.

    A monotonic clock does not count the time in which a virtual machine is frozen, and the wall clock may be set back:
    the larger of the two counts.

    Args:
        clock: returns seconds since the epoch.

    Attributes:
        began: when it was made, in seconds since the epoch by that clock.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.began: float = clock()
        self._monotonic = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since it was made."""
        return max(self._clock() - self.began, time.monotonic() - self._monotonic)

    @property
    def drift(self) -> float:
        """Seconds by which the wall clock has moved more than the monotonic clock; less than 0 if it was set back."""
        return (self._clock() - self.began) - (time.monotonic() - self._monotonic)


def loop_time() -> float:
    """Return the seconds of the steady clock of the running event loop."""
    return asyncio.get_running_loop().time()
