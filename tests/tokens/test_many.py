"""Tokens for many users at once: each gets the own answer once, as it comes, in bounded memory and with a clean end."""

import asyncio
import itertools
import logging
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing
from uuid import UUID, uuid4

import asyncpg
import pytest

from spotconn import (
    AesGcmSivCipher,
    ConfigurationError,
    Connection,
    ConnectionStore,
    DatabaseUnavailable,
    DecryptionError,
    NotConnected,
    ReauthorizationRequired,
    RowSecurityError,
    SpotconnError,
    SpotifyAccounts,
    SpotifyUnavailable,
    TokenManager,
    TokensProgress,
)
from spotconn._tokens import batch
from spotconn._tokens.batch import BATCH
from spotconn.testing import Answer, FakeSpotify
from spotconn.testing._rules import Reply
from support.bulk import access_token_of, add_connections, bulk_user, connect_many
from support.connections import connect
from support.database import Database

Found = str | SpotconnError


class Watched(FakeSpotify):
    """Counts the token calls under way, and answers 503 for some accounts."""

    def __init__(self) -> None:
        super().__init__(rotation=True)
        self.under_way = self.most = 0
        self.down: set[str] = set()
        self.together: asyncio.Barrier | None = None

    async def token_answer(self, form: Mapping[str, str], authorization: str | None) -> Reply | Answer:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            if self.together is not None:
                await self.together.wait()
            consent = self._tokens.refresh.get(form["refresh_token"])
            if consent and consent.account.spotify_user_id in self.down:
                return Answer.unavailable()
            return await super().token_answer(form, authorization)
        finally:
            self.under_way -= 1

    def account_of(self, access_token: Found) -> str:
        assert isinstance(access_token, str), access_token
        consent, _ = self._tokens.access[access_token]
        return consent.account.spotify_user_id


@pytest.fixture
def spotify() -> Watched:
    """Instead of the plain fake."""
    return Watched()


@pytest.fixture
async def tokens(store: ConnectionStore, accounts: SpotifyAccounts) -> AsyncIterator[TokenManager]:
    # Times in which a busy machine refreshes a thousand users.
    async with TokenManager(store, accounts, refresh_timeout=60, lease=90) as manager:
        yield manager


async def taken_by(ids: Iterable[UUID | str]) -> AsyncIterator[UUID | str]:
    """As a cursor gives them."""
    for one in ids:
        await asyncio.sleep(0)
        yield one


async def asked(tokens: TokenManager, ids: Iterable[UUID | str]) -> list[tuple[UUID, Found]]:
    return [pair async for pair in tokens.get_valid_tokens(ids)]


GO_ON = {"spotconn-subscriber", "spotconn-compare", "spotconn-watch"}


