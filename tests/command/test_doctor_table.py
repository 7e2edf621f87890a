"""The doctor looks at every column, key and index of the documented table, and takes a sound one of another form."""

from collections.abc import AsyncIterator
from typing import cast

import asyncpg
import pytest

from spotconn._command.comparison import check_catalog
from spotconn._command.difference import Difference
from spotconn._command.differences import differences
from spotconn._command.facts import expected_facts, level_of, read_facts
from spotconn._command.probe import Probe
from spotconn._database.idle_sessions import Session
from spotconn._database.schema import schema_sql
from support.database import Database
from support.other_shapes import SHAPES
from support.scratch import scratch_database

SQL = schema_sql(plain_postgres=True, transaction=False)
TABLE = "public.spotify_connections"
ALTER = f"alter table {TABLE} "
FAULTS = {
    f"column {TABLE}.more was added: text not null without a default": ("fail", f"{ALTER} add more text not null"),
    f"column {TABLE}.email was altered (form: character varying(20))": (
        "warn", f"{ALTER} drop email cascade, add email varchar(20)"),
    f"column {TABLE}.scope was altered (form: text not null)": ("warn", f"{ALTER} alter scope set not null"),
    f"column {TABLE}.access_token was altered (form: text)": ("warn", f"{ALTER} alter access_token drop not null"),
    f"column {TABLE}.email is missing": ("fail", f"{ALTER} drop email cascade"),
    f"column {TABLE}.id was altered": ("warn", f"{ALTER} alter id drop default"),
    f"constraint spotify_connections_user_id_key on {TABLE} is missing: UNIQUE (user_id)": (
        "fail", f"{ALTER} drop constraint spotify_connections_user_id_key cascade"),
    f"constraint spotify_connections_user_id_fkey on {TABLE} is missing: FOREIGN KEY (user_id) REFERENCES": (
        "fail", f"{ALTER} drop constraint spotify_connections_user_id_fkey"),
    f"constraint spotify_connections_user_id_fkey on {TABLE} was altered (form: FOREIGN KEY (user_id)": (
        "warn", f"{ALTER} drop constraint spotify_connections_user_id_fkey, "  # noqa: ISC004
        "add constraint spotify_connections_user_id_fkey foreign key (user_id) references auth.users (id)"),
    f"constraint spotify_connections_pkey on {TABLE} is missing: PRIMARY KEY (id)": (
        "fail", f"{ALTER} drop constraint spotify_connections_pkey"),
    f"constraint c on {TABLE} was added: CHECK": ("warn", f"{ALTER} add constraint c check (scope <> 'x')"),
    f"index one on {TABLE} was added: of columns: CREATE UNIQUE INDEX one": (
        "warn", f"create unique index one on {TABLE} (spotify_user_id)"),
    f"index u on {TABLE} was added: of columns: CREATE UNIQUE INDEX u": (
        "warn", f"{ALTER} add constraint u unique (email)"),
    f"policy more on {TABLE} was added": ("fail", f"create policy more on {TABLE} using (true)"),
}  # fmt: skip
SOUND = {
    "other names": f"{ALTER} rename constraint spotify_connections_user_id_key to mine; "
    f"{ALTER} rename constraint spotify_connections_user_id_fkey to other; "
    "alter index public.idx_spotify_connections_user rename to third",
    "an index in place of a constraint": f"{ALTER} drop constraint spotify_connections_user_id_key; "
    f"create unique index mine on {TABLE} (user_id)",
    "more that is no duty": f"{ALTER} add a text, add b int not null default 0, "
    "add c bigint generated always as identity",
}


@pytest.fixture
async def session(prepared: Database) -> AsyncIterator[asyncpg.Connection]:
    """A superuser's session, all of whose changes are rolled back; the table is empty."""
    connection = await asyncpg.connect(prepared.admin_dsn)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("delete from auth.users")
    yield connection
    await transaction.rollback()
    await connection.close()


async def look(session: asyncpg.Connection) -> list[Difference]:
    """What differs about the table."""
    found, expected = await read_facts(Probe(cast("Session", session))), expected_facts()
    return differences(found, expected[level_of(found, expected)])


@pytest.mark.parametrize("text", FAULTS)
async def test_each_fault_of_the_table_is_named(session: asyncpg.Connection, text: str) -> None:
    """A planted fault of a column, a key, an index or a policy stands in the report, with its grade."""
    state, sql = FAULTS[text]
    await session.execute(sql)
    assert [one.state for one in await look(session) if one.text.startswith(text)] == [state]


MENDED = [text for text in FAULTS if "was added" not in text and ".scope was altered" not in text]


@pytest.mark.parametrize("text", MENDED)
async def test_applying_the_schema_mends_it(session: asyncpg.Connection, text: str) -> None:
    """What the report says to do about a column or a key of the table can be done: afterwards nothing differs."""
    await session.execute(FAULTS[text][1])
    await session.execute(SQL)
    assert await look(session) == []


@pytest.mark.parametrize("name", SOUND)
async def test_a_sound_table_of_another_form_is_none(session: asyncpg.Connection, name: str) -> None:
    """Keys under other names, an index for a constraint, and columns of the project's own are no fault."""
    await session.execute(SOUND[name])
    assert await look(session) == []


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if not shape.wrong][::2])
async def test_what_was_taken_over_is_as_shipped(prepared: Database, name: str) -> None:
    """The doctor finds nothing about a table that the schema has taken over."""
    async with scratch_database(prepared) as dsn:
        scratch = await asyncpg.connect(dsn())
        await SHAPES[name].create(scratch)
        await scratch.execute(SQL)
        async with scratch.transaction():
            assert (await check_catalog(Probe(cast("Session", scratch)))).text.endswith("are as shipped")
        await scratch.close()
