"""The app of connections from before it was recorded: assigned once, never altered, and beside all that is live."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID

import asyncpg
import pytest

from spotconn import AesGcmSivCipher, Connection, ConnectionAdmin, ConnectionStore, Outcome, Profile, RefreshFailure
from spotconn._database import service_role
from spotconn.models import fingerprint
from support.bulk import add_connections
from support.connections import grant, stored_state
from support.database import Database
from support.lock_waits import until_waiting

ALICE = Profile(spotify_user_id="alice")
OURS, THEIRS = "our-app", "their-app"
OLD = grant("old", minutes=-1)
SEEN = fingerprint(OLD.access_token)
FOREIGN = """
insert into public.spotify_connections (user_id, spotify_user_id, access_token, refresh_token, expires_at)
values ($1, 'alice', 'access-old', 'refresh-foreign', now() - interval '1 minute')
"""
REPLACED = "update public.spotify_connections set refresh_token = 'refresh-foreign' where user_id = $1"
FORGET = """
with locked as (select user_id from public.spotify_connections order by user_id for no key update)
update spotconn.refresh_state as state set client_id = null from locked where state.user_id = locked.user_id
"""
TRUE_STATES = """
select count(*) from spotconn.refresh_state as state join public.spotify_connections as stored using (user_id)
where client_id = $1 and fingerprint = sha256(convert_to(refresh_token, 'UTF8'))
"""


@pytest.fixture
async def house(operator: str) -> AsyncIterator[ConnectionAdmin]:
    """A ConnectionAdmin with one connection."""
    async with ConnectionAdmin.open(operator, max_size=1) as opened:
        yield opened


@pytest.fixture
async def holder(database: Database) -> AsyncIterator[asyncpg.Connection]:
    """Another session, which holds locks."""
    session = await asyncpg.connect(database.admin_dsn)
    yield session
    await session.close()


async def until_it_waits(admin: asyncpg.Connection, login: str = "operator") -> None:
    """Wait until a session of the login waits for a lock."""
    pids = await admin.fetch("select pid from pg_stat_activity where usename = $1", login)
    await until_waiting(admin, *[row["pid"] for row in pids])


async def refused(store: ConnectionStore, user: UUID, *apps: str, reason: str = "refused") -> Connection:
    """Store a connection of no known app, whose refresh has failed with these."""
    stored = await store.save(user, OLD, ALICE)
    turn = await store.begin_refresh(user, seen=SEEN, client_ids=apps)
    failure = RefreshFailure(reason="refused" if reason == "refused" else "unavailable", refused_by=apps)
    assert await store.fail_refresh(turn, failure) is not None
    return stored


async def test_connections_of_no_app_are_assigned(
    store: ConnectionStore, house: ConnectionAdmin, users: list[UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches; a second time there is nothing left to do, and another app gets none of them."""
    monkeypatch.setattr(service_role, "BATCH", 2)
    for user in users:
        await store.save(user, OLD, ALICE)
    assert await house.assign_app(OURS) == 3
    assert [(await store.get(user)).client_id for user in users] == [OURS] * 3
    assert await house.assign_app(OURS) == await house.assign_app(THEIRS) == 0
    assert [(await store.get(user)).client_id for user in users] == [OURS] * 3


async def test_a_known_app_stays(
    store: ConnectionStore, house: ConnectionAdmin, user: UUID, admin: asyncpg.Connection
) -> None:
    """Nothing of its state changes, a refusal neither."""
    await store.save(user, OLD, ALICE, client_id=THEIRS)
    turn = await store.begin_refresh(user, seen=SEEN, client_ids=[THEIRS])
    await store.fail_refresh(turn, RefreshFailure(reason="refused", refused_by=(THEIRS,)))
    before = await stored_state(admin, user)
    assert await house.assign_app(OURS) == 0
    assert await stored_state(admin, user) == before


async def test_connections_of_another_writer_are_assigned(
    store: ConnectionStore, house: ConnectionAdmin, users: list[UUID], admin: asyncpg.Connection
) -> None:
    """One without a state gets one; a state of another refresh token is void, and all that it says with it."""
    inserted, replaced, leased = users
    await admin.execute(FOREIGN, inserted)
    await refused(store, replaced, THEIRS)
    await store.save(leased, OLD, ALICE, client_id=THEIRS)
    await store.begin_refresh(leased, seen=SEEN)
    before = {user: await stored_state(admin, user) for user in (replaced, leased)}
    for user in before:
        await admin.execute(REPLACED, user)
    assert await house.assign_app(OURS) == 3
    for user in users:
        state = await stored_state(admin, user)
        assert state["fingerprint"] == bytes.fromhex(fingerprint("refresh-foreign"))
        assert (state["client_id"], state["refused_by"], state["failure"]) == (OURS, [], None)
        assert (state["lease_id"], state["saved_at"], state["granted_at"], state["refusals"]) == (None, None, None, 0)
        if user in before:
            assert state["family"] != before[user]["family"]
            assert state["saves"] == before[user]["saves"] == 1
        assert (await store.begin_refresh(user, seen=SEEN, client_ids=[THEIRS, OURS])).client_ids == (OURS,)


