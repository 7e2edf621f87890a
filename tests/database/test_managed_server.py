"""Without a superuser and without BYPASSRLS, as on managed servers, everything works; what hides rows is named."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest

from spotconn import (
    AesGcmSivCipher,
    ConnectionAdmin,
    ConnectionStore,
    NotConnected,
    Profile,
    RowSecurityError,
    TokenGrant,
)
from spotconn.testing import add_user, apply_schema
from spotconn.testing._database import reset
from support.database import Database
from support.doctor import KEY, look
from support.managed import Managed, managed_server

TABLE = "public.spotify_connections"
STATE = "spotconn.refresh_state"
OWN = '"Every row for service_role"'
POLICIES = f"select count(*) from pg_policy where polname = '{OWN[1:-1]}'"
CIPHER = AesGcmSivCipher([KEY])


async def _prepare(managed: Managed) -> None:
    await managed.prepare()
    for _ in range(2):
        await apply_schema(managed.dsn())
    admin = await asyncpg.connect(managed.dsn())
    await admin.execute("create role operator login password 'operator'; grant spotconn, service_role to operator")
    await admin.execute("create role service login password 'service'; grant spotconn to service")
    await admin.close()


@pytest.fixture(scope="module")
def prepared_managed(prepared: Database) -> Iterator[Managed]:
    """A managed server with the schema applied twice by its administrator, and the logins of the guide."""
    with managed_server(prepared.server._binaries) as managed:
        asyncio.run(_prepare(managed))
        yield managed


@pytest.fixture
async def managed(prepared_managed: Managed) -> Managed:
    """The same without a user."""
    await reset(prepared_managed.dsn())
    return prepared_managed


@pytest.fixture
async def admin(managed: Managed) -> AsyncIterator[asyncpg.Connection]:
    """A connection of its administrator."""
    connection = await asyncpg.connect(managed.dsn())
    yield connection
    await connection.close()


@pytest.fixture
async def stored(managed: Managed) -> list[UUID]:
    """Two users whose tokens were stored in plain text, by the service's login."""
    users = [await add_user(managed.dsn()) for _ in range(2)]
    async with ConnectionStore.open(managed.dsn("service"), max_size=1) as store:
        for user in users:
            grant = TokenGrant(access_token="a", refresh_token="r", expires_at=datetime.now(UTC) + timedelta(hours=1))
            await store.save(user, grant, Profile(spotify_user_id="alice"))
    return users


async def test_an_operator_works_on_every_row(managed: Managed, stored: list[UUID], admin: asyncpg.Connection) -> None:
    """Each operation of the admin reads and writes the rows of all users."""
    other = await add_user(managed.dsn())
    async with ConnectionAdmin.open(managed.dsn("operator"), cipher=CIPHER) as house:
        assert (await house.stats()).connections == 2
        assert (await house.rekey()).encrypted == 2
        assert (await house.stats()).plain_text == 0
        assert await house.assign_app("a" * 32) == 2
        assert len([one async for one in house.expiring(within=timedelta(days=300))]) == 2
        assert await house.mark_asked(stored) == 2
        assert all([one.asked_at async for one in house.expiring(within=timedelta(days=300))])
        assert await house.move(stored[0], other)
        assert await house.recheck(since=datetime.now(UTC)) == 0
        await admin.execute("update public.spotify_connections set expires_at = now() where user_id = $1", stored[1])
        assert (await house.prune(dead_for=timedelta(), retired_client_ids=["a" * 32], write=True)).retired_app == 1
    async with ConnectionStore.open(managed.dsn("service"), max_size=1, cipher=CIPHER) as store:
        assert (await store.get(other)).refresh_token == "r"
        with pytest.raises(NotConnected):
            await store.get(stored[0])


@pytest.mark.parametrize("login", ["operator", "service", "admin"])
async def test_the_doctor_finds_nothing_to_mend(managed: Managed, stored: list[UUID], login: str) -> None:
    """The policies of service_role are neither missing nor unknown, and the stored tokens are counted through them."""
    found = await look(managed.dsn(login))
    assert {subject for subject, one in found.items() if one.state == "fail"} == set()
    assert found["catalog"].text == "tables, policies, rights and functions are as shipped"
    if login == "operator":
        assert found["grants"].text == "complete"
        assert found["stored tokens"].text.startswith("4 of 4 values are in plain text")


