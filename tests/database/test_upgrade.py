"""Version 3 of the schema over version 2 and over the documented table: what is kept, gone, refused."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectFailed, ConnectionStore, Outcome, RefreshFailure, SchemaMismatch
from spotconn._database import schema_version, statements
from spotconn._database.pending_connects import Claim, PendingConnect
from spotconn._database.schema import read_sql
from spotconn.models import fingerprint
from spotconn.testing import apply_schema
from support.connections import grant
from support.database import Dsn
from support.documented_table import create_documented_table
from support.schema_state import schema_state, stored_rows

VERSION_2 = (Path(__file__).parent / "schema_2.sql").read_text(encoding="utf-8")
ENDS = datetime(2026, 11, 24, tzinfo=UTC)
LATER = datetime(2099, 1, 1, tzinfo=UTC)
SEEN = fingerprint("access")

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
    void: UUID
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
        "insert into auth.users (id) select gen_random_uuid() from generate_series(1, 6) returning id"
    )
    users = Users(*(row["id"] for row in added))
    for user in users[:5]:
        await old.save(user)
    assert (await old.begin(users.leased))["outcome"] == "granted"
    assert await old.fail(users.unavailable, "unavailable")
    assert await old.fail(users.revoked, "revoked")
    assert await old.fail(users.void, "revoked")
    await scratch.execute(
        "update public.spotify_connections set expires_at = expires_at - interval '1 microsecond' where user_id = $1",
        users.void,
    )
    await old.start_connect(users.connecting, "state")
    return users


STATE_2 = "lease_id, lease_until, failure, failures, failed_at, retry_at"
STATES = f"select user_id, {STATE_2} from spotconn.refresh_state where user_id = any($1::uuid[]) order by user_id"


async def test_every_row_of_version_2_is_kept(dsn: Dsn, scratch: asyncpg.Connection, stored: Users) -> None:
    """Connections, leases, recorded failures and pending connects stay as they were, and still count; what was recorded
    of a version that has passed goes.
    """
    before = await stored_rows(scratch)
    assert [len(rows) for rows in before.values()] == [6, 5, 4, 1]
    counting = [stored.leased, stored.unavailable, stored.revoked]
    states = await scratch.fetch(STATES, counting)
    await apply_schema(dsn(), plain_postgres=False)
    after = await stored_rows(scratch)
    for table in ("auth.users", "public.spotify_connections"):
        assert after[table] == before[table]
    assert after["spotconn.reminder"] == []
    assert [row[:4] for row in after["spotconn.pending_connect"]] == before["spotconn.pending_connect"]
    assert await scratch.fetch(STATES, counting) == states
    rows = await scratch.fetch(
        "select user_id, encode(fingerprint, 'hex') as fingerprint, leased_at < lease_until as leased, paused_at, "
        "failed_at, saved_at, granted_at, saves, refusals, lapsed from spotconn.refresh_state"
    )
    assert {row["user_id"] for row in rows} == set(counting)
    for row in rows:
        assert row["fingerprint"] == fingerprint("refresh")
        assert row["leased"] is (True if row["user_id"] == stored.leased else None)
        assert row["paused_at"] == row["failed_at"]
        assert tuple(row)[5:] == (None, None, 0, 0, False)
    async with ConnectionStore.open(dsn("app"), max_size=1) as store:
        outcomes = [(await store.begin_refresh(user, seen=SEEN)).outcome for user in stored[:5]]
        assert outcomes == [Outcome.GRANTED, Outcome.BUSY, Outcome.PAUSED, Outcome.REFUSED, Outcome.GRANTED]
        failures = [(await store.get(user)).failure for user in stored[2:5]]
        assert [failure and failure.reason for failure in failures] == ["unavailable", "revoked", None]
        with pytest.raises(ConnectFailed, match="start again"):  # its verifier is bound to nothing
            await store.pending.take(Claim("state", "user", stored.connecting))


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
    assert len(upgraded["triggers"]) == 3


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


EARLIER_3 = """
drop type spotconn.connection, spotconn.refresh_turn, spotconn.saved_refresh cascade;
create view spotconn.connection with (security_invoker = true) as
    select stored.*, state.client_id from public.spotify_connections as stored
    left join spotconn.refresh_state as state using (user_id);
