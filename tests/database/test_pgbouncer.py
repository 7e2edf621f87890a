"""Through a real PgBouncer in transaction mode everything works, and nothing of a client stays for the next."""

import asyncio
import hashlib
import json
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from typer.testing import CliRunner

from spotconn import (
    AesGcmSivCipher,
    ConfigurationError,
    ConnectFlow,
    ConnectionAdmin,
    ConnectionStore,
    NotConnected,
    SpotifyAccounts,
    TokenManager,
)
from spotconn.cli import app
from spotconn.testing import FakeSpotify
from support.connections import connect, content
from support.consent import REDIRECT_URI, SCOPES, agree, sent
from support.counting_proxy import CountingProxy
from support.database import Database
from support.doctor import look
from support.fleet import connect_crowd, valid_digests
from support.listening import SECOND, served_for, trusted, until
from support.pgbouncer import PgBouncer, pgbouncer, program

CLIENTS = 32
STATE = """
select current_user, session_user, current_setting('role') as role, current_setting('search_path') as search_path,
    current_setting('statement_timeout') as timeout, current_setting('application_name') as application_name,
    nullif(current_setting('request.jwt.claims', true), '') as claims,
    nullif(current_setting('request.jwt.claim.sub', true), '') as legacy,
    nullif(current_setting('my.own', true), '') as own, array(select pg_listening_channels()) as channels,
    (select count(*) from pg_locks where pid = pg_backend_pid() and locktype = 'advisory') as locks,
    (select count(*) from pg_prepared_statements) as statements, (select count(*) from pg_cursors where name <> '')
    as cursors, (select count(*) from pg_class where relnamespace = pg_my_temp_schema()) as temporary
"""

ENDS: dict[str, type[BaseException] | None] = {
    "normal": None,
    "exception": KeyError,
    "failed statement": asyncpg.DivisionByZeroError,
    "failed commit": asyncpg.UniqueViolationError,
    "cancelled": asyncio.CancelledError,
}
"""Of a block, and what the caller sees."""


@pytest.fixture
def bouncer(database: Database) -> Iterator[PgBouncer]:
    with pgbouncer(database.server.port) as started:
        yield started


@pytest.fixture
def narrow(database: Database) -> Iterator[PgBouncer]:
    """With one connection to the server, which is the next client's as soon as it is free."""
    with pgbouncer(database.server.port, size=1) as started:
        yield started


async def asked(dsn: str, url: str, users: list[UUID], all_open: asyncio.Barrier, **options: Any) -> list[str]:
    """A client with a pool of its own: the digests of the tokens that it gets for these users, all at once."""
    waited = False
    try:
        async with (
            ConnectionStore.open(dsn, max_size=2, timeout=30, **options) as store,
            SpotifyAccounts("demo-client", "demo-secret", accounts_url=url, api_url=url) as accounts,
            TokenManager(store, accounts, cache_ttl=0) as tokens,
        ):
            waited = True
            await all_open.wait()
            got = await asyncio.gather(*[tokens.get_valid_token(user) for user in users])
            return [hashlib.sha256(token.encode()).hexdigest() for token in got]
    finally:
        if not waited:
            await all_open.wait()


async def crowd(dsn: str, url: str, users: list[UUID], **options: Any) -> list[list[str] | BaseException]:
    """The answers of many clients at the same time, or what has failed each."""
    all_open = asyncio.Barrier(CLIENTS)
    clients = [asked(dsn, url, users, all_open, **options) for _ in range(CLIENTS)]
    return await asyncio.gather(*clients, return_exceptions=True)


@pytest.mark.long
@pytest.mark.parametrize("options", [{}, {"statement_cache_size": 0}], ids=["detected", "declared"])
async def test_many_clients_refresh_each_user_once(
    bouncer: PgBouncer, database: Database, admin: asyncpg.Connection, options: dict[str, Any]
) -> None:
    """32 clients over 4 connections: each gets each user's own token, and Spotify is asked once a user."""
    spotify = FakeSpotify(rotation=True, latency=(0.05, 0.3))
    users = await connect_crowd(admin, spotify, 8)
    async with spotify.serve() as url:
        answers = await crowd(bouncer.through(database.dsn), url, users, **options)
    right = await valid_digests(admin, spotify, users)
    assert "" not in right
    assert answers == [right] * CLIENTS
    assert spotify.token_calls == len(users)
    assert set(spotify.refreshes.values()) == {1}