async def test_a_refusal_counts_if_it_is_by_this_app(
    store: ConnectionStore, house: ConnectionAdmin, users: list[UUID], admin: asyncpg.Connection
) -> None:
    """Refused by others, it is tried with its own at once; refused by its own, or paused, it stays so."""
    by_others, by_own, paused = users
    await refused(store, by_others, THEIRS)
    await refused(store, by_own, THEIRS, OURS)
    await refused(store, paused, THEIRS, reason="unavailable")
    before = {user: await stored_state(admin, user) for user in users}
    assert await house.assign_app(OURS) == 3
    after = await stored_state(admin, by_others)
    assert [after[column] for column in ("failure", "failed_at", "paused_at", "retry_at")] == [None] * 4
    assert after["refusals"] == 0
    for user in (by_own, paused):
        assert dict(await stored_state(admin, user)) == dict(before[user]) | {"client_id": OURS, "refused_by": []}
    turns = {user: await store.begin_refresh(user, seen=SEEN, client_ids=[OURS]) for user in users}
    assert [turn.outcome for turn in turns.values()] == [Outcome.GRANTED, Outcome.REFUSED, Outcome.PAUSED]


async def test_a_refresh_under_way_is_saved(
    store: ConnectionStore, house: ConnectionAdmin, user: UUID, admin: asyncpg.Connection
) -> None:
    """Its lease stays, another is not granted meanwhile, and the app that was granted is the true one."""
    await store.save(user, OLD, ALICE)
    turn = await store.begin_refresh(user, seen=SEEN, client_ids=[THEIRS])
    assert await house.assign_app(OURS) == 1
    assert (await stored_state(admin, user))["lease_id"] == turn.lease_id
    assert (await store.begin_refresh(user, seen=SEEN, client_ids=[OURS])).outcome is Outcome.BUSY
    saved = await store.finish_refresh(turn, grant("new"))
    assert saved is not None
    assert (saved.refresh_token, saved.client_id) == ("refresh-new", THEIRS)


async def test_a_turn_that_came_first_is_seen(
    store: ConnectionStore,
    house: ConnectionAdmin,
    user: UUID,
    admin: asyncpg.Connection,
    holder: asyncpg.Connection,
) -> None:
    """A lease that is committed while the row is waited for stays, and the state is taken as it stands then."""
    await store.save(user, OLD, ALICE)
    async with holder.transaction():
        begin = "select (turn).lease_id from spotconn.begin_refresh($1, $2, '15 s', $3) as turn"
        lease = await holder.fetchval(begin, user, bytes.fromhex(SEEN), [THEIRS])
        await holder.execute("update spotconn.refresh_state set refused_by = $1, client_id = null", [THEIRS])
        assigned = asyncio.create_task(house.assign_app(OURS))
        await until_it_waits(admin)
    assert await assigned == 1
    state = await stored_state(admin, user)
    assert (state["lease_id"], state["client_id"], state["refused_by"]) == (lease, OURS, [])


async def test_an_app_that_came_first_stays(
    store: ConnectionStore,
    house: ConnectionAdmin,
    user: UUID,
    admin: asyncpg.Connection,
    holder: asyncpg.Connection,
) -> None:
    """A refresh that finds the app while the row is waited for is not overwritten, and not counted."""
    await store.save(user, OLD, ALICE)
    async with holder.transaction():
        await holder.execute("select from public.spotify_connections for no key update")
        await holder.execute("update spotconn.refresh_state set client_id = $1", THEIRS)
        assigned = asyncio.create_task(house.assign_app(OURS))
        await until_it_waits(admin)
    assert await assigned == 0
    assert (await store.get(user)).client_id == THEIRS


@pytest.mark.parametrize(("app", "outcome"), [(OURS, Outcome.GRANTED), (THEIRS, Outcome.OTHER_APP)])
async def test_a_turn_that_came_second_knows_the_app(
    store: ConnectionStore,
    house: ConnectionAdmin,
    users: list[UUID],
    admin: asyncpg.Connection,
    holder: asyncpg.Connection,
    app: str,
    outcome: Outcome,
) -> None:
    """A turn that waits for the batch is decided on what the batch has recorded."""
    first, *_, last = sorted(users)
    for user in users:
        await store.save(user, OLD, ALICE)
    async with holder.transaction():
        await holder.execute("select from public.spotify_connections where user_id = $1 for update", last)
        assigned = asyncio.create_task(house.assign_app(OURS))
        await until_it_waits(admin)  # with the locks of the other rows
        turn = asyncio.create_task(store.begin_refresh(first, seen=SEEN, client_ids=[app]))
        await until_it_waits(admin, "app")
    assert await assigned == 3
    assert (await turn).outcome is outcome
    assert (await turn).client_ids == ((OURS,) if outcome is Outcome.GRANTED else ())