grant select on spotconn.connection to spotconn, service_role;
create function spotconn.get_connection(p_user_id uuid) returns setof spotconn.connection
    language sql as 'select * from spotconn.connection';
create or replace function spotconn.verify() returns jsonb language sql as
    $$select '{"unbound": null, "version": 3, "encoding": "UTF8", "claims_read": true}'::jsonb$$;
create function spotconn.decide_turn(
    p_connection spotconn.connection, p_state spotconn.refresh_state, p_seen bytea, p_client_ids text[],
    p_now timestamptz, out outcome text, out retry_after double precision, out client_ids text[]
) language sql as 'select null, null::double precision, null::text[]'
"""


async def test_the_view_of_an_earlier_version_3_goes(
    dsn: Dsn, scratch: asyncpg.Connection, stored: Users, fresh: asyncpg.Connection
) -> None:
    """The functions over the view `spotconn.connection` are replaced by those over the type of that name, rows stay."""
    await apply_schema(dsn(), plain_postgres=False)
    before = await stored_rows(scratch)
    await scratch.execute(EARLIER_3)
    with pytest.raises(SchemaMismatch, match="earlier form"):
        async with ConnectionStore.open(dsn("app"), max_size=1):
            pass
    await apply_schema(dsn(), plain_postgres=False)
    assert await schema_state(scratch) == await schema_state(fresh)
    assert await stored_rows(scratch) == before


PENDING_3 = """
drop function spotconn.start_connect(uuid, bytea, text, interval, bytea);
drop function spotconn.take_connect(uuid, bytea, bytea, text);
drop policy "Own pending connects are seen" on spotconn.pending_connect;
drop policy "Own pending connects are made" on spotconn.pending_connect;
drop policy "Own pending connects are used" on spotconn.pending_connect;
drop function spotconn.binding_fault, spotconn.claimed_state;
alter table spotconn.pending_connect drop column cookie_hash, alter column user_id set not null;
create function spotconn.start_connect(p_user_id uuid, p_state_hash bytea, p_code_verifier text, p_life interval)
    returns double precision language sql as 'select 0.0::double precision';
create function spotconn.take_connect(p_user_id uuid, p_state_hash bytea)
    returns table (code_verifier text, used boolean, expired boolean) language sql as $$select '', true, true$$;
create policy "Own pending connects are seen" on spotconn.pending_connect
    for select to spotconn using ((select auth.uid()) = user_id);