@pytest.mark.long
async def test_with_a_statement_cache_most_fail(
    bouncer: PgBouncer, database: Database, admin: asyncpg.Connection
) -> None:
    """The control: told that it is the server itself, the library prepares statements, and most clients fail."""
    spotify = FakeSpotify(rotation=True)
    users = await connect_crowd(admin, spotify, 8)
    await admin.execute("update public.spotify_connections set expires_at = now() + interval '1 hour'")
    right = await valid_digests(admin, spotify, users)
    async with spotify.serve() as url:
        answers = await crowd(bouncer.through(database.dsn), url, users, statement_cache_size=100)
        worked = await crowd(bouncer.through(database.dsn), url, users)
    assert answers.count(right) < CLIENTS / 2
    assert worked == [right] * CLIENTS


@pytest.mark.long
async def test_many_users_at_once_are_never_crossed(
    bouncer: PgBouncer, database: Database, admin: asyncpg.Connection, spotify: FakeSpotify
) -> None:
    """Connect, read, own SQL and disconnect of 32 users over 4 connections: each sees the own row alone."""
    dsn = bouncer.through(database.dsn)
    rows = await admin.fetch(
        "insert into auth.users (id) select gen_random_uuid() from generate_series(1, $1) returning id", CLIENTS
    )

    async def life(number: int, user: UUID) -> None:
        async with ConnectionStore.open(dsn, max_size=2) as store:
            for _ in range(3):
                saved = await connect(store, spotify, user, account=f"account-{number}")
                assert content(await store.get(user)) == content(saved)
                async with store.as_user(user) as sql:
                    seen = await sql.fetch("select user_id, access_token from public.spotify_connections")
                    assert [tuple(row) for row in seen] == [(user, saved.access_token)]
                    claims = await sql.fetchval("select current_setting('request.jwt.claims')")
                    assert json.loads(claims)["sub"] == str(user)
                assert await store.delete(user)

    await asyncio.gather(*[life(number, row["id"]) for number, row in enumerate(rows)])
    assert await admin.fetchval("select count(*) from public.spotify_connections") == 0


async def test_hooks_of_the_pool_are_for_the_caller_alone(bouncer: PgBouncer, database: Database, user: UUID) -> None:
    """They run once for each connection, and prepare nothing that stays; what looks for a pooler opens none."""
    made: list[asyncpg.Connection] = []

    async def note(connection: asyncpg.Connection) -> None:
        made.append(connection)
        await connection.fetchval("select $1::int", 1)

    options: dict[str, Any] = {"init": note, "min_size": 2, "max_size": 3}
    async with ConnectionStore.open(bouncer.through(database.dsn), **options) as store:
        assert len(made) == store.pool._pool.get_size() == 2
        assert not await _prepared(store)
    async with ConnectionStore.open(database.dsn, **options) as store:
        with suppress(NotConnected):
            await store.get(user)
        assert len(made) == 4
        assert await _prepared(store), "the server itself is asked with named statements, also on the first connection"


async def _prepared(store: ConnectionStore) -> list[str]:
    async with store.pool._pool.acquire() as connection:
        return [row["name"] for row in await connection.fetch("select name from pg_prepared_statements")]


@pytest.fixture
async def later(admin: asyncpg.Connection) -> AsyncIterator[None]:
    """A table with a constraint that fails a commit."""
    await admin.execute("create table public.later (id integer unique deferrable initially deferred)")
    await admin.execute("grant all on public.later to app")
    yield
    await admin.execute("drop table public.later")


