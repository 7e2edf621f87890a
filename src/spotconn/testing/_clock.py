"""A time that a test moves."""


class FakeClock:
    """Stands until it is stepped; the `clock` of whatever is to live by the same time.

    Args:
        now: seconds since the epoch.

    Attributes:
        now: seconds since the epoch.
    """

    def __init__(self, now: float) -> None:
        self.now: float = now

    def __call__(self) -> float:
        """Seconds since the epoch."""
        return self.now

    def step(self, seconds: float) -> None:
        """Let time pass.

        Args:
            seconds: how much.
        """
        self.now += seconds
