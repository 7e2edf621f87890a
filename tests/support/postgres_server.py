"""A real Postgres server that can become another's standby or its primary, stop, freeze and be killed."""

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict, TypeVar
from urllib.parse import quote

import asyncpg

from spotconn.testing import _postgres_supervisor
from support import folder_keeper

Result = TypeVar("Result")
HOST = "127.0.0.1"
DATABASE = "spotconn"
READY = 30.0
"""Seconds to start, to stop, to be promoted and to take up replication."""

# Commits survive a server that is killed, and fsync is for machines that are.
SETTINGS = {
    "dynamic_shared_memory_type": "mmap",
    "fsync": "off",
    "listen_addresses": HOST,
    "max_connections": "200",
    "shared_buffers": "16MB",
    "unix_socket_directories": "",
    "wal_receiver_status_interval": "1s",
    "wal_retrieve_retry_interval": "200ms",
}


def complete(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine in a thread of its own, also where this one has a loop that runs."""
    with ThreadPoolExecutor(1) as apart:
        return apart.submit(asyncio.run, work).result()


class Account(TypedDict, total=False):
    """As whom the servers run."""

    user: int
    group: int
    extra_groups: list[int]


class Server:
    """One of the servers; it keeps its port and its data when its role changes.

    Args:
        programs: folder of the programs.
        folder: for its data and its log; the account of the servers may write there.
        password: of the superuser.
        account: as whom it runs.
        settings: of postgresql.conf, beside `SETTINGS`.
    """

    host = HOST

    def __init__(self, programs: Path, folder: Path, password: str, account: Account, settings: dict[str, str]) -> None:
        self._programs = programs
        self._password = password
        self._account = account
        self._settings = SETTINGS | settings
        self._process: subprocess.Popen[bytes] | None = None
        self.folder = folder
        self.data = folder / "data"
        self._log = folder.with_suffix(".log")
        self.port = 0

    def __repr__(self) -> str:
        return f"<Server port={self.port}>"

    def dsn(self, login: str = "app", *, database: str = DATABASE) -> str:
        """Return the DSN of a login whose password is its name."""
        return f"postgresql://{login}:{login}@{self.host}:{self.port}/{database}"

    @property
    def admin_dsn(self) -> str:
        """Of the superuser."""
        return self.dsn_of_admin(DATABASE)

    def dsn_of_admin(self, database: str) -> str:
        return f"postgresql://postgres:{quote(self._password, safe='')}@{self.host}:{self.port}/{database}"

    def execute(self, *statements: str, database: str = "postgres") -> list[asyncpg.Record]:
        """Run statements as the superuser, each in a transaction of its own, and return the rows of the last."""
        return complete(self._execute(statements, database))

    async def _execute(self, statements: tuple[str, ...], database: str) -> list[asyncpg.Record]:
        admin = await asyncpg.connect(self.dsn_of_admin(database), timeout=READY, command_timeout=READY)
        try:
            return [await admin.fetch(statement) for statement in statements][-1]
        finally:
            await admin.close()

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, on its last port or on a free one, and wait until it takes sessions."""
        for _ in range(1 if self.port else 5):
            port = self.port or _postgres_supervisor._free_port()
            self._begin(port)
            if self._ready(port):
                self.port = port
                return
        raise RuntimeError("\n".join(self._log.read_text(errors="replace").splitlines()[-10:]))

    def stop(self) -> None:
        """Stop it in order: sessions are ended, and a standby has received everything before."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End it at once, as in a crash, also while it is frozen."""
        folder_keeper.end_all(self.data)
        if self._process is not None:
            self._process.wait()

    def restart(self, *, immediate: bool = False) -> None:
        """Stop it in order or at once, and start it on the same port and data."""
        if immediate:
            self.kill()
        else:
            self.stop()
        self.start()

    def freeze(self) -> None:
        """Stop all its processes, as of a machine that hangs: its kernel still accepts connections and bytes."""
        for _ in range(2):  # those that the postmaster began meanwhile, too
            folder_keeper.signal_all(folder_keeper.processes_in(self.data), signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        folder_keeper.signal_all(folder_keeper.processes_in(self.data), signal.SIGCONT)

    def set(self, name: str, value: str | None) -> None:
        """Change a setting while it runs; None for that of its configuration."""
        change = f"alter system reset {name}" if value is None else f"alter system set {name} = '{value}'"
        self.execute(change, "select pg_reload_conf()")
        shown = f"select setting from pg_settings where name = '{name}' and pending_restart"
        assert not self.execute(shown), f"{name} wants a restart"

    def set_read_only(self, *, on: bool = True) -> None:
        """Let every further transaction be read-only by default (25006), in sessions that stand, too."""
        self.set("default_transaction_read_only", "on" if on else None)

    def wait_for(self, condition: str) -> None:
        """Wait until a query of the superuser is true."""
        end = time.monotonic() + READY
        while not self.execute(f"select coalesce(({condition}), false)")[0][0]:
            if time.monotonic() > end:
                raise TimeoutError(condition)
            time.sleep(0.02)

    def initialize(self) -> None:
        """Fill the data folder."""
        secret = self.folder / "password"
        secret.write_text(self._password)
        if "user" in self._account:
            shutil.chown(secret, self._account["user"])
        how = ("--auth=scram-sha-256", "--no-sync", "--no-instructions", f"--pwfile={secret}")
        self.run("initdb", "-D", str(self.data), "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", *how)
        secret.unlink()
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in self._settings.items())

    def copy(self, source: "Server") -> None:
        """Replace the data folder by a copy of another server's, of which this one then is a standby."""
        shutil.rmtree(self.data, ignore_errors=True)
        how = ("--checkpoint=fast", "--no-sync", "--write-recovery-conf", "--wal-method=stream")
        self.run("pg_basebackup", "-h", HOST, "-p", str(source.port), "-U", "postgres", "-D", str(self.data), *how)

    def run(self, program: str, *arguments: str) -> None:
        """Run a program of Postgres; it can log in as the superuser."""
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            cwd=self.folder, env=self._environment | {"PGPASSWORD": self._password}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=READY, check=False, umask=0o077, **self._account,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{program} failed:\n{done.stdout}{done.stderr}".rstrip())

    @property
    def _environment(self) -> dict[str, str]:
        return {"PATH": os.environ.get("PATH", os.defpath)}

    def _begin(self, port: int) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._programs / "postgres"), "-D", str(self.data), "-p", str(port)],
                cwd=self.folder, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, **self._account,
            )  # fmt: skip

    def _ready(self, port: int) -> bool:
        end = time.monotonic() + READY
        while self.runs and time.monotonic() < end:
            asked = [str(self._programs / "pg_isready"), "-q", "-h", HOST, "-p", str(port), "-t", "3"]
            if subprocess.run(asked, check=False, timeout=READY, env=self._environment).returncode == 0:
                # Another program may have taken the port, and be a server.
                return self.runs
            time.sleep(0.02)
        self.kill()
        return False

    def _end(self, number: signal.Signals) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(READY)
        self.kill()


def account_of_servers() -> Account:
    """As root a server refuses to run: then it is nobody's."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def owned_folder(folder: Path) -> Path:
    folder.mkdir(mode=0o700)
    if os.geteuid() == 0:
        shutil.chown(folder, "nobody", pwd.getpwnam("nobody").pw_gid)
    return folder
