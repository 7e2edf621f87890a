"""Row level security holds by itself: shown with SQL that has no filter, by a plain login and one with BYPASSRLS."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from spotconn import (
    ConnectionStore,
    NotConnected,
    Outcome,
    Profile,
    RefreshFailure,
    RowSecurityError,
    TokenGrant,
    UnknownUser,
)
from spotconn.models import fingerprint
from support.database import Database

END = datetime.now(UTC) - timedelta(minutes=1)
SEEN = fingerprint("")
# What asyncpg raises on a session that has died: InternalClientError where it reads of the end while it sends, and
# TimeoutError where it then waits for an answer that cannot come.
DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, TimeoutError)
INSERT = (
    "insert into public.spotify_connections (user_id, spotify_user_id, access_token, refresh_token, expires_at) "
    "values ({user}, 'thief', 'x', 'x', now())"
)
UPSERT_STATE = "insert into spotconn.refresh_state values ({b}, '') on conflict (user_id) do update set failures = 9"
STATE = """
select current_user, session_user, current_setting('role') as role, current_setting('search_path') as search_path,
    nullif(current_setting('request.jwt.claims', true), '') as claims,
    nullif(current_setting('request.jwt.claim.sub', true), '') as legacy,
    current_setting('statement_timeout') as timeout, current_setting('row_security') as row_security,
    nullif(current_setting('my.own', true), '') as own, array(select pg_listening_channels()) as channels,
    (select count(*) from pg_locks where pid = pg_backend_pid() and locktype = 'advisory') as locks
"""


def grant(token: str) -> TokenGrant:
    return TokenGrant(access_token=f"access-{token}", refresh_token=f"refresh-{token}", expires_at=END)


@pytest.fixture(params=["app", "app_bypass"])
def login(request: pytest.FixtureRequest, database: Database) -> str:
    """Of each kind of login."""
    return database.login_dsn(request.param)


@pytest.fixture
async def store(login: str) -> AsyncIterator[ConnectionStore]:
    """A store whose one connection can be looked at after each call."""
    async with ConnectionStore.open(login, max_size=1) as opened:
        yield opened


@pytest.fixture
async def pair(store: ConnectionStore, users: list[UUID]) -> tuple[UUID, UUID]:
    """Two connected users, each with a refresh under way."""
    for user in users[:2]:
        await store.save(user, grant(str(user)), Profile(spotify_user_id="account"))
        await store.begin_refresh(user, seen=SEEN)
    return users[0], users[1]


async def state_of(store: ConnectionStore) -> dict[str, Any]:
    async with store.pool._pool.acquire(timeout=10) as connection:
        return dict(await connection.fetchrow(STATE, timeout=10) or {})


async def rows_of(admin: asyncpg.Connection, user: UUID) -> list[asyncpg.Record]:
    return [
        row
        for relation in ("public.spotify_connections", "spotconn.refresh_state")
        for row in await admin.fetch(f"select * from {relation} where user_id = $1", user)
    ]


@pytest.mark.parametrize("relation", ["public.spotify_connections", "spotconn.refresh_state"])
async def test_without_a_filter_only_the_own_row_shows(
    store: ConnectionStore, pair: tuple[UUID, UUID], users: list[UUID], relation: str
) -> None:
    """A query with no WHERE sees the row of the user acted for and no other, and nothing for who has none."""
    for user, expected in ((pair[0], [pair[0]]), (pair[1], [pair[1]]), (users[2], [])):
        async with store.as_user(user) as connection:
            assert [row["user_id"] for row in await connection.fetch(f"select * from {relation}")] == expected
            assert await connection.fetchval(f"select count(*) from {relation}") == len(expected)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("update public.spotify_connections set email = 'x' where user_id = {b}", "UPDATE 0"),
        ("update public.spotify_connections set email = 'x'", "UPDATE 1"),
        ("update public.spotify_connections set user_id = {b}", "42501"),
        ("delete from public.spotify_connections where user_id = {b}", "DELETE 0"),
        ("delete from public.spotify_connections", "DELETE 1"),
        (INSERT.format(user="{b}"), "42501"),
        (INSERT.format(user="{c}"), "42501"),
        (INSERT.format(user="{b}") + " on conflict do nothing", "42501"),
        (INSERT.format(user="{b}") + " on conflict (user_id) do update set email = 'x'", "42501"),
        ("truncate public.spotify_connections", "42501"),
        ("update spotconn.refresh_state set failures = 9 where user_id = {b}", "UPDATE 0"),
        ("update spotconn.refresh_state set failures = 9", "UPDATE 1"),
        ("delete from spotconn.refresh_state", "DELETE 1"),
        ("insert into spotconn.refresh_state (user_id, fingerprint) values ({c}, '')", "42501"),
        (UPSERT_STATE, "42501"),
        ("select from auth.users", "42501"),
        ("alter table public.spotify_connections disable row level security", "42501"),
        ('drop policy "Users can view own connections" on public.spotify_connections', "42501"),
        ("create function spotconn.mine() returns integer language sql return 1", "42501"),
    ],
)  # fmt: skip
async def test_no_statement_touches_the_row_of_another(
    store: ConnectionStore,
    admin: asyncpg.Connection,
    pair: tuple[UUID, UUID],
    users: list[UUID],
    statement: str,
    expected: str,
) -> None:
    """Insert, update, upsert, delete and what no policy guards fail, or touch the user's own row only."""
    before = await rows_of(admin, pair[1])
    assert len(before) == 2
    text = statement.format(**{name: f"'{user}'" for name, user in zip("abc", users, strict=True)})
    try:
        async with store.as_user(pair[0]) as connection:
            done = await connection.execute(text)
    except asyncpg.PostgresError as error:
        done = str(error.sqlstate)
    assert done == expected
    assert await rows_of(admin, pair[1]) == before
    assert await admin.fetchval("select count(*) from public.spotify_connections where user_id = $1", users[2]) == 0


