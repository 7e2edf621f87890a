"""The store against a real database: connections, turns at a refresh and who wins, the cipher, and what goes wrong."""

import asyncio
import socket
import traceback
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from spotconn import (
    AesGcmSivCipher,
    AskUser,
    ConfigurationError,
    Connection,
    ConnectionStore,
    DatabaseUnavailable,
    DecryptionError,
    NotConnected,
    Outcome,
    Profile,
    RefreshFailure,
    RefreshTurn,
    StatementRefused,
    TokenGrant,
    UnknownUser,
)
from spotconn.cipher import TokenColumn
from spotconn.models import fingerprint
from support.connections import content, stored_state
from support.database import Database
from support.database_clock import database_clock

ALICE = Profile(spotify_user_id="alice", display_name="Alice", email="alice@example.org")
BOB = Profile(spotify_user_id="bob")
NOW = datetime.now(UTC)


def grant(name: str, *, refresh: bool = True, **changes: Any) -> TokenGrant:
    values: dict[str, Any] = {"expires_at": NOW + timedelta(hours=1), "scope": frozenset({"b", "a"})} | changes
    return TokenGrant(access_token=f"access-{name}", refresh_token=f"refresh-{name}" if refresh else None, **values)


OLD = grant("old", expires_at=NOW - timedelta(minutes=1))
SEEN = fingerprint(OLD.access_token)


async def begun(store: ConnectionStore, user: UUID, *, lease: float = 15) -> RefreshTurn:
    """Connect the user with an expired token and take the turn."""
    stored = await store.save(user, OLD, ALICE)
    turn = await store.begin_refresh(user, seen=stored.fingerprint, lease=lease)
    assert turn.outcome is Outcome.GRANTED
    return turn


async def until_granted(store: ConnectionStore, user: UUID, seen: str) -> RefreshTurn:
    while (turn := await store.begin_refresh(user, seen=seen)).outcome is not Outcome.GRANTED:
        assert turn.outcome in {Outcome.BUSY, Outcome.PAUSED}
        assert turn.retry_after is not None
        await asyncio.sleep(max(turn.retry_after, 0))
    return turn


async def test_what_is_saved_is_read(store: ConnectionStore, user: UUID) -> None:
    """A connection comes back as it was saved, with `connected_at` of now."""
    saved = await store.save(str(user), grant("new"), ALICE)
    read = await store.get(user)
    assert content(read) == content(saved)
    assert saved.remaining - 5 < read.remaining < saved.remaining
    assert abs(saved.remaining - (saved.expires_at - datetime.now(UTC)).total_seconds()) < 5
    assert saved.connected_at is not None
    assert abs(saved.connected_at - datetime.now(UTC)) < timedelta(seconds=5)
    assert (saved.access_token, saved.refresh_token) == ("access-new", "refresh-new")
    stored = saved.model_dump(include={"user_id", "expires_at", "scope", "failure"})
    assert stored == grant("new").model_dump(exclude={"expires_in"}) | {"user_id": user, "failure": None}
    assert (saved.fingerprint, saved.saves, saved.recovered) == (fingerprint("access-new"), 1, None)
    assert saved.model_dump(include=set(Profile.model_fields)) == ALICE.model_dump()


async def test_many_are_read_as_one_is(store: ConnectionStore, users: list[UUID]) -> None:
    """Each connection is the one that `get` gives, by its user; who has none is left out, and twice is once."""
    for user in users[:2]:
        await store.save(user, grant(str(user)), ALICE)
    found = await store.get_many([*users, str(users[0]), uuid4()])
    assert {user: content(one) for user, one in found.items() if isinstance(one, Connection)} == {
        user: content(await store.get(user)) for user in users[:2]
    }
    assert len(found) == 2
    assert await store.get_many([]) == {}
    with pytest.raises(ValueError, match="user_id"):
        await store.get_many([users[0], "no-uuid"])


async def test_one_of_many_that_does_not_decrypt_is_its_own_error(
    database: Database, users: list[UUID], admin: asyncpg.Connection
) -> None:
    """A value that was moved from another row is a DecryptionError for its user; the others are read."""
    async with ConnectionStore.open(database.dsn, cipher=AesGcmSivCipher([AesGcmSivCipher.generate_key()])) as store:
        saved = [await store.save(user, grant(str(user)), ALICE) for user in users]
        await admin.execute(
            "update public.spotify_connections as stored set access_token = other.access_token "
            "from public.spotify_connections as other where stored.user_id = $1 and other.user_id = $2",
            *users[:2],
        )
        found = await store.get_many(users)
    assert isinstance(found.pop(users[0]), DecryptionError)
    others = [content(one) for one in found.values() if isinstance(one, Connection)]
    assert {one.user_id: one for one in others} == {one.user_id: content(one) for one in saved[1:]}
    assert len(found) == 2


