"""Each SQLSTATE in its branch, by errors that a real server raises, and the names of who refused."""

import re
import traceback
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import asyncpg
import pytest

import spotconn
from spotconn import ConnectionAdmin, ConnectionStore, DatabaseUnavailable, SchemaMismatch, StatementRefused
from spotconn._database.errors import map_errors
from spotconn._database.sqlstates import BAD_INPUT, OTHER, TABLE, UNKNOWN_USER, verdict
from spotconn.testing import apply_schema
from support.connections import grant
from support.database import Database, Dsn
from support.documented_table import create_documented_table

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "sqlstates.md"
ALICE = spotconn.Profile(spotify_user_id="alice")
KNOWN = {state for each in vars(asyncpg.exceptions).values() if (state := getattr(each, "sqlstate", None))}
"""Every SQLSTATE of PostgreSQL, as asyncpg has them."""


class Row(NamedTuple):
    """A line of the table in the reference."""

    error: str
    advice: str


def documented() -> dict[str, Row]:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    return {state: Row(error, advice) for state, error, advice in rows}


ROWS = documented()
STATES = sorted(
    {state if len(state) == 5 else f"{state}{'000' if state + '000' not in ROWS else '00Z'}" for state in ROWS}
    | {"ZZ123"}
)
"""Each line's own SQLSTATE, or one of its class that has no line of its own; and one of no class."""


def test_the_table_is_that_of_the_code() -> None:
    """Line by line; and no class of PostgreSQL is without a line."""
    for state, row in ROWS.items():
        if state in BAD_INPUT:
            assert row == Row("ValueError", BAD_INPUT[state])
        elif state == UNKNOWN_USER:
            assert row == Row("UnknownUser", "user_id: no such user in auth.users")
        else:
            meaning = verdict(state)
            assert row.error == meaning.kind.__name__
            assert row.advice == meaning.advice or not meaning.advice
    assert set(ROWS) >= {*TABLE, *BAD_INPUT, UNKNOWN_USER}
    assert {state[:2] for state in KNOWN} - {"00", "01", "02"} <= set(ROWS)
    assert OTHER.advice == ROWS["F0"].advice


@pytest.fixture
async def raiser(admin: asyncpg.Connection) -> AsyncIterator[asyncpg.Connection]:
    """A connection to where the library has a function that raises a given SQLSTATE, with marked texts."""
    await admin.execute("""
        create function spotconn.refuse(state text, relation text) returns void language plpgsql as $$
        begin
            raise exception 'marked' using errcode = state, detail = 'Key (user_id)=(marked)', hint = 'marked',
                constraint = 'a_constraint', column = 'a_column', table = relation;
        end $$
    """)
    yield admin
    await admin.execute("drop function spotconn.refuse")


@pytest.mark.parametrize("state", STATES)
async def test_each_class_is_in_its_branch(raiser: asyncpg.Connection, state: str) -> None:
    """As the reference has it, for a real error of each class, which repeats nothing that the server says."""
    row = ROWS.get(state) or ROWS.get(state[:2]) or ROWS["F0"]
    with pytest.raises((spotconn.SpotconnError, ValueError)) as raised:
        await map_errors(raiser.execute(f"select spotconn.refuse('{state}', 'spotify_connections')"))
    error = raised.value
    assert type(error).__name__ == row.error
    assert "marked" not in "".join(traceback.format_exception(error)).replace("'marked'", "")
    if isinstance(error, StatementRefused):
        assert error.sqlstate == state
        for name in ("a_constraint", "a_column", "spotify_connections", "spotconn.refuse", state):
            assert name in str(error)
    if isinstance(error, DatabaseUnavailable | StatementRefused):
        assert row.advice in str(error)
        assert "apply" not in str(error)


async def test_a_foreign_key_of_the_projects_own_is_no_unknown_user(raiser: asyncpg.Connection) -> None:
    """Only the user's own key is the caller's input."""
    with pytest.raises(StatementRefused, match=r"23503: constraint a_constraint, column a_column, table orders"):
        await map_errors(raiser.execute("select spotconn.refuse('23503', 'orders')"))