@pytest.mark.parametrize(
    "leftover",
    [
        "select 1",
        "set role spotconn",
        "set session role spotconn",
        "set statement_timeout = '7s'",
        "set search_path = pg_temp",
        "set row_security = off",
        "select set_config('request.jwt.claims', '{\"sub\": \"stays\"}', false)",
        "select set_config('request.jwt.claim.sub', 'stays', false), set_config('my.own', 'stays', false)",
        "select set_config('role', 'spotconn', false)",
        "listen spotconn",
        "select pg_advisory_lock(7)",
        "commit; set role spotconn",
    ],
)
@pytest.mark.parametrize("end", ["normal", "exception", "failed statement"])
async def test_as_user_leaves_nothing_behind(store: ConnectionStore, user: UUID, leftover: str, end: str) -> None:
    """The pooled connection goes back as it came, whatever the caller's SQL set and however the block ended."""
    before = await state_of(store)
    assert (before["claims"], before["legacy"], before["role"], before["own"]) == (None, None, "none", None)
    try:
        async with store.as_user(user) as connection:
            acting = dict(await connection.fetchrow(STATE) or {})
            assert (acting["role"], json.loads(acting["claims"])["sub"]) == ("spotconn", str(user))
            await connection.execute(leftover)
            if end == "exception":
                acting["no such key"]
            if end == "failed statement":
                await connection.execute("select 1 / 0")
    except (LookupError, asyncpg.DivisionByZeroError):
        assert end != "normal"
    assert await state_of(store) == before


@pytest.mark.parametrize("again", [None, *range(12)])
async def test_a_cancelled_block_leaves_nothing_behind(store: ConnectionStore, user: UUID, again: int | None) -> None:
    """Neither a cancelled block, nor one cancelled again at any step of its clean-up, leaves a role or a setting."""
    before = await state_of(store)
    inside = asyncio.Event()

    async def block() -> None:
        async with store.as_user(user) as connection:
            await connection.execute("commit; set role spotconn; set my.own = 'stays'")
            await connection.execute("begin")
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(block())
    await inside.wait()
    task.cancel()
    if again is not None:
        for _ in range(again):
            await asyncio.sleep(0)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await state_of(store) == before


async def test_no_step_of_a_block_is_cancelled_so_that_its_session_stays(
    database: Database, admin: asyncpg.Connection, user: UUID
) -> None:
    """Twice, soon after each other: the session ends on the server, with its transaction and its locks."""

    async def block(small: ConnectionStore) -> None:
        async with small.as_user(user) as connection:
            await connection.execute("set search_path = other")
            await connection.fetch("select 1")
            await asyncio.sleep(0)

    open_transaction = "select exists (select from pg_stat_activity where state ~ 'idle in transaction')"
    async with ConnectionStore.open(database.dsn, max_size=1, statement_cache_size=100) as small:
        for steps, again in product(range(60), (0, 1, 2, 4)):
            async with small.pool.acquire():
                pass  # so that there is a session
            task = asyncio.create_task(block(small))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            for _ in range(again):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        async with asyncio.timeout(10):
            while await admin.fetchval(open_transaction):
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("steps", range(0, 24, 2))
async def test_a_block_cancelled_while_it_starts_leaves_nothing_behind(
    store: ConnectionStore, user: UUID, steps: int
) -> None:
    """A cancellation before the block is entered leaves no role, no claims and no open transaction."""
    before = await state_of(store)

    async def block() -> None:
        async with store.as_user(user):
            await asyncio.Event().wait()

    task = asyncio.create_task(block())
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await state_of(store) == before


