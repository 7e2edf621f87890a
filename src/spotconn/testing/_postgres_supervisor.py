"""The program that supervises an embedded Postgres: it starts the server, and stops it when its parent is gone.

`EmbeddedPostgres` runs it with the standard library alone. Its standard input is a pipe whose other end only the
parent holds: the first line is the settings, each further line is a command, and the end of the input, also by SIGKILL
of the parent, means stop. The server is a child of this program, so no signal can reach an unrelated process.

As root, the folder stays root's: other accounts, the server's too, may pass through it and can plant nothing there. The
server owns the subfolder with its data, and root changes nothing by name in that one.
"""

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TypedDict

START_TIMEOUT = 30.0
"""Seconds for initdb to end, and again for the server to be ready."""
STOP_TIMEOUT = 10.0
"""Seconds after each signal to stop before the next, harder one."""
MAX_STATE = 4096
"""Characters that are read of the server's state."""
TRIES = 5
"""Ports to try; another program can take one that was found free."""


class _Account(TypedDict, total=False):
    """The account and the environment of the programs of the server."""

    env: dict[str, str]
    user: int
    group: int
    extra_groups: list[int]


class Supervisor:
    """One server and the folder with all its files."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="spotconn-postgres-"))
        self.port = 0
        self._options: dict[str, str] = settings["options"]
        self._password: str = settings["password"]
        # The environment of the parent may hold secrets.
        self._account: _Account = {"env": {"PATH": os.environ.get("PATH", os.defpath)}}
        self._server: subprocess.Popen[bytes] | None = None
        self._binaries = Path(settings["binaries"])

    def prepare(self) -> None:
        """Create the folder of the data; as root, choose its owner, and give that account binaries it can reach."""
        self._data.mkdir(mode=0o700)
        if os.geteuid() == 0:
            self._become_nobody()
            self._binaries = self._reachable(self._binaries)

    def initialize(self) -> None:
        """Fill the data folder, with a superuser that logs in by password."""
        password = self._password_pipe()
        try:
            method = ("--auth-local=scram-sha-256", "--auth-host=scram-sha-256", f"--pwfile=/dev/fd/{password}")
            options = ("-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", *method)
            self._run("initdb", "-D", str(self._data), *options, pass_fds=(password,))
        finally:
            os.close(password)

    def start(self) -> None:
        """Start the server on its last port, or on a free one.

        Raises:
            RuntimeError: it did not start; the text holds the end of its log.
        """
        last_port = self.port
        for _ in range(TRIES):
            self.port = last_port or _free_port()
            if self._started():
                return
        raise RuntimeError(f"the server did not start; the end of its log:\n{self._log_end()}")

    def stop(self, *, immediate: bool = False) -> None:
        """Stop the server: at once, as in a crash, or after it has closed its connections."""
        if self._server is None:
            return
        for way in (signal.SIGQUIT,) if immediate else (signal.SIGINT, signal.SIGQUIT):
            self._server.send_signal(way)
            try:
                self._server.wait(STOP_TIMEOUT)
                break
            except subprocess.TimeoutExpired:
                continue
        else:
            os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()
        self._server = None

    def remove(self) -> None:
        """Remove the folder. `shutil.rmtree` follows no links, not even those planted while it runs."""
        self.folder.chmod(0o700)  # no other process of the server's account adds to it meanwhile
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _become_nobody(self) -> None:
        # The server refuses to run as root. Nobody else can write in the folder, so these names are this program's own.
        if not _is_open_to_all(self.folder.parent):
            raise RuntimeError(f"the server runs as nobody, which may not enter {self.folder.parent}; set TMPDIR")
        nobody = pwd.getpwnam("nobody")
        self._account |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self.folder.chmod(0o711)
        os.chown(self._data, nobody.pw_uid, nobody.pw_gid, follow_symlinks=False)

    def _password_pipe(self) -> int:
        """Return the reading end of a pipe with the password, which so is in no file and in no argument."""
        reading, writing = os.pipe()
        if "user" in self._account and "group" in self._account:
            with contextlib.suppress(OSError):  # where /dev/fd/ is a copy and has no owner
                os.fchown(reading, self._account["user"], self._account["group"])
        with open(writing, "w", encoding="ascii") as pipe:  # noqa: PTH123  a descriptor
            pipe.write(self._password)
        return reading

    def _reachable(self, binaries: Path) -> Path:
        """Return binaries that the account of the server can run, copied if it may not enter the folders above them."""
        if _is_open_to_all(binaries):
            return binaries
        installed = binaries.parent
        libraries = installed.parent.with_name(f"{installed.parent.name}.libs")
        # At the same depth, as the binaries find their libraries by a relative path.
        package = self.folder / "package"
        package.mkdir()
        package.chmod(0o755)  # whatever the umask; of the others the modes are copied
        shutil.copytree(installed, package / installed.name)
        if libraries.is_dir():
            shutil.copytree(libraries, self.folder / libraries.name)
        return package / installed.name / binaries.name

    def _run(self, program: str, *arguments: str, pass_fds: tuple[int, ...] = ()) -> None:
        done = subprocess.run(  # noqa: S603  our own binary and arguments
            [str(self._binaries / program), *arguments],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT,
            check=False,
            pass_fds=pass_fds,
            **self._account,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program} failed:\n{done.stdout}{done.stderr}".rstrip())

    def _started(self) -> bool:
        options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": ""} | self._options
        arguments = [f"--{name}={value}" for name, value in (options | {"port": str(self.port)}).items()]
        with open(self._log, "ab", opener=_private) as log:
            self._server = subprocess.Popen(  # noqa: S603  our own binary and arguments
                [str(self._binaries / "postgres"), "-D", str(self._data), *arguments],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._account,
            )
        end = time.monotonic() + START_TIMEOUT
        while self._server.poll() is None and time.monotonic() < end:
            if self._is_ready(self._server.pid):
                return True
            time.sleep(0.01)
        self.stop(immediate=True)
        return False

    def _is_ready(self, pid: int) -> bool:
        # postmaster.pid: line 1 is the server's pid, line 8 its state.
        try:
            lines = _read_untrusted(self._data / "postmaster.pid").splitlines()
        except OSError:
            return False
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"  # noqa: PLR2004  line 8

    @property
    def _log(self) -> Path:
        return self.folder / "log"

    def _log_end(self) -> str:
        return "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-10:])


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _read_untrusted(path: Path) -> str:
    """Return the start of a file in the server's folder, where a link or a pipe may stand in its place."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, encoding="utf-8", errors="replace") as file:  # noqa: PTH123  a descriptor
        return file.read(MAX_STATE)


def _is_open_to_all(folder: Path) -> bool:
    return all(each.stat().st_mode & stat.S_IXOTH for each in (folder, *folder.parents))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _run_commands(supervisor: Supervisor) -> None:
    """Run the commands of the parent until it closes the pipe."""
    supervisor.prepare()
    supervisor.initialize()
    supervisor.start()
    _write({"port": supervisor.port, "folder": str(supervisor.folder)})
    for command in sys.stdin:
        supervisor.stop(immediate=command.strip() == "restart-immediate")
        supervisor.start()
        _write({"port": supervisor.port, "folder": str(supervisor.folder)})


def _write(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _exit(*_: object) -> None:
    raise SystemExit(1)


def main() -> None:
    """Read the settings, run the server, and remove everything at the end."""
    signal.signal(signal.SIGTERM, _exit)
    settings = json.loads(sys.stdin.readline() or "null")
    if settings is None:
        return
    supervisor = Supervisor(settings)
    try:
        _run_commands(supervisor)
    except BrokenPipeError:
        pass
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        _write({"error": str(error)})
    finally:
        supervisor.stop(immediate=True)
        supervisor.remove()


if __name__ == "__main__":
    main()