def left_over() -> set[str]:
    """The names of the library's tasks that are running, but for those of a manager that go on by themselves."""
    names = {task.get_name() for task in asyncio.all_tasks()}
    return {name for name in names if name.startswith("spotconn")} - GO_ON


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what the loop has still to do."""
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.001)


async def test_each_user_has_the_own_answer(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: Watched, admin: asyncpg.Connection
) -> None:
    """Fresh, stale and expired users get a token; who is missing, dead, refused now or unreadable gets the reason."""
    ttls = {"fresh": 3600, "stale": 100, "expired": -1, "dead": -1, "down": -1, "stale and down": 100, "stale dead": 99}
    users = dict(zip(ttls, await connect_many(admin, spotify, list(ttls.values())), strict=True))
    names = {name: f"account-{n}" for n, name in enumerate(ttls)}
    spotify.down = {names["down"], names["stale and down"]}
    for name in ("dead", "stale dead"):
        spotify.revoke(names[name])
    stored = {name: (await store.get(user)).access_token for name, user in users.items()}
    users["missing"] = uuid4()
    async with TokenManager(store, accounts, refresh_timeout=3) as tokens:
        for _ in range(2):
            pairs = await asked(tokens, users.values())
            assert sorted(user for user, _ in pairs) == sorted(users.values())
            found = {name: dict(pairs)[user] for name, user in users.items()}
            assert found["fresh"] == stored["fresh"]
            for name in ("stale", "expired"):
                assert found[name] != stored[name]
                assert spotify.account_of(found[name]) == names[name]
                assert (await store.get(users[name])).access_token == found[name]
            for name in ("stale and down", "stale dead"):
                assert found[name] == stored[name]
            for name, kind in (("missing", NotConnected), ("dead", ReauthorizationRequired)):
                assert type(found[name]) is kind
            assert isinstance(found["down"], SpotifyUnavailable)
            errors = [error for error in found.values() if isinstance(error, SpotconnError)]
            assert len(errors) == 3
            assert not any(error.__traceback__ or error.__context__ for error in errors)


@pytest.mark.long
async def test_a_thousand_users_get_no_token_of_another(
    tokens: TokenManager, spotify: Watched, admin: asyncpg.Connection
) -> None:
    """Each token, stored or refreshed, is of the user's own account, and is the one in the user's row."""
    users = await connect_many(admin, spotify, [(-1, 100, 3600)[n % 3] for n in range(1000)])
    found = dict(await asked(tokens, users))
    assert {user: spotify.account_of(token) for user, token in found.items()} == {
        user: f"account-{n}" for n, user in enumerate(users)
    }
    rows = await admin.fetch("select user_id, access_token from public.spotify_connections")
    assert {row["user_id"]: row["access_token"] for row in rows} == found
    assert spotify.token_calls == 667
    assert all(spotify.accepts(str(token)) for token in found.values())


async def test_every_id_of_the_input_has_one_answer(
    tokens: TokenManager, spotify: Watched, admin: asyncpg.Connection
) -> None:
    """Lists, generators and async generators of UUIDs and strings; an id that comes thrice is answered thrice, and
    refreshed once.
    """
    users = await connect_many(admin, spotify, [-1] * 3 + [3600] * (BATCH + 7))
    ids: list[UUID | str] = [*users, *map(str, users), users[0], uuid4()]
    for given in (ids, iter(ids), taken_by(ids)):
        pairs = [pair async for pair in tokens.get_valid_tokens(given)]
        assert Counter(user for user, _ in pairs) == Counter(UUID(str(user)) for user in ids)
        assert len({answer for user, answer in pairs if user == users[0]}) == 1
    assert spotify.token_calls == 3
    assert [pair async for pair in tokens.get_valid_tokens([])] == []


@pytest.mark.parametrize(("expired", "fresh"), [(2, 2 * BATCH + 50), (5, BATCH - 5)])
async def test_answers_come_when_they_are_there(
    tokens: TokenManager, spotify: Watched, admin: asyncpg.Connection, expired: int, fresh: int
) -> None:
    """While refreshes hang, others of the batch are answered, and of the next ones unless too many wait for a turn."""
    users = await connect_many(admin, spotify, [-1] * expired + [3600] * fresh)
    seen: list[UUID] = []
    with spotify.hold() as held:
        async for user, _ in tokens.get_valid_tokens(users, concurrency=1):
            seen.append(user)
            if len(seen) == fresh:
                assert set(seen) == set(users[expired:])
                held.release()
    assert set(seen[fresh:]) == set(users[:expired])


async def test_refreshes_run_so_many_at_once_and_no_more(
    tokens: TokenManager, spotify: Watched, admin: asyncpg.Connection
) -> None:
    """Spotify lets the calls pass in groups of eight, which eight at once fill and never exceed."""
    users = await connect_many(admin, spotify, [-1] * 40)
    spotify.together = asyncio.Barrier(8)
    found = dict([pair async for pair in tokens.get_valid_tokens(users, concurrency=8)])
    assert all(spotify.accepts(str(token)) for token in found.values())
    assert (spotify.most, len(found)) == (8, 40)


async def test_a_refresh_is_shared_with_other_callers(
    tokens: TokenManager, spotify: Watched, admin: asyncpg.Connection
) -> None:
    """A user who is asked for elsewhere at the same time is refreshed once."""
    users = await connect_many(admin, spotify, [-1] * 5)
    with spotify.hold() as held:
        callers = [asyncio.create_task(tokens.get_valid_token(user)) for user in users]
        await held.reached()
        many = asyncio.create_task(asked(tokens, users))
        held.release()
        assert dict(await many) == dict(zip(users, await asyncio.gather(*callers), strict=True))
    assert spotify.token_calls == 5


async def test_the_input_is_taken_as_it_is_needed(tokens: TokenManager, admin: asyncpg.Connection) -> None:
    """An endless input is no trouble: a caller who takes 1,000 answers has taken few ids more."""
    await add_connections(admin, 10)
    taken = 0

    def endless() -> Iterator[UUID]:
        nonlocal taken
        for n in itertools.cycle(range(1, 21)):
            taken += 1
            yield bulk_user(n)

    async with aclosing(tokens.get_valid_tokens(endless())) as answers:
        for done in range(1, 1001):
            await anext(answers)
            await asyncio.sleep(0)
            assert done <= taken <= done + 2 * BATCH


async def test_progress_is_told_after_each_two_hundred(tokens: TokenManager, admin: asyncpg.Connection) -> None:
    """The counts are of the answers that the caller is done with, and the last call has them all."""
    await add_connections(admin, 450)
    told: list[TokensProgress] = []
    done = 0
    async for _ in tokens.get_valid_tokens([bulk_user(n) for n in range(1, 501)], progress=told.append):
        done += 1
        assert all(progress.done < done for progress in told)
    assert told == [TokensProgress(done=n, failed=max(n - 450, 0)) for n in (200, 400, 500)]


@pytest.mark.long
async def test_memory_does_not_grow_with_the_users(tokens: TokenManager, admin: asyncpg.Connection) -> None:
    """The peak for 20,000 users is that for 2,000: tokens, errors and statements, with a caller who keeps nothing."""
    await add_connections(admin, 10_000)

    async def peak(number: int) -> int:
        ids = (user for n in range(1, number // 2 + 1) for user in (bulk_user(n), UUID(int=n)))
        seen: Counter[type] = Counter()
        tracemalloc.start()
        try:
            async for user, answer in tokens.get_valid_tokens(ids):
                seen[type(answer)] += 1
                assert isinstance(answer, NotConnected) or answer == access_token_of(user)
            assert seen == {str: number // 2, NotConnected: number // 2}
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    await peak(1000)
    few, many = await peak(2000), await peak(20_000)
    assert many < 1.1 * few + 50_000, (few, many)


@pytest.mark.long
async def test_refreshed_users_need_no_more_memory(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: Watched, admin: asyncpg.Connection
) -> None:
    """No task and no flight is kept of a user who has been answered."""
    users = await connect_many(admin, spotify, [-1] * 250)
    async with TokenManager(store, accounts, cache_size=10) as tokens:
        most = 0
        async for _ in tokens.get_valid_tokens(users, concurrency=5):
            most = max(most, sum(task.get_name().startswith("spotconn") for task in asyncio.all_tasks()))
        # One reads, five ask and five refresh; each connection may be on its way back to the pool.
        assert most <= 1 + 2 * 5 + len(GO_ON) + store.pool._pool.get_max_size()
        assert not tokens._source.refreshes.tasks
        await until(lambda: not left_over())


def all_idle(store: ConnectionStore) -> bool:
    """No connection is in use. The listener's first proof uses one for a moment."""
    return store.pool._pool.get_idle_size() == store.pool._pool.get_size()