async def test_a_session_that_dies_in_a_block_is_replaced(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection
) -> None:
    """The caller sees the driver's own error, and the next call has a new connection."""
    with pytest.raises(DRIVER_ERRORS):  # noqa: PT012
        async with store.as_user(user) as connection:
            pid = await connection.fetchval("select pg_backend_pid()")
            await admin.execute("select pg_terminate_backend($1, 5000)", pid)
            await connection.execute("select 1", timeout=10)
    assert (await state_of(store))["role"] == "none"


async def test_the_block_is_one_transaction(store: ConnectionStore, pair: tuple[UUID, UUID]) -> None:
    """What a block wrote is kept at its end, and gone if it raised."""
    async with store.as_user(pair[0]) as connection:
        await connection.execute("update public.spotify_connections set email = 'kept'")
    with pytest.raises(asyncpg.DivisionByZeroError):  # noqa: PT012
        async with store.as_user(pair[0]) as connection:
            await connection.execute("update public.spotify_connections set email = 'lost'")
            await connection.execute("select 1 / 0")
    assert (await store.get(pair[0])).email == "kept"


async def test_no_operation_leaves_anything_behind(
    store: ConnectionStore, pair: tuple[UUID, UUID], users: list[UUID]
) -> None:
    """After every operation of the store, failed ones too, the connection has no role and no claims."""
    before = await state_of(store)
    a, _ = pair
    operations: list[Callable[[], Awaitable[Any]]] = [
        store.verify,
        lambda: store.get(a),
        lambda: store.get(users[2]),
        lambda: store.get_many(users),
        lambda: store.save(a, grant("new"), Profile(spotify_user_id="account")),
        lambda: store.save(UUID(int=1), grant("new"), Profile(spotify_user_id="account")),
        lambda: store.begin_refresh(a, seen=SEEN, lease=-1),
        lambda: store.begin_refresh(users[2], seen=SEEN),
        lambda: store.delete(a),
    ]
    for operation in operations:
        with suppress(NotConnected, UnknownUser):
            await operation()
        assert await state_of(store) == before
    for user in users[:2]:
        await store.save(user, grant("again"), Profile(spotify_user_id="account"))
    turn = await store.begin_refresh(users[0], seen=SEEN)
    await store.finish_refresh(turn, grant("refreshed"))
    assert await state_of(store) == before
    await store.fail_refresh(await store.begin_refresh(users[1], seen=SEEN), RefreshFailure(reason="refused"))
    assert await state_of(store) == before


async def test_many_are_read_each_as_the_own_user(
    store: ConnectionStore, pair: tuple[UUID, UUID], users: list[UUID], admin: asyncpg.Connection
) -> None:
    """The function for several users gives each no row but the own, also when its query has lost the WHERE."""
    whole: str = await admin.fetchval("select pg_get_functiondef('spotconn.connections(uuid)'::regprocedure)")
    careless = whole.replace("where stored.user_id = p_user_id", "")
    assert careless != whole
    await admin.execute(careless)
    try:
        for asked in ([pair[0]], [pair[1], users[2]], [users[2]], [*pair, users[2], UUID(int=1)], []):
            async with store.pool._pool.acquire() as connection:
                rows = await connection.fetch("select user_id, access_token from spotconn.get_connections($1)", asked)
            assert [tuple(row) for row in rows] == [(user, f"access-{user}") for user in asked if user in pair]
    finally:
        await admin.execute(whole)


async def test_claims_of_the_session_do_not_count(
    login: str, pair: tuple[UUID, UUID], admin: asyncpg.Connection
) -> None:
    """A session whose claims, legacy and new, name b still acts for the user that the call names."""
    a, b = pair
    before = await rows_of(admin, b)

    async def hostile(connection: asyncpg.Connection) -> None:
        await connection.execute(
            "select set_config('request.jwt.claim.sub', $1, false), set_config('request.jwt.claims', $2, false)",
            str(b),
            json.dumps({"sub": str(b)}),
        )

    async with ConnectionStore.open(login, max_size=1, init=hostile) as store:
        assert (await state_of(store))["legacy"] == str(b)
        assert (await store.get(a)).user_id == a
        assert (await store.save(a, grant("new"), Profile(spotify_user_id="account"))).user_id == a
        turn = await store.begin_refresh(a, seen=SEEN)
        assert turn.outcome is Outcome.GRANTED
        await store.finish_refresh(turn, grant("refreshed"))
        assert await store.delete(a)
        with pytest.raises(NotConnected):
            await store.get(a)
        async with store.as_user(a) as connection:
            assert await connection.fetch("select * from public.spotify_connections") == []
    assert await rows_of(admin, b) == before


