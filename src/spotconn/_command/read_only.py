"""The doctor's check that the database can be written to."""

from spotconn._command.finding import Finding
from spotconn._command.probe import Probe
from spotconn._database.read_only import STATE, fault

SUBJECT = "writing"


async def check_writing(probe: Probe) -> Finding:
    """Check that transactions of this login may write: tokens are saved after each refresh."""
    (state,) = await probe.rows(STATE)
    found = fault(dict(state))
    if found is None:
        return Finding(state="ok", subject=SUBJECT, text="the database can be written to")
    return Finding(state="fail", subject=SUBJECT, text=found.text, remedy=found.remedy)
