"""Version 3 of the schema over version 2 and over the documented table: what is kept, gone, refused."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore, Outcome, SchemaMismatch
from spotconn._database import schema, statements
from spotconn._database.pending_connects import PendingConnect
from spotconn._database.schema import read_sql
from spotconn.testing import apply_schema
from support.database import Dsn
from support.documented_table import create_documented_table
from support.schema_state import schema_state, stored_rows

VERSION_2 = (Path(__file__).parent / "schema_2.sql").read_text(encoding="utf-8")
ENDS = datetime(2026, 11, 24, tzinfo=UTC)
LATER = datetime(2099, 1, 1, tzinfo=UTC)

# The statements of 0.1.0.
GET = "select * from spotconn.get_connection($1)"
GET_MANY = "select * from spotconn.get_connections($1)"
SAVE = "select * from spotconn.save_connection($1, $2, $3, $4, $5, $6, $7, $8, $9)"
DELETE = "select spotconn.delete_connection($1)"
BEGIN = (
    "select turn.outcome, turn.lease_id, turn.lapsed, turn.retry_after, (turn.connection).* "
    "from spotconn.begin_refresh($1, $2, $3) as turn"
)
FINISH = "select * from spotconn.finish_refresh($1, $2, $3, $4, $5, $6)"
FAIL = "select spotconn.fail_refresh($1, $2, $3, $4, $5)"
START_CONNECT = "select spotconn.start_connect($1, $2, $3, $4)"
TAKE_CONNECT = "select * from spotconn.take_connect($1, $2)"
PROVE = "select spotconn.prove_telling($1)"


class Users(NamedTuple):
    """One user for each state that version 2 can store."""

    plain: UUID
    leased: UUID
    unavailable: UUID
    revoked: UUID
    connecting: UUID


class OldProcess:
    """A process of 0.1.0, by the statements that it sends."""

    def __init__(self, session: asyncpg.Connection) -> None:
        self.session = session

    async def save(self, user: UUID) -> asyncpg.Record:
        return await self._row(
            SAVE, user, "alice", "access", "refresh", ENDS, "user-read-email", "Alice", "a@example.com", None
        )

    async def begin(self, user: UUID, lease: float = 60) -> asyncpg.Record:
        return await self._row(BEGIN, user, LATER, timedelta(seconds=lease))

    async def fail(self, user: UUID, reason: str) -> bool:
        turn = await self.begin(user)
        recorded = await self._row(FAIL, user, turn["expires_at"], turn["lease_id"], reason, 600.0)
        return bool(recorded[0])

    async def start_connect(self, user: UUID, state: str) -> None:
        await self._row(START_CONNECT, user, _hashed(state), "verifier", timedelta(minutes=10))

    async def _row(self, query: str, *arguments: object) -> asyncpg.Record:
        row = await self.session.fetchrow(query, *arguments)
        assert row is not None
        return row


def _hashed(state: str) -> bytes:
    return hashlib.sha256(state.encode()).digest()


@pytest.fixture
async def old(dsn: Dsn, scratch: asyncpg.Connection) -> AsyncIterator[OldProcess]:
    """A process of 0.1.0 on a database with version 2."""
    await scratch.execute(read_sql("plain_postgres.sql"))
    await scratch.execute(VERSION_2)
    session = await asyncpg.connect(dsn("app"))
    yield OldProcess(session)
    await session.close()


@pytest.fixture
async def stored(old: OldProcess, scratch: asyncpg.Connection) -> Users:
    """What the process has stored."""
    added = await scratch.fetch(
        "insert into auth.users (id) select gen_random_uuid() from generate_series(1, 5) returning id"
    )
    users = Users(*(row["id"] for row in added))
    for user in users[:4]:
        await old.save(user)
    assert (await old.begin(users.leased))["outcome"] == "granted"
    assert await old.fail(users.unavailable, "unavailable")
    assert await old.fail(users.revoked, "revoked")
    await old.start_connect(users.connecting, "state")
    return users


async def test_every_row_of_version_2_is_kept(dsn: Dsn, scratch: asyncpg.Connection, stored: Users) -> None:
    """Connections, leases, recorded failures and pending connects stay as they were, and still count."""
    before = await stored_rows(scratch)
    assert [len(rows) for rows in before.values()] == [5, 4, 3, 1]
    await apply_schema(dsn(), plain_postgres=False)
    assert await stored_rows(scratch) == before
    async with ConnectionStore.open(dsn("app"), max_size=1) as store:
        outcomes = [(await store.begin_refresh(user, seen=LATER)).outcome for user in stored[:4]]
        assert outcomes == [Outcome.GRANTED, Outcome.BUSY, Outcome.BLOCKED, Outcome.BLOCKED]
        failures = [(await store.get(user)).failure for user in (stored.unavailable, stored.revoked)]
        assert [failure and failure.reason for failure in failures] == ["unavailable", "revoked"]
        assert await store.pending.take(stored.connecting, "state") == PendingConnect("verifier", expired=False)


@pytest.mark.parametrize("locked_down", [False, True])
async def test_version_2_becomes_what_a_new_database_has(
    dsn: Dsn, scratch: asyncpg.Connection, stored: Users, fresh: asyncpg.Connection, *, locked_down: bool
) -> None:
    """Tables, functions, triggers, policies and privileges are those of a new database, locked down if it was."""
    if locked_down:
        await scratch.execute(read_sql("lock_down.sql"))
        await fresh.execute(read_sql("lock_down.sql"))
    await apply_schema(dsn(), plain_postgres=False)
    upgraded = await schema_state(scratch)
    assert upgraded == await schema_state(fresh)
    assert await scratch.fetchval("select to_regprocedure('spotconn.locked_down()') is not null") is locked_down
    assert not any(
        "tell_change" in str(row) or "prove_telling" in str(row) for rows in upgraded.values() for row in rows
    )
    assert len(upgraded["triggers"]) == 2


async def test_the_documented_table_becomes_what_a_new_database_has(
    dsn: Dsn, scratch: asyncpg.Connection, fresh: asyncpg.Connection
) -> None:
    """From the bare table comes the same as from nothing, and its rows stay."""
    await create_documented_table(scratch)
    query = "select id, user_id, access_token, refresh_token, expires_at from spotify_connections order by id"
    before = await scratch.fetch(query)
    await apply_schema(dsn(), plain_postgres=False)
    assert await scratch.fetch(query) == before
    assert await schema_state(scratch) == await schema_state(fresh)


async def test_version_3_applied_twice_changes_nothing(dsn: Dsn, scratch: asyncpg.Connection, stored: Users) -> None:
    """The second time leaves schema and rows as they are after the first."""
    await apply_schema(dsn(), plain_postgres=False)
    before = await schema_state(scratch), await stored_rows(scratch)
    await apply_schema(dsn(), plain_postgres=False)
    assert (await schema_state(scratch), await stored_rows(scratch)) == before


async def test_each_change_is_notified_once(dsn: Dsn, scratch: asyncpg.Connection, stored: Users) -> None:
    """Delete, update and truncate are notified, each once, and the heartbeat follows them."""
    await apply_schema(dsn(), plain_postgres=False)
    payloads: list[str] = []
    arrived = asyncio.Event()

    def notified(_session: object, _pid: object, _channel: object, payload: object) -> None:
        payloads.append(str(payload))
        if str(payload).startswith("heartbeat"):
            arrived.set()

    await scratch.add_listener("spotconn", notified)
    async with ConnectionStore.open(dsn("app"), max_size=1) as store:
        await store.delete(stored.plain)
        async with store.as_user(stored.leased) as session:
            await session.execute("update public.spotify_connections set email = null")
    await scratch.execute("truncate public.spotify_connections cascade")
    assert await scratch.fetchval("select spotconn.heartbeat('nonce')")
    await arrived.wait()
    changes = [json.loads(payload) for payload in payloads[:-1]]
    assert payloads[-1] == "heartbeat nonce"
    deleted, updated, truncated = changes
    assert deleted == {"user_id": str(stored.plain)}
    assert (updated["user_id"], datetime.fromisoformat(updated["expires_at"])) == (str(stored.leased), ENDS)
    assert truncated == {}


async def test_an_old_process_says_that_it_must_be_upgraded(
    dsn: Dsn, old: OldProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that starts beside version 3 ends with that text; it asks for the version as this library does."""
    await apply_schema(dsn(), plain_postgres=False)
    assert await old.session.fetchval(statements.SCHEMA_VERSION) == 3
    monkeypatch.setattr(schema, "SCHEMA_VERSION", 2)
    text = "the database has version 3 of the schema, this library needs 2: upgrade spotconn"
    with pytest.raises(SchemaMismatch, match=f"^{text}$"):
        async with ConnectionStore.open(dsn("app"), max_size=1):
            pass


