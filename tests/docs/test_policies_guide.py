"""The guide "Your own policies", where `postgres` is as on Supabase: no superuser, and the schema auth is another's."""

from collections.abc import AsyncIterator
from typing import NamedTuple
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore, Profile
from spotconn._database.schema import read_sql
from spotconn.testing import EmbeddedPostgres, apply_schema
from support.connections import grant
from support.database import Database
from support.guide import sql_blocks
from support.tenant import signed_in

QUOTED = "create function public.mine() returns uuid language {} stable set search_path = '' as $$ {} $$"
BODIES = {
    "sql": QUOTED.format("sql", "select auth.uid()"),
    "plpgsql": QUOTED.format("plpgsql", "begin return auth.uid(); end"),
}


class Project(NamedTuple):
    """A project on Supabase.

    Attributes:
        postgres: a session of the login that applies the schema.
        dsn: of that login.
        user: of auth.users.
    """

    postgres: asyncpg.Connection
    dsn: str
    user: UUID


@pytest.fixture
async def project(prepared: Database) -> AsyncIterator[Project]:
    """A database as Supabase makes it, with the schema applied by its login `postgres`."""
    with EmbeddedPostgres(binaries=prepared.server._binaries) as server:
        owner = await asyncpg.connect(server.dsn())
        await owner.execute("create role platform login createrole createdb bypassrls password 'platform'")
        await owner.execute("create database project owner platform")
        await owner.close()
        owner = await asyncpg.connect(server.dsn("project"))
        await owner.execute(read_sql("plain_postgres.sql"))
        await owner.execute(
            "create role supabase_auth_admin; grant usage, create on schema public to platform; "
            "grant anon, authenticated, service_role to platform with admin option; "
            "alter schema auth owner to supabase_auth_admin; alter table auth.users owner to supabase_auth_admin; "
            "grant usage on schema auth to platform; grant all on auth.users to platform"
        )
        user = await owner.fetchval("insert into auth.users (email) values ('a') returning id")
        await owner.close()
        dsn = server.dsn("project", user="platform", password="platform")
        await apply_schema(dsn, plain_postgres=False)
        postgres = await asyncpg.connect(dsn)
        yield Project(postgres, dsn, user)
        await postgres.close()


async def test_the_blocks_of_the_guide_hold_on_supabase(project: Project) -> None:
    """As `postgres` runs them, the library is spared, a browser with one factor is bound, and the helper works."""
    async with ConnectionStore.open(project.dsn) as store:
        await store.save(project.user, grant("a"), Profile(spotify_user_id="alice"))
        for block in sql_blocks("your-own-policies.md"):
            await project.postgres.execute(block)
        async with store.as_user(project.user) as session:
            await session.execute("insert into public.plays values (spotconn.claimed_user(), 'a track')")
            await session.execute("insert into public.reviews values ('a track', 'loud')")
    async with ConnectionStore.open(project.dsn) as store:
        assert (await store.get(project.user)).user_id == project.user
    async with signed_in(project.dsn, project.user) as browser, browser.request() as session:
        assert await session.fetchval("select count(user_id) from public.spotify_connections") == 0


@pytest.mark.long
@pytest.mark.parametrize("language", BODIES)
async def test_a_body_in_quotes_may_not_use_the_schema_auth(project: Project, language: str) -> None:
    """As the guide says: auth.uid() in a statement and in such a body fails on Supabase, and a definer's works."""
    await project.postgres.execute(BODIES[language])
    async with ConnectionStore.open(project.dsn) as store:
        for query in ("select auth.uid()", "select public.mine()"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="schema auth"):
                async with store.as_user(project.user) as session:
                    await session.fetchval(query)
        await project.postgres.execute("alter function public.mine() security definer")
        async with store.as_user(project.user) as session:
            assert await session.fetchval("select public.mine()") == project.user
            assert await session.fetchval("select spotconn.claimed_user()") == project.user


@pytest.mark.parametrize("language", BODIES)
async def test_they_work_on_plain_postgres(
    store: ConnectionStore, admin: asyncpg.Connection, user: UUID, language: str
) -> None:
    """There the login that applies the schema may grant the use of the schema auth, and does; of no table in it."""
    await admin.execute(BODIES[language])
    try:
        async with store.as_user(user) as session:
            assert await session.fetchval("select auth.uid()") == user
            assert await session.fetchval("select public.mine()") == user
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="table users"):
            async with store.as_user(user) as session:
                await session.fetchval("select count(*) from auth.users")
    finally:
        await admin.execute("drop function public.mine()")
