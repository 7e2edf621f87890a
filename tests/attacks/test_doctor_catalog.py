"""Attack: isolation is broken in the catalog of the database. The doctor says so, and what it names mends it."""

from collections.abc import Callable
from contextlib import suppress
from typing import cast

import asyncpg
import pytest

from spotconn._command.comparison import check_catalog
from spotconn._command.examination import run_check
from spotconn._command.finding import Finding
from spotconn._command.probe import Probe
from spotconn._command.report import _lines
from spotconn._database.errors import APPLY_SCHEMA
from spotconn._database.idle_sessions import Session
from spotconn._database.schema import read_sql, schema_sql
from support.altered_objects import OBJECTS
from support.altered_rights import RIGHTS, TABLE
from support.altered_tables import TABLES
from support.database import Database
from support.expected_facts import PARTS
from support.printed_tables import PLANTED, WIDEST
from support.supabase_project import SUPABASE

CASES = RIGHTS | OBJECTS | TABLES


async def compare(session: asyncpg.Connection, login: str = "postgres") -> Finding:
    await session.execute(f"set local session authorization {login}")
    found = await run_check(Probe(cast("Session", session)), "catalog", check_catalog)
    await session.execute("set local session authorization default")
    return found


async def mend(session: asyncpg.Connection, sql: str) -> None:
    statements, apply, _ = sql.partition(APPLY_SCHEMA)
    if statements:
        await session.execute(statements)
    while apply:
        with suppress(asyncpg.LockNotAvailableError):  # autovacuum has a table; the command tries again, too
            async with session.transaction():
                await session.execute(read_sql("schema.sql"))
            return


@pytest.mark.parametrize("name", CASES)
async def test_each_alteration_is_told(
    database: Database, admin: asyncpg.Connection, name: str, record_property: Callable[[str, object], None]
) -> None:
    """An altered fact of any kind is named to the service's login, as grave as it is; the remedy is enough."""
    case = CASES[name]
    transaction = admin.transaction()
    await transaction.start()
    try:
        assert (await compare(admin, "app")).state == "ok"
        await admin.execute(case.alteration)
        found = await compare(admin, "app")
        assert (found.state, case.text in found.text) == (case.state, True), found
        if case.state != "ok":
            record_property(PLANTED, (found.state, name, case.text[:WIDEST]))
        if case.mend is not None:
            parts = [] if case.by_hand else case.mend.lower().split("; ")
            assert [part for part in parts if part not in str(found.remedy).lower()] == [], found
            await mend(admin, case.mend)
            assert (await compare(admin)).state == "ok"
    finally:
        await transaction.rollback()


async def test_nothing_is_said_of_a_project_on_supabase(database: Database, admin: asyncpg.Connection) -> None:
    """Its roles, owners, grants, settings and triggers, and a login as the guide makes it, are no differences."""
    transaction = admin.transaction()
    await transaction.start()
    try:
        await admin.execute(SUPABASE)
        assert (await compare(admin)).text == "tables, policies, rights and functions are as shipped"
    finally:
        await transaction.rollback()


@pytest.mark.parametrize(
    ("grant", "said"),
    [
        (f"grant insert, update on {TABLE} to authenticated", f"authenticated may INSERT {TABLE}; authenticated may U"),
        (f"grant select on {TABLE} to authenticated", f"authenticated may SELECT {TABLE}"),
        (f"grant update (access_token) on {TABLE} to authenticated", f"may UPDATE {TABLE}.access_token"),
        ("drop function spotconn.locked_down()", f"authenticated may SELECT {TABLE}.connected_at"),
    ],
)
async def test_rights_beyond_the_lock_down_are_told(
    database: Database, admin: asyncpg.Connection, grant: str, said: str
) -> None:
    """Where the lock-down was applied, a right to the tokens is a fault, also if the open level grants it."""
    transaction = admin.transaction()
    await transaction.start()
    try:
        await admin.execute(read_sql("lock_down.sql"))
        assert (await compare(admin)).state == "ok"
        await admin.execute(grant)
        found = await compare(admin)
        assert (found.state, said in found.text) == ("fail", True), found
        await mend(admin, APPLY_SCHEMA)
        assert (await compare(admin)).state == "ok"
    finally:
        await transaction.rollback()


@pytest.mark.parametrize("level", [level for level in PARTS if level != "open"])
async def test_a_right_to_write_is_told_at_each_level_without_it(
    database: Database, admin: asyncpg.Connection, level: str
) -> None:
    """The level is read from the database; what it closed and somebody has opened again is a fault."""
    transaction = admin.transaction()
    await transaction.start()
    try:
        await admin.execute(read_sql("lock_down_undo.sql") + schema_sql(**PARTS[level], transaction=False))
        assert (await compare(admin)).state == "ok"
        await admin.execute(f"grant insert on {TABLE} to authenticated")
        found = await compare(admin)
    finally:
        await transaction.rollback()
    assert (found.state, found.text) == ("fail", f"authenticated may INSERT {TABLE}")


async def test_names_and_texts_of_a_stranger_stay_on_their_line(database: Database, admin: asyncpg.Connection) -> None:
    """A long expression is cut, and the report shows control characters in a name instead of sending them."""
    transaction = admin.transaction()
    await transaction.start()
    try:
        await admin.execute(f"create policy \"\x1b[2J\nok   catalog\" on {TABLE} using (email <> '{'x' * 5000}')")
        found = await compare(admin)
    finally:
        await transaction.rollback()
    assert found.state == "fail"
    assert len(found.text) < 500
    lines = _lines(found).plain.split("\n")
    assert [line[:12] for line in lines] == ["fail catalog", "     -> DROP"]
    assert "\\x1b[2J\\nok" in lines[0]
    assert all(line.isprintable() for line in lines)


async def test_many_differences_are_counted(database: Database, admin: asyncpg.Connection) -> None:
    """Five are named, the gravest first, and of the others the number is given."""
    transaction = admin.transaction()
    await transaction.start()
    try:
        await admin.execute(
            f"create publication p for table {TABLE}; grant spotconn to anon; "
            "grant execute on all functions in schema spotconn to anon"
        )
        found = await compare(admin)
        functions = await admin.fetchval("select count(*) from pg_proc where pronamespace = 'spotconn'::regnamespace")
    finally:
        await transaction.rollback()
    assert found.text.startswith("anon is a member of spotconn; anon may EXECUTE spotconn.")
    assert found.text.endswith(f"; and {functions + 2 - 5} more")
