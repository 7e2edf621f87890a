"""Where everything is measured: databases of one private server, and managers over them."""

import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from spotconn import ConnectionStore, SpotifyAccounts, TokenCipher, TokenManager
from spotconn.testing import EmbeddedPostgres, apply_schema
from support.bulk import add_connections

NOWHERE = "http://127.0.0.1:9"
"""Of a Spotify that must not be asked: the discard port."""

# app is what a service logs in as; handmade is a login as Supabase's authenticator, which becomes authenticated.
_LOGINS = """
do $$
begin
    if pg_catalog.to_regrole('app') is null then
        create role app login password 'app';
        create role handmade login noinherit password 'handmade';
        grant spotconn to app;
        grant authenticated to handmade;
    end if;
end
$$
"""


@dataclass(frozen=True)
class Database:
    """A database with the schema applied."""

    server: EmbeddedPostgres
    name: str

    @property
    def admin_dsn(self) -> str:
        """Of the superuser, whom row level security does not bind."""
        return self.server.dsn(self.name)

    def dsn(self, login: str = "app", *, port: int | None = None) -> str:
        """Of a login; the port may be that of a proxy."""
        direct = self.server.dsn(self.name, user=login, password=login)
        return direct if port is None else direct.replace(f":{self.server.port}/", f":{port}/")


async def new_database(server: EmbeddedPostgres, name: str, *, rows: int = 0) -> Database:
    """An empty database with the schema, or one with that many connections whose tokens are good for an hour."""
    database = Database(server, name)
    async with connected(server.dsn()) as admin:
        await admin.execute(f"drop database if exists {name} with (force)")
        await admin.execute(f"create database {name}")
    await apply_schema(database.admin_dsn)
    async with connected(database.admin_dsn) as admin:
        await admin.execute(_LOGINS)
        if rows:
            await add_connections(admin, rows)
            await admin.execute("vacuum analyze", timeout=600)
    return database


@asynccontextmanager
async def connected(dsn: str) -> AsyncGenerator[asyncpg.Connection]:
    """One connection of asyncpg."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def stored_users(database: Database) -> list[UUID]:
    """Whose connections are stored, as the UUIDs that a service makes of what it is asked with."""
    async with connected(database.admin_dsn) as admin:
        rows = await admin.fetch("select user_id from public.spotify_connections")
    return [UUID(int=row["user_id"].int) for row in rows]


def drawing(users: Sequence[UUID], number: int) -> Callable[[], list[UUID]]:
    """Gives other users at every call."""
    return lambda: random.choices(users, k=number)


def in_turn(users: Sequence[UUID], number: int) -> Callable[[], list[UUID]]:
    """Gives that many different users at every call, in one of a few random orders."""
    orders = [random.sample(users, number) for _ in range(8)]
    return lambda: random.choice(orders)


@asynccontextmanager
async def managing(
    dsn: str, *, spotify: str = NOWHERE, cipher: TokenCipher | None = None, connections: int = 10, **options: Any
) -> AsyncGenerator[TokenManager]:
    """A manager over a store and a pool of its own."""
    async with (
        ConnectionStore.open(dsn, cipher=cipher, max_size=connections) as store,
        SpotifyAccounts("demo-client", "demo-secret", accounts_url=spotify, api_url=spotify) as accounts,
        TokenManager(store, accounts, **options) as tokens,
    ):
        yield tokens