@pytest.mark.parametrize(
    "leftover",
    [
        "select 1",
        "set role spotconn",
        "set statement_timeout = '7s'",
        "set search_path = pg_temp",
        "set application_name = 'stays'",
        "select set_config('request.jwt.claims', '{\"sub\": \"stays\"}', false)",
        "select set_config('request.jwt.claim.sub', 'stays', false), set_config('my.own', 'stays', false)",
        "listen spotconn",
        "select pg_advisory_lock(7)",
        "prepare stays as select 1",
        "declare stays cursor with hold for select 1",
        "create temporary table stays (id integer)",
    ],
)
@pytest.mark.parametrize("end", ENDS)
async def test_as_user_leaves_nothing_for_the_next_client(
    narrow: PgBouncer, database: Database, user: UUID, later: None, leftover: str, end: str
) -> None:
    """Who waits for the only server connection finds it as it was, whatever the block did and however it ended."""
    dsn = narrow.through(database.dsn)
    other = await asyncpg.connect(dsn, statement_cache_size=0)
    before = await _found(other)
    async with ConnectionStore.open(dsn) as store:
        async with asyncio.TaskGroup() as clients:
            waiting = asyncio.Event()
            block = clients.create_task(_ended(_block(store, user, leftover, end, waiting)))
            await waiting.wait()
            found = clients.create_task(_found(other))
        assert block.result() == ENDS[end]
        assert found.result() == before
        assert await _found(other) == before
    await other.close()


async def _found(client: asyncpg.Connection) -> dict[str, Any]:
    """How a client finds the server connection that it gets; from the first statement on it is the client's own."""
    async with client.transaction():
        return dict(await client.fetchrow(STATE) or {})


async def _ended(block: Coroutine[Any, Any, None]) -> type[BaseException] | None:
    try:
        await block
    except tuple(kind for kind in ENDS.values() if kind) as error:
        return type(error)
    return None


async def _block(store: ConnectionStore, user: UUID, leftover: str, end: str, waiting: asyncio.Event) -> None:
    async with store.as_user(user) as connection:
        acting = await connection.fetchrow(STATE)
        assert acting is not None
        assert (acting["role"], json.loads(acting["claims"])["sub"]) == ("spotconn", str(user))
        kept = await connection.cursor("select 2")  # asyncpg names its statement as another process may, too
        assert tuple(await kept.fetchrow() or ()) == (2,)
        await connection.execute(leftover)
        waiting.set()
        await connection.fetchval("select 3")  # meanwhile the other client asks, and has to wait
        if end == "exception":
            acting["no such key"]
        if end == "failed statement":
            await connection.execute("select 1 / 0")
        if end == "failed commit":
            await connection.execute("reset role; insert into public.later values (1), (1)")
        if end == "cancelled":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await connection.fetchval("select pg_sleep(20)")


async def test_as_user_leaves_the_client_its_own_settings(narrow: PgBouncer, database: Database, user: UUID) -> None:
    """What a client asked for as it logged in is the same in its next block, and no other client's."""
    dsn = narrow.through(database.dsn)
    one = {"application_name": "a 'name' with \\'", "timezone": "America/New_York", "datestyle": "German, DMY"}
    two = {"application_name": "two", "timezone": "Asia/Kolkata", "datestyle": "SQL, DMY"}
    query = "select " + ", ".join(f"current_setting('{name}') as {name}" for name in one)
    async with (
        ConnectionStore.open(dsn, server_settings=one, max_size=1) as first,
        ConnectionStore.open(dsn, server_settings=two, max_size=1) as second,
    ):
        for store, own in ((first, one), (second, two), (first, one), (second, two)):
            async with store.as_user(user) as connection:
                assert dict(await connection.fetchrow(query) or {}) == own
                await connection.execute("set timezone = 'Asia/Tokyo'; set application_name = 'changed'")


async def test_what_a_call_costs_through_it(
    bouncer: PgBouncer, database: Database, spotify: FakeSpotify, user: UUID
) -> None:
    """One round trip for a statement that the connection has had before; six for a block, to its closed end."""
    async with CountingProxy(bouncer.port).serve() as proxy:
        dsn = bouncer.through(database.dsn).replace(f":{bouncer.port}/", f":{proxy.port}/")
        async with ConnectionStore.open(dsn, max_size=1) as store:
            costs: list[tuple[int, int]] = []
            for _ in range(3):
                before = proxy.round_trips
                await connect(store, spotify, user)
                saved, before = proxy.round_trips - before, proxy.round_trips
                await store.get(user)
                costs.append((saved, proxy.round_trips - before))
            before = proxy.round_trips
            async with store.as_user(user):
                pass
        block = proxy.round_trips - before  # the session of the block ends behind its back
    assert (costs, block) == ([(2, 2), (1, 1), (1, 1)], 6)


