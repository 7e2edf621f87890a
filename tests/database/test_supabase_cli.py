"""The Supabase CLI pushes the SQL files as migrations; its advisors and its linter find nothing in what they make."""

import asyncio
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from spotconn._database.schema import read_sql, schema_sql
from spotconn.testing import EmbeddedPostgres
from support.database import SYSTEM_15
from support.npm import require_supabase, run_supabase

pytestmark = [pytest.mark.long, pytest.mark.timeout(180)]

MIGRATIONS = {
    "schema": read_sql("schema.sql"),
    "lock_down": read_sql("lock_down.sql"),
    # As in the guides, with BEGIN and COMMIT: here of the next release.
    "spotconn": schema_sql(lock_down=True),
}
# As `postgres` on Supabase: no superuser, and the roles and the users are there before.
OWNER = """
create role owner login createrole bypassrls password 'owner';
grant anon, authenticated, service_role, authenticator to owner with admin option;
grant create, connect, temporary on database postgres to owner;
grant all on schema public, auth to owner; grant all on all tables in schema auth to owner
"""
UNUSED = {"unused_index"}
"""What they say of each index of a new database, for information."""
TABLE = "create table public.bare (id int primary key); grant select on public.bare to anon"
FUNCTION = (
    "create function public.broken() returns int language plpgsql set search_path = '' "
    "as 'begin return (select missing from public.bare); end'"
)


@dataclass(frozen=True)
class Project:
    """A project of the CLI, and the database it is linked to by URL."""

    folder: Path
    admin_dsn: str

    @property
    def dsn(self) -> str:
        """Of the role that is like `postgres` on Supabase."""
        parts = urlsplit(self.admin_dsn)
        return parts._replace(netloc=f"owner:owner@{parts.hostname}:{parts.port}").geturl()

    def run(self, *arguments: str, dsn: str) -> "subprocess.CompletedProcess[str]":
        """Run `supabase db …`, which must end well."""
        done = run_supabase(self.folder, "db", *arguments, "--db-url", f"{dsn}?sslmode=disable")
        assert done.returncode == 0, done.stdout + done.stderr
        return done


async def _execute(dsn: str, statements: str) -> None:
    session = await asyncpg.connect(dsn)
    await session.execute(statements)
    await session.close()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project whose migrations are the SQL files, pushed."""
    require_supabase()
    folder = tmp_path_factory.mktemp("project")
    assert run_supabase(folder, "init").returncode == 0
    migrations = folder / "supabase" / "migrations"
    migrations.mkdir(exist_ok=True)
    for number, (name, sql) in enumerate(MIGRATIONS.items()):
        (migrations / f"2026010100000{number}_{name}.sql").write_text(sql, encoding="utf-8")
    with EmbeddedPostgres(binaries=SYSTEM_15) as server:
        made = Project(folder, server.dsn())
        asyncio.run(_execute(made.admin_dsn, read_sql("plain_postgres.sql") + OWNER))
        made.run("push", "--yes", dsn=made.dsn)
        yield made


async def test_the_files_are_pushed_as_migrations(project: Project) -> None:
    """Also as `spotconn schema` prints them; by a role that is no superuser, as on Supabase, and once each."""
    assert "up to date" in project.run("push", "--yes", dsn=project.dsn).stdout
    session = await asyncpg.connect(project.admin_dsn)
    names = await session.fetch("select name from supabase_migrations.schema_migrations order by version")
    locked = await session.fetchval("select spotconn.locked_down()")
    await session.close()
    assert [row["name"] for row in names] == list(MIGRATIONS)
    assert locked


async def test_the_advisors_find_nothing(project: Project) -> None:
    """Neither of security nor of performance; a table without row security they do find."""

    def advised() -> set[str]:
        done = project.run("advisors", "--level", "info", dsn=project.admin_dsn)
        return {issue["name"] for issue in json.loads(done.stdout)} - UNUSED

    assert advised() == set()
    await _execute(project.admin_dsn, TABLE)
    try:
        assert advised() == {"rls_disabled_in_public"}
    finally:
        await _execute(project.admin_dsn, "drop table public.bare")


async def test_the_linter_finds_nothing(project: Project) -> None:
    """It runs plpgsql_check over each function, with all warnings; one that reads a missing column it does find."""

    def linted() -> object:
        done = project.run("lint", "--level", "warning", "--schema", "public,spotconn", dsn=project.admin_dsn)
        assert "Linting schema: spotconn" in done.stderr
        return json.loads(done.stdout or "[]")

    assert linted() == []
    await _execute(project.admin_dsn, f"{TABLE}; {FUNCTION}")
    try:
        assert "missing" in str(linted())
    finally:
        await _execute(project.admin_dsn, "drop function public.broken(); drop table public.bare")
