"""What a user, and somebody who writes the database, can do with authorizations that are under way."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest

from spotconn import (
    AesGcmSivCipher,
    ConnectFailed,
    ConnectFlow,
    ConnectionStore,
    DecryptionError,
    SpotifyAccounts,
    TryLater,
)
from spotconn.testing import FakeSpotify
from support.connections import rows
from support.consent import REDIRECT_URI, SCOPES, agree, altered, pending, refused, sent, state_of
from support.database import Database
from support.lock_waits import until_waiting
from support.tenant import signed_in

CIPHER = AesGcmSivCipher([AesGcmSivCipher.generate_key()])
START = "select spotconn.start_connect($1, $2, 'verifier', interval '10 min')"
TAKE = "select * from spotconn.take_connect($1, $2)"


def hashed(state: str) -> bytes:
    return hashlib.sha256(state.encode()).digest()


@pytest.fixture
async def two(database: Database) -> AsyncIterator[tuple[asyncpg.Connection, asyncpg.Connection]]:
    """Connections of two processes of the service."""
    first, second = await asyncpg.connect(database.dsn), await asyncpg.connect(database.dsn)
    yield first, second
    await first.close()
    await second.close()


async def test_a_user_starts_twenty_and_no_more_at_once_in_two_processes(
    flow: ConnectFlow, database: Database, accounts: SpotifyAccounts, users: list[UUID], admin: asyncpg.Connection
) -> None:
    """Sixty starts at once over two pools make exactly twenty; the others say when, and other users start as before."""
    async with ConnectionStore.open(database.dsn, max_size=6) as store:
        other = ConnectFlow(store, accounts, redirect_uri=REDIRECT_URI, scopes=SCOPES)
        starts = [(flow, other)[number % 2].start(users[0]) for number in range(60)]
        done = await asyncio.gather(*starts, return_exceptions=True)
        assert sum(isinstance(one, str) for one in done) == 20
        refusals = [one for one in done if isinstance(one, BaseException)]
        assert {type(one) for one in refusals} == {TryLater}
        assert all(isinstance(one, TryLater) and 500 < (one.retry_after or 0) <= 600 for one in refusals)
        assert await other.start(users[1])
    assert await pending(admin) == 21


async def test_two_processes_that_start_at_once_both_start(
    two: tuple[asyncpg.Connection, asyncpg.Connection], user: UUID, admin: asyncpg.Connection
) -> None:
    """The second, which meets the slot of the first, takes another and is not sent away."""
    first, second = two
    async with first.transaction():
        assert await first.fetchval(START, user, hashed("a")) is None
        late = asyncio.create_task(second.fetchval(START, user, hashed("b")))
        await until_waiting(admin, second.get_server_pid())
    assert await late is None
    assert await pending(admin) == 2


async def test_of_two_processes_that_finish_at_once_one_is_the_first(
    two: tuple[asyncpg.Connection, asyncpg.Connection], user: UUID, admin: asyncpg.Connection
) -> None:
    """The second waits for the first, and gets no verifier."""
    first, second = two
    await first.execute(START, user, hashed("a"))
    async with first.transaction():
        claimed = await first.fetchrow(TAKE, user, hashed("a"))
        late = asyncio.create_task(second.fetchrow(TAKE, user, hashed("a")))
        await until_waiting(admin, second.get_server_pid())
    assert tuple(claimed or ()) == ("verifier", user, "claimed")
    assert tuple(await late or ()) == (None, None, "used")


async def test_a_clock_that_was_set_back_shuts_no_user_out(
    flow: ConnectFlow, user: UUID, admin: asyncpg.Connection
) -> None:
    """Starts of an hour ahead do not count: they would for more than ten minutes."""
    for _ in range(20):
        await flow.start(user)
    await admin.execute(
        "update spotconn.pending_connect set started_at = started_at + interval '1 h', "
        "expires_at = expires_at + interval '1 h'"
    )
    await flow.start(user)
    assert await pending(admin) == 1


async def test_nothing_resets_the_count_but_time(
    flow: ConnectFlow, store: ConnectionStore, user: UUID, spotify: FakeSpotify, admin: asyncpg.Connection
) -> None:
    """Finishing, failing and disconnecting make no room; the oldest start does once it is ten minutes old."""
    urls = [await flow.start(user) for _ in range(20)]
    await flow.finish(user, await agree(urls[0]))
    assert await refused(flow, user, await agree(urls[1], decision="cancel")) == "denied"
    assert await store.delete(user) is True
    with pytest.raises(TryLater):
        await flow.start(user)
    await admin.execute(
        "update spotconn.pending_connect set expires_at = now() + interval '90 s' where state_hash = $1",
        hashed(state_of(urls[3])),
    )
    with pytest.raises(TryLater) as raised:
        await flow.start(user)
    assert raised.value.retry_after == pytest.approx(90, abs=10)
    await admin.execute(
        "update spotconn.pending_connect set expires_at = now() where state_hash = $1", hashed(state_of(urls[3]))
    )
    await flow.start(user)
    with pytest.raises(TryLater):
        await flow.start(user)


async def test_codes_that_are_made_up_reach_spotify_twenty_times_at_most(
    flow: ConnectFlow, user: UUID, spotify: FakeSpotify
) -> None:
    """A tenant with valid states of their own and made-up codes spends one start for each request."""
    for number in range(25):
        try:
            callback = f"/callback?state={state_of(await flow.start(user))}&code=made-up-{number}"
        except TryLater:
            continue
        for _ in range(2):
            assert await refused(flow, user, callback) in {"code_rejected", "state_used"}
    assert spotify.token_calls == 20


async def test_a_state_that_is_made_up_costs_one_statement_and_no_request(
    flow: ConnectFlow, store: ConnectionStore, user: UUID, spotify: FakeSpotify
) -> None:
    """One statement where it looks like a state, none where it does not."""
    callback = await agree(await flow.start(user))
    statements: list[str] = []
    async with store.pool.acquire() as session:
        session.add_query_logger(lambda query: statements.append(query.query))
    for state in (f"{state_of(callback)[:-4]}AAAA", "no-state-at-all", "x" * 3000):
        assert await refused(flow, user, altered(callback, state=state)) == "state_mismatch"
    assert len([query for query in statements if "take_connect" in query]) == 1
    assert spotify.token_calls == 0


async def test_a_disconnect_ends_what_is_under_way(
    flow: ConnectFlow, store: ConnectionStore, users: list[UUID], spotify: FakeSpotify, admin: asyncpg.Connection
) -> None:
    """A callback that comes back after it connects nothing, and no verifier is kept; that of another user connects."""
    mine, theirs = await agree(await flow.start(users[0])), await agree(await flow.start(users[1]))
    assert await store.delete(users[0]) is False
    assert await admin.fetchval("select code_verifier from spotconn.pending_connect where user_id = $1", users[0]) == ""
    with pytest.raises(ConnectFailed, match="the user has disconnected since") as raised:
        await flow.finish(users[0], mine)
    assert raised.value.reason == "state_used"
    assert (await rows(admin), spotify.token_calls) == ([], 0)
    assert (await flow.finish(users[1], theirs)).spotify_user_id == "alice"


@pytest.mark.parametrize("cipher", [CIPHER, None], ids=["encrypted", "plain"])
async def test_an_authorization_that_is_given_to_another_user_connects_nothing(
    database: Database,
    accounts: SpotifyAccounts,
    spotify: FakeSpotify,
    users: list[UUID],
    admin: asyncpg.Connection,
    cipher: AesGcmSivCipher | None,
) -> None:
    """Who writes the database moves the attacker's row to the victim, swaps two verifiers, or plants plain text.

    Without keys the first cannot be told from a row of the victim's own: SECURITY.md says so.
    """
    spotify.add_account("mallory")
    mallory, victim, _ = users
    async with ConnectionStore.open(database.dsn, cipher=cipher) as store:
        flow = ConnectFlow(store, accounts, redirect_uri=REDIRECT_URI, scopes=SCOPES)
        if cipher is not None:
            moved = await agree(await flow.start(mallory), "mallory")
            stored = await admin.fetchval("select code_verifier from spotconn.pending_connect")
            assert stored.startswith("spotconn1.")
            await admin.execute("update spotconn.pending_connect set user_id = $1", victim)
            with pytest.raises(DecryptionError, match="code_verifier was altered"):
                await flow.finish(victim, moved)

            planted = await agree(await flow.start(victim), "mallory")
            state_hash = hashed(state_of(planted))
            await admin.execute(
                "update spotconn.pending_connect set code_verifier = $2 where state_hash = $1",
                state_hash,
                f"{state_hash.hex()}.{'v' * 43}",
            )
            with pytest.raises(DecryptionError, match="is not encrypted"):
                await flow.finish(victim, planted)

        first, second = await agree(await flow.start(victim)), await agree(await flow.start(victim), "mallory")
        await admin.execute(
            "update spotconn.pending_connect as one set code_verifier = two.code_verifier "
            "from spotconn.pending_connect as two where one.state_hash = $1 and two.state_hash = $2",
            hashed(state_of(first)),
            hashed(state_of(second)),
        )
        assert await refused(flow, victim, first) == "state_mismatch"
    assert (await rows(admin), spotify.token_calls) == ([], 0)


async def test_a_used_authorization_keeps_no_verifier(flow: ConnectFlow, user: UUID, admin: asyncpg.Connection) -> None:
    """The row stays for the count, without its secret, also where the connect failed."""
    assert await refused(flow, user, altered(await agree(await flow.start(user)), code="made-up")) == "code_rejected"
    assert [tuple(row) for row in await admin.fetch("select code_verifier from spotconn.pending_connect")] == [("",)]


async def test_a_tenant_reaches_no_authorization(
    flow: ConnectFlow, database: Database, user: UUID, admin: asyncpg.Connection
) -> None:
    """Neither reading, nor writing, nor locking the table, nor calling its functions is for client roles."""
    await flow.start(user)
    async with signed_in(database.admin_dsn, user) as tenant:
        for statement in (
            "select * from spotconn.pending_connect",
            "delete from spotconn.pending_connect",
            "update spotconn.pending_connect set used_at = null",
            "lock table spotconn.pending_connect in share update exclusive mode",
            "select spotconn.start_connect(auth.uid(), 'x', 'x', interval '1 s')",
            "select spotconn.take_connect(auth.uid(), 'x')",
            "select spotconn.claimed_state()",
        ):
            assert await tenant.send(statement) == "42501"
    assert await pending(admin) == 1


async def test_a_lock_that_another_login_can_hold_does_not_keep_expired_rows(
    flow: ConnectFlow, users: list[UUID], admin: asyncpg.Connection
) -> None:
    """The advisory lock of before is free to every login: held, expired rows go all the same."""
    await flow.start(users[0])
    await admin.execute("update spotconn.pending_connect set expires_at = now()")
    async with admin.transaction():
        await admin.execute("select pg_advisory_xact_lock(hashtext('spotconn.pending_connect'))")
        await flow.start(users[1])
        left = await admin.fetch("select user_id from spotconn.pending_connect")
    assert [row["user_id"] for row in left] == [users[1]]


async def test_a_start_waits_for_nobody_who_cleans(
    flow: ConnectFlow, users: list[UUID], admin: asyncpg.Connection
) -> None:
    """While another holds the lock of the cleaning, as autovacuum does, a start leaves the expired rows be."""
    await flow.start(users[0])
    await admin.execute("update spotconn.pending_connect set expires_at = now()")
    async with asyncio.timeout(20), admin.transaction():
        await admin.execute("lock table spotconn.pending_connect in share update exclusive mode")
        await flow.start(users[1])
        assert await admin.fetchval("select count(*) from spotconn.pending_connect") == 2
    async with asyncio.timeout(20), admin.transaction():
        await admin.execute("select from spotconn.pending_connect where user_id = $1 for update", users[0])
        await flow.start(users[1])


SEEN = "select user_id from spotconn.pending_connect"
INSERT = (
    "insert into spotconn.pending_connect (state_hash, user_id, cookie_hash, code_verifier, expires_at) "
    "values ($1, $2, $3, 'v', now() + interval '1 h')"
)
WITH_STATE = "select set_config('spotconn.state_hash', encode($1, 'hex'), true)"


async def test_only_who_has_its_state_sees_an_authorization_of_another(
    flow: ConnectFlow, store: ConnectionStore, users: list[UUID], admin: asyncpg.Connection
) -> None:
    """As another user no row of anybody is read, used or deleted; with its state that one is read, and not deleted."""
    signing_in, started = state_of((await flow.begin(None)).url), state_of(await flow.start(users[0]))
    async with store.as_user(users[1]) as session:
        for made_up in (b"", bytes(32)):
            await session.execute(WITH_STATE, made_up)
            assert await session.fetch(SEEN) == []
            assert await session.execute("update spotconn.pending_connect set used_at = now()") == "UPDATE 0"
            assert await session.execute("delete from spotconn.pending_connect") == "DELETE 0"
        for state, owner in ((signing_in, None), (started, users[0])):
            await session.execute(WITH_STATE, hashed(state))
            assert [row["user_id"] for row in await session.fetch(SEEN)] == [owner]
            assert await session.execute("delete from spotconn.pending_connect") == "DELETE 0"
    async with store.as_user(users[1]) as session:
        assert await session.fetch(SEEN) == []  # the state went with its transaction
    assert await pending(admin) == 2


async def test_nobody_makes_an_authorization_for_another(
    store: ConnectionStore, users: list[UUID], admin: asyncpg.Connection
) -> None:
    """One without a user takes the hash of its state and a cookie; one of another user cannot be made at all."""

    async def insert(user: UUID | None, cookie: bytes | None, state: bytes) -> None:
        async with store.as_user(users[1]) as session:
            await session.execute(WITH_STATE, state)
            await session.execute(INSERT, hashed("state"), user, cookie)

    for user, cookie, state in (
        (users[0], b"c", hashed("state")),
        (None, None, hashed("state")),
        (None, b"c", hashed("another")),
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await insert(user, cookie, state)
    await insert(None, b"c", hashed("state"))
    assert await pending(admin) == 1


async def test_no_policy_shows_every_row(admin: asyncpg.Connection) -> None:
    """Each of the four compares the row with the user or with the state."""
    policies = await admin.fetch(
        "select pg_get_expr(polqual, polrelid) as shown, pg_get_expr(polwithcheck, polrelid) as checked "
        "from pg_policy where polrelid = 'spotconn.pending_connect'::regclass"
    )
    assert len(policies) == 4
    for condition in (one for row in policies for one in row if one is not None):
        assert "user_id" in condition
        assert condition != "true"


async def test_authorizations_without_a_user_go_with_their_time(
    flow: ConnectFlow, store: ConnectionStore, users: list[UUID], spotify: FakeSpotify, admin: asyncpg.Connection
) -> None:
    """A disconnect of a user leaves a sign-in be; ten minutes end it, and the next start, of anybody, deletes it."""
    first, second = await flow.begin(None), await flow.begin(None)
    assert await store.delete(users[0]) is False
    assert (await flow.complete(await agree(first.url), sent(first))).user_id is None
    await admin.execute("update spotconn.pending_connect set expires_at = now()")
    callback = await agree(second.url)
    with pytest.raises(ConnectFailed) as raised:
        await flow.complete(callback, sent(second))
    assert raised.value.reason == "state_expired"
    await flow.begin(None)
    assert await admin.fetchval("select count(*) from spotconn.pending_connect") == 1
    with pytest.raises(ConnectFailed, match="no authorization was started"):  # it is gone, and its state is not old yet
        await flow.complete(callback, sent(second))


async def test_a_disconnect_ends_what_a_browser_began(
    flow: ConnectFlow, store: ConnectionStore, users: list[UUID], spotify: FakeSpotify, admin: asyncpg.Connection
) -> None:
    """Also by the cookie, and for a bot: the callback comes too late."""
    begun, started = await flow.begin(users[0]), await flow.start(users[0])
    assert await store.delete(users[0]) is False
    for call in (
        flow.complete(await agree(begun.url), sent(begun)),
        flow.complete_unbound(await agree(started)),
    ):
        with pytest.raises(ConnectFailed, match="has disconnected since") as raised:
            await call
        assert raised.value.reason == "state_used"
    assert (await rows(admin), spotify.token_calls) == ([], 0)


async def test_who_writes_the_database_connects_no_browser_to_another(
    database: Database, accounts: SpotifyAccounts, spotify: FakeSpotify, users: list[UUID], admin: asyncpg.Connection
) -> None:
    """With keys: an attacker's sign-in that is given to the victim, or whose cookie is taken away, connects nothing."""
    spotify.add_account("mallory")
    mallory, victim, _ = users
    async with ConnectionStore.open(database.dsn, cipher=CIPHER) as store:
        flow = ConnectFlow(store, accounts, redirect_uri=REDIRECT_URI, scopes=SCOPES)
        for user in (None, mallory):
            begun = await flow.begin(user)
            callback = await agree(begun.url, "mallory")
            await admin.execute(
                "update spotconn.pending_connect set user_id = $2, cookie_hash = null where state_hash = $1",
                hashed(state_of(callback)),
                victim,
            )
            with pytest.raises(DecryptionError, match="was altered, or is that of another user"):
                await flow.complete_unbound(callback)
    assert (await rows(admin), spotify.token_calls) == ([], 0)
