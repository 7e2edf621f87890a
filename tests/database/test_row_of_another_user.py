"""A database, or what is in between, that answers with another user's row: nothing of that row is used."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest

from spotconn import (
    AesGcmSivCipher,
    ConnectFailed,
    ConnectionAdmin,
    ConnectionStore,
    Profile,
    RefreshFailure,
    RowSecurityError,
    SpotifyAccounts,
    TokenGrant,
    TokenManager,
)
from spotconn._database import service_role
from spotconn._database.pending_connects import Claim, PendingConnect
from spotconn.models import fingerprint
from spotconn.testing import FakeSpotify
from support.connections import connect
from support.database import Database
from support.fault_proxy import FaultProxy

CIPHER = AesGcmSivCipher([AesGcmSivCipher.generate_key()])
SESSIONS = "select pid from pg_stat_activity where usename = $1"
ALICE = Profile(spotify_user_id="alice")


@pytest.fixture
async def way(prepared: Database) -> AsyncIterator[FaultProxy]:
    """The way to the database."""
    async with FaultProxy(prepared.server.port).serve() as proxy:
        yield proxy


@pytest.fixture(params=[None, CIPHER], ids=["plain", "encrypted"])
async def mixed(request: pytest.FixtureRequest, database: Database, way: FaultProxy) -> AsyncIterator[ConnectionStore]:
    """A store with one connection over that way."""
    dsn = way.dsn(database.dsn)
    async with ConnectionStore.open(dsn, max_size=1, cipher=request.param) as store:
        yield store


def granted() -> TokenGrant:
    ends = datetime.now(UTC) + timedelta(hours=1)
    return TokenGrant(access_token="new-access", refresh_token="new-refresh", expires_at=ends)


async def is_refused(call: Awaitable[object], admin: asyncpg.Connection, login: str = "app") -> None:
    """Check that a call names what has happened, gives nothing away, and has closed its connection."""
    before = {row["pid"] for row in await admin.fetch(SESSIONS, login)}
    with pytest.raises(RowSecurityError, match="the row of another user") as raised:
        await call
    assert "alice" not in f"{raised.value!r}{raised.value.__dict__}"
    assert raised.value.__context__ is None
    async with asyncio.timeout(20):  # until one has gone: a process of an earlier test may have others
        while before and before <= {row["pid"] for row in await admin.fetch(SESSIONS, login)}:
            await asyncio.sleep(0.01)


Act = Callable[[ConnectionStore, UUID], Awaitable[object]]
READS: dict[str, Act] = {
    "get_connection(": lambda store, user: store.get(user),
    "get_connections(": lambda store, user: store.get_many([user]),
    "get_access_tokens(": lambda store, user: store.tokens.get(user),
    "save_connection(": lambda store, user: store.save(user, granted(), ALICE),
    "begin_refresh(": lambda store, user: store.begin_refresh(user, seen=fingerprint("")),
    "delete_connection(": lambda store, user: store.delete(user),
    "check_save(": lambda store, user: store.check_save(user),
    "start_connect(": lambda store, user: store.pending.put(PendingConnect(user, "v" * 43), "a-state", life=60),
}


@pytest.mark.parametrize("statement", READS)
async def test_another_users_row_is_refused(
    mixed: ConnectionStore,
    way: FaultProxy,
    spotify: FakeSpotify,
    users: list[UUID],
    admin: asyncpg.Connection,
    statement: str,
) -> None:
    """The statement reaches the server with another user's id: the error says so, and the connection is closed."""
    alice, bob, _ = users
    await connect(mixed, spotify, alice, ttl=-1)
    await connect(mixed, spotify, bob, account="bob", ttl=-1)
    # The ids of an array are sent as text.
    as_text = statement in {"get_connections(", "get_access_tokens("}
    sent, received = (str(user).encode() if as_text else user.bytes for user in (bob, alice))
    with way.replace(statement.encode(), sent, received):
        await is_refused(READS[statement](mixed, bob), admin)
    assert (await mixed.get(users[1])).spotify_user_id == "bob"


@pytest.mark.parametrize("statement", ["finish_refresh(", "fail_refresh("])
async def test_the_end_of_another_users_refresh_is_refused(
    mixed: ConnectionStore,
    way: FaultProxy,
    spotify: FakeSpotify,
    users: list[UUID],
    admin: asyncpg.Connection,
    statement: str,
) -> None:
    """The answer to the end of a refresh bears another user's id."""
    alice, bob, _ = users
    stored = await connect(mixed, spotify, bob, account="bob", ttl=-1)
    turn = await mixed.begin_refresh(bob, seen=stored.fingerprint)
    with way.replace(statement.encode(), bob.bytes, alice.bytes, answer=True):
        call: Awaitable[object] = (
            mixed.finish_refresh(turn, granted())
            if statement.startswith("finish")
            else mixed.fail_refresh(turn, RefreshFailure(reason="unavailable"))
        )
        await is_refused(call, admin)


