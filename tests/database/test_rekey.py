"""Rekey: every token ends under the first key, whatever happens beside it, and no write of others is lost."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID

import asyncpg
import pytest

from spotconn import (
    AesGcmSivCipher,
    ConfigurationError,
    Connection,
    ConnectionAdmin,
    ConnectionStore,
    DatabaseUnavailable,
    Outcome,
    Profile,
    RefreshFailure,
    RekeyProgress,
)
from spotconn._database import service_role
from spotconn._database.rekey import Rekey
from spotconn.models import fingerprint
from support.bulk import access_token_of, add_connections, refresh_token_of
from support.connections import grant
from support.database import Database

ALICE = Profile(spotify_user_id="alice")
OLD_KEY, NEW_KEY = AesGcmSivCipher.generate_key(), AesGcmSivCipher.generate_key()
OLD, NEW = AesGcmSivCipher([OLD_KEY]), AesGcmSivCipher([NEW_KEY, OLD_KEY])
ONLY_NEW = AesGcmSivCipher([NEW_KEY], require_encrypted=True)
SEEN = fingerprint("")
"""Of no stored token: who has it wants an ended one replaced."""
ROWS = "select user_id, expires_at, access_token, refresh_token from public.spotify_connections order by user_id"


@pytest.fixture
async def house(operator: str) -> AsyncIterator[ConnectionAdmin]:
    """A ConnectionAdmin with the new ring."""
    async with ConnectionAdmin.open(operator, cipher=NEW) as opened:
        yield opened


def readable(connection: Connection) -> dict[str, object]:
    """What a rekey leaves as it is."""
    return {name: value for name, value in vars(connection).items() if name not in {"remaining", "texts"}}


async def test_every_value_ends_under_the_first_key(
    database: Database, house: ConnectionAdmin, users: list[UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain text and an old key; ends, counts and tokens stay, and a second run has nothing to do."""
    monkeypatch.setattr(service_role, "BATCH", 2)
    before = {}
    for user, cipher in zip(users, (None, OLD, NEW), strict=True):
        async with ConnectionStore.open(database.dsn, cipher=cipher) as store:
            before[user] = readable(await store.save(user, grant(str(user)), ALICE))
    assert (await house.stats()).plain_text == 2
    seen: list[RekeyProgress] = []
    done = await house.rekey(progress=seen.append)
    assert done == seen[-1] == RekeyProgress(total=2, done=2, lost=0, encrypted=1)
    async with ConnectionStore.open(database.dsn, cipher=ONLY_NEW) as store:
        assert {user: readable(await store.get(user)) for user in users} == before
    stats = await house.stats()
    assert (stats.plain_text, stats.by_key) == (0, {NEW.key_ids[0]: 6})
    assert await house.rekey() == RekeyProgress(total=0, done=0, lost=0)


@pytest.mark.parametrize("what", ["access_token", "refresh_token"])
async def test_a_half_rewritten_row_is_finished(
    database: Database, house: ConnectionAdmin, user: UUID, admin: asyncpg.Connection, what: str
) -> None:
    """A live refresh that keeps the refresh token leaves the two values under two keys: the older is rewritten."""
    async with ConnectionStore.open(database.dsn, cipher=OLD) as store:
        await store.save(user, grant("a"), ALICE)
    value = NEW.encrypt("other", user_id=user, column=what)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await admin.execute(f"update public.spotify_connections set {what} = $1", value)
    assert (await house.rekey()).done == 1
    (row,) = await admin.fetch(ROWS)
    assert row[what] == value
    assert row["access_token"].startswith(NEW.current_prefix)
    assert row["refresh_token"].startswith(NEW.current_prefix)