@pytest.mark.parametrize("scope", [None, frozenset[str](), frozenset({"a"}), frozenset({"b", "a"})])
async def test_a_scope_that_was_not_told_differs_from_none_granted(
    store: ConnectionStore, user: UUID, scope: frozenset[str] | None
) -> None:
    """Unknown scopes are null and no scopes are empty, there and back."""
    await store.save(user, grant("new", scope=scope), ALICE)
    assert (await store.get(user)).scope == scope


async def test_a_reconnect_replaces_all_and_starts_again(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection
) -> None:
    """A reconnect keeps the row, restarts `connected_at`, and ends a refresh of before even with an equal end."""
    first = await store.save(user, grant("one"), ALICE)
    turn = await store.begin_refresh(user, seen=first.fingerprint)
    assert turn.outcome is Outcome.GRANTED
    await admin.execute("update public.spotify_connections set connected_at = now() - interval '5 months'")
    aged = await store.get(user)
    second = await store.save(user, grant("two", scope=None), BOB)
    assert second.id == first.id
    assert (second.spotify_user_id, second.display_name, second.email, second.scope) == ("bob", None, None, None)
    assert (second.access_token, second.refresh_token) == ("access-two", "refresh-two")
    assert second.expires_at == first.expires_at
    assert (first.saves, second.saves) == (1, 2)
    assert (await stored_state(admin, user))["lease_id"] is None
    assert await store.finish_refresh(turn, grant("three")) is None
    assert content(await store.get(user)) == content(second)
    assert second.connected_at is not None
    assert aged.connected_at is not None
    assert second.connected_at - aged.connected_at > timedelta(days=100)


@pytest.mark.parametrize("age", [timedelta(days=100), timedelta(days=400), timedelta(seconds=1)])
@pytest.mark.parametrize("connected", [False, True])
async def test_the_moment_of_the_authorization_is_kept(
    store: ConnectionStore, user: UUID, age: timedelta, *, connected: bool
) -> None:
    """Tokens from elsewhere keep the day on which their six months began, on an empty row and over a stored one."""
    if connected:
        await store.save(user, grant("one"), ALICE)
    authorized = datetime.now(UTC) - age
    saved = await store.save(user, grant("two"), ALICE, connected_at=authorized)
    assert (await store.get(user)).connected_at == saved.connected_at == authorized


async def test_nobody_has_authorized_tomorrow(store: ConnectionStore, user: UUID) -> None:
    """A moment in the future is refused and nothing changes; one that two clocks may differ by is now."""
    before = await store.save(user, grant("one"), ALICE)
    for ahead in (timedelta(minutes=2), timedelta(days=1)):
        with pytest.raises(ValueError, match=r"^connected_at: lies in the future"):
            await store.save(user, grant("two"), ALICE, connected_at=datetime.now(UTC) + ahead)
    assert content(await store.get(user)) == content(before)
    saved = await store.save(user, grant("two"), ALICE, connected_at=datetime.now(UTC) + timedelta(seconds=40))
    assert saved.connected_at is not None
    assert saved.connected_at - datetime.now(UTC) < timedelta(seconds=20)


async def test_what_a_save_would_refuse_is_refused_before(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection
) -> None:
    """An unknown user and a moment in the future, by the clock of the database; the check leaves nothing behind."""
    now: datetime = await admin.fetchval("select spotconn.now()")
    await store.save(user, grant("old"), ALICE)
    for moment in (None, now, now + timedelta(seconds=30), now - timedelta(days=9)):
        await store.check_save(user, connected_at=moment)
    refused = {
        now + timedelta(hours=1): "lies in the future",
        now.replace(tzinfo=None): "expected a datetime with a time",
    }
    for moment, reason in refused.items():
        with pytest.raises(ValueError, match=rf"^connected_at: {reason}"):
            await store.check_save(user, connected_at=moment)
        with pytest.raises(ValueError, match=rf"^connected_at: {reason}"):
            await store.save(user, grant("new"), ALICE, connected_at=moment)
    with pytest.raises(UnknownUser, match=r"^user_id: no such user in auth\.users$"):
        await store.check_save(uuid4())
    with pytest.raises(ValueError, match=r"^user_id: .*UUID"):
        await store.check_save("no-uuid")
    assert await admin.fetchval("select count(*) from spotconn.pending_connect") == 0
    assert (await store.get(user)).access_token == "access-old"


