"""Dumps of a database, and their restores, by the tools of the server's own version."""

import os
import subprocess
from pathlib import Path

from spotconn.testing import EmbeddedPostgres

OLD_PRIVILEGES = """
alter default privileges in schema public grant all on tables to anon, authenticated, service_role;
alter default privileges in schema public grant all on functions to anon, authenticated, service_role;
alter default privileges in schema public grant all on sequences to anon, authenticated, service_role
"""
"""What older stacks of Supabase grant to each new object: a dump says nothing that would take it back."""


def has_tools(server: EmbeddedPostgres) -> bool:
    """Return whether the server's binaries come with pg_dump and pg_restore."""
    return all((_binaries(server) / name).exists() for name in ("pg_dump", "pg_restore", "psql"))


def dump(server: EmbeddedPostgres, database: str, *options: str, user: str = "postgres") -> bytes:
    """Return the archive of a database; the tool's refusal is a `subprocess.CalledProcessError`."""
    return _run(server, "pg_dump", "--format=custom", *options, database, user=user).stdout


def restore(server: EmbeddedPostgres, database: str, archive: bytes, *options: str, replica_mode: bool = False) -> int:
    """Restore an archive. Return the number of statements that failed, which does not end it.

    Args:
        server: to restore on.
        database: that exists.
        archive: as `dump` returns it.
        options: of pg_restore.
        replica_mode: set session_replication_role to replica, as `supabase db dump --data-only` does.
    """
    mode = "-c session_replication_role=replica" if replica_mode else ""
    done = _run(server, "pg_restore", "--dbname", database, *options, input_=archive, check=False, pgoptions=mode)
    return done.stderr.count(b"pg_restore: error:")


def _binaries(server: EmbeddedPostgres) -> Path:
    assert server._binaries is not None
    return server._binaries


def _run(
    server: EmbeddedPostgres,
    tool: str,
    *arguments: str,
    input_: bytes | None = None,
    check: bool = True,
    user: str = "postgres",
    pgoptions: str = "",
) -> subprocess.CompletedProcess[bytes]:
    environ = {
        "PGHOST": "127.0.0.1",
        "PGPORT": str(server.port),
        "PGUSER": user,
        "PGPASSWORD": server._password if user == "postgres" else user,
        "PGOPTIONS": pgoptions,
    }
    command = [str(_binaries(server) / tool), *arguments]
    return subprocess.run(command, input=input_, capture_output=True, check=check, env=os.environ | environ, timeout=60)
