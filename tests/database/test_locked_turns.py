"""A turn is decided on the row that is locked: what another session does while `begin_refresh` waits for the lock."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore, Outcome, Profile
from spotconn.models import fingerprint
from support.connections import grant, stored_state
from support.database import Database
from support.lock_waits import until_waiting

ALICE = Profile(spotify_user_id="alice")
LEASE = timedelta(seconds=15)
SEEN = bytes.fromhex(fingerprint("access-old"))
BEGIN = (
    "select outcome, lease_until, (turn.connection).access_token, (turn.connection).refresh_token "
    "from spotconn.begin_refresh($1, $2, $3) as turn"
)


class Asking:
    """A process that asks for the turn of a user, in a session of its own."""

    def __init__(self, session: asyncpg.Connection, user: UUID) -> None:
        self.session = session
        self.user = user
        self.pid = session.get_server_pid()

    async def begin(self) -> asyncpg.Record:
        row = await self.session.fetchrow(BEGIN, self.user, SEEN, LEASE)
        assert row is not None
        return row


@pytest.fixture
async def asking(database: Database, store: ConnectionStore, user: UUID) -> AsyncIterator[list[Asking]]:
    """Two processes, and a user whose access token has ended."""
    await store.save(user, grant("old", minutes=-1), ALICE)
    async with AsyncExitStack() as stack:
        processes: list[Asking] = []
        for _ in range(2):
            session = await asyncpg.connect(database.dsn)
            stack.push_async_callback(session.close)
            processes.append(Asking(session, user))
        yield processes


async def reinsert(session: asyncpg.Connection, user: UUID) -> None:
    """Delete the row and insert it again as it was, as an upsert by hand or a restore does."""
    row = await session.fetchrow("delete from public.spotify_connections where user_id = $1 returning *", user)
    assert row is not None
    places = ", ".join(f"${n}" for n in range(1, len(row) + 1))
    await session.execute(
        f"insert into public.spotify_connections ({', '.join(row.keys())}) values ({places})", *row.values()
    )


async def test_a_row_inserted_again_under_a_live_lease_is_busy(
    asking: list[Asking], admin: asyncpg.Connection, user: UUID
) -> None:
    """A lease outlasts the row that it was acquired on, as long as the same refresh token is stored."""
    first, second = asking
    assert (await first.begin())["outcome"] == "granted"
    async with admin.transaction():
        await reinsert(admin, user)
    assert (await second.begin())["outcome"] == "busy"


async def test_a_lease_acquired_on_the_row_inserted_again_is_seen(
    asking: list[Asking], admin: asyncpg.Connection, database: Database, user: UUID
) -> None:
    """Deleted, inserted and leased in one transaction, while another waits for the lock on the row that goes."""
    first, _ = asking
    holder = await asyncpg.connect(database.admin_dsn)
    try:
        transaction = holder.transaction()
        await transaction.start()
        await reinsert(holder, user)
        waiting = asyncio.create_task(first.begin())
        await until_waiting(admin, first.pid)
        assert await holder.fetchval("select outcome from spotconn.begin_refresh($1, $2, $3)", user, SEEN, LEASE) == (
            "granted"
        )
        await transaction.commit()
        assert (await waiting)["outcome"] == "busy"
    finally:
        await holder.close()


async def test_of_two_that_wait_for_a_row_that_goes_one_is_granted(
    asking: list[Asking], admin: asyncpg.Connection, database: Database, user: UUID
) -> None:
    """The lock met no row, so each locks the one inserted instead; the second waits for the first."""
    holder = await asyncpg.connect(database.admin_dsn)
    try:
        transaction = holder.transaction()
        await transaction.start()
        await reinsert(holder, user)
        for one in asking:
            await one.session.execute("begin")
        tasks = {one.pid: asyncio.create_task(one.begin()) for one in asking}
        for one in asking:
            await until_waiting(admin, one.pid)
        await transaction.commit()
        done, _ = await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
        (winner,) = [one for one in asking if tasks[one.pid] in done]
        (other,) = [one for one in asking if one is not winner]
        assert tasks[winner.pid].result()["outcome"] == "granted"
        assert await until_waiting(admin, other.pid) == [other.pid]
        await winner.session.execute("commit")
        assert (await tasks[other.pid])["outcome"] == "busy"
        await other.session.execute("commit")
    finally:
        await holder.close()


Change = Callable[[asyncpg.Connection, UUID], Awaitable[object]]


def update(assignments: str) -> Change:
    return lambda session, user: session.execute(
        f"update public.spotify_connections set {assignments} where user_id = $1", user
    )


async def _leased(session: asyncpg.Connection, user: UUID) -> None:
    assert await session.fetchval("select outcome from spotconn.begin_refresh($1, $2, $3)", user, SEEN, LEASE) == (
        "granted"
    )


async def _refused(session: asyncpg.Connection, user: UUID) -> None:
    lease = await session.fetchval("select lease_id from spotconn.begin_refresh($1, $2, $3)", user, SEEN, LEASE)
    token = bytes.fromhex(fingerprint("refresh-old"))
    assert await session.fetch("select * from spotconn.fail_refresh($1, $2, $3, 'refused', null)", user, token, lease)


CHANGES: dict[str, tuple[Change, Outcome, tuple[str, str] | None]] = {
    "a name": (update("display_name = 'other'"), Outcome.GRANTED, ("access-old", "refresh-old")),
    "its end": (update("expires_at = now() - interval '1 day'"), Outcome.GRANTED, ("access-old", "refresh-old")),
    "tokens that have not ended": (
        update("access_token = 'a', refresh_token = 'r', expires_at = now() + interval '1 hour'"),
        Outcome.SUPERSEDED,
        ("a", "r"),
    ),
    "another refresh token": (update("refresh_token = 'r'"), Outcome.GRANTED, ("access-old", "r")),
    "another access token that has ended": (update("access_token = 'a'"), Outcome.GRANTED, ("a", "refresh-old")),
    "a lease": (_leased, Outcome.BUSY, ("access-old", "refresh-old")),
    "a refusal": (_refused, Outcome.REFUSED, ("access-old", "refresh-old")),
    "a disconnect": (
        lambda session, user: session.execute("delete from public.spotify_connections where user_id = $1", user),
        Outcome.GONE,
        None,
    ),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_while_it_waits_counts(
    asking: list[Asking], admin: asyncpg.Connection, database: Database, user: UUID, name: str
) -> None:
    """The answer is that of the row as it stands when the lock is acquired, and brings its tokens."""
    change, outcome, tokens = CHANGES[name]
    first, _ = asking
    holder = await asyncpg.connect(database.admin_dsn)
    try:
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute("select from public.spotify_connections where user_id = $1 for update", user)
        waiting = asyncio.create_task(first.begin())
        await until_waiting(admin, first.pid)
        await change(holder, user)
        await transaction.commit()
        turn = await waiting
    finally:
        await holder.close()
    assert Outcome(turn["outcome"]) is outcome
    assert (turn["access_token"], turn["refresh_token"]) == (tokens or (None, None))
    if outcome is Outcome.GRANTED and tokens is not None:
        state = await stored_state(admin, user)
        assert state["fingerprint"] == bytes.fromhex(fingerprint(tokens[1]))
        assert state["lease_until"] == turn["lease_until"]


async def test_a_lease_counts_from_the_lock(
    asking: list[Asking], admin: asyncpg.Connection, database: Database, user: UUID
) -> None:
    """Who waited for the lock has the whole lease: it ends that long after the lock was acquired."""
    first, _ = asking
    holder = await asyncpg.connect(database.admin_dsn)
    try:
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute("select from public.spotify_connections where user_id = $1 for update", user)
        waiting = asyncio.create_task(first.begin())
        await until_waiting(admin, first.pid)
        locked: datetime = await holder.fetchval("select clock_timestamp()")
        await transaction.commit()
        turn = await waiting
    finally:
        await holder.close()
    assert turn["outcome"] == "granted"
    assert locked + LEASE <= turn["lease_until"] < locked + LEASE + timedelta(seconds=10)
    state = await stored_state(admin, user)
    assert state["lease_until"] - state["leased_at"] == LEASE