async def test_a_disconnect_removes_everything(store: ConnectionStore, user: UUID, admin: asyncpg.Connection) -> None:
    """After a disconnect nothing is left, the state of a refresh included, and a second one finds nothing."""
    await begun(store, user)
    assert await admin.fetchval("select count(*) from spotconn.refresh_state") == 1
    assert await store.delete(user) is True
    assert await admin.fetchval("select count(*) from spotconn.refresh_state") == 0
    assert await store.delete(user) is False
    with pytest.raises(NotConnected):
        await store.get(user)


async def test_a_deleted_user_takes_the_connection_along(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection
) -> None:
    """Removing the user from auth.users removes the connection and the state of its refresh."""
    await begun(store, user)
    await admin.execute("delete from auth.users where id = $1", user)
    with pytest.raises(NotConnected):
        await store.get(user)
    assert await admin.fetchval("select count(*) from spotconn.refresh_state") == 0


async def test_bad_input_is_named_before_any_query(store: ConnectionStore, user: UUID) -> None:
    """A wrong user id, a grant without a refresh token and a turn that was not granted are ValueErrors."""
    await store.save(user, OLD, ALICE)
    granted = await store.begin_refresh(user, seen=SEEN)
    busy = await store.begin_refresh(user, seen=SEEN)
    await store.pool._pool.close()
    calls: list[tuple[str, Callable[[], Awaitable[object]]]] = [
        ("user_id", lambda: store.get("nobody")),
        ("user_id", lambda: store.save("nobody", grant("x"), ALICE)),
        ("user_id", lambda: store.delete("nobody")),
        ("user_id", lambda: store.begin_refresh("nobody", seen=SEEN)),
        ("seen", lambda: store.begin_refresh(user, seen=OLD.access_token)),
        ("seen", lambda: store.begin_refresh(user, seen=SEEN[:-2])),
        ("user_id", lambda: store.as_user("nobody").__aenter__()),
        ("grant", lambda: store.save(user, grant("x", refresh=False), ALICE)),
        ("connected_at", lambda: store.save(user, grant("x"), ALICE, connected_at=NOW.replace(tzinfo=None))),
        ("turn", lambda: store.finish_refresh(busy, grant("x"))),
        ("turn", lambda: store.fail_refresh(busy, RefreshFailure())),
    ]
    for argument, call in calls:
        with pytest.raises(ValueError, match=f"^{argument}: "):
            await call()
    with pytest.raises(DatabaseUnavailable):
        await store.finish_refresh(granted, grant("x"))


async def test_an_unknown_user_cannot_be_connected(store: ConnectionStore) -> None:
    """For a UUID that is no user of auth.users there is an error of its own, which is the user's to mend."""
    with pytest.raises(UnknownUser, match=r"^user_id: no such user in auth\.users$") as raised:
        await store.save(uuid4(), grant("x"), ALICE)
    assert isinstance(raised.value, AskUser)
    assert (raised.value.__cause__, raised.value.__context__) == (None, None)