"""


async def test_what_is_under_way_is_finished_after_the_upgrade_of_an_earlier_version_3(
    dsn: Dsn, scratch: asyncpg.Connection, stored: Users, fresh: asyncpg.Connection
) -> None:
    """An authorization that began before a row had cookies, scopes and data keeps its verifier and its place."""
    await apply_schema(dsn(), plain_postgres=False)
    await scratch.execute(PENDING_3)
    state_hash = _hashed("state of 3")
    await scratch.execute(
        "insert into spotconn.pending_connect (state_hash, user_id, slot, code_verifier, expires_at) "
        "values ($1, $2, 2, $3, now() + interval '9 min')",
        state_hash,
        stored.plain,
        f"{state_hash.hex()}.verifier",
    )
    await apply_schema(dsn(), plain_postgres=False)
    assert await schema_state(scratch) == await schema_state(fresh)
    async with ConnectionStore.open(dsn("app"), max_size=1) as store:
        with pytest.raises(ConnectFailed, match="another browser"):
            await store.pending.take(Claim("state of 3", "cookie", stored.plain, "a cookie"))
        taken = await store.pending.take(Claim("state of 3", "user", stored.plain))
    assert taken == PendingConnect(stored.plain, "verifier")


async def test_a_view_over_that_view_is_not_dropped(dsn: Dsn, scratch: asyncpg.Connection, stored: Users) -> None:
    """What a project has built on it is named by Postgres, and nothing is changed."""
    await apply_schema(dsn(), plain_postgres=False)
    await scratch.execute(EARLIER_3 + "; create view public.mine as select user_id from spotconn.connection")
    with pytest.raises(asyncpg.DependentObjectsStillExistError) as raised:
        await apply_schema(dsn(), plain_postgres=False)
    assert raised.value.detail == "view public.mine depends on view spotconn.connection"
    assert await scratch.fetchval("select count(*) from public.mine") == len(stored) - 1


async def test_version_3_applied_twice_changes_nothing(dsn: Dsn, scratch: asyncpg.Connection, stored: Users) -> None:
    """The second time leaves schema and rows as they are after the first and some use: leases, failures and counts."""
    await apply_schema(dsn(), plain_postgres=False)
    async with ConnectionStore.open(dsn("app"), max_size=1) as store:
        turn = await store.begin_refresh(stored.void, seen=SEEN)
        assert await store.fail_refresh(turn, RefreshFailure(reason="refused")) is not None
        turn = await store.begin_refresh(stored.plain, seen=SEEN)
        await store.finish_refresh(turn, grant("new"))
        assert (await store.get(stored.plain)).saves == 1
        await store.pending.put(PendingConnect(stored.plain, "verifier"), "another", life=600)
    before = await schema_state(scratch), await stored_rows(scratch)
    await apply_schema(dsn(), plain_postgres=False)
    assert (await schema_state(scratch), await stored_rows(scratch)) == before


async def test_each_change_is_notified_once(dsn: Dsn, scratch: asyncpg.Connection, stored: Users) -> None:
    """Delete, update and truncate are notified, each once, a refresh is not, and the heartbeat follows them."""
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
        turn = await store.begin_refresh(stored.void, seen=SEEN)
        assert await store.finish_refresh(turn, grant("silent")) is not None
    await scratch.execute("truncate public.spotify_connections")
    assert await scratch.fetchval("select spotconn.heartbeat('nonce')")
    await arrived.wait()
    assert payloads == [str(stored.plain), str(stored.leased), "*", "heartbeat nonce"]


async def test_an_old_process_says_that_it_must_be_upgraded(
    dsn: Dsn, old: OldProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that starts beside version 3 ends with that text; it asks for the version as this library does."""
    await apply_schema(dsn(), plain_postgres=False)
    assert await old.session.fetchval(statements.SCHEMA_VERSION) == 3
    monkeypatch.setattr(schema_version, "SCHEMA_VERSION", 2)
    text = "the database has version 3 of the schema, this library needs 2: upgrade spotconn"
    with pytest.raises(SchemaMismatch, match=f"^{text}$"):
        async with ConnectionStore.open(dsn("app"), max_size=1):
            pass


async def test_an_old_process_that_goes_on_refreshes_nothing(dsn: Dsn, old: OldProcess, stored: Users) -> None:
    """It still reads, connects and disconnects. What it says of a refresh is refused, so that no refresh token is used
    under two protocols, and so is its proof that it hears of changes, so it relies on its TTL.
    """
    turn = await old.begin(stored.plain)
    assert turn["outcome"] == "granted"
    await apply_schema(dsn(), plain_postgres=False)
    user = stored.plain
    for call in (
        old.begin(stored.void),
        old.session.fetchrow(FINISH, user, turn["expires_at"], "access-2", None, LATER, None),
        old.session.fetchrow(FAIL, user, turn["expires_at"], turn["lease_id"], "unavailable", 600.0),
        old.session.fetchval(PROVE, "nonce"),
    ):
        with pytest.raises(asyncpg.UndefinedFunctionError):
            await call
    row = await old.session.fetchrow(GET, user)
    assert row is not None
    assert (row["access_token"], row["expires_at"], row["failure"], row["retry_at"]) == ("access", ENDS, None, None)
    assert len(await old.session.fetch(GET_MANY, list(stored))) == 5
    assert (await old.save(user))["access_token"] == "access"
    assert await old.session.fetchval(TAKE_CONNECT, stored.connecting, _hashed("state")) == "verifier"
    assert await old.session.fetchval(DELETE, user)


async def test_this_library_on_version_2_says_to_apply_the_schema(dsn: Dsn, old: OldProcess) -> None:
    """It does not open, and the text names the command."""
    text = (
        "the database has version 2 of the schema, this library needs 3: apply the schema of this version of spotconn"
    )
    with pytest.raises(SchemaMismatch, match=f"^{text}: spotconn schema --apply$"):
        async with ConnectionStore.open(dsn("app"), max_size=1):
            pass
