"""The files are applied again by a login that made nothing of what stands there; a right that is missing is named."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from spotconn import ConnectionStore, RowSecurityError
from spotconn._database.schema import schema_sql
from support.database import Database, Dsn
from support.managed import managed_server

FILES = schema_sql(plain_postgres=True)
SCHEMA = schema_sql()
GIVE = """
select format('alter %s %s owner to owner', case relkind when 'c' then 'type' else 'table' end, oid::regclass)
from pg_class
where relkind in ('r', 'v', 'c', 'S')
    and (relnamespace = to_regnamespace('spotconn') or oid = to_regclass('public.spotify_connections'))
union all
select format('alter function %s owner to owner', oid::regprocedure) from pg_proc
where pronamespace = to_regnamespace('spotconn')
union all select 'alter schema spotconn owner to owner'
"""

CLOSED = (
    "alter schema public owner to postgres; revoke usage on schema public from public; "
    "grant all on schema public to owner"
)
Apply = Callable[..., Awaitable[list[str]]]


@pytest.fixture
async def owner(dsn: Dsn, scratch: asyncpg.Connection) -> AsyncIterator[str]:
    """The DSN of a login that owns the database; a superuser made the roles of the library, for another one."""
    database = await scratch.fetchval("select quote_ident(current_database())")
    await scratch.execute(f"create role owner login password 'owner'; alter database {database} owner to owner")
    yield dsn("owner")
    await scratch.execute(f"alter database {database} owner to postgres; reassign owned by owner to postgres")
    await scratch.execute("drop owned by owner; drop role owner")


@pytest.fixture
def apply(owner: str) -> Apply:
    """Applies SQL as the owner. Returns what mends what it was warned of."""

    async def as_owner(sql: str) -> list[str]:
        hints = list[str]()
        session = await asyncpg.connect(owner)
        session.add_log_listener(lambda _, message: hints.append(getattr(message, "hint", "") or ""))
        try:
            await session.execute(sql)
        finally:
            await session.close()
        return [hint.rpartition(": ")[2] for hint in hints]

    return as_owner


async def _opens(dsn: str) -> None:
    async with ConnectionStore.open(dsn, max_size=1):
        pass


@pytest.mark.parametrize("attribute", ["createrole", "nocreaterole"])
async def test_in_another_database_of_the_server(
    scratch: asyncpg.Connection, owner: str, apply: Apply, attribute: str
) -> None:
    """Roles that another login made are used as they are; the one right that the library lacks then is named."""
    await scratch.execute(f"alter role owner {attribute}")
    hints = await apply(FILES)
    assert await apply(FILES) == hints
    if scratch.get_server_version().major >= 16 or attribute == "nocreaterole":
        assert hints == ["GRANT spotconn TO owner;"]
        with pytest.raises(RowSecurityError, match="GRANT spotconn TO"):
            await _opens(owner)
        await scratch.execute(hints[0])
        assert await apply(FILES) == []
    await _opens(owner)


@pytest.mark.parametrize("options", ["", "with admin option", "noinherit"])
async def test_by_a_member(scratch: asyncpg.Connection, owner: str, apply: Apply, options: str) -> None:
    """A login that has the role already, as on a server that was upgraded from version 15, needs no further right."""
    if options == "noinherit":
        await scratch.execute("alter role owner noinherit; grant create on schema public to owner")
    await scratch.execute(f"grant spotconn to owner {options.removeprefix('noinherit')}")
    for _ in range(2):
        assert await apply(FILES) == []
        await _opens(owner)


async def test_by_a_login_that_only_administers_the_role(scratch: asyncpg.Connection, owner: str, apply: Apply) -> None:
    """What PostgreSQL 16 and later give the maker of a role is no membership; the file makes it one."""
    if scratch.get_server_version().major < 16:
        pytest.skip("before PostgreSQL 16 a membership has no such options")
    await scratch.execute("grant spotconn to owner with admin true, inherit false, set false")
    assert await apply(FILES) == []
    await _opens(owner)


async def test_by_an_owner_after_a_superuser(scratch: asyncpg.Connection, owner: str, apply: Apply) -> None:
    """A login that was given what a superuser had made, but for the users, applies the files."""
    await scratch.execute(FILES)
    await scratch.execute("grant usage on schema auth to owner; grant spotconn to owner")
    for row in await scratch.fetch(GIVE):
        await scratch.execute(row[0])
    for sql in (SCHEMA, FILES):
        assert await apply(sql) == []
    await _opens(owner)


@pytest.mark.parametrize(
    ("taken", "named"),
    [
        ("alter schema auth owner to postgres; revoke all on schema auth from owner", "USAGE ON SCHEMA auth"),
        ("alter table auth.users owner to postgres; revoke all on auth.users from owner", "REFERENCES ON auth.users"),
        ("alter schema public owner to postgres", "CREATE ON SCHEMA public"),
        ("alter database {database} owner to postgres", "CREATE ON DATABASE {database}"),
        (CLOSED, "USAGE ON SCHEMA public TO spotconn"),
    ],
)
async def test_a_right_that_is_missing_is_named_with_the_command(
    scratch: asyncpg.Connection, owner: str, apply: Apply, taken: str, named: str
) -> None:
    """Nothing is changed, and the text has the statement that the owner of the object runs; then it is applied."""
    database = await scratch.fetchval("select quote_ident(current_database())")
    plain = schema_sql(plain_postgres=True).partition("-- Stored Spotify connections")[0]
    await apply(f"{plain}; commit")
    await scratch.execute(taken.format(database=database))
    with pytest.raises(asyncpg.RaiseError) as raised:
        await apply(SCHEMA)
    assert "that the login owner cannot grant" in str(raised.value)
    hint = str(raised.value.hint)
    assert f"GRANT {named.format(database=database)}" in hint
    assert await scratch.fetchval("select to_regclass('public.spotify_connections')") is None
    await scratch.execute(hint.partition("superuser: ")[2])
    await apply(SCHEMA)


async def test_missing_roles_are_named_with_the_command(prepared: Database) -> None:
    """A login that may not create roles is told all that are missing, in statements that another one runs."""
    with managed_server(prepared.server._binaries) as managed:
        await managed.prepare()
        admin = await asyncpg.connect(managed.dsn())
        await admin.execute("create role plain login password 'plain'")
        await admin.execute("grant create on database app to plain; grant create on schema public to plain")
        plain = await asyncpg.connect(managed.dsn("plain"))
        try:
            with pytest.raises(asyncpg.RaiseError, match="the role anon is missing, and the login plain") as raised:
                await plain.execute(FILES)
            await plain.execute("rollback")
            commands = re.findall(r"CREATE ROLE \w+ NOLOGIN;", str(raised.value.hint))
            assert len(commands) == 5
            await admin.execute("".join(commands))
            await plain.execute(FILES)
            await admin.execute("grant spotconn to plain")
            await _opens(managed.dsn("plain"))
        finally:
            await plain.close()
            await admin.close()
