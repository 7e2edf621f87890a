"""The table of a run, for people and for the page that shows it."""

from collections.abc import Iterable
from pathlib import Path

from failover.history import History

COLUMNS = (
    "scenario",
    "way",
    "failed calls",
    "s without service",
    "bare pool",
    "new connection",
    "slowest call",
    "users lost",
    "served after a disconnect",
    "sessions",
    "log lines",
)
BEGIN, END = "<!-- the figures of the last make failover: {} -->", "<!-- end of the figures of {} -->"


def cells(history: History) -> tuple[str, ...]:
    failed = history.failed
    classes = ", ".join(f"{count} {error}" for error, count in failed.most_common() if error != "DatabaseUnavailable")
    total = f"{sum(failed.values())}" + (f" ({classes})" if classes else "")
    return (
        history.scenario,
        history.way,
        f"{total} of {history.calls}",
        f"{history.without_service:.1f}",
        f"{history.outage(history.pool):.1f}",
        f"{history.outage(history.fresh):.1f}",
        f"{history.slowest:.1f}",
        f"{len(history.lost)}",
        f"{history.served_after_disconnect:.1f}",
        f"{history.sessions}",
        f"{len(history.logged)}",
    )


def plain(histories: Iterable[History]) -> str:
    """Return the table for a terminal."""
    rows = [COLUMNS, *map(cells, histories)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def markdown(histories: Iterable[History]) -> str:
    """Return it for a page."""
    rows = [COLUMNS, tuple("---" for _ in COLUMNS), *map(cells, histories)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def write(page: Path, world: str, histories: Iterable[History]) -> None:
    """Replace what stands between the two markers of a world.

    Raises:
        ValueError: the page has no such markers.
    """
    text = page.read_text(encoding="utf-8")
    begin, end = BEGIN.format(world), END.format(world)
    head, found, rest = text.partition(begin)
    _, ended, tail = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"{page.name} has no lines {begin} and {end}")
    page.write_text(f"{head}{begin}\n\n{markdown(histories)}\n\n{end}{tail}", encoding="utf-8")
