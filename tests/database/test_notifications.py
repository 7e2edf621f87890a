"""Which changes of the table are notified on the channel, with which payload, and which are silent."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from uuid import UUID, uuid4

import asyncpg
import pytest

from spotconn import ConnectionStore, Outcome, Profile, RefreshFailure, TokenGrant
from spotconn.models import StoredTexts, fingerprint
from spotconn.turns import RefreshTurn
from support.connections import grant
from support.database import Database, serving

ALICE = Profile(spotify_user_id="alice")
SEEN = fingerprint("access-old")
NEW = TokenGrant(
    access_token="access-new", refresh_token="refresh-new", expires_at=datetime.now(UTC), expires_in=3600.0
)
SAME = NEW.model_copy(update={"refresh_token": None})


class Channel:
    """What arrives on the channel."""

    def __init__(self, listener: asyncpg.Connection, sender: asyncpg.Connection) -> None:
        self._listener = listener
        self._sender = sender
        self._payloads: list[str] = []
        self._arrived = asyncio.Event()

    def notified(self, _session: object, _pid: object, _channel: object, payload: object) -> None:
        self._payloads.append(str(payload))
        if str(payload).startswith("heartbeat"):
            self._arrived.set()

    async def payloads(self) -> list[str]:
        """Return what has arrived since the last time: a heartbeat that is sent now follows all that came before."""
        self._arrived.clear()
        nonce = uuid4().hex
        assert await self._sender.fetchval("select spotconn.heartbeat($1)", nonce)
        async with asyncio.timeout(10):
            await self._arrived.wait()
        *before, last = self._payloads
        assert last == f"heartbeat {nonce}"
        self._payloads.clear()
        return before


@pytest.fixture
async def channel(database: Database, admin: asyncpg.Connection) -> AsyncIterator[Channel]:
    """The channel, heard by a session of its own."""
    listener = await asyncpg.connect(database.dsn)
    made = Channel(listener, admin)
    await listener.add_listener("spotconn", made.notified)
    yield made
    await listener.close()


async def begun(store: ConnectionStore, user: UUID) -> RefreshTurn:
    await store.save(user, grant("old", minutes=-1), ALICE)
    turn = await store.begin_refresh(user, seen=SEEN)
    assert turn.outcome is Outcome.GRANTED
    return turn


Write = Callable[[ConnectionStore, UUID, RefreshTurn], Awaitable[object]]
OF_THE_STORE: dict[str, tuple[Write, bool]] = {
    "a refresh": (lambda store, _user, turn: store.finish_refresh(turn, NEW), False),
    "a refresh that keeps the refresh token": (lambda store, _user, turn: store.finish_refresh(turn, SAME), False),
    "a refresh of a rejected token": (lambda store, _user, turn: store.finish_refresh(turn, NEW, rejected=True), True),
    "a refusal": (lambda store, _user, turn: store.fail_refresh(turn, RefreshFailure(reason="refused")), False),
    "a pause": (lambda store, _user, turn: store.fail_refresh(turn, RefreshFailure(reason="unavailable")), False),
    "another turn": (lambda store, user, _turn: store.begin_refresh(user, seen=SEEN), False),
    "a connect": (lambda store, user, _turn: store.save(user, NEW, ALICE), True),
    "a disconnect": (lambda store, user, _turn: store.delete(user), True),
    "a read": (lambda store, user, _turn: store.get(user), False),
}


@pytest.mark.parametrize("name", OF_THE_STORE)
async def test_of_the_store_only_what_makes_a_cached_token_wrong(
    store: ConnectionStore, user: UUID, channel: Channel, name: str
) -> None:
    """A connect, a disconnect and the refresh of a rejected token name the user, once and without anything else."""
    write, notified = OF_THE_STORE[name]
    turn = await begun(store, user)
    assert await channel.payloads() == [str(user)]
    assert await write(store, user, turn) is not None
    assert await channel.payloads() == ([str(user)] if notified else [])


async def test_a_row_that_is_mended_is_notified(store: ConnectionStore, user: UUID, channel: Channel) -> None:
    """Other processes compare what they have saved with it: one may have a later grant."""
    current = await store.save(user, grant("old", minutes=-1), ALICE)
    await channel.payloads()
    texts = StoredTexts("access-new", "refresh-new")
    assert await store.refreshes.restore(current, texts, expires_in=600, age=0, saves=9, family=None, client_id=None)
    assert await channel.payloads() == [str(user)]


async def test_a_connect_after_a_refresh_in_one_session_is_notified(
    database: Database, user: UUID, channel: Channel, admin: asyncpg.Connection
) -> None:
    """The mark of a refresh ends with its statement, also within one transaction or where it changed no row."""
    async with ConnectionStore.open(database.dsn, max_size=1) as store:
        turn = await begun(store, user)
        assert turn.connection is not None
        await channel.payloads()
        for replaced in ("refresh-old", "refresh-old"):
            async with store.as_user(user) as session:
                await session.fetch(
                    "select saved from spotconn.finish_refresh($1, $2, $3, 'a', 'r', null, 3600, 0, null, $4, $5)",
                    user,
                    bytes.fromhex(fingerprint(replaced)),
                    bytes.fromhex(turn.connection.fingerprint),
                    turn.lease_id,
                    turn.lease_until,
                )
                assert await session.fetchval("select current_setting('spotconn.refresh', true)") in {"", None}
                await session.execute("update public.spotify_connections set display_name = 'other'")
            assert await channel.payloads() == [str(user)]


FOREIGN = {
    "a name": "update public.spotify_connections set display_name = 'other'",
    "tokens and their end": "update public.spotify_connections set access_token = 'a', refresh_token = 'r', "
    "expires_at = now() + interval '1 hour'",
    "an access token and its end": "update public.spotify_connections set access_token = 'a', "
    "expires_at = now() + interval '1 hour'",
    "the same": "update public.spotify_connections set access_token = access_token",
    "a row deleted": "delete from public.spotify_connections",
}


@pytest.mark.parametrize("mark", ["", "on"])
@pytest.mark.parametrize("role", ["authenticated", "service_role", "postgres"])
@pytest.mark.parametrize("name", FOREIGN)
async def test_no_foreign_writer_is_silent(
    store: ConnectionStore, user: UUID, channel: Channel, admin: asyncpg.Connection, name: str, role: str, mark: str
) -> None:
    """Not even one that writes what a refresh writes, nor one that has set the mark of a refresh: the role counts."""
    await begun(store, user)
    await channel.payloads()
    if role == "authenticated" and await admin.fetchval("select to_regprocedure('spotconn.locked_down()') is not null"):
        pytest.skip("clients may not write")
    async with admin.transaction():
        await admin.execute(f"set local role {role}")
        await admin.execute(
            "select set_config('request.jwt.claims', $1, true), set_config('spotconn.refresh', $2, true)",
            f'{{"sub": "{user}"}}',
            mark,
        )
        assert (await admin.execute(FOREIGN[name])).endswith(" 1")
    assert await channel.payloads() == [str(user)]


async def test_what_ends_many_or_moves_one_is_notified(
    store: ConnectionStore, users: list[UUID], channel: Channel, admin: asyncpg.Connection
) -> None:
    """An insert, a row given to another user, a user deleted, a truncate; and nothing of what is rolled back."""
    alice, bob, _ = users
    await begun(store, alice)
    assert await channel.payloads() == [str(alice)]
    await admin.execute("update public.spotify_connections set user_id = $1", bob)
    assert await channel.payloads() == [str(alice), str(bob)]
    transaction = admin.transaction()
    await transaction.start()
    await admin.execute("delete from public.spotify_connections")
    await transaction.rollback()
    assert await channel.payloads() == []
    await admin.execute("delete from auth.users where id = $1", bob)
    assert await channel.payloads() == [str(bob)]
    await store.save(alice, grant("new"), ALICE)
    await channel.payloads()
    await admin.execute("truncate public.spotify_connections")
    assert await channel.payloads() == ["*"]


async def test_changes_by_replication_are_notified(
    store: ConnectionStore, user: UUID, channel: Channel, admin: asyncpg.Connection
) -> None:
    """The triggers fire there, too."""
    await begun(store, user)
    await channel.payloads()
    async with admin.transaction():
        await admin.execute("set local session_replication_role = replica")
        await admin.execute("update public.spotify_connections set expires_at = now()")
    assert await channel.payloads() == [str(user)]


@pytest.fixture(scope="module")
def without_standby() -> Iterator[Database]:
    """A server whose synchronous standby is not there. Only a commit that asks for it waits."""
    with serving(synchronous_standby_names="absent", synchronous_commit="off") as database:
        yield database


async def shown(admin: asyncpg.Connection, condition: str) -> None:
    """Wait until a session shows that a condition holds."""
    async with asyncio.timeout(10):
        while not await admin.fetchval(f"select exists ({condition})"):
            await asyncio.sleep(0.01)


async def test_a_refresh_does_not_wait_for_the_notifications_of_others(without_standby: Database) -> None:
    """A session that has notified holds one lock of the whole cluster until its commit is on the standby."""
    admin, other = [await asyncpg.connect(without_standby.admin_dsn) for _ in range(2)]
    query = "insert into auth.users (email) values ('a'), ('b') returning id"
    users = [row["id"] for row in await admin.fetch(query)]
    async with ConnectionStore.open(without_standby.dsn) as store:
        turns = [await begun(store, user) for user in users]
        await other.execute("set synchronous_commit = on")
        # A transaction that only notifies does not wait for the standby.
        committing = asyncio.create_task(
            other.execute("insert into auth.users (email) values ('c'); select pg_notify('another', '')")
        )
        try:
            await shown(admin, "select from pg_stat_activity where wait_event = 'SyncRep'")
            async with asyncio.timeout(2):
                assert await store.finish_refresh(turns[0], NEW)
            notifying = asyncio.create_task(store.finish_refresh(turns[1], NEW, rejected=True))
            await shown(admin, "select from pg_locks where classid = 'pg_database'::regclass and not granted")
            await asyncio.sleep(0.2)
            assert not notifying.done(), "one that notifies waits"
            assert not committing.done()
        finally:
            await admin.execute("select pg_cancel_backend($1)", other.get_server_pid())  # its commit is local then
            await committing
        assert await notifying
    await asyncio.gather(admin.close(), other.close())
