"""What an operator does with all connections: it is complete, acts as service_role and loses to whoever is live."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import asyncpg
import pytest

from spotconn import (
    ConnectionAdmin,
    ConnectionStats,
    ConnectionStore,
    Outcome,
    Profile,
    RefreshFailure,
    RowSecurityError,
    TokenGrant,
)
from spotconn._database import service_role
from spotconn.models import fingerprint
from support.bulk import add_connections
from support.database import Database
from support.doctor import look

ALICE = Profile(spotify_user_id="alice")
ENDED = datetime.now(UTC) - timedelta(minutes=1)
OLD = TokenGrant(access_token="access-old", refresh_token="refresh-old", expires_at=ENDED)
SEEN = fingerprint(OLD.access_token)
AN_HOUR_AGO = datetime.now(UTC) - timedelta(hours=1)


@pytest.fixture
async def house(operator: str) -> AsyncIterator[ConnectionAdmin]:
    """A ConnectionAdmin."""
    async with ConnectionAdmin.open(operator) as opened:
        yield opened


CONNECTED = {"expired": timedelta(days=190), "revoked": timedelta(days=170), "invalid": None}
"""How long ago the user has connected, by the reason that a refusal then has."""


async def refused(store: ConnectionStore, user: UUID, admin: asyncpg.Connection, reason: str = "revoked") -> None:
    """Store a connection whose refresh has been refused for a reason, or whose refresh is paused ("unavailable")."""
    stored = await store.save(user, OLD, ALICE)
    turn = await store.begin_refresh(user, seen=stored.fingerprint)
    paused = reason == "unavailable"
    if not paused:
        connected = "update public.spotify_connections set connected_at = now() - $2::interval where user_id = $1"
        await admin.execute(connected, user, CONNECTED[reason])
    recorded = await store.fail_refresh(turn, RefreshFailure(reason="unavailable" if paused else "refused"))
    assert recorded is not None
    assert recorded.reason == reason
    turn = await store.begin_refresh(user, seen=stored.fingerprint)
    assert turn.outcome is (Outcome.PAUSED if paused else Outcome.REFUSED)


async def test_a_recheck_lets_refused_connections_be_tried_again(
    store: ConnectionStore,
    house: ConnectionAdmin,
    users: list[UUID],
    admin: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each refusal of the time is tried again, in batches; a new refusal is recorded and counts from the start."""
    monkeypatch.setattr(service_role, "BATCH", 2)
    for user, reason in zip(users, ("expired", "revoked", "invalid"), strict=True):
        await refused(store, user, admin, reason)
    assert await house.recheck(since=AN_HOUR_AGO) == 3
    for user in users:
        turn = await store.begin_refresh(user, seen=SEEN)
        assert turn.outcome is Outcome.GRANTED
        recorded = await store.fail_refresh(turn, RefreshFailure(reason="refused"))
        assert recorded is not None
        assert (recorded.reason == "expired") is (recorded.retry_at is None)
        assert (await store.begin_refresh(user, seen=SEEN)).outcome is Outcome.REFUSED
    assert await admin.fetchval("select array_agg(distinct refusals) from spotconn.refresh_state") == [1]
    assert await house.recheck(since=AN_HOUR_AGO) == 3
    assert await house.recheck(since=AN_HOUR_AGO) == 0


async def test_a_recheck_leaves_the_rest_alone(
    store: ConnectionStore, house: ConnectionAdmin, users: list[UUID], admin: asyncpg.Connection
) -> None:
    """What was refused earlier, what only paused, and what speaks of another refresh token stay as they are."""
    early, paused, void = users
    await refused(store, early, admin)
    await admin.execute("update spotconn.refresh_state set failed_at = now() - interval '2 hours'")
    await refused(store, paused, admin, "unavailable")
    await refused(store, void, admin)
    await admin.execute("update public.spotify_connections set refresh_token = 'other' where user_id = $1", void)
    before = await admin.fetch("select * from spotconn.refresh_state order by user_id")
    assert await house.recheck(since=AN_HOUR_AGO) == 0
    assert await admin.fetch("select * from spotconn.refresh_state order by user_id") == before


async def test_a_time_without_a_zone_is_refused(house: ConnectionAdmin) -> None:
    """A naive time is a ValueError before any query."""
    with pytest.raises(ValueError, match=r"^since: "):
        await house.recheck(since=datetime(2026, 1, 1))  # noqa: DTZ001  the point