async def test_each_outcome_of_a_turn(store: ConnectionStore, users: list[UUID]) -> None:
    """GONE, GRANTED, BUSY, SUPERSEDED, JUST_SAVED, PAUSED and REFUSED each come with what the caller needs."""
    a, b, nobody = users
    assert await store.begin_refresh(nobody, seen=SEEN) == RefreshTurn(outcome=Outcome.GONE, user_id=nobody)
    granted = await begun(store, a)
    assert granted.connection is not None
    assert content(granted.connection) == content(await store.get(a))
    assert granted.retry_after is None
    for seen in (SEEN, fingerprint("another")):
        busy = await store.begin_refresh(a, seen=seen)
        assert (busy.outcome, busy.lease_id, busy.lease_until) == (Outcome.BUSY, None, None)
        assert busy.connection is not None
        assert content(busy.connection) == content(granted.connection)
        assert 10 < (busy.retry_after or 0) <= 15
    done = await store.finish_refresh(granted, grant("new", expires_in=3600.0))
    assert done is not None
    newer = await store.begin_refresh(a, seen=SEEN)
    assert newer.connection is not None
    assert (newer.outcome, content(newer.connection), newer.retry_after) == (Outcome.SUPERSEDED, content(done), None)
    just_saved = await store.begin_refresh(a, seen=done.fingerprint)
    assert just_saved.connection is not None
    assert (just_saved.outcome, content(just_saved.connection)) == (Outcome.JUST_SAVED, content(done))
    assert 50 < (just_saved.retry_after or 0) <= 60
    await store.fail_refresh(await begun(store, b), RefreshFailure(reason="unavailable", retry_after=20))
    paused = await store.begin_refresh(b, seen=SEEN)
    assert (paused.outcome, paused.lease_id) == (Outcome.PAUSED, None)
    assert 15 < (paused.retry_after or 0) <= 20
    await store.fail_refresh(await begun(store, b), RefreshFailure(reason="refused"))
    refused = await store.begin_refresh(b, seen=SEEN)
    assert (refused.outcome, refused.lease_id, refused.retry_after) == (Outcome.REFUSED, None, None)
    assert refused.connection is not None
    assert refused.connection.reauthorization == "revoked"


async def test_a_finished_refresh_is_saved(store: ConnectionStore, user: UUID, admin: asyncpg.Connection) -> None:
    """The new tokens are stored, `connected_at` and the account stay, and the lease is over."""
    turn = await begun(store, user)
    done = await store.finish_refresh(turn, grant("new", scope=frozenset({"c"})))
    assert done is not None
    assert content(done) == content(await store.get(user))
    assert turn.connection is not None
    changed = {"access_token": "access-new", "refresh_token": "refresh-new", "scope": frozenset({"c"}), "saves": 2}
    expected = turn.connection.model_copy(
        update={**changed, "expires_at": grant("new").expires_at, "texts": done.texts}
    )
    assert content(done) == content(expected)
    assert (done.texts.access_token, done.texts.refresh_token) == ("access-new", "refresh-new")
    state = await stored_state(admin, user)
    assert (state["lease_id"], state["lease_until"], state["lapsed"], state["saves"]) == (None, None, False, 2)
    assert (await store.begin_refresh(user, seen=SEEN)).outcome is Outcome.SUPERSEDED


async def test_what_spotify_left_out_is_kept(store: ConnectionStore, user: UUID) -> None:
    """A grant without refresh token or scope keeps the stored ones, also with an equal `expires_at`."""
    turn = await begun(store, user)
    done = await store.finish_refresh(turn, grant("new", refresh=False, scope=None, expires_at=OLD.expires_at))
    assert done is not None
    assert (done.access_token, done.refresh_token, done.scope) == ("access-new", "refresh-old", OLD.scope)
    assert done.expires_at == OLD.expires_at


async def _disconnect(store: ConnectionStore, user: UUID, _admin: asyncpg.Connection) -> None:
    await store.delete(user)


async def _reconnect(store: ConnectionStore, user: UUID, _admin: asyncpg.Connection) -> None:
    await store.save(user, grant("reconnected", expires_at=OLD.expires_at), BOB)


async def _foreign(_store: ConnectionStore, user: UUID, admin: asyncpg.Connection) -> None:
    await admin.execute(
        "update public.spotify_connections set access_token = 'foreign', refresh_token = 'foreign', "
        "expires_at = now() + interval '1 hour' where user_id = $1",
        user,
    )


@pytest.mark.parametrize("writer", [_disconnect, _reconnect, _foreign])
@pytest.mark.parametrize("failed", [False, True])
async def test_a_refresh_loses_to_every_other_writer(
    store: ConnectionStore,
    user: UUID,
    admin: asyncpg.Connection,
    writer: Callable[..., Awaitable[None]],
    failed: bool,  # noqa: FBT001
) -> None:
    """A disconnect, a reconnect or a foreign write meanwhile stands, and neither grant nor failure touches it."""
    turn = await begun(store, user)
    await writer(store, user, admin)
    before = await admin.fetch("select * from public.spotify_connections")
    if failed:
        assert await store.fail_refresh(turn, RefreshFailure(reason="refused")) is None
    else:
        assert await store.finish_refresh(turn, grant("lost")) is None
    assert await admin.fetch("select * from public.spotify_connections") == before
    seen = fingerprint(before[0]["access_token"] if before else "")
    after = await store.begin_refresh(user, seen=seen)
    assert after.outcome is (Outcome.GRANTED if before else Outcome.GONE)
    states = await admin.fetch("select lapsed, failure from spotconn.refresh_state")
    assert [tuple(state) for state in states] == [(False, None)] * len(before)


