"""A pool of the caller's with codecs or a record class of its own."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from spotconn import (
    ConfigurationError,
    ConnectionAdmin,
    ConnectionStore,
    NotConnected,
    Profile,
    SpotifyAccounts,
    TokenManager,
)
from support.connections import grant
from support.counting_proxy import CountingProxy
from support.database import Database
from support.pgbouncer import pgbouncer

ALICE = Profile(spotify_user_id="alice")
CODECS: dict[str, Callable[[asyncpg.Connection], Awaitable[None]]] = {
    "uuid": lambda it: it.set_type_codec("uuid", schema="pg_catalog", encoder=str, decoder=str),
    "timestamptz": lambda it: it.set_type_codec("timestamptz", schema="pg_catalog", encoder=str, decoder=str),
    "float8": lambda it: it.set_type_codec("float8", schema="pg_catalog", encoder=str, decoder=str),
    "bool": lambda it: it.set_type_codec("bool", schema="pg_catalog", encoder=str, decoder=str),
    "bytea": lambda it: it.set_type_codec("bytea", schema="pg_catalog", encoder=bytes.hex, decoder=str),
    "text": lambda it: it.set_type_codec("text", schema="pg_catalog", encoder=json.dumps, decoder=json.loads),
    "interval": lambda it: it.set_type_codec(
        "interval", schema="pg_catalog", encoder=lambda value: f"{value.total_seconds()} s", decoder=str
    ),
    "int8": lambda it: it.set_type_codec("int8", schema="pg_catalog", encoder=str, decoder=datetime.fromisoformat),
}


@pytest.mark.parametrize("name", CODECS)
async def test_codecs_that_change_values_are_refused_by_name(
    database: Database, admin: asyncpg.Connection, user: UUID, accounts: SpotifyAccounts, name: str
) -> None:
    """Nobody is told that a user is not connected; the type is named, by the first call whichever it is."""

    async def init(connection: asyncpg.Connection) -> None:
        await CODECS[name](connection)

    async with asyncpg.create_pool(database.dsn, min_size=1, max_size=2, init=init) as pool:
        store = ConnectionStore(pool)
        async with TokenManager(store, accounts) as tokens:
            with pytest.raises(ConfigurationError, match=rf"\({name}[,)]"):
                [answer async for answer in tokens.get_valid_tokens([user])]
        for call in (store.verify, lambda: store.get(user), lambda: store.delete(user), ConnectionAdmin(pool).stats):
            with pytest.raises(ConfigurationError, match=rf"\({name}[,)]"):
                await call()
        assert pool.get_idle_size() == pool.get_size()
    with pytest.raises(ConfigurationError, match=name):
        await ConnectionStore.open(database.dsn, init=init).__aenter__()


class Attributes(asyncpg.Record):
    """As asyncpg's guide has it."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Capitals(asyncpg.Record):
    """Of which the library could not read a row."""

    def __getitem__(self, name: Any) -> Any:
        return super().__getitem__(name.upper())


async def test_a_record_class_is_used_or_refused(database: Database, user: UUID) -> None:
    """One that adds is no matter; one whose rows have other names is refused."""

    async def init(connection: asyncpg.Connection) -> None:
        await connection.set_type_codec("json", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)

    attributes: Any = asyncpg.create_pool(database.dsn, min_size=1, record_class=Attributes, init=init)
    async with attributes:
        store = ConnectionStore(attributes)
        await store.save(user, grant("x"), ALICE)
        assert (await store.get(user)).access_token == "access-x"
    capitals: Any = asyncpg.create_pool(database.dsn, min_size=1, record_class=Capitals)
    async with capitals:
        with pytest.raises(ConfigurationError, match="record class"):
            await ConnectionStore(capitals).get(user)


async def test_the_check_is_one_statement_of_the_first_call(database: Database, user: UUID) -> None:
    """Later calls pay nothing for it."""
    seen: list[str] = []

    async def init(connection: asyncpg.Connection) -> None:
        connection.add_query_logger(lambda record: seen.append(record.query))

    async with asyncpg.create_pool(database.dsn, min_size=1, max_size=1, init=init) as pool:
        store = ConnectionStore(pool)
        for _ in range(3):
            await store.delete(user)
    ours = ["value_1" in query for query in seen if "value_1" in query or "delete_connection" in query]
    assert ours == [True, False, False, False]


async def test_a_pool_without_hooks_is_opened_with_one_statement(database: Database) -> None:
    """It has no codecs of the caller's to look for: a statement that is new to a session takes two round trips."""
    async with CountingProxy(database.server.port).serve() as proxy:
        dsn = database.dsn.replace(f":{database.server.port}/", f":{proxy.port}/")
        connection = await asyncpg.connect(dsn)
        login, proxy.round_trips = proxy.round_trips, 0
        await connection.close()
        proxy.round_trips = 0
        async with ConnectionStore.open(dsn, statement_cache_size=100):
            assert proxy.round_trips == login + 2
        async with ConnectionAdmin.open(database.admin_dsn) as admin:
            assert (await admin.stats()).connections == 0


async def test_a_pooler_that_loses_statements_is_no_matter_of_codecs(database: Database, user: UUID) -> None:
    """A pool with a statement cache behind one is told to go without, whichever statement meets the fault first."""

    async def faults(dsn: str) -> list[str]:
        async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool:
            store = ConnectionStore(pool)
            answers = [await asyncio.gather(store.get(user), return_exceptions=True) for _ in range(3)]
        return [str(fault) for (fault,) in answers if not isinstance(fault, NotConnected)]

    with pgbouncer(database.server.port, size=2) as bouncer:
        found = await asyncio.gather(*[faults(bouncer.through(database.dsn)) for _ in range(16)])
    texts = {text for one in found for text in one}
    assert texts
    assert all("make the pool with statement_cache_size=0" in text for text in texts), texts