HIDING = {
    f"drop policy {OWN} on {TABLE}": f"no policy shows it every row of {TABLE}: spotconn schema --apply",
    f"drop policy {OWN} on {STATE}": f"no policy shows it every row of {STATE}: spotconn schema --apply",
    f"alter policy {OWN} on {TABLE} using (email is null)": f"no policy shows it every row of {TABLE}",
    f"alter policy {OWN} on {TABLE} with check (email is null)": f"no policy shows it every row of {TABLE}",
    f"alter policy {OWN} on {TABLE} to spotconn": f"no policy shows it every row of {TABLE}",
    **{
        f"create policy r on {TABLE} as restrictive for {command}": (
            f"the restrictive policy r binds it: ALTER POLICY r ON {TABLE} TO anon, authenticated"
        )
        for command in ("all using (email is null)", "update using (false)", "insert with check (false)")
    },
    f'create policy "a b" on {STATE} as restrictive for delete to service_role using (failures = 0)': (
        f'the restrictive policy "a b" binds it: ALTER POLICY "a b" ON {STATE} TO anon, authenticated'
    ),
}


@pytest.mark.parametrize("alteration", HIDING)
async def test_what_hides_rows_is_named_before_anything_is_done(
    managed: Managed, stored: list[UUID], admin: asyncpg.Connection, alteration: str
) -> None:
    """The admin refuses, and the doctor names the same remedy, which is enough and takes no superuser."""
    await admin.execute(alteration)
    try:
        async with ConnectionAdmin.open(managed.dsn("operator"), cipher=CIPHER) as operator:
            with pytest.raises(RowSecurityError) as raised:
                await operator.rekey()
            assert HIDING[alteration] in str(raised.value)
            found = await look(managed.dsn("operator"))
            assert (found["grants"].state, found["catalog"].state) == ("fail", "fail")
            assert HIDING[alteration] in str(found["grants"].remedy)
            assert found["stored tokens"].state == "skip"
            remedy = str(raised.value).rpartition(": ")[2]
            await (admin.execute(remedy) if remedy.startswith("ALTER") else apply_schema(managed.dsn()))
            assert (await operator.rekey()).encrypted == 2
    finally:
        await admin.execute(f'drop policy if exists r on {TABLE}; drop policy if exists "a b" on {STATE}')
        await apply_schema(managed.dsn())


async def test_a_table_of_another_login_is_taken_back(managed: Managed, admin: asyncpg.Connection) -> None:
    """What the doctor says of its owner can be done by an administrator that is no superuser, and is enough."""
    await admin.execute("create role former; grant former to current_user; grant create on schema spotconn to former")
    await admin.execute(f"alter table {STATE} owner to former; revoke former from current_user")
    found = (await look(managed.dsn()))["catalog"]
    assert found.state == "fail"
    grant, alter = re.findall(r"GRANT former TO CURRENT_USER|ALTER TABLE \S+ OWNER TO CURRENT_USER", str(found.remedy))
    await admin.execute(f"{grant}; {alter}; revoke create on schema spotconn from former; drop role former")
    await apply_schema(managed.dsn())
    assert (await look(managed.dsn()))["catalog"].state == "ok"


async def test_policies_that_bind_others_hide_nothing(
    managed: Managed, stored: list[UUID], admin: asyncpg.Connection
) -> None:
    """A restrictive policy for client roles, or one that lets every row pass, is no reason to refuse."""
    await admin.execute(f"create policy r on {TABLE} as restrictive to authenticated using (false)")
    await admin.execute(f"create policy s on {TABLE} as restrictive using (true) with check (true)")
    try:
        async with ConnectionAdmin.open(managed.dsn("operator")) as operator:
            assert (await operator.stats()).connections == 2
    finally:
        await admin.execute(f"drop policy r on {TABLE}; drop policy s on {TABLE}")


@pytest.mark.long
async def test_the_policies_go_where_service_role_has_bypassrls(
    managed: Managed, stored: list[UUID], admin: asyncpg.Connection
) -> None:
    """They are made only where it lacks that, and are needed from the moment on at which it is taken away."""
    provider = await asyncpg.connect(managed.provider_dsn)
    try:
        assert await admin.fetchval(POLICIES) == 3
        await provider.execute("alter role service_role bypassrls")
        found = await look(managed.dsn("operator"))
        assert {subject for subject, one in found.items() if one.state == "fail"} == set()
        await apply_schema(managed.dsn())
        assert await admin.fetchval(POLICIES) == 0
        async with ConnectionAdmin.open(managed.dsn("operator")) as operator:
            assert (await operator.stats()).connections == 2
            await provider.execute("alter role service_role nobypassrls")
            with pytest.raises(RowSecurityError, match="spotconn schema --apply"):
                await operator.stats()
            await apply_schema(managed.dsn())
            assert (await operator.stats()).connections == 2
    finally:
        await provider.execute("alter role service_role nobypassrls")
        await provider.close()
        await apply_schema(managed.dsn())
