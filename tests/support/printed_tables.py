"""Tables that tests fill by `record_property`, printed at the end of the run."""

import pytest

from support.crash import CRASH, CRASH_COLUMNS, POINTS

PLANTED = "planted fault"
"""The property of a fault that the doctor has found: (state, fault, what it says)."""
YEAR = "simulated year"
"""The property of what has happened in a simulated year: (kind, count)."""
WIDEST = 100
"""Characters of what it says."""

Cells = tuple[str, ...]


def print_tables(reporter: pytest.TerminalReporter) -> None:
    """Print the crash matrix, the simulated year and the planted faults, as far as their tests have run."""
    if found := _recorded(reporter, CRASH):
        order = [point.name for point in POINTS]
        found.sort(key=lambda cells: (cells[1], order.index(cells[0]), cells))
        title = "crash matrix: a process is killed with SIGKILL, another one is asked at once"
        _print_table(reporter, title, [CRASH_COLUMNS, *found])
    if found := _recorded(reporter, YEAR):
        _print_table(reporter, "a simulated year of a thousand users", [("kind", "count"), *found])
    if found := _recorded(reporter, PLANTED):
        title = f"planted faults: {len(found)}, each found by the doctor as a login that the guide makes"
        _print_table(reporter, title, [("state", "fault", "the doctor says"), *sorted(found)])


def _recorded(reporter: pytest.TerminalReporter, name: str) -> list[Cells]:
    reports = reporter.getreports("passed") + reporter.getreports("failed")
    rows = {tuple(cells): None for report in reports for key, cells in report.user_properties if key == name}
    return [*rows]


def _print_table(reporter: pytest.TerminalReporter, title: str, rows: list[Cells]) -> None:
    reporter.section(title)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        reporter.write_line("  ".join(map(str.ljust, row, widths)).rstrip())
