"""The program that ends what runs in a folder, and removes it, once its standard input ends, as by SIGKILL.

It runs with the standard library alone: `python -I -S folder_keeper.py FOLDER`. What belongs to the folder are the
processes whose working directory is below it, as of every process of a Postgres server.
"""

import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

PATIENCE = 5.0
"""Seconds for processes to end by themselves before they are killed."""


def processes_in(folder: Path) -> list[int]:
    """Return the processes that work in a folder; the parent of others comes before them in most cases."""
    return sorted(
        int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _works(entry, folder)
    )


def signal_all(pids: list[int], number: signal.Signals) -> None:
    """Send a signal to processes, some of which may be gone."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def end_all(folder: Path) -> None:
    """End every process that works in a folder: an immediate shutdown of a server, also of one that is stopped."""
    end = time.monotonic() + PATIENCE
    number = signal.SIGQUIT
    while pids := processes_in(folder):
        signal_all(pids, number)
        signal_all(pids, signal.SIGCONT)
        time.sleep(0.02)
        if time.monotonic() > end:
            number = signal.SIGKILL


def _works(entry: Path, folder: Path) -> bool:
    try:
        return (entry / "cwd").readlink().is_relative_to(folder) and "\nState:\tZ" not in (entry / "status").read_text()
    except OSError:
        return False


def main() -> None:
    """Wait for the end of the input, then leave nothing."""
    folder = Path(sys.argv[1])
    sys.stdin.read()
    end_all(folder)
    folder.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