async def test_a_lease_runs_out(store: ConnectionStore, user: UUID, admin: asyncpg.Connection) -> None:
    """A turn that was never answered passes to another once its lease has ended, and that is recorded."""
    first = await begun(store, user, lease=0.05)
    second = await until_granted(store, user, SEEN)
    assert second.lease_id != first.lease_id
    assert (await stored_state(admin, user))["lapsed"] is True
    assert await store.fail_refresh(first, RefreshFailure(reason="refused")) is None
    assert (await store.begin_refresh(user, seen=SEEN)).outcome is Outcome.BUSY
    assert (await store.get(user)).failure is None
    assert await store.finish_refresh(first, grant("late")) is not None
    assert await store.finish_refresh(second, grant("later")) is None


async def test_a_released_turn_is_free_at_once(store: ConnectionStore, user: UUID, admin: asyncpg.Connection) -> None:
    """Without a reason nothing is recorded and the next caller is granted, with no lapse."""
    assert await store.fail_refresh(await begun(store, user), RefreshFailure()) is None
    turn = await store.begin_refresh(user, seen=SEEN)
    assert turn.outcome is Outcome.GRANTED
    assert (await stored_state(admin, user))["lapsed"] is False


DATES = {"expired": timedelta(days=190), "revoked": timedelta(days=170), "invalid": None}


@pytest.mark.parametrize("reason", DATES)
async def test_a_refusal_stands_until_another_refresh_token_is_stored(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection, reason: str
) -> None:
    """A refusal holds up every caller, the tokens stay, and a foreign refresh token voids it; another end does not."""
    turn = await begun(store, user)
    connected = "update public.spotify_connections set connected_at = now() - $1::interval"
    await admin.execute(connected, DATES[reason])
    recorded = await store.fail_refresh(turn, RefreshFailure(reason="refused"))
    stored = await store.get(user)
    assert (stored.reauthorization, stored.refresh_token) == (reason, "refresh-old")
    assert stored.failure == recorded
    assert recorded is not None
    assert abs(recorded.since - datetime.now(UTC)) < timedelta(seconds=5)
    await admin.execute("update public.spotify_connections set expires_at = now() - interval '1 second'")
    assert (await store.get(user)).failure == recorded
    assert (await store.begin_refresh(user, seen=SEEN)).outcome is Outcome.REFUSED
    await _foreign(store, user, admin)
    assert (await store.get(user)).failure is None
    assert (await store.begin_refresh(user, seen=fingerprint("foreign"))).outcome is Outcome.GRANTED
    assert (await stored_state(admin, user))["lapsed"] is False


async def _pause(store: ConnectionStore, user: UUID, admin: asyncpg.Connection, asked: float | None) -> float:
    """Let the running pause end, fail once more and tell the seconds of the new pause."""
    await admin.execute(
        "update spotconn.refresh_state set retry_at = now() - interval '1 s' where retry_at is not null"
    )
    turn = await store.begin_refresh(user, seen=SEEN)
    await store.fail_refresh(turn, RefreshFailure(reason="unavailable", retry_after=asked))
    # Not from when the failure was first recorded: the failures before this one have taken their time.
    return float(
        await admin.fetchval(
            "select extract(epoch from retry_at - paused_at) from spotconn.refresh_state where user_id = $1", user
        )
    )


async def test_pauses_grow_and_end(store: ConnectionStore, user: UUID, admin: asyncpg.Connection) -> None:
    """Each failure in a row doubles the pause, of which half is random, up to five minutes."""
    await store.save(user, OLD, ALICE)
    for failures in range(12):
        longest = min(300, 2**failures)
        assert longest / 2 - 0.01 <= await _pause(store, user, admin, None) <= longest + 0.01
    paused = await store.begin_refresh(user, seen=SEEN)
    assert paused.outcome is Outcome.PAUSED
    assert 140 < (paused.retry_after or 0) <= 300
    await store.save(user, OLD.model_copy(update={"access_token": "again"}), ALICE)
    assert (await store.get(user)).failure is None


