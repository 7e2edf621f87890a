"""Prune: what gives no token any more goes after a while, and nothing that was saved beside it is undone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest

from spotconn import (
    ConnectionAdmin,
    ConnectionStore,
    DatabaseUnavailable,
    NotConnected,
    Outcome,
    Profile,
    PruneProgress,
    RefreshFailure,
)
from spotconn._database import service_role
from spotconn.models import fingerprint
from support.connections import grant
from support.database import Database
from support.lock_waits import until_someone_waits, until_waiting

ALICE = Profile(spotify_user_id="alice")
APP, RETIRED = "our-app", "retired-app"
SEEN = fingerprint("")
"""Of no stored token: who has it wants an ended one replaced."""
LONG = timedelta(days=90)
DEAD = """
update public.spotify_connections
set connected_at = now() - interval '300 days', expires_at = now() - interval '100 days'
where user_id = $1
"""
REFUSED = """
update spotconn.refresh_state set failure = 'expired', refusals = 1, retry_at = null,
    failed_at = now() - interval '95 days', paused_at = now() - interval '95 days',
    saved_at = now() - interval '101 days', granted_at = now() - interval '101 days'
where user_id = $1
"""
REMINDED = "insert into spotconn.reminder select user_id, connected_at, now() from public.spotify_connections"
STORED = "select user_id from public.spotify_connections"
KNOWN = "select user_id from spotconn.refresh_state union all select user_id from spotconn.reminder"

CASES: dict[str, tuple[str | None, str, str]] = {
    "refused six months after the authorization": ("expired", "", ""),
    "refused before": ("revoked", "", "failure = 'revoked'"),
    "refused, authorized nobody knows when": ("invalid", "", "failure = 'invalid'"),
    "of no known app, six months over": ("expired", "", "client_id = null, refused_by = '{our-app}'"),
    "of no known app": ("not_final", "", "failure = 'revoked', client_id = null, refused_by = '{our-app}'"),
    "to be asked about once more": ("not_final", "", "failure = 'revoked', retry_at = now() - interval '94 days'"),
    "refused lately": ("too_recent", "", "failed_at = now() - interval '89 days'"),
    "refused again lately": ("too_recent", "", "paused_at = now() - interval '89 days'"),
    "refreshed now": (
        "too_recent", "", "lease_id = gen_random_uuid(), leased_at = now(), lease_until = now() + interval '15 seconds'"
    ),
    "saved lately": ("too_recent", "", "saved_at = now() - interval '1 day'"),
    "another writer's access token for the same refresh token": (
        "too_recent", "expires_at = now() + interval '1 hour'", ""
    ),
    "an end that no access token has": ("expired", "expires_at = 'infinity'", ""),
    "authorized anew": ("too_recent", "connected_at = now() - interval '1 day'", ""),
    "authorized in the future": ("expired", "connected_at = now() + interval '1 year'", ""),
    "authorized at no time": ("expired", "connected_at = null", ""),
    "another refresh token": (None, "refresh_token = 'other'", ""),
    "refused at no time that comes": ("too_recent", "", "failed_at = 'infinity'"),
    "not to be refreshed for a while": (None, "", "failure = 'unavailable', retry_at = now()"),
    "not refused": (None, "", "failure = null, failed_at = null, paused_at = null"),
    "of a retired app": ("retired_app", "", "failure = null, failed_at = null, client_id = 'retired-app'"),
    "of a retired app, refused": ("revoked", "", "failure = 'revoked', client_id = 'retired-app'"),
    "of a retired app, not for good": (
        "retired_app", "", "failure = 'revoked', retry_at = now(), client_id = 'retired-app'"
    ),
    "of a retired app, in use lately": (
        "too_recent",
        "expires_at = now() - interval '1 day'",
        "failure = null, failed_at = null, client_id = 'retired-app'",
    ),
}  # fmt: skip
"""By what a row is: the reason that it counts under, and how its connection and its state differ from a dead one's."""
TOO_RECENT = 8


@pytest.fixture
async def house(operator: str) -> AsyncIterator[ConnectionAdmin]:
    async with ConnectionAdmin.open(operator) as opened:
        yield opened


@pytest.fixture
async def holder(database: Database) -> AsyncIterator[asyncpg.Connection]:
    session = await asyncpg.connect(database.admin_dsn)
    yield session
    await session.close()


async def dead(admin: asyncpg.Connection, store: ConnectionStore, user: UUID, *changes: str) -> None:
    """Store a connection that Spotify refused for good 95 days ago, but for changes of its row and of its state."""
    await store.save(user, grant("dead", minutes=-1), ALICE, client_id=APP)
    await admin.execute(DEAD, user)
    await admin.execute(REFUSED, user)
    for table, change in zip(("public.spotify_connections", "spotconn.refresh_state"), changes, strict=False):
        if change:
            await admin.execute(f"update {table} set {change} where user_id = $1", user)


