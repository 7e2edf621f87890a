"""A real PgBouncer, on loopback before a server of the tests."""

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import pytest

REQUIRED = "SPOTCONN_REQUIRE_PGBOUNCER"
"""Set where a missing PgBouncer is a failure, as in CI."""
LOGINS = ("app", "app_bypass", "chief", "operator")
"""Their passwords are their names."""
TRIES = 5
"""Ports to try; one found free can be lost to another program."""
START_TIMEOUT = 10.0

_SETTINGS = """
[databases]
* = host=127.0.0.1 port={server_port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
pool_mode = {mode}
default_pool_size = {size}
max_client_conn = 500
auth_type = scram-sha-256
auth_file = {folder}/users
ignore_startup_parameters = extra_float_digits
log_connections = 0
log_disconnections = 0
pidfile = {folder}/pid
"""
# It ends with its standard input, whose other end only the parent holds; PgBouncer and the folder go with it.
_KEEPER = '"$1" "$2/settings" 2>"$2/log" & cat; kill -KILL $!; wait $!; rm -r "$2"'


class _Account(TypedDict, total=False):
    """As whom PgBouncer runs."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True)
class PgBouncer:
    """A running one, and the server behind it."""

    port: int
    server_port: int
    folder: Path

    def through(self, dsn: str) -> str:
        """The DSN that leads here instead of to the server."""
        assert f":{self.server_port}/" in dsn
        return dsn.replace(f":{self.server_port}/", f":{self.port}/")

    def turn(self, server_port: int) -> None:
        """Lead to another server, by a reload: connections to the old one are closed as soon as they are free."""
        settings = self.folder / "settings"
        text = re.sub(r"^(\* = .*port=)\d+$", rf"\g<1>{server_port}", settings.read_text(), flags=re.MULTILINE)
        settings.write_text(text)
        os.kill(int((self.folder / "pid").read_text()), signal.SIGHUP)


def program() -> str:
    """The path of PgBouncer; without one the test is skipped, or fails where one is required."""
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        reason = "no PgBouncer on this system (Debian: apt-get install pgbouncer)"
        if os.environ.get(REQUIRED):
            pytest.fail(f"{reason}, and {REQUIRED} is set")
        pytest.skip(reason)
    return found


@contextmanager
def pgbouncer(
    server_port: int, *, size: int = 4, mode: str = "transaction", logins: Sequence[str] = LOGINS, more: str = ""
) -> Generator[PgBouncer]:
    """PgBouncer with that many connections to the server for each login, and `more` lines of settings.

    It ends with the block and with its parent.
    """
    path = program()
    for _ in range(TRIES):
        keeper, started = _started(
            path, server_port, logins, _SETTINGS.replace("{size}", str(size)).replace("{mode}", mode) + more
        )
        try:
            if "process up" in _log_when_up(started):
                yield started
                return
        finally:
            keeper.communicate()
    raise RuntimeError("PgBouncer found no port")


def _started(
    path: str, server_port: int, logins: Sequence[str], settings: str
) -> "tuple[subprocess.Popen[bytes], PgBouncer]":
    folder = Path(tempfile.mkdtemp(prefix="spotconn-pgbouncer-"))
    made = PgBouncer(_free_port(), server_port, folder)
    (folder / "settings").write_text(settings.format(server_port=server_port, port=made.port, folder=folder))
    (folder / "users").write_text("".join(f'"{name}" "{name}"\n' for name in logins))
    (folder / "log").touch()
    account = _account([folder, *folder.iterdir()])
    arguments = ["/bin/sh", "-c", _KEEPER, "sh", path, str(folder)]
    return subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True, **account
    ), made


def _account(owned: list[Path]) -> _Account:
    """As root it refuses to run: then it is nobody, who owns its folder."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    for path in owned:
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _log_when_up(started: PgBouncer) -> str:
    """What it has said until it serves, or until it has to give up the port."""
    end = time.monotonic() + START_TIMEOUT
    while time.monotonic() < end:
        log = (started.folder / "log").read_text()
        if "process up" in log or "cannot listen" in log.lower() or "in use" in log:
            return log
        time.sleep(0.01)
    raise RuntimeError((started.folder / "log").read_text())
