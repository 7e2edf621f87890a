"""The times of a manager that is at work, changed for what a test waits out."""

from spotconn import TokenManager


def set_times(tokens: TokenManager, **seconds: float) -> None:
    """Give other times, named as in `Times`, to what begins from now on."""
    source = tokens._source
    refresher = source.refresher
    source._times = refresher._times = refresher._holder._times = refresher._times._replace(**seconds)