async def users_of(admin: asyncpg.Connection, query: str) -> list[UUID]:
    return sorted(row["user_id"] for row in await admin.fetch(query))


async def test_what_is_dead_goes_and_the_rest_stays(
    admin: asyncpg.Connection, store: ConnectionStore, house: ConnectionAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dry run counts by reason and changes nothing; then these rows are deleted, with what is known of their refresh
    tokens, in batches that are reported; a second run finds only what stays.
    """
    monkeypatch.setattr(service_role, "BATCH", 4)
    made = await admin.fetch("insert into auth.users select from generate_series(1, $1) returning id", len(CASES))
    users = dict(zip(CASES, (row["id"] for row in made), strict=True))
    for name, (_, *changes) in CASES.items():
        await dead(admin, store, users[name], *changes)
    await admin.execute(REMINDED)
    reasons = [reason for reason, *_ in CASES.values() if reason]
    expected = PruneProgress(**{reason: reasons.count(reason) for reason in reasons})
    assert expected.total == len(reasons) - 2 - TOO_RECENT

    assert await house.prune(dead_for=LONG, retired_client_ids=[RETIRED]) == expected
    assert await users_of(admin, STORED) == sorted(users.values())

    reports: list[PruneProgress] = []
    done = await house.prune(dead_for=LONG, retired_client_ids=[RETIRED], write=True, progress=reports.append)
    assert done == expected == reports[-1]
    assert len(reports) == -(-len(reasons) // 4)
    stay = sorted(users[name] for name, (reason, *_) in CASES.items() if reason in {None, "not_final", "too_recent"})
    assert await users_of(admin, STORED) == stay
    assert await users_of(admin, KNOWN) == sorted(2 * stay)
    again = await house.prune(dead_for=LONG, retired_client_ids=[RETIRED], write=True)
    assert again == PruneProgress(not_final=2, too_recent=TOO_RECENT)


async def test_a_rechecked_one_stays(
    admin: asyncpg.Connection, store: ConnectionStore, house: ConnectionAdmin, user: UUID
) -> None:
    """Spotify is to be asked about it; where that refuses it again, the time counts from then."""
    await dead(admin, store, user)
    assert await house.recheck(since=datetime.now(UTC) - timedelta(days=100)) == 1
    assert await house.prune(dead_for=LONG, write=True) == PruneProgress(not_final=1)
    turn = await store.begin_refresh(user, seen=SEEN)
    refused = await store.fail_refresh(turn, RefreshFailure(reason="refused"))
    assert refused is not None
    assert (refused.reason, refused.retry_at) == ("expired", None)
    assert await house.prune(dead_for=LONG, write=True) == PruneProgress(too_recent=1)
    assert (await house.prune(dead_for=timedelta())).total == 1


ORDERS = {
    "a reconnect": "select from spotconn.save_connection($1, 'alice', 'access', 'refresh', now(), '', '', '')",
    "another writer's connection":
        "update public.spotify_connections set refresh_token = 'refresh' where user_id = $1",
    "another writer's access token": "update public.spotify_connections set expires_at = now() where user_id = $1",
    "a recheck": "update spotconn.refresh_state set retry_at = now(), refusals = 0 where user_id = $1",
    "a refresh": """with row as (select refresh_token from public.spotify_connections where user_id = $1)
        select from row, spotconn.finish_refresh($1, spotconn.fingerprint(refresh_token), '', 'access', 'refresh',
        now(), null, 0, null, null, null, false, null, null, 'our-app')""",
}  # fmt: skip
ROW = """
select to_jsonb(stored) as connection, to_jsonb(state) as state from public.spotify_connections as stored
join spotconn.refresh_state as state using (user_id) where user_id = $1
"""


@pytest.mark.parametrize("order", ORDERS)
async def test_what_is_saved_before_the_rows_are_locked_stays(
    admin: asyncpg.Connection,
    store: ConnectionStore,
    house: ConnectionAdmin,
    users: list[UUID],
    holder: asyncpg.Connection,
    order: str,
) -> None:
    """The prune has read the row as a dead one, and decides anew on the locked one; the others of the batch go."""
    for user in users:
        await dead(admin, store, user)
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute("lock table public.spotify_connections in exclusive mode")  # reading passes, locking waits
    pruning = asyncio.create_task(house.prune(dead_for=LONG, write=True))
    await until_someone_waits(admin, "public.spotify_connections")
    await holder.execute(ORDERS[order], users[0])
    await holder.execute("reset role")
    saved = await holder.fetchrow(ROW, users[0])
    await transaction.commit()
    assert await pruning == PruneProgress(expired=2)
    assert saved is not None
    assert await admin.fetch(ROW, users[0]) == [saved]
    assert await users_of(admin, STORED) == [users[0]]


async def test_what_comes_while_the_rows_are_locked_finds_none(
    admin: asyncpg.Connection, store: ConnectionStore, house: ConnectionAdmin, users: list[UUID], database: Database
) -> None:
    """A reconnect waits for the prune and is stored; a refresh asks Spotify for nothing, before and after."""
    for user in users[:2]:
        await dead(admin, store, user)
    await admin.execute("create function public.wait() returns trigger language plpgsql as $$ begin perform "
                        "pg_advisory_xact_lock(33); return old; end $$; create trigger wait before delete on "
                        "public.spotify_connections for each row execute function public.wait()")  # fmt: skip
    try:
        await admin.execute("select pg_advisory_lock(33)")
        pruning = asyncio.create_task(house.prune(dead_for=LONG, write=True))
        await waits(admin, "operator")
        connecting = asyncio.create_task(connected(store, users[0]))
        await waits(admin, "app")
        assert await begun(store, users[1]) is Outcome.REFUSED
        await admin.execute("select pg_advisory_unlock(33)")
        assert await pruning == PruneProgress(expired=2)
    finally:
        await admin.execute("drop function public.wait cascade")
    await connecting
    assert (await store.get(users[0])).refresh_token == "refresh-new"
    assert await begun(store, users[1]) is Outcome.GONE


async def waits(admin: asyncpg.Connection, login: str) -> None:
    pids = await admin.fetch("select pid from pg_stat_activity where usename = $1", login)
    await until_waiting(admin, *[row["pid"] for row in pids])


async def connected(store: ConnectionStore, user: UUID) -> None:
    """Save a connection, however long its row is locked."""
    while True:
        with suppress(DatabaseUnavailable):
            await store.save(user, grant("new"), ALICE, client_id=APP)
            return


async def begun(store: ConnectionStore, user: UUID) -> Outcome:
    """Ask for the turn at a refresh, which a lock holds up no longer than half a second."""
    while True:
        with suppress(DatabaseUnavailable):
            return (await store.begin_refresh(user, seen=SEEN)).outcome


async def test_a_row_that_is_held_is_left_for_the_next_run(
    admin: asyncpg.Connection,
    store: ConnectionStore,
    house: ConnectionAdmin,
    users: list[UUID],
    holder: asyncpg.Connection,
) -> None:
    """Whether its connection is held or what is known of it: nobody is waited for, and nobody else has to wait. The end
    of a user is a transaction like any other.
    """
    for user in users:
        await dead(admin, store, user)
    for held in (
        "select from public.spotify_connections where user_id = $1 for no key update",
        "select from spotconn.refresh_state where user_id = $1 for no key update",
        "delete from auth.users where id = $1",
    ):
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute(held, users[0])
        done = await house.prune(dead_for=LONG, write=True)
        await transaction.rollback()
        assert users[0] in await users_of(admin, STORED)
        assert done == PruneProgress(expired=2)
        for user in users[1:]:
            await dead(admin, store, user)


async def test_processes_are_notified_as_of_a_disconnect(
    admin: asyncpg.Connection,
    store: ConnectionStore,
    house: ConnectionAdmin,
    users: list[UUID],
    holder: asyncpg.Connection,
) -> None:
    """Each id goes over the channel once, no other does, and the user is not connected."""
    for user in users[:2]:
        await dead(admin, store, user)
    await dead(admin, store, users[2], "", "failure = null, failed_at = null")
    notified: asyncio.Queue[object] = asyncio.Queue()

    def notify(*notification: object) -> None:
        notified.put_nowait(notification[-1])

    await holder.add_listener("spotconn", notify)
    assert (await house.prune(dead_for=LONG, write=True)).total == 2
    await admin.execute("notify spotconn, 'end'")
    async with asyncio.timeout(20):
        messages = [await notified.get() for _ in range(3)]
    assert sorted(map(str, messages)) == sorted([*map(str, users[:2]), "end"])
    with pytest.raises(NotConnected):
        await store.get(users[0])


@pytest.mark.parametrize("dead_for", [timedelta(seconds=-1), timedelta(days=40_000)])
async def test_a_time_that_cannot_be_meant_is_refused(house: ConnectionAdmin, dead_for: timedelta) -> None:
    """Before anything is read."""
    with pytest.raises(ValueError, match=r"^dead_for: "):
        await house.prune(dead_for=dead_for)