async def test_leaving_early_ends_everything_but_the_refresh(
    tokens: TokenManager, store: ConnectionStore, spotify: Watched, admin: asyncpg.Connection
) -> None:
    """Within `aclosing` nothing runs after the block but what Spotify was asked for, which is saved; no connection is
    held, and the iterator of the caller has been ended.
    """
    users = await connect_many(admin, spotify, [-1] * 3 + [3600] * 3)
    ended = asyncio.Event()

    async def source() -> AsyncIterator[UUID]:
        try:
            for user in users:
                yield user
            for _ in range(BATCH - len(users)):
                yield users[-1]
            await asyncio.Event().wait()
        finally:
            ended.set()

    with spotify.hold() as held:
        async with aclosing(tokens.get_valid_tokens(source(), concurrency=2)) as answers:
            await anext(answers)
            await held.reached()
            await until(lambda: spotify.under_way == 2)
        assert left_over() == {"spotconn-refresh"}
        assert ended.is_set()
        await until(lambda: all_idle(store))
        held.release()
        await until(lambda: not left_over())
    assert spotify.token_calls == 2
    after = await store.get_many(users)
    assert sum(spotify.accepts_refresh(one.refresh_token) for one in after.values() if isinstance(one, Connection)) == 6
    assert await admin.fetchval("select count(*) from public.spotify_connections where expires_at < now()") == 1


