"""The facts of a freshly applied schema at each level; as a program, it writes them into the package (`make facts`)."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import asyncpg

import spotconn
from spotconn._command.facts import Fact, facts_file, read_facts
from spotconn._command.probe import Probe
from spotconn._database.idle_sessions import Session
from spotconn._database.schema import schema_sql
from spotconn.testing import EmbeddedPostgres

FILE = Path(spotconn.__file__).parent / "_command" / "expected_facts.tsv"
PARTS: Mapping[str, dict[str, Any]] = {
    "open": {},
    "closed": {"close_writes": True},
    "locked": {"lock_down": True},
}
"""By level, the arguments of `schema_sql`."""


async def facts_of(dsn: str) -> set[Fact]:
    """Return the facts of a database as a login sees them."""
    session = await asyncpg.connect(dsn)
    try:
        probe = Probe(cast("Session", session))
        async with probe.rolled_back():
            return await read_facts(probe)
    finally:
        await session.close()


async def fresh_facts(server: EmbeddedPostgres, level: str) -> set[Fact]:
    """Return the facts of a new database of a server, prepared to a level and dropped again."""
    admin = await asyncpg.connect(server.dsn())
    try:
        await admin.execute("create database facts template template0")
        try:
            prepared = await asyncpg.connect(server.dsn("facts"))
            await prepared.execute(schema_sql(plain_postgres=True, **PARTS[level]))
            await prepared.close()
            return await facts_of(server.dsn("facts"))
        finally:
            await admin.execute("drop database facts with (force)")
    finally:
        await admin.close()


async def _main() -> None:
    with EmbeddedPostgres() as server:
        FILE.write_text(facts_file({level: await fresh_facts(server, level) for level in PARTS}), encoding="utf-8")


if __name__ == "__main__":
    asyncio.run(_main())
