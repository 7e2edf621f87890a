"""What `finish_refresh` saves over which row: tokens, their end by the database's clock, and the lease."""

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from spotconn import AesGcmSivCipher, Connection, ConnectionStore, Outcome, Profile, RefreshFailure, TokenGrant
from spotconn.models import StoredTexts, fingerprint
from spotconn.turns import RefreshTurn
from support.connections import content, grant, stored_state
from support.database import Database
from support.database_clock import database_clock

ALICE = Profile(spotify_user_id="alice")
OLD_KEY, NEW_KEY = AesGcmSivCipher.generate_key(), AesGcmSivCipher.generate_key()
OLD, NEW = AesGcmSivCipher([OLD_KEY, NEW_KEY]), AesGcmSivCipher([NEW_KEY, OLD_KEY])
NOW = datetime(2027, 1, 1, tzinfo=UTC)
LIFE = 3600.0
EXACT = timedelta(seconds=0.5)
"""The end counts from the start of a statement, which a clock that stands still does not show."""


def granted(name: str, *, refresh: str | None = "new", seconds: float = LIFE, **changes: Any) -> TokenGrant:
    """What Spotify grants, by a host whose own clock does not matter."""
    token = None if refresh is None else f"refresh-{refresh}"
    values: dict[str, Any] = {"expires_at": NOW, "expires_in": seconds} | changes
    return TokenGrant(access_token=f"access-{name}", refresh_token=token, **values)


async def begun(store: ConnectionStore, user: UUID, *, lease: float = 15) -> RefreshTurn:
    """Connect the user with an ended token and begin its refresh."""
    stored = await store.save(user, grant("old", minutes=-1), ALICE)
    turn = await store.begin_refresh(user, seen=stored.fingerprint, lease=lease)
    assert turn.outcome is Outcome.GRANTED
    return turn


OTHERS = {
    "ends later": ("now() + interval '2 hours'", False),
    "ends just later": ("now() + interval '1 hour 1 minute'", False),
    "ends earlier": ("now() + interval '59 minutes'", True),
    "has ended": ("now() - interval '1 minute'", True),
    "never ends": ("'infinity'", True),
    "ends over a day ahead": ("now() + interval '25 hours'", True),
    "ended before 2000": ("'0001-01-01 00:00+00'", True),
}


@pytest.mark.parametrize("refresh", ["new", None])
@pytest.mark.parametrize("name", OTHERS)
async def test_another_access_token_gives_way_to_one_that_ends_later(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection, name: str, refresh: str | None
) -> None:
    """A refresh that comes late does not replace the better access token; its refresh token is saved always, because
    nobody else can have it.
    """
    end, replaced = OTHERS[name]
    turn = await begun(store, user)
    other = "update public.spotify_connections set access_token = 'access-other', expires_at = "
    await admin.execute(other + end)
    ends = await admin.fetchval("select expires_at from public.spotify_connections")
    done = await store.finish_refresh(turn, granted("new", refresh=refresh))
    assert done is not None
    assert done.refresh_token == f"refresh-{refresh or 'old'}"
    assert done.access_token == ("access-new" if replaced else "access-other")
    assert (done.expires_at == ends) is (not replaced)
    state = await stored_state(admin, user)
    assert (state["saves"], state["granted_at"] is not None) == (2, replaced)
    assert content(done) == content(await store.get(user))


async def test_the_access_token_that_was_sent_is_replaced_whenever_the_new_one_ends(
    store: ConnectionStore, user: UUID
) -> None:
    """A rejected token is replaced also by one that ends earlier."""
    stored = await store.save(user, grant("old", minutes=600), ALICE)
    turn = await store.begin_refresh(user, seen=stored.fingerprint)
    done = await store.finish_refresh(turn, granted("new"), rejected=True)
    assert done is not None
    assert (done.access_token, 3590 < done.remaining <= LIFE) == ("access-new", True)


async def test_a_repeated_refresh_token_counts_as_none(database: Database, user: UUID) -> None:
    """Its stored text stays, so what is known of it goes on, under a cipher that never makes the same text twice."""
    async with ConnectionStore.open(database.dsn, cipher=NEW) as store:
        turn = await begun(store, user)
        assert turn.connection is not None
        done = await store.finish_refresh(turn, granted("new", refresh="old"))
        assert done is not None
        assert done.texts.refresh_token == turn.connection.texts.refresh_token
        assert done.texts.access_token != turn.connection.texts.access_token
        assert (done.refresh_token, done.saves) == ("refresh-old", 2)


