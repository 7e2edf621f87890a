"""A managed server: an administrator with CREATEROLE that owns the database; nobody may give BYPASSRLS."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import asyncpg

from spotconn.testing import EmbeddedPostgres


class Managed:
    """A server whose administrator is no superuser.

    Args:
        server: with the database `app`, which `admin` owns.
    """

    def __init__(self, server: EmbeddedPostgres) -> None:
        self.server = server

    @property
    def provider_dsn(self) -> str:
        """Of the provider's superuser, which its customers do not have."""
        return self.server.dsn("app")

    def dsn(self, login: str = "admin") -> str:
        """Of a login whose password is its name."""
        return self.server.dsn("app", user=login, password=login)

    async def prepare(self) -> None:
        """Make the administrator and the database."""
        provider = await asyncpg.connect(self.server.dsn())
        await provider.execute("create role admin login createrole createdb password 'admin'")
        await provider.execute("create database app owner admin")
        await provider.close()


@contextmanager
def managed_server(binaries: Path | None) -> Generator[Managed]:
    """Context manager: a managed server, without roles and schemas of the library."""
    with EmbeddedPostgres(binaries=binaries) as server:
        yield Managed(server)
