"""Two real Postgres servers, the second a standby of the first by streaming replication, with the schema applied.

Everything here blocks, the longest for some seconds. Where the event loop must go on meanwhile, call it by
`await asyncio.to_thread(pair.promote)`.
"""

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest

from spotconn.testing import _postgres, _postgres_supervisor, apply_schema
from support import folder_keeper
from support.database import scram_secret
from support.postgres_server import DATABASE, READY, Server, account_of_servers, complete, owned_folder

REQUIRED = "SPOTCONN_REQUIRE_POSTGRES"
"""Set where a missing server is a failure, as in CI."""
PROGRAMS = ("initdb", "postgres", "pg_basebackup", "pg_ctl", "pg_isready")
LOGINS = {"app": "login", "app_bypass": "login bypassrls"}
"""Members of spotconn; their passwords are their names."""


def binaries() -> Path:
    """Return programs that can replicate; without them the test is skipped, or fails where a server is required."""
    for folder in _postgres._candidates():
        if all((folder / program).is_file() for program in PROGRAMS) and _postgres_supervisor._is_open_to_all(folder):
            return folder
    reason = "no Postgres with pg_basebackup on this system (Debian: apt-get install postgresql)"
    if os.environ.get(REQUIRED):
        pytest.fail(f"{reason}, and {REQUIRED} is set")
    pytest.skip(reason)


class Pair:
    """A primary with its standby.

    Attributes:
        primary: where one writes.
        standby: the other server, whether or not it runs; after `promote` the one that was the primary.
        synchronous: whether commits wait for the standby.
    """

    def __init__(self, first: Server, second: Server, *, synchronous: bool) -> None:
        self.primary, self.standby = first, second
        self.servers = first, second
        self.synchronous = synchronous

    def dsn(self, login: str = "app", *parameters: str) -> str:
        """Return the DSN that names both hosts, in the order of `servers`, with `name=value` parameters."""
        hosts = ",".join(f"{server.host}:{server.port}" for server in self.servers)
        return f"postgresql://{login}:{login}@{hosts}/{DATABASE}{'?' if parameters else ''}{'&'.join(parameters)}"

    def set_synchronous(self, *, on: bool) -> None:
        """Let commits wait for the standby, which is there, or not."""
        self.synchronous = on
        self.primary.set("synchronous_standby_names", "*" if on else None)
        if on:
            self.primary.wait_for("select bool_or(sync_state = 'sync') from pg_stat_replication")

    def promote(self) -> Server:
        """Make the standby a primary that waits for no other, whatever the old one does, and return it."""
        self.standby.set("synchronous_standby_names", None)
        self.standby.run("pg_ctl", "promote", "-D", str(self.standby.data), "-w", "-t", str(int(READY)))
        self.primary, self.standby = self.standby, self.primary
        return self.primary

    def switch(self) -> Server:
        """Switch over as planned: stop the primary, promote the standby, and let the old one be its standby."""
        self.primary.stop()
        self.promote()
        self.rejoin()
        return self.primary

    def rejoin(self) -> None:
        """Let the server that is not the primary begin anew as a standby, without what only it has."""
        self.standby.kill()
        self.standby.copy(self.primary)
        self.standby.start()
        self.wait_until_streaming()
        if self.synchronous:
            self.set_synchronous(on=True)

    def pause_replication(self) -> None:
        """Let the standby receive nothing from here on: what is committed now, a failover loses."""
        self.standby.set("primary_conninfo", "")
        self.standby.wait_for("select count(*) = 0 from pg_stat_wal_receiver")

    def wait_until_replayed(self) -> None:
        """Wait until the standby shows everything that is committed."""
        (lsn,) = self.primary.execute("select pg_current_wal_lsn()::text")[0]
        self.standby.wait_for(f"select pg_last_wal_replay_lsn() >= '{lsn}'")

    def wait_until_streaming(self) -> None:
        """Wait until the standby receives what is committed."""
        self.primary.wait_for("select bool_or(state = 'streaming') from pg_stat_replication")


async def _prepare(server: Server) -> None:
    admin = await asyncpg.connect(server.dsn_of_admin("postgres"))
    await admin.execute(f"create database {DATABASE}")
    await admin.close()
    await apply_schema(server.admin_dsn)
    admin = await asyncpg.connect(server.admin_dsn)
    for name, attributes in LOGINS.items():
        secret = scram_secret(name)
        await admin.execute(f"create role {name} {attributes} password '{secret}'; grant spotconn to {name}")
    await admin.close()


@contextmanager
def replicated(programs: Path | None = None, *, synchronous: bool = False, **settings: str) -> Generator[Pair]:
    """A primary with the schema and its standby; all of it ends with the block and with this process."""
    programs, password = programs or binaries(), secrets.token_urlsafe(24)
    folder = Path(tempfile.mkdtemp(prefix="spotconn-replication-"))
    program = [sys.executable, "-I", "-S", folder_keeper.__file__, str(folder)]
    keeper = subprocess.Popen(program, stdin=subprocess.PIPE, start_new_session=True)
    folder.chmod(0o711)
    first, second = (
        Server(programs, owned_folder(folder / name), password, account_of_servers(), settings)
        for name in ("first", "second")
    )
    try:
        first.initialize()
        first.start()
        complete(_prepare(first))
        second.copy(first)
        second.start()
        pair = Pair(first, second, synchronous=synchronous)
        pair.wait_until_streaming()
        if synchronous:
            pair.set_synchronous(on=True)
        yield pair
    finally:
        keeper.communicate()
        for server in (first, second):
            server.kill()