async def test_another_users_authorization_is_refused(
    mixed: ConnectionStore, way: FaultProxy, users: list[UUID], admin: asyncpg.Connection
) -> None:
    """The code verifier of an authorization goes to nobody but who has started it."""
    alice, bob, _ = users
    await mixed.pending.put(PendingConnect(alice, "v" * 43), "the-state", life=60)
    with way.replace(b"take_connect(", bob.bytes, alice.bytes):
        await is_refused(mixed.pending.take(Claim("the-state", "user", bob)), admin)


async def test_another_authorization_is_refused(
    mixed: ConnectionStore, way: FaultProxy, users: list[UUID], admin: asyncpg.Connection
) -> None:
    """Where no user is named, what is stored says which state it belongs to."""
    states = "the-state", "another-state"
    for user, state in zip(users[:2], states, strict=True):
        await mixed.pending.put(PendingConnect(user, "v" * 43), state, life=60)
    sent, received = (hashlib.sha256(state.encode()).digest() for state in states)
    with way.replace(b"take_connect(", sent, received), pytest.raises(ConnectFailed, match="another state"):
        await mixed.pending.take(Claim(states[0], "none"))


async def test_another_users_token_is_neither_handed_out_nor_remembered(
    mixed: ConnectionStore,
    way: FaultProxy,
    accounts: SpotifyAccounts,
    spotify: FakeSpotify,
    users: list[UUID],
    admin: asyncpg.Connection,
) -> None:
    """What a manager reads of another user is not cached: the next call reads again, and has the right token."""
    alice, bob, _ = users
    await connect(mixed, spotify, alice)
    stored = await connect(mixed, spotify, bob, account="bob")
    async with TokenManager(mixed, accounts) as tokens:
        with way.replace(b"get_access_tokens(", str(bob).encode(), str(alice).encode()):
            await is_refused(tokens.get_valid_token(bob), admin)
        assert bob not in tokens._cache.entries
        assert alice not in tokens._cache.entries
        assert await tokens.get_valid_token(bob) == stored.access_token


async def test_a_pass_over_many_users_ends_at_another_users_row(
    mixed: ConnectionStore,
    way: FaultProxy,
    accounts: SpotifyAccounts,
    spotify: FakeSpotify,
    users: list[UUID],
    admin: asyncpg.Connection,
) -> None:
    """A batch that brings a user nobody has asked for gives no answer at all."""
    alice, bob, carol = users
    for user in users:
        await connect(mixed, spotify, user)
    async with TokenManager(mixed, accounts) as tokens:
        with way.replace(b"get_access_tokens(", str(bob).encode(), str(alice).encode()):
            await is_refused(anext(tokens.get_valid_tokens([bob, carol])), admin)


@pytest.fixture
async def operators(operator: str, way: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ConnectionAdmin]:
    """An admin over that way, which reads in batches of two."""
    monkeypatch.setattr(service_role, "BATCH", 2)
    async with ConnectionAdmin.open(way.dsn(operator), max_size=1, cipher=CIPHER) as opened:
        yield opened


async def test_a_list_that_goes_back_is_refused(
    operators: ConnectionAdmin,
    store: ConnectionStore,
    spotify: FakeSpotify,
    way: FaultProxy,
    users: list[UUID],
    admin: asyncpg.Connection,
) -> None:
    """The lists go from one user to the next; a row of an earlier one is not the answer to the question."""
    for user in users:
        await connect(store, spotify, user)
    ordered = sorted(users)
    listed = operators.expiring(within=timedelta(days=365))
    assert [(await anext(listed)).user_id for _ in range(2)] == ordered[:2]
    after = UUID(int=ordered[1].int + 1)
    with way.replace(b"from public.spotify_connections", after.bytes, UUID(int=0).bytes):
        await is_refused(anext(listed), admin, "operator")


async def test_a_rewrite_of_another_users_row_is_refused(
    operators: ConnectionAdmin,
    store: ConnectionStore,
    spotify: FakeSpotify,
    way: FaultProxy,
    users: list[UUID],
    admin: asyncpg.Connection,
) -> None:
    """A rekey ends where the server says that it has rewritten another user than the one that was read."""
    alice, bob, _ = users
    await connect(store, spotify, bob)
    with way.replace(b"returning stored.user_id", bob.bytes, alice.bytes, answer=True):
        await is_refused(operators.rekey(), admin, "operator")
    assert (await store.get(bob)).access_token.startswith("BQ")