async def test_a_session_in_another_role_is_refused(
    login: str, pair: tuple[UUID, UUID], admin: asyncpg.Connection
) -> None:
    """A pool that puts its sessions into a client role is refused at open, whatever its claims."""

    async def client(connection: asyncpg.Connection) -> None:
        await connection.execute("set role authenticated")

    name = "app_bypass" if "app_bypass" in login else "app"
    await admin.execute(f"grant authenticated to {name}")
    try:
        with pytest.raises(RowSecurityError):
            async with ConnectionStore.open(login, max_size=1, init=client):
                pass
    finally:
        await admin.execute(f"revoke authenticated from {name}")


async def _act(admin: asyncpg.Connection, role: str, user: UUID | None) -> None:
    await admin.execute(f"set local role {role}")
    claims = json.dumps({"sub": str(user) if user else None, "role": role})
    await admin.execute("select set_config('request.jwt.claims', $1, true)", claims)


async def _result(admin: asyncpg.Connection, statement: str) -> str:
    try:
        async with admin.transaction():
            return await admin.execute(statement)
    except asyncpg.PostgresError as error:
        return str(error.sqlstate)


FOR_OPERATORS = {f"spotconn.{name}" for name in ("now", "seconds_left", "runs", "user_id", "integer_id")}


@pytest.mark.parametrize("role", ["anon", "authenticated", "service_role"])
@pytest.mark.parametrize("with_usage", [False, True])
async def test_a_client_role_cannot_call_the_functions(
    admin: asyncpg.Connection,
    user: UUID,
    role: str,
    with_usage: bool,  # noqa: FBT001
) -> None:
    """No client role may execute a function of the schema spotconn, even where it is given USAGE on it; service_role
    only those that reckon with times and ids.
    """
    functions = await admin.fetch(
        "select oid::regproc::text as name, array(select format_type(t, null) from unnest(proargtypes) as t) as types "
        "from pg_proc where pronamespace = 'spotconn'::regnamespace"
    )
    assert {"spotconn.act_as", "spotconn.get_connection"} < {name for name, _ in functions}
    transaction = admin.transaction()
    await transaction.start()
    try:
        if with_usage:
            await admin.execute(f"grant usage on schema spotconn to {role}")
        await _act(admin, role, user)
        for name, types in functions:
            # Postgres puts null for the call of a strict function with a constant null, and asks for no right.
            arguments = ", ".join(f"(select null::{type_})" for type_ in types)
            allowed = role == "service_role" and name in FOR_OPERATORS
            assert await _result(admin, f"select {name}({arguments})") == ("SELECT 1" if allowed else "42501"), name
    finally:
        await transaction.rollback()


CLIENT = {
    "select * from public.spotify_connections": "SELECT 1",
    "update public.spotify_connections set email = 'x'": "UPDATE 1",
    "update public.spotify_connections set email = 'x' where user_id = '{b}'": "UPDATE 0",
    "update public.spotify_connections set user_id = '{b}'": "42501",
    INSERT.format(user="'{b}'"): "42501",
    INSERT.format(user="'{c}'"): "42501",
    "delete from public.spotify_connections where user_id = '{b}'": "DELETE 0",
    "delete from public.spotify_connections": "DELETE 1",
    INSERT.format(user="'{a}'"): "INSERT 0 1",
    "truncate public.spotify_connections": "42501",
    "select * from spotconn.refresh_state": "42501",
    "select * from spotconn.connections('{a}')": "42501",
}


@pytest.mark.parametrize("role", ["authenticated", "anon"])
async def test_a_client_may_do_what_the_policies_say(
    admin: asyncpg.Connection, pair: tuple[UUID, UUID], users: list[UUID], role: str
) -> None:
    """A signed-in client reads, changes, removes and makes its own connection and nothing else; anon does nothing."""
    names = {name: str(user) for name, user in zip("abc", users, strict=True)}
    transaction = admin.transaction()
    await transaction.start()
    try:
        await _act(admin, role, pair[0])
        for statement, expected in CLIENT.items():
            done = await _result(admin, statement.format(**names))
            assert done == (expected if role == "authenticated" else "42501"), statement
    finally:
        await transaction.rollback()
