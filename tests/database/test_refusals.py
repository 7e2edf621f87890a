"""Refusals of Spotify: their reason by the date, and second opinions by the clock of the database."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionAdmin, ConnectionStore, Outcome, Profile, RecordedFailure, RefreshFailure, RefreshTurn
from spotconn.models import add_months, fingerprint
from support.connections import grant, stored_state
from support.database import Database
from support.database_clock import DatabaseClock, database_clock

ALICE = Profile(spotify_user_id="alice")
OLD = grant("old", minutes=-600)
SEEN = fingerprint(OLD.access_token)
REFUSED = RefreshFailure(reason="refused")
MICROSECOND = timedelta(microseconds=1)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
START = datetime(2027, 3, 27, 12, tzinfo=UTC)


async def granted(store: ConnectionStore, user: UUID, *, lease: float = 15) -> RefreshTurn:
    turn = await store.begin_refresh(user, seen=SEEN, lease=lease)
    assert turn.outcome is Outcome.GRANTED
    return turn


async def refused(store: ConnectionStore, user: UUID) -> RecordedFailure:
    """Begin a refresh that Spotify refuses."""
    recorded = await store.fail_refresh(await granted(store, user), REFUSED)
    assert recorded is not None
    return recorded


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Pacific/Kiritimati"])
@pytest.mark.parametrize(
    "connected",
    [
        datetime(2026, 8, 31, 23, 30, tzinfo=UTC),
        datetime(2027, 8, 31, 0, 30, tzinfo=UTC),
        datetime(2026, 12, 31, 12, tzinfo=UTC),
        datetime(2026, 3, 29, 1, tzinfo=UTC),
    ],
)
async def test_the_date_tells_the_reason(
    database: Database, user: UUID, admin: asyncpg.Connection, connected: datetime, zone: str
) -> None:
    """From six months after the authorization on, to the microsecond, a refusal is final; before that it is not."""
    ends = add_months(connected, 6)
    async with (
        ConnectionStore.open(database.dsn, server_settings={"timezone": zone}, max_size=1) as store,
        database_clock(admin) as clock,
    ):
        for moment, reason in ((ends - MICROSECOND, "revoked"), (ends, "expired"), (ends + DAY, "expired")):
            await clock.stop_at(moment)
            await store.save(user, OLD, ALICE, connected_at=connected)
            recorded = await refused(store, user)
            due = None if reason == "expired" else moment + HOUR
            assert (recorded.reason, recorded.since, recorded.retry_at) == (reason, moment, due)
            assert (await store.get(user)).failure == recorded


NO_DATE = {
    "null": "update public.spotify_connections set connected_at = null",
    "future": "update public.spotify_connections set connected_at = spotconn.now() + interval '1 second'",
    "infinite": "update public.spotify_connections set connected_at = 'infinity'",
    "of another writer's refresh token": "update public.spotify_connections set refresh_token = 'foreign', "
    "connected_at = now() - interval '8 months'",
    "of an import over the library's": "update spotconn.refresh_state set saved_at = null",
}


@pytest.mark.parametrize("name", NO_DATE)
async def test_without_a_date_no_refusal_is_final_at_once(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection, name: str
) -> None:
    """A null or future moment is no date, nor is one where the library has not saved this refresh token: the user may
    have authorized anew.
    """
    await store.save(user, OLD, ALICE, connected_at=datetime.now(UTC) - timedelta(days=240))
    await admin.execute(NO_DATE[name])
    recorded = await refused(store, user)
    assert (recorded.reason, recorded.retry_at and recorded.retry_at - recorded.since) == ("invalid", HOUR)
    assert (await store.begin_refresh(user, seen=SEEN)).outcome is Outcome.REFUSED


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
async def test_spotify_is_asked_three_times_in_all(
    database: Database, user: UUID, admin: asyncpg.Connection, zone: str
) -> None:
    """Asked every ten minutes for three days: at once, after an hour, 24 hours after that, and then never again, also
    where the second of the days has 23 hours.
    """
    asked: list[timedelta] = []
    async with (
        ConnectionStore.open(database.dsn, server_settings={"timezone": zone}, max_size=1) as store,
        database_clock(admin) as clock,
    ):
        await clock.stop_at(START)
        await store.save(user, OLD, ALICE)
        for minutes in range(0, 3 * 24 * 60, 10):
            await clock.stop_at(START + minutes * MINUTE)
            turn = await store.begin_refresh(user, seen=SEEN)
            if turn.outcome is Outcome.GRANTED:
                asked.append(minutes * MINUTE)
                assert await store.fail_refresh(turn, REFUSED) is not None
            else:
                assert turn.outcome is Outcome.REFUSED
        assert asked == [timedelta(0), HOUR, HOUR + DAY]
        failure = (await store.get(user)).failure
        assert failure == RecordedFailure(reason="revoked", since=START, retry_at=None)
        for later in (timedelta(days=30), timedelta(days=300)):
            await clock.stop_at(START + later)
            assert (await store.begin_refresh(user, seen=SEEN)).outcome is Outcome.REFUSED


async def at(clock: DatabaseClock, since_start: timedelta) -> None:
    await clock.stop_at(START + since_start)


async def test_while_one_has_the_second_opinion_the_others_hear_of_the_refusal(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection
) -> None:
    """Nobody waits for it; if its holder dies, the next one has it when the lease has run out."""
    async with database_clock(admin) as clock:
        await at(clock, timedelta(0))
        await store.save(user, OLD, ALICE)
        await refused(store, user)
        await at(clock, HOUR)
        await granted(store, user, lease=15)
        assert (await store.begin_refresh(user, seen=SEEN)).outcome is Outcome.REFUSED
        await at(clock, HOUR + timedelta(seconds=15))
        await granted(store, user)
        assert (await stored_state(admin, user))["lapsed"] is True


async def test_after_a_lapse_a_refusal_does_not_count(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection
) -> None:
    """Who let the lease lapse may still be saving, so Spotify may be asked again after a minute; then as always."""
    async with database_clock(admin) as clock:
        await at(clock, timedelta(0))
        await store.save(user, OLD, ALICE)
        await granted(store, user, lease=15)
        await at(clock, MINUTE)
        recorded = await refused(store, user)
        assert (recorded.since, recorded.retry_at) == (START + MINUTE, START + 2 * MINUTE)
        state = await stored_state(admin, user)
        assert (state["lapsed"], state["refusals"]) == (False, 0)
        await at(clock, 2 * MINUTE - MICROSECOND)
        assert (await store.begin_refresh(user, seen=SEEN)).outcome is Outcome.REFUSED
        for moment, due in ((2 * MINUTE, HOUR), (HOUR + 2 * MINUTE, DAY), (DAY + HOUR + 2 * MINUTE, None)):
            await at(clock, moment)
            recorded = await refused(store, user)
            assert (recorded.since, recorded.retry_at) == (START + MINUTE, due and START + moment + due)


async def test_after_a_lapse_the_date_still_tells(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection
) -> None:
    """Six months after the authorization nobody can be saving a successor that is good."""
    async with database_clock(admin) as clock:
        await at(clock, timedelta(0))
        await store.save(user, OLD, ALICE, connected_at=START - timedelta(days=190))
        await granted(store, user, lease=15)
        await at(clock, MINUTE)
        assert (await refused(store, user)) == RecordedFailure(reason="expired", since=START + MINUTE, retry_at=None)


async def test_a_passing_failure_leaves_a_refusal_as_it_is(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection
) -> None:
    """Reason and `since` stay, the second opinion is put off, and the count of refusals does not move."""
    async with database_clock(admin) as clock:
        await at(clock, timedelta(0))
        await store.save(user, OLD, ALICE)
        await refused(store, user)
        await at(clock, HOUR)
        turn = await granted(store, user)
        recorded = await store.fail_refresh(turn, RefreshFailure(reason="unavailable", retry_after=600))
        assert recorded == RecordedFailure(reason="revoked", since=START, retry_at=START + HOUR + 10 * MINUTE)
        assert (await store.begin_refresh(user, seen=SEEN)).outcome is Outcome.REFUSED
        await at(clock, HOUR + 10 * MINUTE)
        recorded = await refused(store, user)
        assert (recorded.since, recorded.retry_at) == (START, START + HOUR + 10 * MINUTE + DAY)
        assert (await stored_state(admin, user))["refusals"] == 2


async def test_a_refusal_replaces_a_passing_failure(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection
) -> None:
    """It begins when it was first heard, not when Spotify first had trouble."""
    async with database_clock(admin) as clock:
        await at(clock, timedelta(0))
        await store.save(user, OLD, ALICE)
        turn = await granted(store, user)
        await store.fail_refresh(turn, RefreshFailure(reason="unavailable", retry_after=5))
        await at(clock, MINUTE)
        recorded = await refused(store, user)
        assert recorded == RecordedFailure(reason="revoked", since=START + MINUTE, retry_at=START + MINUTE + HOUR)


async def test_a_turn_without_a_verdict_changes_nothing(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection
) -> None:
    """Who found no way to Spotify gives the second opinion back, and the next one has it at once."""
    async with database_clock(admin) as clock:
        await at(clock, timedelta(0))
        await store.save(user, OLD, ALICE)
        first = await refused(store, user)
        await at(clock, HOUR)
        assert await store.fail_refresh(await granted(store, user), RefreshFailure()) == first
        await granted(store, user)


async def test_a_second_opinion_that_differs_clears_all(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection
) -> None:
    """A grant ends the refusal, says so, and the next refusal is the first one again."""
    async with database_clock(admin) as clock:
        await at(clock, timedelta(0))
        await store.save(user, OLD, ALICE)
        await refused(store, user)
        await at(clock, HOUR)
        await refused(store, user)
        await at(clock, HOUR + DAY)
        ended = OLD.model_copy(update={"access_token": "access-2", "refresh_token": None})
        done = await store.finish_refresh(await granted(store, user), ended)
        assert done is not None
        assert (done.failure, done.recovered) == (None, "revoked")
        await at(clock, 2 * DAY)
        recorded = await refused(store, user)
        assert recorded == RecordedFailure(reason="revoked", since=START + 2 * DAY, retry_at=START + 2 * DAY + HOUR)


async def test_a_recheck_begins_again(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection, operator: str
) -> None:
    """Also of a refusal that is final: Spotify may be asked at once, after an hour and after a day."""
    async with ConnectionAdmin.open(operator) as house, database_clock(admin) as clock:
        await at(clock, timedelta(0))
        await store.save(user, OLD, ALICE)
        for moment in (timedelta(0), HOUR, HOUR + DAY):
            await at(clock, moment)
            await refused(store, user)
        await at(clock, 5 * DAY)
        assert (await store.begin_refresh(user, seen=SEEN)).outcome is Outcome.REFUSED
        assert await house.recheck(since=START) == 1
        assert await house.recheck(since=START) == 0
        for moment, due in ((5 * DAY, HOUR), (5 * DAY + HOUR, DAY), (6 * DAY + HOUR, None)):
            await at(clock, moment)
            assert (await refused(store, user)).retry_at == (due and START + moment + due)
        assert await house.recheck(since=START + 6 * DAY + 2 * HOUR) == 0