@pytest.mark.parametrize(
    ("asked", "least", "most"), [(0.0, 0.5, 1), (20.0, 20, 20), (13749.0, 13749, 13749), (1e6, 86400, 86400)]
)
async def test_what_spotify_asked_is_the_least(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection, asked: float, least: float, most: float
) -> None:
    """Retry-After lengthens the pause, up to a day."""
    await store.save(user, OLD, ALICE)
    assert least - 0.01 <= await _pause(store, user, admin, asked) <= most + 0.01


async def test_a_pause_that_has_ended_is_granted_and_counted_on(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection
) -> None:
    """After its pause a connection may be refreshed again, and the failure shows until the refresh is saved."""
    await store.fail_refresh(await begun(store, user), RefreshFailure(reason="unavailable"))
    turn = await until_granted(store, user, SEEN)
    assert turn.connection is not None
    assert turn.connection.failure is not None
    assert (await stored_state(admin, user))["lapsed"] is False
    done = await store.finish_refresh(turn, grant("new"))
    assert done is not None
    assert (done.failure, done.recovered) == (None, "unavailable")


@pytest.mark.parametrize("pools", [1, 4])
async def test_one_of_many_is_granted(database: Database, user: UUID, pools: int) -> None:
    """Of many callers at once, in one process or in several, exactly one may refresh."""
    async with AsyncExitStack() as stack:
        stores = [
            await stack.enter_async_context(ConnectionStore.open(database.dsn, min_size=4, max_size=4))
            for _ in range(pools)
        ]
        await stores[0].save(user, OLD, ALICE)
        for _ in range(5):
            turns = await asyncio.gather(*(stores[i % pools].begin_refresh(user, seen=SEEN) for i in range(20)))
            assert Counter(turn.outcome for turn in turns) == {Outcome.GRANTED: 1, Outcome.BUSY: 19}
            (winner,) = (turn for turn in turns if turn.outcome is Outcome.GRANTED)
            await stores[-1].fail_refresh(winner, RefreshFailure())


class Reversible:
    """Binds a token to its user and column, and to nothing secret."""

    def encrypt(self, token: str, *, user_id: UUID, column: TokenColumn) -> str:
        return urlsafe_b64encode(f"{user_id}|{column}|{token}".encode()).decode()

    def decrypt(self, stored: str, *, user_id: UUID, column: TokenColumn) -> str:
        user, _, rest = urlsafe_b64decode(stored).decode().partition("|")
        if (user, rest.partition("|")[0]) != (str(user_id), column):
            raise DecryptionError("the value was moved")
        return rest.partition("|")[2]


async def test_tokens_are_encrypted_at_rest(database: Database, users: list[UUID], admin: asyncpg.Connection) -> None:
    """With a cipher no token is in the table, each is bound to its user and column, and reads give the tokens."""

    async def tokens(user: UUID) -> tuple[str, str]:
        row = await admin.fetchrow(
            "select access_token, refresh_token from public.spotify_connections where user_id = $1", user
        )
        assert row is not None
        return row[0], row[1]

    cipher = Reversible()
    async with ConnectionStore.open(database.dsn, cipher=cipher) as store:
        turn = await begun(store, users[0])
        assert turn.connection is not None
        assert content(turn.connection) == content(await store.get(users[0]))
        assert turn.connection.access_token == "access-old"
        for name, refresh in (("old", "old"), ("new", "new"), ("newer", "new")):
            if name == "newer":
                async with database_clock(admin) as clock:
                    await clock.step(61)  # the last one is no longer young
                    turn = await store.begin_refresh(users[0], seen=(await store.get(users[0])).fingerprint)
            if name != "old":
                done = await store.finish_refresh(turn, grant(name, refresh=name == "new"))
                assert done is not None
                assert (done.access_token, done.refresh_token) == (f"access-{name}", f"refresh-{refresh}")
            assert await tokens(users[0]) == (
                cipher.encrypt(f"access-{name}", user_id=users[0], column="access_token"),
                cipher.encrypt(f"refresh-{refresh}", user_id=users[0], column="refresh_token"),
            )
        await admin.execute("update public.spotify_connections set access_token = refresh_token")
        for read in (store.get(users[0]), store.begin_refresh(users[0], seen=SEEN)):
            with pytest.raises(DecryptionError):
                await read


async def _opens(dsn: str, **options: Any) -> None:
    async with ConnectionStore.open(dsn, **options):
        pass


