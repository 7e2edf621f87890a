"""The whole history of a run as text, one event a line in the order of time, for whoever looks for a cause."""

import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from chaos.history import Beat, Call, Fault, History, Lease, Request, Step, Write


def write(history: History, head: list[str], name: str) -> Path:
    """Write it to a new file of the system's folder for such; `grep "user=3\\b"` finds what concerns a user."""
    with tempfile.NamedTemporaryFile("w", prefix=f"chaos-{name}-", suffix=".txt", delete=False) as file:
        file.writelines(f"{line}\n" for line in chain(head, lines(history)))
    return Path(file.name)


def lines(history: History) -> list[str]:
    """Return the events in the order of time; one that lasts is there at its beginning."""
    return [f"{at:.3f} {text}" for at, text in sorted(_events(history))]


def _events(history: History) -> Iterator[tuple[float, str]]:
    begun: tuple[Call | Request | Lease | Fault | Step, ...]
    begun = *history.calls, *history.requests, *history.leases, *history.faults, *history.steps
    yield from ((event.began, _text(event)) for event in begun)
    noted: tuple[Write | Beat, ...] = *history.writes, *history.beats
    yield from ((event.at, _text(event)) for event in noted)
    yield from ((token.issued, f"{_text(token)} name={name}") for name, token in history.tokens.items())
    for process, spans in history.stalls.items():
        yield from ((began, f"stall process={process} ended={ended:.3f}") for began, ended in spans)
    yield from ((at, f"kill process={process}") for process, at in history.kills.items())
    yield from ((at, f"close process={process}") for process, at in history.closings.items())
    yield from ((at, f"log process={process} {line}") for at, process, line in history.logs)


def _text(event: Any) -> str:
    """Return an event with those of its attributes that say something."""
    known = {name: value for name, value in asdict(event).items() if value not in (None, "") and value is not False}
    return " ".join([type(event).__name__.lower(), *[f"{name}={_shown(value)}" for name, value in known.items()]])


def _shown(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
