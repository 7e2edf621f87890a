"""A rekey ends with its work done, whatever tenants write into their own rows meanwhile."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from uuid import UUID

import asyncpg
import pytest

from spotconn import AesGcmSivCipher, ConfigurationError, ConnectionAdmin, ConnectionStore, Profile, RekeyProgress
from support.connections import grant
from support.database import Database
from support.tenant import signed_in

ALICE = Profile(spotify_user_id="alice")
OLD_KEY, NEW_KEY = AesGcmSivCipher.generate_key(), AesGcmSivCipher.generate_key()
OLD, RING = AesGcmSivCipher([OLD_KEY]), [NEW_KEY, OLD_KEY]
STRICT = AesGcmSivCipher(RING, require_encrypted=True)
OPEN = AesGcmSivCipher(RING)


@pytest.fixture
async def strict(operator: str) -> AsyncIterator[ConnectionAdmin]:
    """An admin of a service that requires encryption."""
    async with ConnectionAdmin.open(operator, cipher=STRICT) as opened:
        yield opened


@pytest.fixture
async def stored(database: Database, users: list[UUID]) -> list[UUID]:
    """Three users with tokens under the old key."""
    async with ConnectionStore.open(database.dsn, cipher=OLD) as store:
        for user in users:
            await store.save(user, grant(str(user)), ALICE)
    return users


@asynccontextmanager
async def writing(database: Database, user: UUID, *values: str) -> AsyncGenerator[None]:
    """Let a tenant write one value after the other into the own row, all the time."""
    begun = asyncio.Event()

    async def write() -> None:
        async with signed_in(database.admin_dsn, user) as tenant:
            while True:
                for value in values:
                    if await tenant.patch(access_token=value) == "42501":
                        pytest.skip("clients write no tokens: the database is locked down")
                    begun.set()

    task = asyncio.create_task(write())
    waiting = asyncio.create_task(begun.wait())
    await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        waiting.cancel()
        await task
    yield
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.parametrize("values", [("spotconn1.deadbeef.AAAA",), ("spotconn1.deadbeef.AAAA", "spotconn9.x", "plain")])
async def test_odd_values_of_a_tenant_do_not_keep_it_from_its_end(
    database: Database, strict: ConnectionAdmin, stored: list[UUID], values: tuple[str, ...]
) -> None:
    """All other rows are rewritten, and the one is counted as left."""
    async with writing(database, stored[0], *values):
        done = await strict.rekey()
    assert (done.done, done.remaining) == (2, 1)
    async with ConnectionStore.open(database.dsn, cipher=AesGcmSivCipher([NEW_KEY])) as store:
        for user in stored[1:]:
            assert (await store.get(user)).access_token == f"access-{user}"


async def test_what_is_left_is_counted_apart(
    strict: ConnectionAdmin, stored: list[UUID], admin: asyncpg.Connection
) -> None:
    """Plain text, a key of no ring, and a value of another row; of two values of a row the worse one counts."""
    moved = OLD.encrypt("moved", user_id=stored[0], column="access_token")
    for user, value in zip(stored, ("plain", "spotconn1.deadbeef.AAAA", moved), strict=True):
        await admin.execute("update public.spotify_connections set access_token = $2 where user_id = $1", user, value)
    await admin.execute("update public.spotify_connections set refresh_token = 'plain' where user_id = $1", stored[2])
    expected = RekeyProgress(total=3, done=0, lost=0, plain_text=1, unknown_key=1, unreadable=1)
    assert await strict.rekey() == expected
    assert expected.remaining == 3


async def test_planted_plain_text_does_not_become_authentic(
    database: Database, strict: ConnectionAdmin, operator: str, stored: list[UUID], admin: asyncpg.Connection
) -> None:
    """Once encryption is required a rekey leaves it; before, it is encrypted and counted."""
    await admin.execute("update public.spotify_connections set refresh_token = 'planted' where user_id = $1", stored[0])
    done = await strict.rekey()
    assert (done.done, done.encrypted, done.plain_text) == (2, 0, 1)
    planted = "select refresh_token from public.spotify_connections where user_id = $1"
    assert await admin.fetchval(planted, stored[0]) == "planted"
    async with ConnectionAdmin.open(operator, cipher=OPEN) as lenient:
        done = await lenient.rekey()
    assert (done.done, done.encrypted, done.remaining) == (1, 1, 0)
    async with ConnectionStore.open(database.dsn, cipher=STRICT) as store:
        assert (await store.get(stored[0])).refresh_token == "planted"


async def test_a_tenant_who_writes_an_old_value_back_is_named(
    database: Database, strict: ConnectionAdmin, stored: list[UUID], admin: asyncpg.Connection
) -> None:
    """The rekey ends after its passes, has rewritten the others, and says whose rows come back."""
    old = await admin.fetchval("select access_token from public.spotify_connections where user_id = $1", stored[0])

    async def write_back() -> str:
        async with signed_in(database.admin_dsn, stored[0]) as tenant:
            return await tenant.patch(access_token=old)

    with ThreadPoolExecutor(1) as tenants:
        if tenants.submit(asyncio.run, write_back()).result() == "42501":
            pytest.skip("clients write no tokens: the database is locked down")
        with pytest.raises(ConfigurationError, match=rf"^1 connection is left \(among them user {stored[0]}\)"):
            # After each batch: the rekey goes on once the tenant has written.
            await strict.rekey(progress=lambda _: tenants.submit(asyncio.run, write_back()).result())
    async with ConnectionStore.open(database.dsn, cipher=AesGcmSivCipher([NEW_KEY])) as store:
        await store.get(stored[1])


async def test_a_row_that_a_tenant_holds_is_left_for_later(
    database: Database, strict: ConnectionAdmin, stored: list[UUID]
) -> None:
    """The rekey does not wait for it with the locks of others: those are rewritten, and their writes come through."""
    seen: list[RekeyProgress] = []
    passed = asyncio.Event()

    def report(progress: RekeyProgress) -> None:
        seen.append(progress)
        passed.set()

    async with signed_in(database.admin_dsn, sorted(stored)[1]) as tenant:
        async with tenant.request() as session:
            await session.execute("delete from public.spotify_connections")
            rekey = asyncio.create_task(strict.rekey(progress=report))
            await passed.wait()
            async with ConnectionStore.open(database.dsn, cipher=STRICT) as store:
                await store.save(min(stored), grant("new"), ALICE)
            await session.execute("rollback; begin")
        done = await rekey
    assert (seen[0].done, seen[0].lost) == (2, 1)
    assert (done.done, done.lost, done.remaining) == (3, 1, 0)


async def test_a_lock_that_any_login_can_hold_stops_nothing(
    database: Database, strict: ConnectionAdmin, stored: list[UUID]
) -> None:
    """The advisory lock that earlier versions asked for is held by a tenant's session."""
    async with signed_in(database.admin_dsn, stored[0]) as tenant, tenant.request() as session:
        await session.execute("select pg_advisory_xact_lock(hashtext('spotconn.rekey'))")
        assert (await asyncio.wait_for(strict.rekey(), 10)).done == 3