async def test_a_login_that_cannot_be_is_a_setting(database: Database) -> None:
    """A malformed DSN, a wrong password, a wrong database or option are ConfigurationErrors without the password."""
    port = database.server.port
    refused: list[tuple[str, dict[str, Any]]] = [
        ("marked-secret", {}),
        ("mysql://app:marked-secret@127.0.0.1/spotconn", {}),
        ("postgresql://app:marked-secret@127.0.0.1:port/spotconn", {}),
        (f"postgresql://app:marked-secret@127.0.0.1:{port}/spotconn", {}),
        (f"postgresql://marked-secret:app@127.0.0.1:{port}/spotconn", {}),
        (database.dsn.replace("/spotconn", "/marked-secret"), {}),
        (database.dsn, {"min_size": 5, "max_size": 1}),
        (database.dsn, {"marked_option": 1}),
    ]
    for dsn, options in refused:
        with pytest.raises(ConfigurationError) as raised:
            await _opens(dsn, **options)
        assert "marked" not in _said(raised.value), dsn


def _said(error: BaseException) -> str:
    """All that a log could show of an error, what lies behind it included."""
    return "".join(traceback.format_exception_only(error)) + repr((error, error.__cause__, error.__context__))


async def test_a_closed_port_is_unavailable(database: Database) -> None:
    """Nobody listening is DatabaseUnavailable, soon."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        dsn = database.dsn.replace(f":{database.server.port}/", f":{taken.getsockname()[1]}/")
        with pytest.raises(DatabaseUnavailable) as raised:
            await _opens(dsn)
    assert raised.value.retryable


async def test_a_silent_server_is_unavailable(database: Database) -> None:
    """A port that accepts and never answers is DatabaseUnavailable within the time to connect."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(DatabaseUnavailable):
            await _opens(database.dsn.replace(f":{database.server.port}/", f":{silent.getsockname()[1]}/"), timeout=0.2)


async def test_an_exhausted_pool_is_unavailable(database: Database, users: list[UUID]) -> None:
    """A pool whose connections are all in use is waited for in bounded time, and serves again afterwards."""
    async with ConnectionStore.open(database.dsn, max_size=1) as store:
        patience = store.pool.timeout
        async with store.as_user(users[0]):
            store.pool.timeout = 0.2
            with pytest.raises(DatabaseUnavailable):
                await store.get(users[0])
        store.pool.timeout = patience
        with pytest.raises(NotConnected):
            await store.get(users[0])


async def test_a_commit_that_does_not_end_is_unavailable(
    database: Database, user: UUID, admin: asyncpg.Connection
) -> None:
    """The end of a block has the time of a statement; then the session is closed, and the next call has another."""
    await admin.execute("""
        create table public.slow (id integer);
        grant insert on public.slow to spotconn;
        create function public.wait() returns trigger language plpgsql
            as 'begin perform pg_catalog.pg_sleep(3); return null; end';
        create constraint trigger wait after insert on public.slow deferrable initially deferred
            for each row execute function public.wait();
    """)
    try:
        async with ConnectionStore.open(database.dsn, timeout=2, max_size=1) as store:
            with pytest.raises(DatabaseUnavailable, match="did not end in time"):
                async with asyncio.timeout(10), store.as_user(user) as connection:
                    await connection.execute("insert into public.slow values (1)")
            with pytest.raises(NotConnected):
                await store.get(user)
    finally:
        await admin.execute("drop table public.slow; drop function public.wait()")


async def test_no_error_repeats_a_row(store: ConnectionStore, user: UUID, admin: asyncpg.Connection) -> None:
    """Where Postgres's own DETAIL would hold the failing row, the error raised and all behind it hold no token."""
    turn = await begun(store, user)
    await admin.execute(
        "alter table public.spotify_connections add constraint refused check (access_token not like '%marked%')"
    )
    try:
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: store.save(user, grant("marked"), ALICE),
            lambda: store.finish_refresh(turn, grant("marked")),
        ]
        for call in calls:
            with pytest.raises(
                StatementRefused, match="23514: constraint refused, table spotify_connections"
            ) as raised:
                await call()
            assert raised.value.__context__ is None
            assert "marked" not in _said(raised.value)
    finally:
        await admin.execute("alter table public.spotify_connections drop constraint refused")
    kept: Connection = await store.get(user)
    assert kept.access_token == "access-old"