@pytest.mark.parametrize("states", ["none", "of all"])
@pytest.mark.parametrize(("end", "number"), [("commit", 2), ("rollback", 3)])
async def test_a_user_is_deleted_meanwhile(
    store: ConnectionStore,
    house: ConnectionAdmin,
    users: list[UUID],
    admin: asyncpg.Connection,
    holder: asyncpg.Connection,
    states: str,
    end: str,
    number: int,
) -> None:
    """No deadlock and no error: the others are assigned, and the one too if the deletion is rolled back."""
    for user in users:
        await admin.execute(FOREIGN, user)
        if states == "of all":
            await store.begin_refresh(user, seen=SEEN, lease=0)
    deletion = holder.transaction()
    await deletion.start()
    await holder.execute("delete from auth.users where id = $1", sorted(users)[1])
    assigned = asyncio.create_task(house.assign_app(OURS))
    await until_it_waits(admin)
    await (deletion.commit() if end == "commit" else deletion.rollback())
    assert await assigned == number
    assert await admin.fetchval(TRUE_STATES, OURS) == number


async def test_a_long_deletion_holds_up_no_other_user(
    store: ConnectionStore,
    house: ConnectionAdmin,
    users: list[UUID],
    admin: asyncpg.Connection,
    holder: asyncpg.Connection,
) -> None:
    """While the state of the deleted user waits, those of others are refreshed."""
    for user in users:
        await admin.execute(FOREIGN, user)
    first, second, last = sorted(users)
    async with holder.transaction():
        await holder.execute("delete from auth.users where id = $1", second)
        assigned = asyncio.create_task(house.assign_app(OURS))
        await until_it_waits(admin)
        async with asyncio.timeout(20):
            for user in (first, last):
                assert (await store.begin_refresh(user, seen=SEEN, client_ids=[OURS])).outcome is Outcome.GRANTED
        assert not assigned.done()
    assert await assigned == 2


async def test_beside_a_rekey(operator: str, admin: asyncpg.Connection) -> None:
    """Both end, whichever comes first to a row, and each state speaks of the stored text and names the app."""
    await add_connections(admin, 3000)
    cipher = AesGcmSivCipher([AesGcmSivCipher.generate_key()])
    async with ConnectionAdmin.open(operator, cipher=cipher) as house:
        progress, assigned = await asyncio.gather(house.rekey(), house.assign_app(OURS))
    assert (progress.done, assigned) == (3000, 3000)
    assert await admin.fetchval(TRUE_STATES, OURS) == 3000


async def test_live_refreshes_win(
    store: ConnectionStore, house: ConnectionAdmin, users: list[UUID], admin: asyncpg.Connection
) -> None:
    """Refreshes that are granted and saved all the while lose nothing, and each connection has its app at the end."""
    for user in users:
        await store.save(user, OLD, ALICE)

    async def refresh(user: UUID) -> None:
        for number in range(20):
            wanting = await store.get(user)
            turn = await store.begin_refresh(user, seen=wanting.fingerprint, client_ids=[OURS])
            saved = await store.finish_refresh(turn, grant(f"{user}-{number}", minutes=-1))
            assert saved is not None
            assert saved.refresh_token == f"refresh-{user}-{number}"

    async def forget() -> None:
        while True:
            await admin.execute(FORGET)
            await house.assign_app(OURS)

    forgetting = asyncio.create_task(forget())
    try:
        await asyncio.gather(*[refresh(user) for user in users])
    finally:
        forgetting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await forgetting
    await house.assign_app(OURS)
    assert [(await store.get(user)).client_id for user in users] == [OURS] * 3


@pytest.mark.parametrize("client_id", ["", "an app", "äpp", "app\n"])
async def test_a_malformed_id_is_refused(house: ConnectionAdmin, client_id: str) -> None:
    """It is a ValueError before any query."""
    with pytest.raises(ValueError, match=r"^client_id: "):
        await house.assign_app(client_id)


async def test_expiring_lists_connections_of_a_retired_app(
    store: ConnectionStore, house: ConnectionAdmin, users: list[UUID]
) -> None:
    """Whatever their date; not those that Spotify has refused, and none without the list."""
    retired, other, dead = users
    await store.save(retired, OLD, ALICE, client_id=THEIRS)
    await store.save(other, OLD, ALICE, client_id=OURS)
    await store.save(dead, OLD, ALICE, client_id=THEIRS)
    await store.fail_refresh(await store.begin_refresh(dead, seen=SEEN), RefreshFailure(reason="refused"))
    within = timedelta(days=1)
    listed = [one async for one in house.expiring(within=within, retired_client_ids=[THEIRS, "no-such-app"])]
    assert [(one.user_id, one.client_id) for one in listed] == [(retired, THEIRS)]
    assert [one async for one in house.expiring(within=within)] == []


async def test_the_counts_by_app(
    store: ConnectionStore, house: ConnectionAdmin, users: list[UUID], admin: asyncpg.Connection
) -> None:
    """Of the stored refresh tokens; a state of another one says nothing."""
    await store.save(users[0], OLD, ALICE, client_id=OURS)
    await store.save(users[1], OLD, ALICE, client_id=THEIRS)
    await store.save(users[2], OLD, ALICE, client_id=THEIRS)
    await admin.execute(REPLACED, users[2])
    stats = await house.stats()
    assert (stats.by_app, stats.app_unknown) == ({OURS: 1, THEIRS: 1}, 1)
