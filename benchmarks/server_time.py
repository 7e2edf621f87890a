"""Processor time of a Postgres server with all its processes, as Linux counts it in /proc."""

import os
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")
"""In a second: in these the time of processes that have ended is counted."""


class _Times(NamedTuple):
    """Of one process, in seconds: its own, and that of its children that have ended."""

    parent: int
    own: float
    ended: float


def server_seconds(session: int) -> float:
    """Seconds that a server has computed so far, with all its processes, also those that have ended.

    Args:
        session: process id of one of its sessions, on this machine.
    """
    postmaster = _times(_PROC / str(session)).parent
    own = _times(_PROC / str(postmaster))
    return own.own + own.ended + sum(child.own for child in _processes() if child.parent == postmaster)


def _processes() -> list[_Times]:
    found: list[_Times] = []
    for folder in _PROC.glob("[0-9]*"):
        try:
            found.append(_times(folder))
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue
    return found


def _times(folder: Path) -> _Times:
    # The name of the program, in parentheses, may hold anything: what is counted comes after the last of them.
    fields = (folder / "stat").read_text().rpartition(")")[2].split()
    # Here each process's time is cut to whole ticks, which many small shares would vanish in; there it is not.
    nanoseconds = int((folder / "schedstat").read_text().split()[0])
    return _Times(int(fields[1]), nanoseconds / 1e9, (int(fields[13]) + int(fields[14])) / TICKS)