async def test_a_rekey_loses_to_each_live_write(
    database: Database, house: ConnectionAdmin, users: list[UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refresh, a reconnect and a disconnect between its read and its write stand."""
    refreshed, reconnected, gone = users
    async with ConnectionStore.open(database.dsn, cipher=OLD) as store:
        for user in users:
            await store.save(user, grant("before", minutes=-1), ALICE)
        turn = await store.begin_refresh(refreshed, seen=SEEN)
        rewrite = Rekey._rewrite

        async def interrupted(self: Rekey, rows: list[asyncpg.Record]) -> None:
            if not self.progress.lost:
                assert await store.finish_refresh(turn, grant("refreshed")) is not None
                await store.save(reconnected, grant("reconnected"), ALICE)
                await store.delete(gone)
            await rewrite(self, rows)

        monkeypatch.setattr(Rekey, "_rewrite", interrupted)
        assert await house.rekey() == RekeyProgress(total=3, done=2, lost=3)
    async with ConnectionStore.open(database.dsn, cipher=ONLY_NEW) as store:
        assert (await store.get(refreshed)).refresh_token == "refresh-refreshed"
        assert (await store.get(reconnected)).access_token == "access-reconnected"
        assert (await store.begin_refresh(gone, seen=SEEN)).outcome is Outcome.GONE


async def test_a_refresh_under_way_is_not_made_to_lose(database: Database, house: ConnectionAdmin, user: UUID) -> None:
    """The rekey waits for the end of a live lease; a refresh that outlasts it is saved over the rewritten text."""
    async with ConnectionStore.open(database.dsn, cipher=NEW) as store:
        async with ConnectionStore.open(database.dsn, cipher=OLD) as old:
            await old.save(user, grant("before", minutes=-1), ALICE)
        turn = await store.begin_refresh(user, seen=SEEN, lease=1)
        assert await house.rekey() == RekeyProgress(total=1, done=1, lost=1)
        done = await store.finish_refresh(turn, grant("after").model_copy(update={"refresh_token": None}))
    assert done is not None
    async with ConnectionStore.open(database.dsn, cipher=ONLY_NEW) as store:
        assert readable(await store.get(user)) == readable(done)
    assert (done.access_token, done.refresh_token) == ("access-after", "refresh-before")


STATE = """
select user_id, lease_id, leased_at, lease_until, lapsed, failure, failed_at, paused_at, retry_at, failures, refusals,
    saved_at, granted_at, saves, family
from spotconn.refresh_state order by user_id
"""


async def test_what_is_known_of_a_refresh_token_is_carried_over(
    database: Database, house: ConnectionAdmin, users: list[UUID], admin: asyncpg.Connection
) -> None:
    """A lease that has lapsed, a failure, the counts: all of it speaks of the new text; what was void stays void."""
    lapsed, refused, void = users
    async with ConnectionStore.open(database.dsn, cipher=OLD) as store:
        for user in users:
            await store.save(user, grant("before", minutes=-1), ALICE)
        assert (await store.begin_refresh(lapsed, seen=SEEN, lease=0)).outcome is Outcome.GRANTED
        for user in (refused, void):
            turn = await store.begin_refresh(user, seen=SEEN)
            assert await store.fail_refresh(turn, RefreshFailure(reason="refused")) is not None
        foreign = OLD.encrypt("foreign", user_id=void, column="refresh_token")
        await admin.execute(
            "update public.spotify_connections set refresh_token = $2 where user_id = $1", void, foreign
        )
        before = await admin.fetch(STATE)
        failure = (await store.get(refused)).failure
    assert await house.rekey() == RekeyProgress(total=3, done=3, lost=0)
    assert await admin.fetch(STATE) == before
    async with ConnectionStore.open(database.dsn, cipher=ONLY_NEW) as store:
        assert (await store.get(lapsed)).saves == 1
        assert failure is not None
        assert (await store.get(refused)).failure == failure
        assert (await store.begin_refresh(refused, seen=SEEN)).outcome is Outcome.REFUSED
        stored = await store.get(void)
        assert (stored.failure, stored.saves) == (None, None)
        turn = await store.begin_refresh(lapsed, seen=SEEN)
        assert turn.outcome is Outcome.GRANTED
        recorded = await store.fail_refresh(turn, RefreshFailure(reason="refused"))
    assert recorded is not None
    assert recorded.retry_at == recorded.since + timedelta(minutes=1)  # the lapse is known still


async def test_a_row_under_a_live_lease_is_left_until_it_ends(
    database: Database, house: ConnectionAdmin, users: list[UUID]
) -> None:
    """The others are rewritten at once, that one in a pass after the lease; its refresh is saved over the text sent."""
    leased, other, _ = users
    seen: list[RekeyProgress] = []
    passed = asyncio.Event()

    def progressed(progress: RekeyProgress) -> None:
        seen.append(progress)
        passed.set()

    async with ConnectionStore.open(database.dsn, cipher=NEW) as store:
        async with ConnectionStore.open(database.dsn, cipher=OLD) as old:
            for user in users:
                await old.save(user, grant("before", minutes=-1), ALICE)
        turn = await store.begin_refresh(leased, seen=SEEN, lease=3)
        assert turn.connection is not None
        task = asyncio.create_task(house.rekey(progress=progressed))
        await passed.wait()
        assert (await store.get(leased)).texts == turn.connection.texts
        assert (await store.get(other)).texts.refresh_token.startswith(NEW.current_prefix)
        kept = grant("after").model_copy(update={"refresh_token": None})
        assert await store.finish_refresh(turn, kept) is not None
        assert await task == RekeyProgress(total=3, done=3, lost=1)
    assert seen == [RekeyProgress(total=3, done=2, lost=1), RekeyProgress(total=3, done=3, lost=1)]
    async with ConnectionStore.open(database.dsn, cipher=ONLY_NEW) as store:
        stored = await store.get(leased)
        assert (stored.access_token, stored.refresh_token) == ("access-after", "refresh-before")


@pytest.mark.parametrize("locked", [False, True])
async def test_a_refresh_that_begins_between_read_and_lock_is_seen(
    database: Database,
    house: ConnectionAdmin,
    user: UUID,
    monkeypatch: pytest.MonkeyPatch,
    *,
    locked: bool,
) -> None:
    """Its row is left for later, also where its transaction still holds the row's lock when the rekey asks for it."""
    rewrite, interrupted = Rekey._rewrite, False
    session = await asyncpg.connect(database.dsn)
    transaction = session.transaction()

    async def begin_first(self: Rekey, rows: list[asyncpg.Record]) -> None:
        nonlocal interrupted
        if interrupted:
            return await rewrite(self, rows)
        interrupted = True
        await transaction.start()
        lease = "select outcome from spotconn.begin_refresh($1, $2, interval '1 second')"
        assert await session.fetchval(lease, user, bytes.fromhex(SEEN)) == "granted"
        if locked:
            await rewrite(self, rows)
            return await transaction.commit()
        await transaction.commit()
        return await rewrite(self, rows)

    async with ConnectionStore.open(database.dsn, cipher=OLD) as store:
        before = await store.save(user, grant("before", minutes=-1), ALICE)
    monkeypatch.setattr(Rekey, "_rewrite", begin_first)
    seen: list[RekeyProgress] = []
    try:
        done = await house.rekey(progress=seen.append)
    finally:
        await session.close()
    assert seen == [
        RekeyProgress(total=1, done=0, lost=1),
        RekeyProgress(total=1, done=1, lost=1),
    ]
    assert done == RekeyProgress(total=1, done=1, lost=1)
    async with ConnectionStore.open(database.dsn, cipher=ONLY_NEW) as store:
        assert readable(await store.get(user)) == readable(before)


async def test_what_does_not_decrypt_is_told_and_the_rest_is_done(
    database: Database, house: ConnectionAdmin, users: list[UUID], admin: asyncpg.Connection
) -> None:
    """A value under an unknown key stays as it is, is counted, and holds up nothing else."""
    strange = AesGcmSivCipher([AesGcmSivCipher.generate_key()])
    for user, cipher in zip(users, (OLD, strange, None), strict=True):
        async with ConnectionStore.open(database.dsn, cipher=cipher) as store:
            await store.save(user, grant("a"), ALICE)
    before = await admin.fetchrow(ROWS.replace("order", "where user_id = $1 order"), users[1])
    assert await house.rekey() == RekeyProgress(total=3, done=2, lost=0, encrypted=1, unknown_key=1)
    assert await admin.fetchrow(ROWS.replace("order", "where user_id = $1 order"), users[1]) == before
    assert (await house.stats()).by_key == {NEW.key_ids[0]: 4, strange.key_ids[0]: 2}


async def test_a_process_that_still_writes_under_an_old_key_is_told(
    database: Database, house: ConnectionAdmin, user: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where values come back under an old key, the rekey ends with an error and not with a false proof."""
    async with ConnectionStore.open(database.dsn, cipher=OLD) as store:
        await store.save(user, grant("a"), ALICE)
        look = Rekey._look

        async def undone(self: Rekey) -> None:
            await store.save(user, grant("b"), ALICE)
            await look(self)

        monkeypatch.setattr(Rekey, "_look", undone)
        with pytest.raises(ConfigurationError, match=f"user {user}.* same SPOTCONN_ENCRYPTION_KEYS"):
            await house.rekey()


async def test_without_keys_there_is_no_rekey(operator: str) -> None:
    """The error names the setting."""
    async with ConnectionAdmin.open(operator) as house:
        with pytest.raises(ConfigurationError, match="SPOTCONN_ENCRYPTION_KEYS"):
            await house.rekey()


async def test_a_stopped_rekey_is_resumed(
    house: ConnectionAdmin, admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was done before the stop is not done again, and two at once finish the rest."""
    monkeypatch.setattr(service_role, "BATCH", 100)
    await add_connections(admin, 1000)
    seen: list[RekeyProgress] = []

    def stop(progress: RekeyProgress) -> None:
        seen.append(progress)
        if progress.done == 300:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await house.rekey(progress=stop)
    results = await asyncio.gather(house.rekey(), house.rekey())
    assert max(result.total for result in results) == 700
    assert sum(result.done for result in results) == 700
    for row in await admin.fetch(ROWS):
        user = row["user_id"]
        assert ONLY_NEW.decrypt(row["access_token"], user_id=user, column="access_token") == access_token_of(user)
        assert ONLY_NEW.decrypt(row["refresh_token"], user_id=user, column="refresh_token") == refresh_token_of(user)


@pytest.mark.long
@pytest.mark.parametrize("number", [20_000, pytest.param(100_000, marks=pytest.mark.long)])
@pytest.mark.timeout(300)
async def test_many_rows_beside_live_refreshes(
    database: Database, house: ConnectionAdmin, admin: asyncpg.Connection, number: int
) -> None:
    """While refreshes run, none of them is lost and no value is left under another key or in plain text."""
    await add_connections(admin, number)
    ids = [row["user_id"] for row in await admin.fetch("select user_id from public.spotify_connections")]
    refreshed: dict[UUID, str] = {}
    finished = asyncio.Event()

    async def refresh(store: ConnectionStore, worker: int) -> None:
        for user in ids[worker :: number // 2000]:
            if finished.is_set():
                return
            stored = await store.get(user)
            try:
                turn = await store.begin_refresh(user, seen=stored.fingerprint, lease=1)
                if turn.outcome is Outcome.SUPERSEDED:  # by the rewritten text of the same token
                    assert turn.connection is not None
                    assert turn.connection.access_token == stored.access_token
                    turn = await store.begin_refresh(user, seen=turn.connection.fingerprint, lease=1)
            except DatabaseUnavailable:  # a batch of the rekey took longer than a turn waits for it
                continue
            assert turn.outcome is Outcome.GRANTED
            new = grant(f"{worker}-{user}")
            kept = new if worker % 2 else new.model_copy(update={"refresh_token": None})
            assert await store.finish_refresh(turn, kept) is not None, "a rekey made a refresh lose"
            refreshed[user] = new.access_token

    async with ConnectionStore.open(database.dsn, cipher=NEW, max_size=4) as store:
        live = [asyncio.create_task(refresh(store, worker)) for worker in range(4)]
        done = await house.rekey()
        finished.set()
        await asyncio.gather(*live)
    assert len(refreshed) > 50
    assert done.done + done.lost >= number - len(refreshed)
    stats = await house.stats()
    assert (stats.plain_text, stats.by_key) == (0, {NEW.key_ids[0]: 2 * number})
    async with admin.transaction():
        async for row in admin.cursor(ROWS, prefetch=5000):
            user = row["user_id"]
            token = ONLY_NEW.decrypt(row["access_token"], user_id=user, column="access_token")
            assert token == refreshed.get(user, access_token_of(user))
            assert ONLY_NEW.decrypt(row["refresh_token"], user_id=user, column="refresh_token")
