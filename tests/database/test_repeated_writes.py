"""A write that was given up while it waited for the synchronous standby, and is then asked for again.

Postgres has committed it locally, so its repetition may find nothing to do. It must not answer before the standby has
the first one: a promotion would undo what was acknowledged.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest

from spotconn import (
    AesGcmSivCipher,
    ConnectionAdmin,
    ConnectionStore,
    DatabaseUnavailable,
    Profile,
    RefreshFailure,
    TokenGrant,
)
from spotconn._database.pending_connects import Claim, PendingConnect
from spotconn._database.schema import schema_sql
from spotconn.errors import ConnectFailed
from spotconn.models import fingerprint
from spotconn.turns import RefreshTurn
from support.connections import grant
from support.database import Database, serving
from support.listening import SOON

ALICE = Profile(spotify_user_id="alice")
SEEN = fingerprint("access-old")
NEW = TokenGrant(
    access_token="access-new", refresh_token="refresh-new", expires_at=datetime.now(UTC), expires_in=3600.0
)
SAME = NEW.model_copy(update={"refresh_token": None})
REFUSED = RefreshFailure(reason="refused")
OLD_KEY, NEW_KEY = AesGcmSivCipher.generate_key(), AesGcmSivCipher.generate_key()
WAITING = "select pid from pg_stat_activity where wait_event = 'SyncRep'"
AWAY, BACK = (
    "alter system set synchronous_standby_names = 'absent'",
    "alter system set synchronous_standby_names = ''",
)
DURABLE, LOCAL = ({"synchronous_commit": level} for level in ("on", "off"))
DEAD = """
update public.spotify_connections
set expires_at = now() - interval '100 days', connected_at = now() - interval '300 days';
update spotconn.refresh_state set failure = 'expired', retry_at = null, client_id = 'our-app',
    failed_at = now() - interval '95 days', paused_at = null, saved_at = null, leased_at = null, lease_until = null
"""


@pytest.fixture(scope="module")
def primary() -> Iterator[Database]:
    """A server on which only a commit that asks for it waits for a standby."""
    with serving(synchronous_commit="off") as database:
        yield database


@pytest.fixture
async def observer(primary: Database) -> AsyncIterator[asyncpg.Connection]:
    """A superuser's connection, while the synchronous standby is away; afterwards nobody is connected."""
    connection = await asyncpg.connect(primary.admin_dsn)
    await standby(connection, AWAY)
    yield connection
    await standby(connection, BACK)
    await connection.execute("delete from auth.users; drop table if exists public.source")
    await connection.close()


@pytest.fixture
async def user(observer: asyncpg.Connection) -> UUID:
    made: UUID = await observer.fetchval("insert into auth.users (email) values ('a') returning id")
    return made


async def standby(observer: asyncpg.Connection, change: str) -> None:
    """Let the standby be away, or let no commit wait for it any more."""
    await observer.execute(change)
    await observer.execute("select pg_reload_conf()")


async def one_waits(observer: asyncpg.Connection, call: "asyncio.Task[object]") -> bool:
    """Return whether a commit waits for the standby, or False once the call has ended."""
    async with asyncio.timeout(SOON):
        while not call.done():
            if await observer.fetchval(WAITING):
                return True
            await asyncio.sleep(0.01)
    return False


async def give_up(observer: asyncpg.Connection, write: Awaitable[object]) -> None:
    """Begin a write, and give it up once its commit waits for the standby: it stands on the primary then."""
    call = asyncio.ensure_future(write)
    assert await one_waits(observer, call), "the first one waits"
    call.cancel()
    with suppress(asyncio.CancelledError, DatabaseUnavailable):
        await call
    async with asyncio.timeout(SOON):
        while await observer.fetchval(WAITING):
            await asyncio.sleep(0.01)


async def repeated(observer: asyncpg.Connection, write: Awaitable[object]) -> object:
    """Return the answer of a repetition, which has to come after the standby is not waited for any more."""
    call = asyncio.ensure_future(write)
    waits = await one_waits(observer, call)
    await standby(observer, BACK)
    answer = await call
    assert waits, f"answered {answer!r} while the standby was away"
    return answer


@asynccontextmanager
async def prepared(primary: Database) -> AsyncGenerator[tuple[ConnectionStore, ConnectionStore]]:
    """A store whose commits wait for nobody, to prepare with, and one whose commits wait for the standby."""
    async with (
        ConnectionStore.open(primary.dsn, server_settings=LOCAL) as local,
        ConnectionStore.open(primary.dsn, server_settings=DURABLE) as durable,
    ):
        yield local, durable


async def begun(store: ConnectionStore, user: UUID) -> RefreshTurn:
    await store.save(user, grant("old", minutes=-1), ALICE)
    turn = await store.begin_refresh(user, seen=SEEN)
    assert turn.connection
    return turn


Write = Callable[[ConnectionStore, UUID, RefreshTurn], Awaitable[object]]
OF_THE_STORE: dict[str, Write] = {
    "a disconnect": lambda store, user, _turn: store.delete(user),
    "a connect": lambda store, user, _turn: store.save(user, NEW, ALICE),
    "a connect of the same account": lambda store, user, _turn: store.save(user, NEW, ALICE, same_account=True),
    "a refresh": lambda store, _user, turn: store.finish_refresh(turn, NEW),
    "a refresh that keeps the refresh token": lambda store, _user, turn: store.finish_refresh(turn, SAME),
    "a refresh of a rejected token": lambda store, _user, turn: store.finish_refresh(turn, NEW, rejected=True),
    "a refusal": lambda store, _user, turn: store.fail_refresh(turn, REFUSED),
}


