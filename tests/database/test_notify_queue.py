"""The queue of NOTIFY fills up where a session that listens sits in a transaction: the table is written all the same.

What is not notified is counted, and no process trusts its cache across it.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import combinations
from uuid import UUID

import asyncpg
import pytest

from spotconn import (
    ConnectFlow,
    ConnectionStore,
    DatabaseUnavailable,
    Outcome,
    Profile,
    SpotifyAccounts,
    TokenManager,
)
from spotconn._command.notifications import WARN_AT, queue_finding
from spotconn._database.subscription import QUEUE_FILLED
from spotconn.testing import EmbeddedPostgres, FakeSpotify, apply_schema
from support.connections import connect, grant
from support.consent import REDIRECT_URI
from support.database import Database
from support.doctor import look
from support.listening import feed_of, served_for, trusted, until

ALICE = Profile(spotify_user_id="alice")
USAGE = "select pg_notification_queue_usage()"
SKIPPED = "select last_value + is_called::integer from spotconn.skipped_notifications"


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """With the smallest queue: 512 kB. It can be set from Postgres 17 on."""
    with EmbeddedPostgres(settings={"max_notify_queue_pages": "64"}) as postgres:
        asyncio.run(apply_schema(postgres.dsn()))
        yield postgres


class Queue:
    """The queue of the server, and the session that holds it up."""

    def __init__(self, holder: asyncpg.Connection, filler: asyncpg.Connection) -> None:
        self._holder = holder
        self.filler = filler

    async def hold(self) -> None:
        await self._holder.execute("listen another_channel")
        await self._holder.execute("begin; select 1")

    async def fill(self, share: float = 1.0) -> None:
        """Fill it up to a share; a whole one refuses the next notification."""
        with suppress(asyncpg.ProgramLimitExceededError):
            while await self.filler.fetchval(USAGE) < share:
                await self.filler.execute("select pg_notify('x', repeat('y', 7000) || i) from generate_series(1, 4) i")

    async def release(self) -> None:
        """End the transaction that holds it up, and wait until it is empty."""
        await self._holder.execute("rollback; unlisten *")
        async with asyncio.timeout(30):
            while await self.filler.fetchval(USAGE) > 0:
                await asyncio.sleep(0.01)


@pytest.fixture
async def queue(server: EmbeddedPostgres) -> AsyncIterator[Queue]:
    holder, filler = await asyncpg.connect(server.dsn()), await asyncpg.connect(server.dsn())
    await filler.execute("delete from auth.users")
    made = Queue(holder, filler)
    yield made
    await made.release()
    await holder.close()
    await filler.close()


async def added(queue: Queue) -> UUID:
    """A new user of the small server."""
    user: UUID = await queue.filler.fetchval("insert into auth.users (id) values (gen_random_uuid()) returning id")
    return user


async def test_all_writes_go_on_while_it_is_full(server: EmbeddedPostgres, queue: Queue, spotify: FakeSpotify) -> None:
    """Connect, refresh, reconnect, disconnect, the deletion of a user, a client's own write, TRUNCATE, by any role."""
    await queue.hold()
    await queue.fill()
    with pytest.raises(asyncpg.ProgramLimitExceededError, match="too many notifications"):
        await queue.filler.execute("select pg_notify('x', repeat('y', 7000) || i) from generate_series(1, 10) i")
    before = await queue.filler.fetchval(SKIPPED)
    async with (
        spotify.serve() as url,
        ConnectionStore.open(server.dsn()) as store,
        SpotifyAccounts("demo-client", "demo-secret", accounts_url=url, api_url=url) as accounts,
        TokenManager(store, accounts) as tokens,
    ):
        first, second = await added(queue), await added(queue)
        await connect(store, spotify, first, ttl=-1)
        assert spotify.accepts(await tokens.get_valid_token(first))
        await connect(store, spotify, first, ttl=3600)
        assert await ConnectFlow(store, accounts, redirect_uri=REDIRECT_URI, scopes=[]).start(first)
        assert await tokens.disconnect(first)
        await connect(store, spotify, second)
        for role in ("authenticated", "service_role"):
            async with queue.filler.transaction():
                await queue.filler.execute(f"set local role {role}")
                await queue.filler.execute(f'set local request.jwt.claims = \'{{"sub": "{second}"}}\'')
                changed = "update public.spotify_connections set display_name = 'other'"
                assert await queue.filler.execute(changed) == "UPDATE 1"
        assert await queue.filler.execute("delete from auth.users where id = $1", second) == "DELETE 1"
        await queue.filler.execute("truncate public.spotify_connections")
    assert await queue.filler.fetchval(SKIPPED) - before == 8, "each change but the refresh was counted"


async def test_what_notifies_by_itself_fails_by_its_name(server: EmbeddedPostgres, queue: Queue) -> None:
    """As a trigger of the project's own; the caller is told to come again, not to apply the schema."""
    user = await added(queue)
    await queue.filler.execute("""
        create function public.report() returns trigger language plpgsql as $$
        begin
            perform pg_notify('project', repeat('y', 7000) || i) from generate_series(1, 10) i;
            return null;
        end $$;
        create trigger report after insert on public.spotify_connections
            for each row execute function public.report();
    """)
    try:
        await queue.hold()
        await queue.fill()
        async with ConnectionStore.open(server.dsn()) as store:
            with pytest.raises(DatabaseUnavailable, match="queue of NOTIFY is full") as raised:
                await store.save(user, grant("x"), ALICE)
            assert raised.value.answered
    finally:
        await queue.filler.execute("drop function public.report() cascade")


