"""Measure everything in one run: `python -m benchmarks`, or `make bench`.

Prints a table, and writes results.json, the picture for the README and the tables of docs/performance.md. It ends with
1 where a goal is missed; the short form ends with 0, because its figures mean nothing.
"""

import argparse
import asyncio
import json
import os
import platform
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import uvloop

from benchmarks import (
    ROOT,
    blocking,
    callers,
    cold,
    decrypt,
    imports,
    listeners,
    memory,
    neighbours,
    pace,
    page,
    peers,
    picture,
    rows,
    saving,
    starved,
    storm,
    table,
    upkeep,
    warm,
    wire,
)
from benchmarks.goals import GOALS
from benchmarks.rounds import Figure
from benchmarks.sizes import FULL, QUICK, Size
from spotconn.testing import EmbeddedPostgres

PARTS = (
    imports,
    wire,
    decrypt,
    warm,
    blocking,
    cold,
    callers,
    rows,
    starved,
    storm,
    pace,
    saving,
    memory,
    neighbours,
    upkeep,
    listeners,
)
ON_UVLOOP = (warm, blocking, cold, callers, pace)

Loop = Callable[[], asyncio.AbstractEventLoop]


def main() -> int:
    """Run as the command line says; return how it ends."""
    parser = argparse.ArgumentParser(prog="benchmarks", description="Measure what the library costs.")
    parser.add_argument("--quick", action="store_true", help="run everything once, for figures that mean nothing")
    parser.add_argument("--folder", type=Path, help="where everything is written, in place of the project")
    options = parser.parse_args()
    figures = measured(QUICK if options.quick else FULL)
    print("\n".join(table.lines(figures)))
    write(figures, options.folder)
    return 1 if table.missed(figures) and not options.quick else 0


def write(figures: dict[str, float], folder: Path | None) -> None:
    """Write what a run leaves: into the project, or all into one folder."""
    docs = ROOT / "docs"
    text = page.refreshed((docs / "performance.md").read_text(), figures, platform.python_version())
    ((folder or docs) / "performance.md").write_text(text)
    ((folder or docs / "images") / "benchmarks.svg").write_text(picture.drawn(figures))
    ((folder or ROOT / "benchmarks") / "results.json").write_text(json.dumps(as_json(figures), indent=2) + "\n")


def measured(size: Size) -> dict[str, float]:
    """All figures; those of uvloop have it before their names."""
    figures: dict[str, float] = {}
    with EmbeddedPostgres() as server:
        for part in PARTS:
            figures |= _run(part.measure(server, size), asyncio.new_event_loop)
        for part in ON_UVLOOP:
            again = _run(part.measure(server, size), uvloop.new_event_loop)
            figures |= {f"uvloop_{key}": value for key, value in again.items()}
    return figures


def _run(part: Coroutine[Any, Any, list[Figure]], loop: Loop) -> dict[str, float]:
    with asyncio.Runner(loop_factory=loop) as runner:
        figures = dict(runner.run(part))
    for key, value in figures.items():
        print(f"... {key} {table.shown(value)}", flush=True)
    return figures


def as_json(figures: dict[str, float]) -> dict[str, Any]:
    """The figures that have a goal by their names, the others together, and what they were measured with."""
    goals = {goal.key: figures[goal.key] for goal in GOALS}
    machine = {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
    }
    extra = {key: value for key, value in figures.items() if key not in goals}
    return goals | {"machine": machine, "peers": peers.versions(), "extra": extra}


if __name__ == "__main__":
    sys.exit(main())