@pytest.mark.parametrize("refresh", ["new", "old", None])
async def test_a_grant_saved_twice_counts_as_saved(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection, refresh: str | None
) -> None:
    """Who never got the acknowledgement tries again, and hears that the row holds this very grant."""
    turn = await begun(store, user)
    first = await store.finish_refresh(turn, granted("new", refresh=refresh))
    assert first is not None
    again = await store.finish_refresh(turn, granted("new", refresh=refresh))
    assert again is not None
    assert (again.access_token, again.refresh_token) == ("access-new", first.refresh_token)
    assert abs(again.expires_at - first.expires_at) < timedelta(seconds=5)
    assert content(again) == content(await store.get(user))
    assert (await stored_state(admin, user))["lease_id"] is None


async def test_a_grant_saved_twice_does_not_undo_a_later_refresh(store: ConnectionStore, user: UUID) -> None:
    """The refresh token stayed the same, another process refreshed with it, and its access token ends later."""
    turn = await begun(store, user)
    first = await store.finish_refresh(turn, granted("new", refresh=None, seconds=1000))
    assert first is not None
    later = await store.save(user, granted("later", refresh="old"), ALICE)
    again = await store.finish_refresh(turn, granted("new", refresh=None, seconds=1000))
    assert again is not None
    assert (again.access_token, again.expires_at) == ("access-later", later.expires_at)


async def rekeyed(admin: asyncpg.Connection, connection: Connection) -> None:
    """Store the tokens of a connection under the new key, as a rekey does."""
    user = connection.user_id
    refresh = NEW.encrypt(connection.refresh_token, user_id=user, column="refresh_token")
    await admin.execute(
        "update public.spotify_connections set access_token = $2, refresh_token = $3 where user_id = $1",
        user,
        NEW.encrypt(connection.access_token, user_id=user, column="access_token"),
        refresh,
    )
    await admin.execute(
        "update spotconn.refresh_state set fingerprint = $2 where user_id = $1",
        user,
        bytes.fromhex(fingerprint(refresh)),
    )


@pytest.mark.parametrize("refresh", ["new", None])
@pytest.mark.parametrize("minutes", [-1, 600])
async def test_a_refresh_is_saved_over_the_text_that_a_rekey_has_written(
    database: Database, user: UUID, admin: asyncpg.Connection, minutes: float, refresh: str | None
) -> None:
    """It is the same refresh token and the same access token, so the row takes both of the grant."""
    async with ConnectionStore.open(database.dsn, cipher=OLD) as store:
        stored = await store.save(user, grant("old", minutes=minutes), ALICE)
        turn = await store.begin_refresh(user, seen=stored.fingerprint)
        assert turn.connection is not None
        await rekeyed(admin, turn.connection)
        text = (await store.get(user)).texts.refresh_token
        done = await store.finish_refresh(turn, granted("new", refresh=refresh))
        assert done is not None
        assert (done.access_token, done.refresh_token) == ("access-new", f"refresh-{refresh or 'old'}")
        assert (done.texts.refresh_token == text) is (refresh is None)
        assert (done.saves, 3590 < done.remaining <= LIFE) == (2, True)


async def test_a_lease_that_another_has_taken_over_stays(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection
) -> None:
    """A refresh that comes late and keeps the refresh token ends no lease but its own; the holder still ends his."""
    turn = await begun(store, user)
    async with database_clock(admin) as clock:
        await clock.step(20)
        other = await store.begin_refresh(user, seen=fingerprint("access-old"), lease=30)
        assert other.outcome is Outcome.GRANTED
        before = await stored_state(admin, user)
        done = await store.finish_refresh(turn, granted("late", refresh=None, seconds=10))
        assert done is not None
        state = await stored_state(admin, user)
        for column in ("lease_id", "leased_at", "lease_until"):
            assert state[column] == before[column]
        assert state["lapsed"] is False
        await clock.step(12)  # the saved access token has ended
        assert (await store.begin_refresh(user, seen=done.fingerprint)).outcome is Outcome.BUSY
        assert await store.finish_refresh(other, granted("new")) is not None
    assert (await stored_state(admin, user))["lease_id"] is None


