"""A connection that is moved beside live writers: each order in which they meet, without a deadlock or a lost grant."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest

from spotconn import (
    ConnectionAdmin,
    ConnectionStore,
    DatabaseUnavailable,
    Outcome,
    Profile,
    RefreshInProgress,
    UnknownUser,
)
from spotconn._database import move
from spotconn.models import fingerprint
from support.connections import content, grant
from support.database import Database
from support.database_clock import database_clock
from support.lock_waits import until_waiting

ALICE = Profile(spotify_user_id="alice", display_name="Alice")
SEEN = fingerprint("")
"""Of no stored token: who has it wants an ended one replaced."""


@pytest.fixture
async def house(operator: str) -> AsyncIterator[ConnectionAdmin]:
    async with ConnectionAdmin.open(operator) as opened:
        yield opened


async def until_it_waits(admin: asyncpg.Connection, login: str) -> None:
    pids = [row["pid"] for row in await admin.fetch("select pid from pg_stat_activity where usename = $1", login)]
    await until_waiting(admin, *pids)


async def test_a_move_waits_for_a_refresh_and_takes_its_grant_along(
    store: ConnectionStore, house: ConnectionAdmin, users: list[UUID]
) -> None:
    """A grant that is saved while the move waits is what the new user gets."""
    await store.save(users[0], grant("before", minutes=-1), ALICE)
    turn = await store.begin_refresh(users[0], seen=SEEN)
    moving = asyncio.create_task(house.move(*users[:2]))
    done, _ = await asyncio.wait([moving], timeout=0.5)
    assert not done
    assert await store.finish_refresh(turn, grant("after")) is not None
    assert await moving is True
    moved = await store.get(users[1])
    assert (moved.access_token, moved.refresh_token) == ("access-after", "refresh-after")


@pytest.mark.parametrize("late", [True, False])
async def test_a_refresh_that_does_not_end_is_not_made_to_lose(
    store: ConnectionStore,
    house: ConnectionAdmin,
    users: list[UUID],
    admin: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    *,
    late: bool,
) -> None:
    """The move gives up and changes nothing, also within a minute after the lease lapsed: its holder may still save.
    Once it has, or the minute is over, the connection is moved.
    """
    monkeypatch.setattr(move, "LONGEST_WAIT", 0.3)
    before = await store.save(users[0], grant("before", minutes=-1), ALICE)
    turn = await store.begin_refresh(users[0], seen=SEEN)
    async with database_clock(admin) as clock:
        for seconds, expected in ((0, 75), (16, 59), (58, 17)):
            await clock.set_offset(seconds)
            with pytest.raises(RefreshInProgress, match="is being refreshed") as raised:
                await house.move(*users[:2])
            assert raised.value.retry_after == pytest.approx(expected, abs=2)
        assert content(await store.get(users[0])) == content(before)
        if late:
            assert await store.finish_refresh(turn, grant("after")) is not None
        else:
            await clock.set_offset(76)
        assert await house.move(*users[:2])
    assert (await store.get(users[1])).refresh_token == ("refresh-after" if late else "refresh-before")


async def test_a_refresh_that_begins_while_it_is_moved_finds_no_row(
    store: ConnectionStore, house: ConnectionAdmin, users: list[UUID], database: Database
) -> None:
    """It waits for the lock of the move, and asks Spotify for nothing."""
    await store.save(users[0], grant("before", minutes=-1), ALICE)
    holder = await asyncpg.connect(database.admin_dsn)
    try:
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute("select from public.spotify_connections for no key update")
        moving = asyncio.create_task(house.move(*users[:2]))
        await until_it_waits(holder, "operator")
        beginning = asyncio.create_task(store.begin_refresh(users[0], seen=SEEN))
        await until_it_waits(holder, "app")
        await transaction.rollback()
        assert await moving is True
        assert (await beginning).outcome is Outcome.GONE
    finally:
        await holder.close()
    assert (await store.begin_refresh(users[1], seen=SEEN)).outcome is Outcome.GRANTED


async def test_a_connect_that_comes_first_wins(
    store: ConnectionStore, house: ConnectionAdmin, users: list[UUID], database: Database, admin: asyncpg.Connection
) -> None:
    """The new user is connecting: the move waits for the end of that transaction and is refused, without a deadlock."""
    await store.save(users[0], grant("a"), ALICE)
    session = await asyncpg.connect(database.dsn)
    try:
        transaction = session.transaction()
        await transaction.start()
        save = "select from spotconn.save_connection($1, 'bob', 'access', 'refresh', now(), '', '', '')"
        await session.fetch(save, users[1])
        moving = asyncio.create_task(house.move(*users[:2]))
        await until_it_waits(admin, "operator")
        await transaction.commit()
        with pytest.raises(ValueError, match=r"^to_user: has a connection"):
            await moving
    finally:
        await session.close()
    assert (await store.get(users[0])).refresh_token == "refresh-a"


@pytest.mark.parametrize("deleted", [0, 1])
async def test_a_user_who_is_deleted_meanwhile(
    store: ConnectionStore,
    house: ConnectionAdmin,
    users: list[UUID],
    database: Database,
    admin: asyncpg.Connection,
    deleted: int,
) -> None:
    """The move waits for the deletion of either user, in no deadlock: the old one has nothing to move any more."""
    await store.save(users[0], grant("a"), ALICE)
    session = await asyncpg.connect(database.admin_dsn)
    try:
        transaction = session.transaction()
        await transaction.start()
        await session.execute("delete from auth.users where id = $1", users[deleted])
        moving = asyncio.create_task(house.move(*users[:2]))
        await until_it_waits(admin, "operator")
        await transaction.commit()
        if deleted:
            with pytest.raises(UnknownUser, match=r"^to_user: no such user"):
                await moving
        else:
            assert await moving is False
    finally:
        await session.close()
    assert await admin.fetchval("select count(*) from public.spotify_connections") == deleted


async def test_a_lock_that_is_held_is_waited_for_a_few_seconds(
    store: ConnectionStore, house: ConnectionAdmin, users: list[UUID], admin: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Then it passes: try later."""
    monkeypatch.setattr(move, "_LOCK_TIMEOUT", "set local lock_timeout = '50ms'")
    await store.save(users[0], grant("a"), ALICE)
    async with admin.transaction():
        await admin.execute("select from public.spotify_connections for update")
        with pytest.raises(DatabaseUnavailable):
            await house.move(*users[:2])
    assert await house.move(*users[:2])
