"""Programs of the system that run in a folder of their own, which ends with this process, also by SIGKILL."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support import folder_keeper
from support.postgres_server import account_of_servers, owned_folder

READY = 120.0
"""Seconds for a program to be ready, and for a cluster to be what it is waited for to be."""
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"
LOW_PORTS = range(15_000, 32_000)
"""Below those that outgoing connections take, which could have the port of a program that is away for a moment."""
_started: list[subprocess.Popen[bytes]] = []


def find(program: str) -> str | None:
    """Return the path of a program, if it is installed."""
    return shutil.which(program, path=PATH)


def free_port() -> int:
    while True:
        port = random.choice(LOW_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def wait_until(condition: Callable[[], Any], what: str, *, within: float = READY) -> Any:
    """Ask until the answer is true, and return it."""
    end = time.monotonic() + within
    while not (answer := condition()):
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.05)
    return answer


@contextmanager
def folder_of_programs() -> Generator[Path]:
    """Create a folder; what works in it ends with the block and with this process, and the folder with it."""
    folder = Path(tempfile.mkdtemp(prefix="spotconn-failover-"))
    program = [sys.executable, "-I", "-S", folder_keeper.__file__, str(folder)]
    keeper = subprocess.Popen(program, stdin=subprocess.PIPE, start_new_session=True)
    try:
        folder.chmod(0o711)
        yield folder
    finally:
        _kill(folder)
        _started[:] = [process for process in _started if process.poll() is None]
        keeper.communicate()


class Program:
    """A program and all that it starts; it works in its own folder, where its log is, too.

    Args:
        folder: to be created.
        arguments: the path of the program and its arguments.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self._arguments: Sequence[str] = arguments
        self._process: subprocess.Popen[bytes] | None = None
        owned_folder(folder)

    @property
    def log(self) -> Path:
        return self.folder.parent / f"{self.folder.name}.log"

    def write(self, name: str, text: str) -> Path:
        """Write a file of the program."""
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o600)
        owner = self.folder.stat()
        os.chown(path, owner.st_uid, owner.st_gid)
        return path

    def start(self) -> None:
        with self.log.open("ab") as log:
            process = self._process = subprocess.Popen(
                self._arguments,
                cwd=self.folder,
                env={"PATH": PATH},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                umask=0o077,
                **account_of_servers(),
            )
        _started.append(process)

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def freeze(self) -> None:
        """Stop all its processes, as of a machine that hangs: its kernel still accepts connections and bytes."""
        for _ in range(2):  # those that were begun meanwhile, too
            self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End all its processes with SIGKILL."""
        _kill(self.folder)
        if self._process is not None:
            self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        folder_keeper.signal_all(folder_keeper.processes_in(self.folder), number)


def _kill(folder: Path) -> None:
    while pids := folder_keeper.processes_in(folder):
        folder_keeper.signal_all(pids, signal.SIGKILL)
        time.sleep(0.02)
