"""The facts that the doctor expects are those of the shipped SQL, on each version of Postgres and for any applier."""

from pathlib import Path
from typing import cast

import asyncpg
import pytest

from spotconn._command.clients import check_clients
from spotconn._command.facts import LEVELS, expected_facts, facts_file, level_of
from spotconn._command.probe import Probe
from spotconn._database.errors import APPLY_SCHEMA
from spotconn._database.idle_sessions import Session
from spotconn._database.schema import read_sql, schema_sql
from support.database import Database
from support.documented_table import create_documented_table
from support.expected_facts import FILE, PARTS, facts_of, fresh_facts

FORMER = {"the documented table": "", "version 2": "schema_2.sql"}


@pytest.mark.parametrize("level", PARTS)
async def test_the_file_is_that_of_a_fresh_database(prepared: Database, level: str) -> None:
    """Where sql/ has changed, `make facts` writes the file anew."""
    found, expected = await fresh_facts(prepared.server, level), expected_facts()
    assert sorted(found ^ expected[level]) == [], "sql/ has changed: run `make facts`, and look at what it changes"
    assert level_of(found, expected) == level


def test_the_file_is_as_it_is_written() -> None:
    """What is read from it is written to the same text, at levels that have a name."""
    expected = expected_facts()
    assert FILE.read_text(encoding="utf-8") == facts_file(expected)
    assert set(expected) == set(PARTS) <= set(LEVELS)


async def test_it_does_not_matter_who_applies_the_schema(prepared: Database, admin: asyncpg.Connection) -> None:
    """Applied by no superuser and with other settings than usual, it has the facts of the file, seen by any login."""
    await admin.execute("create role applier login createrole bypassrls password 'applier'")
    await admin.execute("grant anon, authenticated, service_role, authenticator, spotconn to applier with admin option")
    await admin.execute("create database applied owner applier")
    try:
        dsn = prepared.server.dsn("applied", user="applier", password="applier")
        applier = await asyncpg.connect(dsn)
        await applier.execute(
            "set timezone = 'Asia/Tokyo'; set intervalstyle = 'iso_8601'; set datestyle = 'german'; "
            "set search_path = auth, spotconn, public"
        )
        await applier.execute(schema_sql(plain_postgres=True))
        await applier.close()
        for name in ("applier", "app"):
            found = await facts_of(prepared.server.dsn("applied", user=name, password=name))
            assert sorted(found ^ expected_facts()["open"]) == []
    finally:
        await admin.execute("drop database applied with (force)")
        await admin.execute("drop role applier")


@pytest.mark.parametrize("former", FORMER)
async def test_an_upgraded_database_is_like_a_fresh_one(
    prepared: Database, admin: asyncpg.Connection, former: str
) -> None:
    """Over the documented table and over version 2, where a project grants all by default, nothing differs."""
    await admin.execute("create database upgraded template template0")
    dsn = prepared.server.dsn("upgraded")
    upgraded = await asyncpg.connect(dsn)
    try:
        await create_documented_table(upgraded)
        if name := FORMER[former]:
            await upgraded.execute((Path(__file__).parents[1] / "database" / name).read_text(encoding="utf-8"))
        await upgraded.execute(schema_sql())
        assert sorted(await facts_of(dsn) ^ expected_facts()["open"]) == []
    finally:
        await upgraded.close()
        await admin.execute("drop database upgraded with (force)")


@pytest.mark.parametrize("level", PARTS)
async def test_the_line_of_the_clients_goes_by_the_level(
    database: Database, admin: asyncpg.Connection, level: str
) -> None:
    """While clients may write tokens, the risk and the two remedies are named; at the other levels it is ok."""
    transaction = admin.transaction()
    await transaction.start()
    try:
        await admin.execute(read_sql("lock_down_undo.sql"))
        await admin.execute(schema_sql(**PARTS[level], transaction=False))
        await admin.execute("alter role authenticator login")
        found = await check_clients(Probe(cast("Session", admin)))
    finally:
        await transaction.rollback()
    assert found.state == ("warn" if level == "open" else "ok")
    if level == "open":
        assert "somebody's leaked refresh token" in found.text
        assert "--close-writes" in str(found.remedy)
        assert "--lock-down" in str(found.remedy)


@pytest.mark.parametrize(
    ("roles", "state"),
    [
        ("select", "ok"),
        ("alter role authenticator login", "warn"),
        ("alter role anon login", "warn"),
        ("create role api login; grant authenticator to api", "warn"),
        ("create role api login noinherit; grant authenticated to api", "warn"),
        ("create role api login superuser; grant authenticated to api", "ok"),
        ("create role api; grant authenticated to api", "ok"),
    ],
)
async def test_without_an_api_in_front_browsers_are_no_matter(
    database: Database, admin: asyncpg.Connection, roles: str, state: str
) -> None:
    """Only where a login may become the role of a browser is it said what a browser may do."""
    transaction = admin.transaction()
    await transaction.start()
    try:
        await admin.execute(read_sql("lock_down_undo.sql"))
        await admin.execute(roles)
        found = await check_clients(Probe(cast("Session", admin)))
    finally:
        await transaction.rollback()
    assert found.state == state
    assert ("no login may become anon or authenticated" in found.text) == (state == "ok")


@pytest.mark.parametrize(
    ("fault", "said", "remedy"),
    [
        (
            "grant spotconn to authenticated",
            "authenticated is a member of spotconn, and may all that this role may",
            "REVOKE spotconn FROM authenticated, or from the role between the two",
        ),
        (
            "create role between; grant spotconn to between; grant between to anon",
            "anon is a member of spotconn",
            "REVOKE spotconn FROM anon, or from the role between the two",
        ),
        (
            "grant all on public.spotify_connections to anon, authenticated",
            "anon, authenticated may more than that, as after a restore: they read and write tokens",
            APPLY_SCHEMA,
        ),
        ("grant usage on schema spotconn to authenticated", "authenticated may more than that", APPLY_SCHEMA),
    ],
)
async def test_a_level_that_does_not_hold_is_no_true_line(
    database: Database, admin: asyncpg.Connection, fault: str, said: str, remedy: str
) -> None:
    """The mark of the lock-down is there, and a client role has more: that is said in place of the level."""
    transaction = admin.transaction()
    await transaction.start()
    try:
        await admin.execute(read_sql("lock_down.sql"))
        await admin.execute(fault)
        found = await check_clients(Probe(cast("Session", admin)))
    finally:
        await transaction.rollback()
    assert found.state == "fail"
    assert found.text.startswith("the level that was applied does not hold: ")
    assert said in found.text
    assert remedy in str(found.remedy)
