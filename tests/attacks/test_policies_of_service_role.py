"""Attack: a tenant of a managed server, where policies show service_role every row, turns on other users."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from spotconn import ConnectionStore, Profile, TokenGrant
from spotconn.testing import add_user, apply_schema
from support.database import Database
from support.managed import Managed, managed_server
from support.tenant import Tenant

TABLE = "public.spotify_connections"
INSERT = f"insert into {TABLE} (user_id, spotify_user_id, access_token, refresh_token, expires_at) "


async def _prepare(managed: Managed) -> None:
    await managed.prepare()
    await apply_schema(managed.dsn())
    admin = await asyncpg.connect(managed.dsn())
    await admin.execute("alter role authenticator login password 'authenticator'")
    await admin.execute("create role service login password 'service'; grant spotconn to service")
    await admin.close()


@pytest.fixture(scope="module")
def managed(prepared: Database) -> Iterator[Managed]:
    """A managed server whose API server logs in as authenticator."""
    with managed_server(prepared.server._binaries) as server:
        asyncio.run(_prepare(server))
        yield server


@pytest.fixture
async def tenant(managed: Managed) -> AsyncIterator[Tenant]:
    """A connected user beside another, whose requests come by the API server."""
    users = [await add_user(managed.dsn()) for _ in range(2)]
    async with ConnectionStore.open(managed.dsn("service"), max_size=1) as store:
        for user in users:
            grant = TokenGrant(access_token="a", refresh_token="r", expires_at=datetime.now(UTC) + timedelta(hours=1))
            await store.save(user, grant, Profile(spotify_user_id="alice"))
    session = await asyncpg.connect(managed.dsn("authenticator"))
    yield Tenant(session, users[0])
    await session.close()


async def test_a_tenant_reaches_the_own_row_and_no_other(managed: Managed, tenant: Tenant) -> None:
    """Statements without WHERE meet one row, and a row of another user cannot be made, taken or given away."""
    other = await add_user(managed.dsn())
    assert await tenant.send(f"select from {TABLE}") == "SELECT 1"
    assert await tenant.patch(email="x") == "UPDATE 1"
    assert await tenant.patch(user_id=other) == "42501"
    assert await tenant.send(f"{INSERT} values ($1, 'x', 'a', 'r', now())", other) == "42501"
    assert await tenant.send("select from spotconn.refresh_state") == "42501"
    assert await tenant.send(f"delete from {TABLE}") == "DELETE 1"


@pytest.mark.parametrize("role", ["anon", "authenticated", "spotconn"])
async def test_a_claim_makes_nobody_service_role(managed: Managed, tenant: Tenant, role: str) -> None:
    """The policies ask for the role of the session, not for the claim `role` of a token."""
    login = await asyncpg.connect(managed.dsn("service" if role == "spotconn" else "authenticator"))
    try:
        async with login.transaction():
            claims = json.dumps({"sub": str(tenant.user_id), "role": "service_role"})
            await login.execute(
                "select set_config('role', $1, true), set_config('request.jwt.claims', $2, true)", role, claims
            )
            if role == "anon":
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await login.fetch(f"select from {TABLE}")
            else:
                assert len(await login.fetch(f"select from {TABLE}")) == 1
    finally:
        await login.close()


@pytest.mark.parametrize("login", ["authenticator", "service"])
async def test_a_login_by_itself_sees_no_row(managed: Managed, tenant: Tenant, login: str) -> None:
    """The API server's login does not inherit from service_role, and that of the service is bound without a user."""
    session = await asyncpg.connect(managed.dsn(login))
    try:
        visible = await session.fetch(f"select from {TABLE}")
    except asyncpg.InsufficientPrivilegeError:
        visible = []
    finally:
        await session.close()
    assert visible == []


@pytest.mark.long
async def test_the_login_of_the_service_does_not_become_service_role(managed: Managed, tenant: Tenant) -> None:
    """A service that answers users has no way to the policies that show every row."""
    session = await asyncpg.connect(managed.dsn("service"))
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await session.execute("set role service_role")
    finally:
        await session.close()