async def test_an_old_process_that_goes_on_relies_on_its_ttl(dsn: Dsn, old: OldProcess, stored: Users) -> None:
    """Its calls of the store still work; its proof that it hears of changes is refused, so it relies on its TTL."""
    await apply_schema(dsn(), plain_postgres=False)
    user = stored.plain
    turn = await old.begin(user)
    assert turn["outcome"] == "granted"
    finished = await old.session.fetchrow(FINISH, user, turn["expires_at"], "access-2", None, LATER, None)
    assert finished is not None
    assert (await old.session.fetchrow(GET, user)) == finished
    assert len(await old.session.fetch(GET_MANY, list(stored))) == 4
    assert await old.session.fetchval(TAKE_CONNECT, stored.connecting, _hashed("state")) == "verifier"
    assert await old.session.fetchval(DELETE, user)
    with pytest.raises(asyncpg.UndefinedFunctionError):
        await old.session.fetchval(PROVE, "nonce")


async def test_this_library_on_version_2_says_to_apply_the_schema(dsn: Dsn, old: OldProcess) -> None:
    """It does not open, and the text names the file."""
    text = (
        "the database has version 2 of the schema, this library needs 3: apply the schema of this version of spotconn"
    )
    with pytest.raises(SchemaMismatch, match=f"^{text}: psql .* -f sql/schema.sql$"):
        async with ConnectionStore.open(dsn("app"), max_size=1):
            pass
