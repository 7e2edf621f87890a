"""A tenant writes more into the own row than any client needs."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore, Profile, TokenGrant
from spotconn._database.schema import read_sql
from support.database import Database
from support.tenant import Tenant, signed_in

TEXTS = {
    "access_token": 8192,
    "refresh_token": 8192,
    "spotify_user_id": 1024,
    "display_name": 1024,
    "email": 1024,
    "scope": 1024,
}
GRANT = TokenGrant(access_token="a", refresh_token="r", expires_at=datetime.now(UTC) + timedelta(hours=1))
INSERT = (
    "insert into public.spotify_connections "
    "(user_id, spotify_user_id, access_token, refresh_token, expires_at, scope) values ($1, 'x', 'a', 'r', now(), $2)"
)


@pytest.fixture
async def tenant(
    database: Database, admin: asyncpg.Connection, store: ConnectionStore, user: UUID
) -> AsyncIterator[Tenant]:
    """A connected user, in a database where clients may write."""
    locked = await admin.fetchval("select to_regprocedure('spotconn.locked_down()') is not null")
    if locked:
        pytest.skip("clients write nothing in a database that is locked down")
    await store.save(user, GRANT, Profile(spotify_user_id="alice"))
    async with signed_in(database.admin_dsn, user) as opened:
        yield opened


@pytest.mark.parametrize("column", TEXTS)
async def test_a_text_has_a_bound(tenant: Tenant, column: str) -> None:
    """What is a byte too long is refused by its column's name, without the value; octets count, not letters."""
    bound = TEXTS[column]
    assert await tenant.patch(**{column: "x" * bound}) == "UPDATE 1"
    for value in ("y" * (bound + 1), "\u00e9" * (bound // 2 + 1), "z" * 20_000_000):
        with pytest.raises(asyncpg.CheckViolationError) as raised:
            async with tenant.request() as session:
                await session.execute(f"update public.spotify_connections set {column} = $1", value)
        assert raised.value.as_dict()["column_name"] == column
        assert str(raised.value) == f"{column}: a client may write at most {bound} octets"


@pytest.mark.parametrize("column", ["expires_at", "connected_at"])
async def test_a_time_has_a_bound(tenant: Tenant, column: str) -> None:
    """No client writes infinity or another time that no token has."""
    for value in ("infinity", "-infinity", "1999-12-31 23:59:59+00", "2200-01-02 00:00+00"):
        text = f"update public.spotify_connections set {column} = '{value}'"
        assert await tenant.send(text) == "23514"
    assert await tenant.send(f"update public.spotify_connections set {column} = '2100-01-01 00:00+00'") == "UPDATE 1"


async def test_a_new_row_has_the_same_bounds(tenant: Tenant) -> None:
    """To delete the row and insert another is no way round, nor is an upsert."""
    assert await tenant.send("delete from public.spotify_connections") == "DELETE 1"
    assert await tenant.send(INSERT, tenant.user_id, "x" * 1025) == "23514"
    assert await tenant.send(INSERT, tenant.user_id, "x" * 1024) == "INSERT 0 1"
    upsert = INSERT + " on conflict (user_id) do update set scope = excluded.scope || excluded.scope"
    assert await tenant.send(upsert, tenant.user_id, "x" * 600) == "23514"


async def test_a_role_that_inherits_is_bound(tenant: Tenant, admin: asyncpg.Connection) -> None:
    """A role of the project's own that has the rights of `authenticated` is bound as that is."""
    await admin.execute("create role customer; grant authenticated to customer")
    try:
        async with tenant.request() as session:
            await session.execute("reset role; set local role customer")
            with pytest.raises(asyncpg.CheckViolationError):
                await session.execute("update public.spotify_connections set scope = repeat('x', 2000)")
    finally:
        await admin.execute("drop role customer")


async def test_what_the_owner_wrote_may_stay(tenant: Tenant, admin: asyncpg.Connection) -> None:
    """Others are not bound, and a user whose row holds such a value changes the other columns and repairs it."""
    for role in ("postgres", "service_role"):
        async with admin.transaction():
            await admin.execute(f"set local role {role}")
            await admin.execute(
                "update public.spotify_connections set email = repeat('x', 5000), connected_at = 'infinity'"
            )
    assert await tenant.patch(scope="a") == "UPDATE 1"
    assert await tenant.patch(email="x" * 4999) == "23514"
    assert await tenant.patch(email="a@example.com", connected_at=datetime.now(UTC)) == "UPDATE 1"


async def test_the_library_is_not_bound(tenant: Tenant, store: ConnectionStore) -> None:
    """What it saves is bounded where Spotify's answer is read."""
    await store.save(tenant.user_id, GRANT, Profile(spotify_user_id="alice", display_name="x" * 2000))
    assert (await store.get(tenant.user_id)).display_name == "x" * 2000


async def test_the_bound_comes_with_the_schema(tenant: Tenant, admin: asyncpg.Connection) -> None:
    """Applied to a database of the same version from before, the file adds it."""
    await admin.execute("drop trigger spotconn_check_bounds on public.spotify_connections")
    assert await tenant.patch(scope="x" * 2000) == "UPDATE 1"
    await admin.execute(read_sql("schema.sql"))
    assert await tenant.patch(scope="y" * 2000) == "23514"