async def test_a_plain_break_ends_everything_too(
    tokens: TokenManager, spotify: Watched, admin: asyncpg.Connection
) -> None:
    """Without `aclosing` the loop ends it soon after."""
    users = await connect_many(admin, spotify, [3600] * 3)
    async for _ in tokens.get_valid_tokens(itertools.cycle(users)):
        break
    await until(lambda: not left_over())


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 8, 13, 21, 34, 55])
async def test_a_cancelled_caller_leaves_nothing(
    tokens: TokenManager, store: ConnectionStore, spotify: Watched, admin: asyncpg.Connection, steps: int
) -> None:
    """Cancelled at any step, a caller leaves no task, no connection in use and no refresh half done."""
    users = await connect_many(admin, spotify, [-1, 3600, 100] * 100)

    async def job() -> None:
        async with aclosing(tokens.get_valid_tokens(taken_by(users), concurrency=3)) as answers:
            async for _ in answers:
                pass

    caller = asyncio.create_task(job())
    for _ in range(steps):
        await asyncio.sleep(0.001)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await until(lambda: not left_over())
    await until(lambda: all_idle(store))
    rows = await admin.fetch("select access_token, refresh_token from public.spotify_connections")
    assert all(spotify.accepts_refresh(row["refresh_token"]) for row in rows)
    assert await admin.fetchval("select count(*) from spotconn.refresh_state where lease_id is not null") == 0


async def test_closing_the_manager_ends_it(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: Watched, admin: asyncpg.Connection
) -> None:
    """A pass under way ends with the manager, whether its caller waits or not; another does not begin."""
    users = await connect_many(admin, spotify, [3600] * BATCH)
    hangs = asyncio.Event()

    async def hanging() -> AsyncIterator[UUID]:
        for user in users:
            yield user
        hangs.set()
        await asyncio.Event().wait()

    tokens = TokenManager(store, accounts)
    never_begun = tokens.get_valid_tokens(users)
    idle = tokens.get_valid_tokens(itertools.cycle(users))
    await anext(idle)
    caller = asyncio.create_task(_drain(tokens.get_valid_tokens(hanging())))
    await hangs.wait()
    await tokens.aclose()
    assert not left_over()
    for drained in (caller, _drain(idle), _drain(never_begun)):
        with pytest.raises(RuntimeError, match="this TokenManager is closed"):
            await drained
    with pytest.raises(RuntimeError, match="this TokenManager is closed"):
        tokens.get_valid_tokens(users)


async def _drain(answers: AsyncIterator[object]) -> None:
    async for _ in answers:
        pass


async def test_a_source_that_will_not_end_is_left_and_told(
    tokens: TokenManager, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller's iterator that ignores its cancellation does not keep the caller."""
    monkeypatch.setattr(batch, "STOP_TIMEOUT", 0.1)
    go_on = asyncio.Event()

    async def stubborn() -> AsyncIterator[UUID]:
        for _ in range(BATCH):
            yield uuid4()
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                continue

    async with aclosing(tokens.get_valid_tokens(stubborn())) as answers:
        for _ in range(BATCH):
            await anext(answers)
        await asyncio.sleep(0)
    assert [(record.levelno, "does not end" in record.getMessage()) for record in caplog.records] == [
        (logging.ERROR, True)
    ]
    go_on.set()
    await until(lambda: not left_over())


@pytest.mark.parametrize("place", [0, 3, BATCH - 1, BATCH, BATCH + 50])
async def test_a_malformed_id_is_named_by_its_place(
    tokens: TokenManager, admin: asyncpg.Connection, place: int
) -> None:
    """It ends the job with a ValueError that does not repeat it, once all ids before it are answered."""
    await add_connections(admin, 300)
    users = [bulk_user(n) for n in range(1, 301)]
    seen: set[UUID] = set()
    with pytest.raises(ValueError, match=rf"^user_ids\[{place}\]: expected a UUID or an integer id$"):  # noqa: PT012
        async for user, _ in tokens.get_valid_tokens([*users[:place], "marked", *users[place:]]):
            seen.add(user)
    assert seen == set(users[:place])


async def test_an_error_of_the_input_passes_through(
    tokens: TokenManager, spotify: Watched, admin: asyncpg.Connection
) -> None:
    """What the caller's cursor raises ends the job as it is, after the answers for what came before."""
    users = await connect_many(admin, spotify, [-1, 3600])

    async def cut() -> AsyncIterator[UUID]:
        for user in users:
            yield user
        raise LookupError("the cursor is gone")

    seen: list[UUID] = []
    with pytest.raises(LookupError, match="the cursor is gone"):  # noqa: PT012
        async for user, _ in tokens.get_valid_tokens(cut()):
            seen.append(user)
    assert sorted(seen) == sorted(users)
    assert not left_over()


async def test_an_error_of_progress_passes_through(tokens: TokenManager) -> None:
    """It ends the job."""

    def tell(_: TokensProgress) -> None:
        raise LookupError("progress")

    with pytest.raises(LookupError, match="progress"):
        await _drain(tokens.get_valid_tokens([uuid4()], progress=tell))
    assert not left_over()


async def test_bad_arguments_are_named(tokens: TokenManager, user: UUID) -> None:
    """At the call, before anything is read."""
    for wrong in (str(user), user, 5, None):
        with pytest.raises(ValueError, match=r"^user_ids: "):
            tokens.get_valid_tokens(wrong)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"^concurrency: "):
        tokens.get_valid_tokens([user], concurrency=0)