@pytest.mark.parametrize("off", [-480, 0, 480, 10**8])
async def test_the_end_is_by_the_clock_of_the_database(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection, off: float
) -> None:
    """A host whose clock is off stores the right end, of a refresh as of a connect, less the age of the grant."""
    wrong = NOW + timedelta(seconds=off)
    async with database_clock(admin) as clock:
        await clock.stop_at(NOW)
        saved = await store.save(user, granted("one", expires_at=wrong), ALICE, age=5)
        assert abs(saved.expires_at - (NOW + timedelta(seconds=LIFE - 5))) < EXACT
        assert abs(saved.remaining - (LIFE - 5)) < 0.5
        assert (await stored_state(admin, user))["granted_at"] == NOW
        await clock.stop_at(NOW + timedelta(hours=2))
        turn = await store.begin_refresh(user, seen=saved.fingerprint)
        done = await store.finish_refresh(turn, granted("two", refresh=None, expires_at=wrong), age=7)
        assert done is not None
        assert abs(done.expires_at - (NOW + timedelta(hours=3, seconds=-7))) < EXACT
        assert abs(done.remaining - (LIFE - 7)) < 0.5


async def test_an_end_from_elsewhere_is_saved_as_it_is(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection
) -> None:
    """Without `expires_in` the grant is an importer's: its end stays, its age does not count, and it is not young."""
    ends = NOW + timedelta(minutes=7, microseconds=1)
    saved = await store.save(user, granted("one", expires_at=ends, expires_in=None), ALICE, age=100)
    assert saved.expires_at == ends
    assert (await stored_state(admin, user))["granted_at"] is None
    assert (await store.begin_refresh(user, seen=saved.fingerprint)).outcome is Outcome.GRANTED


@pytest.mark.parametrize(("after", "age", "end"), [(10, 2, 10 - 2), (600, 2, 15), (600, 590, 10), (15, 0, 15)])
async def test_no_token_ends_later_than_its_lease_and_its_life(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection, after: float, age: float, end: float
) -> None:
    """Spotify was asked within the lease, so a process that was frozen with the answer counts its age wrong in vain."""
    turn = await begun(store, user)
    async with database_clock(admin) as clock:
        await clock.stop_at(NOW)
        turn = await store.begin_refresh(user, seen=fingerprint("another"), lease=15)
        assert (turn.outcome, turn.lease_until) == (Outcome.GRANTED, NOW + timedelta(seconds=15))
        await clock.stop_at(NOW + timedelta(seconds=after))
        done = await store.finish_refresh(turn, granted("new"), age=age)
    assert done is not None
    assert abs(done.expires_at - (NOW + timedelta(seconds=end + LIFE))) < EXACT


async def test_a_failure_that_was_recorded_has_recovered(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection
) -> None:
    """The save says which failure it has ended, and nothing of it stays."""
    async with database_clock(admin) as clock:
        for reason, recorded in (("refused", "revoked"), ("unavailable", "unavailable")):
            turn = await begun(store, user)
            await store.fail_refresh(turn, RefreshFailure.model_validate({"reason": reason}))
            await clock.step(3601)
            turn = await store.begin_refresh(user, seen=fingerprint("access-old"))
            done = await store.finish_refresh(turn, granted("new", refresh=None))
            assert done is not None
            assert (done.recovered, done.failure) == (recorded, None)
            state = await stored_state(admin, user)
            gone = ("failure", "failed_at", "paused_at", "retry_at", "failures", "refusals", "lapsed")
            assert [state[column] for column in gone] == [None, None, None, None, 0, 0, False]


async def test_tokens_that_were_saved_before_are_restored(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection
) -> None:
    """Over a row that has gone back in time: with their own end and count, and not as just granted."""
    current = await store.save(user, grant("old", minutes=-1), ALICE)
    texts, family = StoredTexts("access-new", "refresh-new"), uuid4()
    done = await store.refreshes.restore(
        current, texts, expires_in=600, age=0, saves=9, family=family, client_id="app-a"
    )
    assert done is not None
    assert (done.access_token, done.refresh_token, done.saves, done.family) == ("access-new", "refresh-new", 9, family)
    assert done.client_id == "app-a"
    assert 595 < done.remaining <= 600
    assert content(done) == content(await store.get(user))
    assert (await store.begin_refresh(user, seen=done.fingerprint)).outcome is Outcome.GRANTED
    state = await stored_state(admin, user)
    assert state["fingerprint"] == bytes.fromhex(fingerprint("refresh-new"))
    restore_again = partial(
        store.refreshes.restore,
        texts=StoredTexts("a", "r"),
        expires_in=600,
        age=0,
        saves=10,
        family=family,
        client_id=None,
    )
    assert await restore_again(current) is None
    assert await store.delete(user)
    assert await restore_again(done) is None
    assert await admin.fetchval("select count(*) from public.spotify_connections") == 0