@pytest.mark.parametrize("name", OF_THE_STORE)
async def test_of_the_store(primary: Database, observer: asyncpg.Connection, user: UUID, name: str) -> None:
    """None is acknowledged before the standby has what was given up."""
    write = OF_THE_STORE[name]
    async with prepared(primary) as (local, durable):
        turn = await begun(local, user)
        await give_up(observer, write(durable, user, turn))
        answer = await repeated(observer, write(durable, user, turn))
        assert answer is not None if name.startswith(("a refresh", "a connect")) else not answer


async def test_a_disconnect_that_waits_too_long(primary: Database, observer: asyncpg.Connection, user: UUID) -> None:
    """However often it is repeated, it is not known to be done while the standby is away."""
    async with prepared(primary) as (local, durable):
        await begun(local, user)
        await give_up(observer, durable.delete(user))
        durable.pool.timeout = 0.5
        for _ in range(2):
            with pytest.raises(DatabaseUnavailable):
                await durable.delete(user)
        await standby(observer, BACK)
        durable.pool.timeout = SOON
        assert not await durable.delete(user)


LATER = {
    "a disconnect": "delete from public.spotify_connections",
    "a reconnect": "update public.spotify_connections set refresh_token = 'other'",
    "a deleted user": "delete from auth.users",
}


@pytest.mark.parametrize("name", LATER)
async def test_a_grant_that_was_overtaken(
    primary: Database, observer: asyncpg.Connection, user: UUID, name: str
) -> None:
    """Its process drops it once it is answered so: not before the standby has what came first."""
    async with prepared(primary) as (local, durable):
        turn = await begun(local, user)
        await observer.execute(LATER[name])
        assert await repeated(observer, durable.finish_refresh(turn, NEW)) is None


async def test_a_claim(primary: Database, observer: asyncpg.Connection, user: UUID) -> None:
    """Its repetition is refused at once: that acknowledges nothing, and nobody got the code verifier."""
    async with prepared(primary) as (local, durable):
        await local.pending.put(PendingConnect(user, "verifier"), "state", life=600)
        claim = Claim("state", "user", user)
        await give_up(observer, durable.pending.take(claim))
        with pytest.raises(ConnectFailed) as refusal:
            await durable.pending.take(claim)
        assert refusal.value.reason == "state_used"


Work = Callable[[ConnectionAdmin, UUID, UUID], Awaitable[object]]


async def migrated(admin: ConnectionAdmin, _user: UUID, _other: UUID) -> list[str]:
    return [row.state async for row in admin.migrate("public.source", write=True)]


OF_THE_ADMIN: dict[str, tuple[Work, str]] = {
    "prune": (lambda admin, _user, _other: admin.prune(dead_for=timedelta(days=90), write=True), DEAD),
    "rekey": (lambda admin, _user, _other: admin.rekey(), ""),
    "recheck": (lambda admin, _user, _other: admin.recheck(since=datetime.now(UTC) - timedelta(days=200)), DEAD),
    "assign_app": (lambda admin, _user, _other: admin.assign_app("our-app"), ""),
    "mark_asked": (
        lambda admin, user, _other: admin.mark_asked([user], not_asked_since=datetime.now(UTC) - timedelta(days=1)),
        DEAD,
    ),
    "move": (lambda admin, user, other: admin.move(user, other), ""),
    "move of what is gone": (lambda admin, _user, other: admin.move(UUID(int=1), other), "delete from auth.users"),
    "migrate": (migrated, "delete from public.spotify_connections"),
}


@pytest.mark.parametrize("name", OF_THE_ADMIN)
async def test_of_the_admin(primary: Database, observer: asyncpg.Connection, user: UUID, name: str) -> None:
    """An operator who is told that nothing is left to do may drop a key, or a table."""
    work, change = OF_THE_ADMIN[name]
    other = await observer.fetchval("insert into auth.users (email) values ('b') returning id")
    await observer.execute("create table public.source (user_id uuid, spotify_user_id text, refresh_token text)")
    await observer.execute("insert into public.source values ($1, 'alice', 'refresh-x')", user)
    async with ConnectionStore.open(primary.dsn, server_settings=LOCAL, cipher=AesGcmSivCipher([OLD_KEY])) as store:
        await store.save(user, grant("old"), ALICE)
    await observer.execute(change or "select")
    cipher = AesGcmSivCipher([NEW_KEY, OLD_KEY])
    async with ConnectionAdmin.open(primary.admin_dsn, cipher=cipher, server_settings=DURABLE) as admin:
        if "gone" not in name:
            await give_up(observer, work(admin, user, other))
        await repeated(observer, work(admin, user, other))


@pytest.mark.long
async def test_the_schema_applied_again(primary: Database, observer: asyncpg.Connection) -> None:
    """It always writes: what is answered stands on the standby."""
    session = await asyncpg.connect(primary.admin_dsn, server_settings=DURABLE)
    await repeated(observer, session.execute(schema_sql(plain_postgres=False)))
    await session.close()