async def test_a_database_that_is_away_fails_its_batch_only(
    database: Database, accounts: SpotifyAccounts, admin: asyncpg.Connection
) -> None:
    """The users of a batch that could not be read have that error; those of the next are served."""
    await add_connections(admin, 2 * BATCH)
    found: dict[UUID, Found] = {}
    lock = admin.transaction()
    async with (
        ConnectionStore.open(database.dsn, timeout=3) as store,
        TokenManager(store, accounts) as tokens,
        aclosing(tokens.get_valid_tokens(bulk_user(n) for n in range(1, 2 * BATCH + 1))) as answers,
    ):
        await lock.start()
        await admin.execute("lock table public.spotify_connections in access exclusive mode")
        async for user, answer in answers:
            if not found:
                await lock.rollback()
            found[user] = answer
    assert [type(answer) for answer in found.values()] == [DatabaseUnavailable] * BATCH + [str] * BATCH
    assert len({id(answer) for answer in found.values()}) == 2 * BATCH


async def test_what_is_wrong_for_all_ends_the_job(
    tokens: TokenManager, store: ConnectionStore, accounts: SpotifyAccounts, spotify: Watched, admin: asyncpg.Connection
) -> None:
    """A missing grant, and credentials that Spotify refuses, are raised once and not answered user by user."""
    users = await connect_many(admin, spotify, [3600] + [-1] * 500)
    loop = asyncio.get_running_loop()
    async with (
        SpotifyAccounts("demo-client", "wrong", accounts_url=accounts._accounts_url) as wrong,
        TokenManager(store, wrong) as other,
    ):
        seen: list[UUID] = []
        began = loop.time()
        with pytest.raises(ConfigurationError):  # noqa: PT012
            async for user, _ in other.get_valid_tokens(users, concurrency=4):
                seen.append(user)
        assert seen[0] == users[0]
        assert len(seen) <= 1 + spotify.token_calls, "nobody has the refusal of a call that was made for another user"
        # The circuit opens with the second refusal; the first has made room for one more call. While it is open, a
        # call probes whether it still is: one at once, and one each half second at most.
        assert spotify.token_calls <= 4 + 1 + 1 + 2 * (loop.time() - began)
    await admin.execute("revoke execute on function spotconn.get_access_tokens from spotconn")
    try:
        with pytest.raises(RowSecurityError):
            await _drain(tokens.get_valid_tokens(users))
    finally:
        await admin.execute("grant execute on function spotconn.get_access_tokens to spotconn")
    await until(lambda: not left_over())


async def test_a_row_that_does_not_decrypt_fails_alone(
    database: Database, accounts: SpotifyAccounts, spotify: Watched, users: list[UUID], admin: asyncpg.Connection
) -> None:
    """It may be one row that was tampered with: the others are served."""
    cipher = AesGcmSivCipher([AesGcmSivCipher.generate_key()])
    async with ConnectionStore.open(database.dsn, cipher=cipher) as store, TokenManager(store, accounts) as tokens:
        stored = {user: (await connect(store, spotify, user)).access_token for user in users}
        await admin.execute(
            "update public.spotify_connections set access_token = refresh_token where user_id = $1", users[0]
        )
        found = dict(await asked(tokens, users))
    assert isinstance(found.pop(users[0]), DecryptionError)
    assert found == {user: stored[user] for user in users[1:]}
