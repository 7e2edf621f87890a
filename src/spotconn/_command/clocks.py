"""The doctor's checks of the clocks: the database's, which all processes share, Spotify's, and this host's."""

import time
from typing import Literal

from spotconn._command.finding import Finding
from spotconn._command.probe import Probe
from spotconn._spotify.app_check import ClockOffset

NOTABLE_SKEW = 1.0
"""Seconds between the clocks from which the doctor warns."""
HARMFUL_SKEW = 10.0
"""Seconds between the clocks from which the doctor fails: tokens are served until 30 seconds before their end."""


async def check_clocks(probe: Probe) -> Finding:
    """Compare the clock of this host with the one that the functions of the schema use."""
    before = time.time()
    database_time = await probe.value("select extract(epoch from spotconn.now())::float8")
    after = time.time()
    return clock_finding(database_time - (before + after) / 2, unsure=(after - before) / 2)


def clock_finding(skew: float, *, unsure: float) -> Finding:
    """Return the finding about the clock of the database.

    Args:
        skew: seconds by which it is ahead of this host.
        unsure: error of the measurement in seconds.
    """
    return _finding("clocks", "the database is", ClockOffset(skew, unsure), "keep both on network time")


def spotify_clock_finding(offset: ClockOffset) -> Finding:
    """Return the finding about the clock of Spotify, by which the one of this host is judged."""
    return _finding("Spotify's clock", "Spotify is", offset, "keep this host on network time")


def _finding(subject: str, beginning: str, offset: ClockOffset, remedy: str) -> Finding:
    skew = abs(offset.seconds)
    text = f"{beginning} {skew:.2f} s {'ahead of' if offset.seconds > 0 else 'behind'} this host"
    if skew <= NOTABLE_SKEW + offset.unsure:
        return Finding(state="ok", subject=subject, text=text)
    state: Literal["warn", "fail"] = "warn" if skew <= HARMFUL_SKEW else "fail"
    return Finding(state=state, subject=subject, text=text, remedy=remedy)
