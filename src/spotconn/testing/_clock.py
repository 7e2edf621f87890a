"""A clock that a test moves."""


class FakeClock:
    """A clock that stands until it is stepped. Pass it as `clock` to all objects that are to have the same time.

    Args:
        now: seconds since the epoch.

    Attributes:
        now: seconds since the epoch.
    """

    def __init__(self, now: float) -> None:
        self.now: float = now

    def __call__(self) -> float:
        """Return the seconds since the epoch."""
        return self.now

    def step(self, seconds: float) -> None:
        """Move the clock forward.

        Args:
            seconds: how far.
        """
        self.now += seconds
