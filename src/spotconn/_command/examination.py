"""Run the doctor's checks on one session, and say each cause once."""

from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence

from spotconn._command.checks import Check
from spotconn._command.finding import Finding, failed
from spotconn._command.probe import Probe
from spotconn._command.schema_version import SUBJECT as SCHEMA
from spotconn._database.idle_sessions import is_open

UNEXAMINED = "not examined"
"""The subject of the finding that names what a cause found before keeps from being examined."""


async def run_checks(probe: Probe, checks: Mapping[str, Check]) -> AsyncGenerator[Finding]:
    """Yield the finding of each check, then one for each cause that keeps further ones from being examined.

    Args:
        probe: the session.
        checks: by subject. Those behind `SCHEMA` are not run unless that is ok: they need its functions and tables.
    """
    causes: dict[str, str] = {}
    unexamined = defaultdict[str, list[str]](list)
    subjects = [*checks]
    for subject, check in checks.items():
        finding = await run_check(probe, subject, check)
        cause = causes.setdefault(finding.text, subject)
        if finding.state in {"skip", "fail"} and cause != subject:
            unexamined[cause].append(subject)
            continue
        yield finding
        if subject == SCHEMA and finding.state == "fail":
            unexamined[SCHEMA] = subjects[subjects.index(SCHEMA) + 1 :]
            break
    for finding in _unexamined(unexamined):
        yield finding


def _unexamined(subjects: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    for cause, named in subjects.items():
        yield Finding(state="skip", subject=UNEXAMINED, text=f"{', '.join(named)}: see {cause}")


async def run_check(probe: Probe, subject: str, check: Check) -> Finding:
    """Run one check, in a transaction that is rolled back. Return its finding, or that of its error."""
    try:
        async with probe.rolled_back():
            return await check(probe)
    except Exception as error:  # noqa: BLE001  a finding, never a traceback
        return failed(subject, error) if is_open(probe.session) else _lost(subject)


def _lost(subject: str) -> Finding:
    return Finding(
        state="fail",
        subject=subject,
        text="not examined: the connection to the database was lost",
        remedy="run spotconn doctor again once the database answers",
    )
