"""What opening costs, and how statements run on connections that may not name them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from spotconn import (
    Connection,
    ConnectionAdmin,
    ConnectionStore,
    NotConnected,
    Profile,
    SchemaMismatch,
    SpotifyAccounts,
    TokenManager,
)
from spotconn.testing import FakeSpotify, apply_schema
from support.bulk import connect_many
from support.connections import connect, content, grant
from support.counting_proxy import CountingProxy
from support.database import Database, Dsn
from support.fault_proxy import FaultProxy
from support.first_token import extra_round_trips
from support.pgbouncer import PgBouncer, pgbouncer
from support.tls import certificate, tls_front

NAMED = "select name from pg_prepared_statements"
UNNAMED: dict[str, Any] = {"statement_cache_size": 0, "max_size": 1}


@pytest.fixture
async def proxy(database: Database) -> AsyncIterator[CountingProxy]:
    async with CountingProxy(database.server.port).serve() as serving:
        yield serving


@pytest.fixture
def proxied(proxy: CountingProxy, database: Database) -> str:
    return database.dsn.replace(f":{database.server.port}/", f":{proxy.port}/")


@pytest.fixture
def narrow(database: Database) -> Iterator[PgBouncer]:
    """With two connections to the server, which change hands with each transaction."""
    with pgbouncer(database.server.port, size=2) as started:
        yield started


async def test_a_first_token_costs_two_round_trips_more_than_a_query(
    database: Database, store: ConnectionStore, spotify: FakeSpotify, user: UUID, tmp_path: Path
) -> None:
    """Than a bare connection and its first query, over TLS as well: those are the two that look at the schema."""
    await connect(store, spotify, user)

    def at(port: int) -> str:
        return database.dsn.replace(f":{database.server.port}/", f":{port}/")

    port = database.server.port
    assert await extra_round_trips(port, at, user) == 2
    pem = certificate(tmp_path)
    parameters = f"?sslnegotiation=direct&sslmode=verify-full&sslrootcert={pem}"
    async with tls_front(port, pem) as front:
        assert await extra_round_trips(front, lambda port: at(port) + parameters, user) <= 2


async def test_so_it_does_behind_a_pooler(
    database: Database, narrow: PgBouncer, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """The statement that looks at the schema finds the pooler, too."""
    await connect(store, spotify, user)
    dsn = narrow.through(database.dsn)
    assert await extra_round_trips(narrow.port, lambda port: dsn.replace(f":{narrow.port}/", f":{port}/"), user) == 2


async def test_one_connection_is_opened(
    proxied: str, proxy: CountingProxy, database: Database, operator: str, accounts: SpotifyAccounts, user: UUID
) -> None:
    """By a store that does not listen, and by an admin, each of which looks for a pooler."""
    async with ConnectionStore.open(proxied) as store, TokenManager(store, accounts, cache_size=0) as tokens:
        with suppress(NotConnected):
            await tokens.get_valid_token(user)
        assert proxy.connections == 1
    chief = operator.replace(f":{database.server.port}/", f":{proxy.port}/")
    async with ConnectionAdmin.open(chief) as house:
        await house.stats()
    assert proxy.connections == 2


@pytest.mark.parametrize("opened", [ConnectionStore.open, ConnectionAdmin.open], ids=["store", "admin"])
async def test_an_opening_that_is_cancelled_leaves_no_connection(
    database: Database, admin: asyncpg.Connection, chief: str, opened: Callable[[str], AbstractAsyncContextManager[Any]]
) -> None:
    """Not the one that has asked whether a pooler is in between."""
    async with FaultProxy(database.server.port).serve() as way, asyncio.timeout(20):
        with way.hold(b"pg_backend_pid") as held:
            opening = asyncio.create_task(opened(f"{way.dsn(chief)}?application_name=opening").__aenter__())
            await held.reached()
            opening.cancel()
            await asyncio.wait([opening])
        assert opening.cancelled()
        while await admin.fetchval("select count(*) from pg_stat_activity where application_name = 'opening'"):
            await asyncio.sleep(0.01)


async def test_the_first_connection_names_statements_once_no_pooler_is_found(
    proxied: str, proxy: CountingProxy, user: UUID
) -> None:
    """It is neither replaced nor asked twice; a block of as_user has one of its own, which names them as well."""
    async with ConnectionStore.open(proxied, max_size=1) as store:
        counts = [proxy.round_trips]
        for _ in range(2):
            with suppress(NotConnected):
                await store.get(user)
            counts.append(proxy.round_trips)
        assert [after - before for before, after in pairwise(counts)] == [2, 1]
        assert proxy.connections == 1
        async with store.as_user(user) as sql:
            assert await sql.fetch(NAMED)


async def test_a_described_statement_is_one_round_trip_and_stays_nowhere(
    proxied: str, proxy: CountingProxy, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """Each of them from its second execution on; asyncpg's hooks see it each time, and the server holds none."""
    stored = await connect(store, spotify, user)
    seen: list[str] = []

    async def init(connection: asyncpg.Connection) -> None:
        connection.add_query_logger(lambda record: seen.append(record.query))

    async with ConnectionStore.open(proxied, init=init, **UNNAMED) as unnamed:
        costs: list[list[int]] = []
        for _ in range(3):
            cost: list[int] = []
            for call in (unnamed.verify(), unnamed.get(user), unnamed.get_many([user]), unnamed.tokens.get(user)):
                before = proxy.round_trips
                await call
                cost.append(proxy.round_trips - before)
            costs.append(cost)
        assert costs == [[1, 2, 2, 2], [1, 1, 1, 1], [1, 1, 1, 1]]
        assert content(await unnamed.get(user)) == content(stored)
        async with unnamed.pool._pool.acquire() as connection:
            assert not await connection.fetch(NAMED)
    assert sum("get_connection(" in query for query in seen) == 4


