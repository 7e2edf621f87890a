"""A Postgres with the schema applied, and the logins of the tests."""

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from spotconn._database.schema import read_sql
from spotconn.testing import EmbeddedPostgres, apply_schema
from support.npm import NPM

SYSTEM_15 = Path("/usr/lib/postgresql/15/bin")
VERSIONS = {"15": SYSTEM_15, **{version: NPM / f"postgres-{version}" / "native" / "bin" for version in ("16", "17")}}
"""The programs of versions beside the packaged one: of Debian, and from npm."""
Dsn = Callable[..., str]
"""The DSN of a database for a login, by default the superuser."""


@dataclass(frozen=True)
class Database:
    """A database with the schema applied and the two kinds of login."""

    server: EmbeddedPostgres

    @property
    def admin_dsn(self) -> str:
        """Of the superuser."""
        return self.server.dsn("spotconn")

    @property
    def dsn(self) -> str:
        """Of a plain login that is a member of spotconn."""
        return self.login_dsn("app")

    @property
    def bypass_dsn(self) -> str:
        """Of a login with BYPASSRLS, as `postgres` on Supabase is."""
        return self.login_dsn("app_bypass")

    def login_dsn(self, name: str) -> str:
        """Of another login."""
        return self.server.dsn("spotconn", user=name, password=name)


async def _prepare(database: Database, *, locked_down: bool) -> None:
    admin = await asyncpg.connect(database.server.dsn())
    if admin.get_server_version().major >= 16:  # elsewhere 4,096 rounds of a hash at each end of each log-in
        await admin.execute("alter system set scram_iterations = 1")
        await admin.execute("select pg_reload_conf()")
        await admin.execute(f"set scram_iterations = 1; alter role postgres password '{database.server._password}'")
    await admin.execute("create database spotconn")
    await admin.close()
    await apply_schema(database.admin_dsn)
    admin = await asyncpg.connect(database.admin_dsn)
    if locked_down:
        await admin.execute(read_sql("lock_down.sql"))
    await admin.execute("create role app login password 'app'; grant spotconn to app")
    await admin.execute("create role app_bypass login bypassrls password 'app_bypass'; grant spotconn to app_bypass")
    await admin.close()


@contextmanager
def serving(binaries: Path | None = None, *, locked_down: bool = False, **settings: str) -> Generator[Database]:
    """A server of its own with the schema applied."""
    with EmbeddedPostgres(binaries=binaries, settings=settings) as server:
        database = Database(server)
        asyncio.run(_prepare(database, locked_down=locked_down))
        yield database