@pytest.mark.parametrize("options", [{}, {"statement_cache_size": 0}], ids=["detected", "declared"])
async def test_changes_are_heard_past_it_or_the_ttl_counts(
    bouncer: PgBouncer,
    database: Database,
    store: ConnectionStore,
    accounts: SpotifyAccounts,
    spotify: FakeSpotify,
    user: UUID,
    options: dict[str, Any],
) -> None:
    """Without a direct DSN nobody listens; with one a disconnect elsewhere is heard of within a second."""
    dsn = bouncer.through(database.dsn)
    async with (
        ConnectionStore.open(dsn, **options) as through,
        ConnectionStore.open(dsn, listen_dsn=database.dsn, **options) as past,
        TokenManager(through, accounts, cache_ttl=0.3) as deaf,
        TokenManager(past, accounts) as tokens,
    ):
        await connect(store, spotify, user)
        await trusted(tokens, user)
        await deaf.get_valid_token(user)
        assert through.changes is None
        await store.delete(user)
        assert await served_for(tokens, user) < SECOND
        assert await served_for(deaf, user) <= 0.3


async def test_a_pooler_is_no_place_to_listen(
    bouncer: PgBouncer,
    database: Database,
    store: ConnectionStore,
    accounts: SpotifyAccounts,
    spotify: FakeSpotify,
    user: UUID,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """LISTEN succeeds there and never receives: no proof arrives, a warning says why, and the TTL counts."""
    dsn = bouncer.through(database.dsn)
    async with (
        ConnectionStore.open(dsn, listen_dsn=dsn) as misled,
        TokenManager(misled, accounts, cache_ttl=0.3) as tokens,
    ):
        assert misled.changes is not None
        misled.changes._timeout = 0.5
        await connect(store, spotify, user)
        await tokens.get_valid_token(user)
        await until(lambda: "a transaction pooler is in between" in caplog.text)
        assert not tokens._cache.trusted
        await store.delete(user)
        assert await served_for(tokens, user) <= 0.3


async def test_an_operator_works_through_it(
    bouncer: PgBouncer,
    store: ConnectionStore,
    operator: str,
    spotify: FakeSpotify,
    users: list[UUID],
    admin: asyncpg.Connection,
) -> None:
    """Lists, counts, rekey and recheck are complete, and no connection to the server stays service_role's."""
    for user in users:
        await connect(store, spotify, user)
    cipher = AesGcmSivCipher([AesGcmSivCipher.generate_key()])
    dsn = bouncer.through(operator)
    async with ConnectionAdmin.open(dsn, cipher=cipher) as house:
        due = [one.user_id async for one in house.expiring(within=timedelta(days=200))]
        assert due == sorted(users)
        assert [one async for one in house.failing()] == []
        counts = await asyncio.gather(*[house.stats() for _ in range(8)])
        assert {(one.connections, one.plain_text) for one in counts} == {(3, 6)}
        assert (await house.rekey()).done == 3
        assert (await house.stats()).by_key == {cipher.key_ids[0]: 6}
        assert await house.recheck(since=datetime.now(UTC) - timedelta(hours=1)) == 0
    assert await _states(dsn, 4) == Counter({("operator", "none", '"$user", public'): 4})


async def _states(dsn: str, size: int) -> "Counter[tuple[str, ...]]":
    """What each of so many connections to the server would be for the next client."""
    clients = [await asyncpg.connect(dsn, statement_cache_size=0) for _ in range(size)]
    opened = [client.transaction() for client in clients]
    for transaction in opened:
        await transaction.start()
    query = "select current_user, current_setting('role'), current_setting('search_path'), pg_backend_pid()"
    found = [await client.fetchrow(query) for client in clients]
    for client in clients:
        await client.close()
    assert len({row[3] for row in found if row is not None}) == size
    return Counter(tuple(row)[:3] for row in found if row is not None)


async def test_many_users_connect_through_it(
    bouncer: PgBouncer, database: Database, admin: asyncpg.Connection, accounts: SpotifyAccounts, spotify: FakeSpotify
) -> None:
    """An authorization that one process started is finished by another, each with the own account."""
    dsn = bouncer.through(database.dsn)
    rows = await admin.fetch(
        "insert into auth.users (id) select gen_random_uuid() from generate_series(1, 8) returning id"
    )

    async def connected(number: int, user: UUID) -> None:
        account = f"account-{number}"
        spotify.add_account(account)
        async with ConnectionStore.open(dsn) as one, ConnectionStore.open(dsn) as two:
            start, finish = (
                ConnectFlow(store, accounts, redirect_uri=REDIRECT_URI, scopes=SCOPES) for store in (one, two)
            )
            if number % 2:
                callback = await agree(await start.start(user), account)
                assert (await finish.finish(user, callback)).spotify_user_id == account
                return
            begun = await start.begin(None if number % 4 else user)
            done = await finish.complete(await agree(begun.url, account), sent(begun))
            assert (await finish.save(user, done) if number % 4 else done.connection) is not None

    await asyncio.gather(*[connected(number, row["id"]) for number, row in enumerate(rows)])
    assert await admin.fetchval("select count(distinct spotify_user_id) from public.spotify_connections") == 8
    assert await admin.fetchval("select count(*) from spotconn.pending_connect where used_at is null") == 0


async def test_the_command_works_through_it(
    bouncer: PgBouncer, chief: str, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """A token for a pipe, the counts, and a disconnect."""
    saved = await connect(store, spotify, user)
    env = {
        "DATABASE_URL": bouncer.through(chief),
        "SPOTCONN_DATABASE_URL": "",
        "SPOTCONN_ENCRYPTION_KEYS": "",
        "SPOTIFY_CLIENT_ID": "0123456789abcdef" * 2,
        "SPOTIFY_CLIENT_SECRET": "fedcba9876543210" * 2,
    }

    async def said(*arguments: str) -> str:
        result = await asyncio.to_thread(lambda: CliRunner().invoke(app, arguments, env=env, catch_exceptions=False))
        assert result.exit_code == 0, result.stderr
        return result.stdout

    assert await said("token", str(user)) == f"{saved.access_token}\n"
    assert json.loads(await said("stats", "--json"))["connections"] == 1
    assert "warn pooler: " in await said("doctor")
    assert await said("disconnect", str(user)) == "disconnected\n"


async def test_the_doctor_sees_it(bouncer: PgBouncer, database: Database, chief: str) -> None:
    """It is one thing more to be minded than at the server itself, and everything else is seen as there."""
    through, direct = await look(bouncer.through(chief)), await look(chief)
    assert (through.pop("pooler").state, direct.pop("pooler").state) == ("warn", "ok")
    for found in (through, direct):
        assert found.pop("clocks").state == "ok"
    assert through == direct


async def test_a_refusal_says_where_to_look(bouncer: PgBouncer, database: Database) -> None:
    """A wrong password, another database and a setting that it does not know are settings; the last one is named."""
    dsn = bouncer.through(database.dsn)
    refusals: list[tuple[str, dict[str, Any], str]] = [
        (dsn.replace(":app@", ":marked@"), {}, "a pooler refuses user, password"),
        (dsn.replace("/spotconn", "/marked"), {}, "a pooler refuses user, password"),
        (dsn, {"server_settings": {"search_path": "marked"}}, "takes no such parameter .*: search_path;"),
    ]
    for refused, options, text in refusals:
        with pytest.raises(ConfigurationError, match=text) as raised:
            await ConnectionStore.open(refused, **options).__aenter__()
        assert "marked" not in str(raised.value)


async def test_it_ends_with_its_parent(database: Database) -> None:
    """Also when that is killed: no process, no folder and no open port is left."""
    program()
    code = (
        "import sys; from support.pgbouncer import pgbouncer\n"
        f"with pgbouncer({database.server.port}) as one: print(one.port, one.folder, flush=True); sys.stdin.read()"
    )
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, env=env, stdin=pipe, stdout=pipe)
    assert process.stdout is not None
    port, folder = (await process.stdout.readline()).decode().split()
    socket.create_connection(("127.0.0.1", int(port))).close()
    process.send_signal(signal.SIGKILL)
    await process.wait()
    async with asyncio.timeout(10):
        while Path(folder).exists():
            await asyncio.sleep(0.01)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(port)))