async def test_many_clients_share_two_connections_of_the_server(
    database: Database, narrow: PgBouncer, spotify: FakeSpotify, admin: asyncpg.Connection
) -> None:
    """Reads and writes of 8 clients are never crossed, and no statement stays behind."""
    users = await connect_many(admin, spotify, [3600] * 8)
    dsn = narrow.through(database.dsn)

    async def client(number: int, user: UUID) -> None:
        async with ConnectionStore.open(dsn, max_size=2) as store:
            for _ in range(4):
                stored = await connect(store, spotify, user, account=f"account-{number}")
                assert content(await store.get(user)) == content(stored)
                assert (await store.tokens.get(user)).access_token == stored.access_token
                found = await store.get_many(users)
                assert found.keys() == set(users)
                own = found[user]
                assert isinstance(own, Connection)
                assert content(own) == content(stored)

    async with asyncio.timeout(60):
        await asyncio.gather(*[client(number, user) for number, user in enumerate(users)])
    last = await asyncpg.connect(dsn, statement_cache_size=0)
    assert not await last.fetch(NAMED)
    await last.close()


OTHER_TYPE = """
alter function spotconn.get_access_tokens(uuid[]) rename to get_access_tokens_before;
create function spotconn.get_access_tokens(uuid[], out user_id uuid, out access_token text, out remaining integer,
    out scope text) returns setof record language sql as
$$ select user_id, access_token, remaining::integer, scope from spotconn.get_access_tokens_before($1) $$;
"""


async def test_a_column_whose_type_changes_is_described_again(
    dsn: Dsn, scratch: asyncpg.Connection, proxy: CountingProxy, database: Database
) -> None:
    """A read that meets it is repeated on another connection; what Postgres refuses is described again on its own."""
    await apply_schema(dsn())
    user: UUID = await scratch.fetchval("insert into auth.users (id) values (gen_random_uuid()) returning id")
    way = dsn("app").replace(f":{database.server.port}/", f":{proxy.port}/")
    async with ConnectionStore.open(way, **UNNAMED) as store:
        await store.save(user, grant("x"), Profile(spotify_user_id="alice"))
        for _ in range(2):
            assert (await store.tokens.get(user)).access_token == "access-x"
        await scratch.execute(OTHER_TYPE)
        for _ in range(2):
            assert (await store.tokens.get(user)).access_token == "access-x"
        await scratch.execute("alter function spotconn.get_access_tokens(uuid[]) rename to elsewhere")
        with pytest.raises(SchemaMismatch):
            await store.tokens.get(user)
        await scratch.execute("alter function spotconn.elsewhere(uuid[]) rename to get_access_tokens")
        opened, before = proxy.connections, proxy.round_trips
        assert (await store.tokens.get(user)).access_token == "access-x"
        assert (proxy.connections - opened, proxy.round_trips - before) == (0, 2)
