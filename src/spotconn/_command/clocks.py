"""The doctor's checks of the clocks: the database's, which all processes share, and this host's."""

import time
from typing import Literal

from spotconn._command.finding import Finding
from spotconn._command.probe import Probe

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
    """Return the finding about the difference of the clocks.

    Args:
        skew: seconds by which the database is ahead of this host.
        unsure: error of the measurement in seconds.
    """
    text = f"the database is {abs(skew):.2f} s {'ahead of' if skew > 0 else 'behind'} this host"
    if abs(skew) <= NOTABLE_SKEW + unsure:
        return Finding(state="ok", subject="clocks", text=text)
    state: Literal["warn", "fail"] = "warn" if abs(skew) <= HARMFUL_SKEW else "fail"
    return Finding(state=state, subject="clocks", text=text, remedy="keep both on network time")
