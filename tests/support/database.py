"""A Postgres with the schema applied, and the logins of the tests."""

import asyncio
import base64
import hashlib
import hmac
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


def scram_secret(password: str) -> str:
    """What Postgres stores of a password (RFC 5803) with one round of the hash at each log-in, not 4,096."""
    salt = hashlib.sha256(password.encode()).digest()[:16]
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, 1)
    client_key, server_key = (hmac.digest(salted, key, "sha256") for key in (b"Client Key", b"Server Key"))
    keys = (base64.b64encode(key).decode() for key in (salt, hashlib.sha256(client_key).digest(), server_key))
    return "SCRAM-SHA-256$1:{}${}:{}".format(*keys)


async def _prepare(database: Database, *, locked_down: bool) -> None:
    admin = await asyncpg.connect(database.server.dsn())
    if admin.get_server_version().major >= 16:
        await admin.execute("alter system set scram_iterations = 1")
        await admin.execute("select pg_reload_conf()")
    await admin.execute(f"alter role postgres password '{scram_secret(database.server._password)}'")
    await admin.execute("create database spotconn")
    await admin.close()
    await apply_schema(database.admin_dsn)
    admin = await asyncpg.connect(database.admin_dsn)
    if locked_down:
        await admin.execute(read_sql("lock_down.sql"))
    for name, attributes in {"app": "login", "app_bypass": "login bypassrls"}.items():
        secret = scram_secret(name)
        await admin.execute(f"create role {name} {attributes} password '{secret}'; grant spotconn to {name}")
    await admin.close()


@contextmanager
def serving(binaries: Path | None = None, *, locked_down: bool = False, **settings: str) -> Generator[Database]:
    """A server of its own with the schema applied."""
    with EmbeddedPostgres(binaries=binaries, settings=settings) as server:
        database = Database(server)
        asyncio.run(_prepare(database, locked_down=locked_down))
        yield database