TRIGGERS = {
    "raise exception 'marked %', new.access_token": "P0001: function public.audit",
    "insert into public.missing values (1)": "42P01: function public.audit",
    "perform 1 from public.private": "42501: function public.audit",
    "perform (select 1 from generate_series(1, 2))": "21000: function public.audit",
    "new.display_name = 1 / 0": "22012: function public.audit",
    "perform lastval()": "55000: function public.audit",
    "new.spotify_user_id = null": "23502: column spotify_user_id, table spotify_connections",
}


@pytest.mark.parametrize("body", TRIGGERS)
async def test_a_trigger_of_the_project_is_named(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection, body: str
) -> None:
    """Also where it lacks a table or a grant, which no schema of the library would give; the row is not shown."""
    await admin.execute(f"""
        create table public.private (id integer);
        revoke all on public.private from public, authenticated, spotconn;
        create function public.audit() returns trigger language plpgsql
            as $$ begin {body}; return new; end $$;
        create trigger audit before insert on public.spotify_connections for each row execute function public.audit();
    """)
    try:
        with pytest.raises(StatementRefused, match=TRIGGERS[body]) as raised:
            await store.save(user, grant("marked"), ALICE)
    finally:
        await admin.execute("drop function public.audit() cascade; drop table public.private")
    assert not re.search(
        "marked|apply", "".join(traceback.format_exception(raised.value.__cause__ or raised.value)[-1])
    )


COLUMNS = {
    "drop view spotconn.connection_overview; alter table {} alter spotify_user_id type varchar(2)": "22001",
    "create unique index one_email on {} (coalesce(email, 'x'))": "23505: constraint one_email, table spotify",
    "alter table {} add constraint short check (length(access_token) < 3)": "23514: constraint short, table spotify",
    "alter table {} add team integer not null": "23502: column team, table spotify",
    "alter table {} add team integer default 7 references public.team": "23503: constraint .*team_fkey, table spotify",
    "alter table {} add foreign key (spotify_user_id) references public.team (name)": "23503: constraint .*_fkey",
}


@pytest.mark.parametrize("change", COLUMNS)
async def test_a_column_or_constraint_of_the_project_is_named(
    dsn: Dsn, scratch: asyncpg.Connection, change: str
) -> None:
    """It is no fault of the schema, and no unknown user."""
    await create_documented_table(scratch, users=0)
    await scratch.execute("create table public.team (id integer primary key, name text unique)")
    await apply_schema(dsn())
    await scratch.execute(change.format("public.spotify_connections"))
    added = "insert into auth.users select gen_random_uuid() from generate_series(1, 2) returning id"
    users = [row["id"] for row in await scratch.fetch(added)]
    async with ConnectionStore.open(dsn()) as store:
        with suppress(StatementRefused):
            await store.save(users[0], grant("access"), ALICE)
        with pytest.raises(StatementRefused, match=COLUMNS[change]):
            await store.save(users[1], grant("access"), ALICE)


async def test_a_row_that_is_too_large_is_named(store: ConnectionStore, user: UUID, admin: asyncpg.Connection) -> None:
    """It stays so, and is not a full queue, which has the same SQLSTATE."""
    await admin.execute("create index too_small on public.spotify_connections (access_token)")
    try:
        large = "".join(str(hash(str(number))) for number in range(20_000))
        with pytest.raises(StatementRefused, match=r"54000.*too large"):
            await store.save(user, grant("x").model_copy(update={"access_token": large}), ALICE)
    finally:
        await admin.execute("drop index public.too_small")


async def test_a_read_only_server_says_so(database: Database, user: UUID) -> None:
    """A standby after a failover passes, and is named."""
    settings = {"default_transaction_read_only": "on"}
    async with asyncpg.create_pool(database.dsn, min_size=1, server_settings=settings) as pool:
        with pytest.raises(DatabaseUnavailable, match=r"25006.*read-only") as raised:
            await ConnectionStore(pool).save(user, grant("x"), ALICE)
        assert raised.value.sqlstate == "25006"


async def test_a_missing_service_role_is_named(scratch: asyncpg.Connection, dsn: Dsn) -> None:
    """The counts of an admin need it, and what lacks is the role, not a value."""
    await scratch.execute("alter role service_role rename to renamed_role")
    try:
        async with ConnectionAdmin.open(dsn()) as house:
            with pytest.raises(SchemaMismatch, match="has no role service_role"):
                await house.stats()
    finally:
        await scratch.execute("alter role renamed_role rename to service_role")