async def test_a_login_without_service_role_is_told_the_grant(database: Database) -> None:
    """A login of the store alone gets no further than the change of role."""
    async with ConnectionAdmin.open(database.dsn) as house:
        with pytest.raises(RowSecurityError, match="GRANT service_role TO"):
            await house.recheck(since=AN_HOUR_AGO)


async def test_nothing_of_the_role_stays(operator: str) -> None:
    """The pooled connection goes back as the login it is."""
    async with ConnectionAdmin.open(operator, max_size=1) as house:
        await house.recheck(since=AN_HOUR_AGO)
        async with house._pool._pool.acquire() as connection:
            assert await connection.fetchval("select current_user || current_setting('role')") == "operatornone"


async def test_expiring_and_failing_tell_whom_to_ask(
    store: ConnectionStore,
    house: ConnectionAdmin,
    users: list[UUID],
    admin: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who is due within the time and works; who failed, and why; nothing of a refresh token that was replaced."""
    monkeypatch.setattr(service_role, "BATCH", 1)
    due, late, dead = sorted(users)
    for user in users:
        await refused(store, user, admin, "revoked" if user == dead else "unavailable")
    age = "update public.spotify_connections set connected_at = now() - $2::interval where user_id = $1"
    await admin.execute(age, due, timedelta(days=170))
    await admin.execute(age, late, timedelta(days=400))
    await admin.execute(age, dead, timedelta(days=400))

    async def ids(within: timedelta) -> list[UUID]:
        return [one.user_id async for one in house.expiring(within=within)]

    assert await ids(timedelta(days=30)) == [due, late]
    assert await ids(timedelta(0)) == [late]
    assert await ids(timedelta(days=-300)) == []
    failing = [one async for one in house.failing()]
    assert [(one.user_id, one.failure and one.failure.reason) for one in failing] == [
        (due, "unavailable"),
        (late, "unavailable"),
        (dead, "revoked"),
    ]
    assert failing[0].failure == (await store.get(due)).failure
    assert failing[0].reauthorize_by == (await store.get(due)).reauthorize_by
    await store.save(dead, OLD, ALICE)
    assert [one.user_id async for one in house.failing()] == [due, late]


@pytest.mark.parametrize("connected", ["2026-08-31 23:30+00", "2026-02-28 12:00+00", "2025-12-31 00:00-05"])
async def test_the_database_counts_six_months_as_the_library_does(
    store: ConnectionStore, operator: str, user: UUID, admin: asyncpg.Connection, connected: str
) -> None:
    """The moment from which a connection is listed is its `reauthorize_by`, to the microsecond, in any time zone."""
    await store.save(user, OLD, ALICE)
    await admin.execute(f"update public.spotify_connections set connected_at = '{connected}'")
    due = (await store.get(user)).reauthorize_by
    assert due is not None
    for microseconds, listed in ((-60_000_000, False), (60_000_000, True)):
        within = due + timedelta(microseconds=microseconds) - datetime.now(UTC)
        async with ConnectionAdmin.open(operator, server_settings={"timezone": "America/New_York"}) as house:
            assert bool([one async for one in house.expiring(within=within)]) is listed


async def test_the_counts_are_of_the_stored_refresh_tokens(
    store: ConnectionStore, house: ConnectionAdmin, users: list[UUID], admin: asyncpg.Connection
) -> None:
    """Each failure and each live lease counts once, and a void one not at all."""
    await refused(store, users[0], admin, "expired")
    await refused(store, users[1], admin, "revoked")
    await admin.execute("update public.spotify_connections set refresh_token = 'other' where user_id = $1", users[1])
    await store.save(users[2], OLD, ALICE)
    await store.begin_refresh(users[2], seen=SEEN)
    assert await house.stats() == ConnectionStats(
        connections=3,
        refreshing=1,
        unavailable=0,
        expired=1,
        revoked=0,
        invalid=0,
        plain_text=6,
        damaged=0,
        by_key={},
        app_unknown=3,
        by_app={},
    )


@pytest.mark.long
async def test_a_list_of_many_needs_no_more_memory(house: ConnectionAdmin, admin: asyncpg.Connection) -> None:
    """20,000 connections stream in a few megabytes, and a list that is left early holds no connection."""
    await add_connections(admin, 20_000)
    tracemalloc.start()
    try:
        count = 0
        async for one in house.expiring(within=timedelta(days=30)):
            count += 1
            assert one.spotify_user_id == "account"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 20_000
    assert peak < 10_000_000
    async for _ in house.expiring(within=timedelta(days=30)):
        break
    assert house._pool._pool.get_idle_size() == house._pool._pool.get_size()


async def test_a_list_goes_on_over_a_new_connection(house: ConnectionAdmin, admin: asyncpg.Connection) -> None:
    """A connection that dies between two batches is replaced, and nobody is left out or told twice."""
    await add_connections(admin, 3000)
    seen: list[UUID] = []
    async for one in house.expiring(within=timedelta(days=30)):
        seen.append(one.user_id)
        if len(seen) == 1000:
            open_ones = [one for one in house._pool._transports() if one is not None]
            await admin.execute(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = 'operator'"
            )
            async with asyncio.timeout(20):
                while not all(one.is_closing() for one in open_ones):  # this end has read of it
                    await asyncio.sleep(0.01)
    assert len(seen) == len(set(seen)) == 3000


async def test_a_list_that_is_cut_off_is_an_error(house: ConnectionAdmin, admin: asyncpg.Connection) -> None:
    """A list that cannot be read to its end raises, and is never a shorter one."""
    await add_connections(admin, 3000)
    listed = house.expiring(within=timedelta(days=30))
    for _ in range(1000):
        await anext(listed)
    await admin.execute("revoke usage on schema spotconn from service_role")
    try:
        with pytest.raises(RowSecurityError):
            await anext(listed)
    finally:
        await admin.execute("grant usage on schema spotconn to service_role")


@pytest.mark.parametrize("sign", [-1, 1])
async def test_times_that_no_calendar_has(house: ConnectionAdmin, sign: int) -> None:
    """They are the caller's mistake, and the argument is named."""
    with pytest.raises(ValueError, match=r"^within: expected at most a century$"):
        house.expiring(within=sign * timedelta(days=36_526))
    with pytest.raises(ValueError, match=r"^within: "):
        house.expiring(within=timedelta.max if sign > 0 else timedelta.min)
    assert [one async for one in house.expiring(within=sign * timedelta(days=36_525))] == []
    end = datetime.max.replace(tzinfo=UTC) if sign > 0 else datetime.min.replace(tzinfo=UTC)
    with pytest.raises(ValueError, match=r"^since: expected a time with a time zone, of the years 1 to 9999 in UTC$"):
        await house.recheck(since=end.replace(tzinfo=timezone(-sign * timedelta(hours=14))))
    assert await house.recheck(since=end) == 0


async def test_one_retired_app_is_no_text(house: ConnectionAdmin) -> None:
    """Its letters are not taken as the ids."""
    with pytest.raises(ValueError, match=r"^retired_client_ids: expected several strings, not one$"):
        house.expiring(within=timedelta(days=30), retired_client_ids="myapp")


async def test_a_text_of_another_writer_is_no_key(
    store: ConnectionStore, house: ConnectionAdmin, users: list[UUID], admin: asyncpg.Connection
) -> None:
    """It is counted as damaged, and nothing of it is repeated, however long it is; a later format has its key."""
    texts = "spotconn1.\x1b[31m\u202eowned.AAAA", f"spotconn1.{'x' * 100_000}.AAAA", "spotconn2.0123abcd.AAAA"
    for user, text in zip(users, texts, strict=True):
        await store.save(user, OLD, ALICE)
        await admin.execute("update public.spotify_connections set refresh_token = $2 where user_id = $1", user, text)
    stats = await house.stats()
    assert (stats.plain_text, stats.damaged, stats.by_key) == (3, 2, {"0123abcd": 1})


async def test_a_service_role_that_sees_no_row(
    house: ConnectionAdmin, store: ConnectionStore, users: list[UUID], admin: asyncpg.Connection, database: Database
) -> None:
    """A count of nothing would pass for an answer: nothing is done, and the role is named, by the doctor too."""
    await store.save(users[0], OLD, ALICE)
    await admin.execute("alter role service_role nobypassrls")
    try:
        for call in (house.stats(), house.assign_app("myapp"), house.move(*users[:2]), anext(aiter(house.failing()))):
            with pytest.raises(RowSecurityError, match=r"no policy shows it every row of .*: spotconn schema --apply$"):
                await call
        found = (await look(database.admin_dsn))["grants"]
    finally:
        await admin.execute("alter role service_role bypassrls")
    assert (found.state, str(found.remedy).endswith(": spotconn schema --apply")) == ("fail", True)
    assert (await look(database.admin_dsn))["grants"].state == "ok"
    assert (await house.stats()).connections == 1