async def test_a_change_that_was_skipped_between_two_heartbeats_ends_the_trust(
    server: EmbeddedPostgres, queue: Queue, spotify: FakeSpotify, caplog: pytest.LogCaptureFixture
) -> None:
    """Though the queue is empty again before the next heartbeat, and each heartbeat arrives. It is logged once."""
    caplog.set_level(logging.INFO, logger="spotconn")
    async with (
        spotify.serve() as url,
        ConnectionStore.open(server.dsn()) as store,
        SpotifyAccounts("demo-client", "demo-secret", accounts_url=url, api_url=url) as accounts,
        TokenManager(store, accounts, cache_ttl=3) as tokens,
    ):
        user = await added(queue)
        await connect(store, spotify, user)
        await trusted(tokens, user)
        subscription = feed_of(tokens)._subscription
        await queue.hold()
        await queue.fill(0.6)
        assert await queue.filler.execute("delete from public.spotify_connections") == "DELETE 1"
        await queue.release()
        assert feed_of(tokens)._subscription is subscription
        assert tokens._cache.trusted, "no heartbeat has come in between"
        await until(lambda: feed_of(tokens)._subscription is not subscription)
        ends = tokens._cache.entries[user].trust.until
        await until(lambda: tokens._cache.trusted)
        await served_for(tokens, user)
        assert time.time() < ends + 1
    lost = [record.levelno for record in caplog.records if QUEUE_FILLED in record.getMessage()]
    assert lost.count(logging.WARNING) == 1


async def test_while_it_is_half_full_nobody_trusts(server: EmbeddedPostgres, queue: Queue) -> None:
    """A heartbeat says so and notifies nothing, which would fill it further; it says yes again once it is free."""
    await queue.hold()
    await queue.fill(0.55)
    assert await queue.filler.fetchval("select spotconn.heartbeat('nonce')") == 0
    used = await queue.filler.fetchval(USAGE)
    for _ in range(50):
        assert await queue.filler.fetchval("select spotconn.heartbeat('nonce')") == 0
    assert await queue.filler.fetchval(USAGE) == used
    await queue.release()
    assert await queue.filler.fetchval("select spotconn.heartbeat('nonce')") > 0


async def test_the_doctor_names_who_holds_it_up(server: EmbeddedPostgres, queue: Queue) -> None:
    """From a tenth on, long before anything fails, with the way to find and to end that session."""
    assert (await look(server.dsn()))["changes"].state == "ok"
    await queue.hold()
    await queue.fill(WARN_AT)
    found = (await look(server.dsn()))["changes"]
    assert found.state == "warn"
    assert "of NOTIFY is 1" in found.text
    for part in ("pg_stat_activity", "pg_terminate_backend", "pg_notification_queue_usage()"):
        assert part in str(found.remedy)
    assert "of pid 4711, 12." in queue_finding(0.3, [4711, 12]).text


@dataclass
class Listener:
    """What a process makes of heartbeats: it trusts from one on, as long as those that follow bring the same number."""

    known: int | None = None
    spans: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """First and last moment of each trust."""

    def heard(self, number: int, moment: int) -> None:
        if number and self.known == number:
            self.spans[-1] = (self.spans[-1][0], moment)
        elif number and self.known is None:
            self.known = number
            self.spans.append((moment, moment))
        else:
            self.known = None


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("moments", list(combinations(range(6), 2)))
async def test_no_trust_spans_a_commit_that_was_skipped(
    database: Database, admin: asyncpg.Connection, moments: tuple[int, int], end: str
) -> None:
    """In each order of a writer, which counts and then commits, and of four heartbeats before, between and after."""
    counts, ends = moments
    writer = await asyncpg.connect(database.admin_dsn)
    listener = Listener()
    try:
        for moment in range(6):
            if moment == counts:
                await writer.execute("begin; select nextval('spotconn.skipped_notifications')")
            elif moment == ends:
                await writer.execute(end)
            else:
                listener.heard(await admin.fetchval("select spotconn.heartbeat('nonce')"), moment)
    finally:
        await writer.close()
    # A change that is read after the first moment of a trust, and is committed before the last, would have been missed.
    assert not [span for span in listener.spans if span[0] < ends < span[1]]
    # One that begins between count and commit would read the former row, and hear of nothing any more.
    assert not [span for span in listener.spans if counts < span[0] < ends]
    assert listener.spans or moments == (0, 5), "once the writer has ended, it trusts again"


async def test_two_writers_do_not_wait_for_each_other(database: Database, admin: asyncpg.Connection) -> None:
    """Both have counted in a transaction that is open, and a heartbeat is answered beside them."""
    other = await asyncpg.connect(database.admin_dsn)
    try:
        for session in (admin, other):
            await session.execute(
                "begin; set local lock_timeout = '1s'; select nextval('spotconn.skipped_notifications')"
            )
        async with ConnectionStore.open(database.dsn) as store:
            assert await store.pool.value("select spotconn.heartbeat('nonce')") == 0
    finally:
        await admin.execute("rollback")
        await other.close()
    assert await admin.fetchval("select spotconn.heartbeat('nonce')") > 0


async def test_a_refresh_counts_nothing(store: ConnectionStore, user: UUID, admin: asyncpg.Connection) -> None:
    """It is silent by design, so no process has missed anything."""
    before = await admin.fetchval(SKIPPED)
    await store.save(user, grant("old", minutes=-1), ALICE)
    turn = await store.begin_refresh(user, seen=(await store.get(user)).fingerprint)
    assert turn.outcome is Outcome.GRANTED
    assert await store.finish_refresh(turn, grant("new"))
    assert await admin.fetchval(SKIPPED) == before
