"""The database is broken at each await of a refresh; what Spotify granted is served, kept and saved all the same."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Protocol, Self

import pytest

from spotconn import (
    ConnectionStore,
    DatabaseUnavailable,
    NotConnected,
    ReauthorizationRequired,
    SpotconnError,
    SpotifyUnavailable,
    TokenManager,
)
from spotconn._tokens import source
from spotconn.testing import Answer
from support.database import Database, serving
from support.fault_harness import FaultHarness, ask_until_served, fault_harness
from support.listening import until
from support.waiting_crowd import WaitingCrowd

FALSE_REFUSAL = Answer(status=400, json={"error": "invalid_grant", "error_description": "Refresh token revoked"})


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    """A server of this module's own, which it may restart as after a crash: what is committed is there again."""
    with serving(synchronous_commit="on") as own:
        yield own


async def restart(scene: FaultHarness) -> None:
    await asyncio.to_thread(scene.database.server.restart, immediate=True)


async def terminate(scene: FaultHarness) -> None:
    async with scene.admin() as admin:
        await admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'")


async def cut(scene: FaultHarness) -> None:
    scene.proxy.cut()


async def away(scene: FaultHarness) -> None:
    scene.proxy.refuses = True
    scene.proxy.cut()


async def half_open(scene: FaultHarness) -> None:
    scene.proxy.freeze()


async def deaf(scene: FaultHarness) -> None:
    """Statements arrive and are executed; answers do not."""
    scene.proxy.freeze(requests=False)


async def slow(scene: FaultHarness) -> None:
    scene.proxy.delay = 0.03


UNANSWERED: set[Callable[[FaultHarness], Awaitable[None]]] = {half_open, deaf}
"""What nobody is told of: a statement is waited for until its time is over."""
FAULTS = [restart, terminate, cut, away, half_open, deaf, slow]
FIRST = {away}
"""What `make test` tries; `make long` tries the others, too."""


class Held(Protocol):
    """Something that is held back, by the proxy or by Spotify."""

    async def reached(self) -> None: ...
    def release(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


@dataclass(frozen=True)
class Await:
    """Where a refresh waits when the fault strikes.

    Attributes:
        name: of it.
        hold: brings the refresh to stand there.
        outcomes: what the caller may get: a token or one of these errors.
        calls: of Spotify in all, until a token is served.
        script: what Spotify answers first.
        before: the statement before it, if any.
    """

    name: str
    hold: Callable[[FaultHarness], Held]
    outcomes: tuple[type[str | SpotconnError], ...]
    calls: int
    script: tuple[Answer, ...] = ()
    before: bytes | None = b"begin_refresh"


def at(text: bytes, *, answer: bool = False, skip: int = 0) -> Callable[[FaultHarness], Held]:
    return lambda scene: scene.proxy.hold(text, answer=answer, skip=skip)


REFUSED = (Answer.too_many_requests("1"),)
AWAITS = [
    Await("read", at(b"get_access_tokens"), (str, DatabaseUnavailable), 1, before=None),
    Await("read's answer", at(b"get_access_tokens", answer=True), (str, DatabaseUnavailable), 1, before=None),
    Await("begin", at(b"begin_refresh"), (str, DatabaseUnavailable), 1, before=b"get_access_tokens"),
    Await(
        "begin's answer", at(b"begin_refresh", answer=True), (str, DatabaseUnavailable), 1, before=b"get_access_tokens"
    ),
    Await("Spotify", lambda scene: scene.spotify.hold(calls=1), (str,), 1),
    Await("save", at(b"finish_refresh"), (str,), 1),
    Await("save's answer", at(b"finish_refresh", answer=True), (str,), 1),
    Await("failure", at(b"fail_refresh"), (SpotifyUnavailable,), 2, REFUSED),
    Await("failure's answer", at(b"fail_refresh", answer=True), (SpotifyUnavailable,), 2, REFUSED),
    Await("refusal", at(b"fail_refresh"), (DatabaseUnavailable,), 2, (FALSE_REFUSAL,)),
]


async def answered(scene: FaultHarness, statement: bytes = b"begin_refresh") -> None:
    """Wait for the answer to a statement."""
    with scene.proxy.hold(statement, answer=True) as held:
        await held.reached()


def tells_more(fault: Callable[[FaultHarness], Awaitable[None]], where: Await) -> bool:
    """Whether a fault at a place is another than one that is tried already."""
    if where.name == "refusal":
        # These record what Spotify said, a half-open link where it lets the statement through in the end.
        return fault not in {slow, deaf, half_open}
    return not where.name.endswith("'s answer") or fault not in {restart, slow}


CASES = [
    pytest.param(
        fault, where, id=f"{fault.__name__} at {where.name}", marks=[] if fault in FIRST else [pytest.mark.long]
    )
    for where in AWAITS
    for fault in FAULTS
    if tells_more(fault, where)
]


@pytest.mark.parametrize(("fault", "where"), CASES)
async def test_a_lost_database_loses_no_connection(
    database: Database, fault: Callable[[FaultHarness], Awaitable[None]], where: Await
) -> None:
    """Whatever happens to the database, a grant is served and saved, or the call raises and the next one works.

    Everybody who waits ends, with a token or with an error of the own.
    """
    async with fault_harness(database) as scene:
        scene.spotify.script(*where.script)
        if where.script is REFUSED:
            scene.hurry_spotify()  # so that the call ends before the pause that Spotify asked for
        crowd = WaitingCrowd(scene.tokens, scene.user, scene.before["access_token"])
        with where.hold(scene) as held:
            caller = asyncio.create_task(scene.tokens.get_valid_token(scene.user))
            if where.before is not None and fault not in UNANSWERED:
                await until(lambda: bool(scene.tokens._source.refreshes.tasks))  # its own read is over
            crowd.begin()
            if fault in UNANSWERED:
                if where.before is not None:
                    await answered(scene, where.before)
                scene.hurry_database()  # what the fault will strike, and nothing before it
            await held.reached()
            crowd.reject()
            await fault(scene)
            held.release()
            (outcome,) = await asyncio.gather(caller, return_exceptions=True)
        assert isinstance(outcome, where.outcomes), outcome
        await scene.check_lease()
        scene.proxy.heal()
        scene.give_time()
        token = await scene.ask_until_served()
        others = await crowd.outcomes()
        await scene.saved()
        assert token == (await scene.row())["access_token"]
        assert {one for one in (outcome, *others) if isinstance(one, str)} <= {token}
        assert scene.spotify.token_calls == where.calls
        await scene.check()


async def test_a_refusal_whose_record_is_not_acknowledged_is_told_by_the_next_call(database: Database) -> None:
    """The caller hears that the database was away; the next one hears what is recorded, and Spotify is asked once."""
    async with fault_harness(database) as scene:
        scene.spotify.script(FALSE_REFUSAL)
        with scene.proxy.hold(b"fail_refresh") as held:
            caller = asyncio.create_task(scene.tokens.get_valid_token(scene.user))
            await answered(scene)
            scene.hurry_database()
            await held.reached()
            await deaf(scene)
            held.release()
            with pytest.raises(DatabaseUnavailable):
                await caller
        scene.proxy.heal()
        scene.give_time()
        with pytest.raises(ReauthorizationRequired) as raised:
            await scene.tokens.get_valid_token(scene.user)
        assert raised.value.reason == "revoked"
        assert await scene.lease_and_failure() == (False, "revoked")
        assert scene.spotify.token_calls == 1


async def test_a_grant_that_a_second_attempt_saves_is_served_by_the_first(database: Database) -> None:
    """Where two attempts to save a grant meet, the one that fails last has its token all the same."""
    async with fault_harness(database) as scene:
        writes = scene.store.pool._writes

        async def waiting(attempts: int) -> None:
            await until(lambda: len(writes._waiting[scene.user]) == attempts)

        with scene.proxy.hold(b"begin_refresh", answer=True) as begun:
            caller = asyncio.create_task(scene.tokens.get_valid_token(scene.user))
            await begun.reached()
            turn = asyncio.create_task(stack_turn(scene))
            await waiting(1)
        async with await turn:
            await waiting(1)
            second = asyncio.create_task(scene.tokens.replace_rejected(scene.user, scene.before["access_token"]))
            await waiting(2)
            held = scene.proxy.hold(b"finish_refresh", skip=1)
        with held:
            token = await second
            assert (await scene.row())["access_token"] == token
            await held.reached()
            await away(scene)
            assert await caller == token
        scene.proxy.heal()
        assert await scene.ask_until_served() == token
        assert scene.spotify.token_calls == 1
        await scene.check()


async def test_a_read_that_fails_beside_a_refresh_has_its_grant(database: Database) -> None:
    """Who was reading before the refresh began, and reads in vain, is served what Spotify has granted meanwhile."""
    async with fault_harness(database) as scene:
        with scene.proxy.hold(b"get_access_tokens") as read, scene.proxy.hold(b"finish_refresh") as saving:
            reader = asyncio.create_task(scene.tokens.get_valid_token(scene.user))
            await read.reached()
            refreshing = asyncio.create_task(scene.tokens.get_valid_token(scene.user))
            await saving.reached()
            await away(scene)
            assert await reader == await refreshing
        scene.proxy.heal()
        assert await scene.ask_until_served() == reader.result()
        assert scene.spotify.token_calls == 1
        await scene.check()


async def stack_turn(scene: FaultHarness) -> AsyncExitStack:
    """Take the turn of the user's next write, until the stack is closed."""
    stack = AsyncExitStack()
    await stack.enter_async_context(scene.store.pool._writes.turn(scene.user, seconds=30))
    return stack


@pytest.mark.parametrize("fault", [away, half_open])
async def test_a_kept_grant_is_served_while_the_database_is_away(
    database: Database, fault: Callable[[FaultHarness], Awaitable[None]]
) -> None:
    """Every caller gets the token that is not saved yet, without another call to Spotify."""
    async with fault_harness(database) as scene:
        with scene.proxy.hold(b"finish_refresh") as held:
            caller = asyncio.create_task(scene.tokens.get_valid_token(scene.user))
            await answered(scene)
            scene.hurry_database()
            await held.reached()
            await fault(scene)
        token = await caller
        assert [await scene.tokens.get_valid_token(scene.user) for _ in range(2)] == [token, token]
        assert dict(await scene.row()) == dict(scene.before)
        scene.proxy.heal()
        scene.give_time()
        await scene.saved()
        assert (await scene.row())["access_token"] == token
        assert scene.spotify.token_calls == 1
        await scene.check()


async def test_a_half_open_connection_costs_one_timeout(database: Database) -> None:
    """A caller whose statement is not answered waits once, not again for the broken connection's release."""
    async with fault_harness(database) as scene:
        scene.hurry_database(3)
        scene.proxy.freeze()
        began = asyncio.get_running_loop().time()
        with pytest.raises(DatabaseUnavailable):
            await scene.tokens.get_valid_token(scene.user)
        assert 2.9 < asyncio.get_running_loop().time() - began < 5.7, "twice would be 6"
        scene.proxy.heal()
        scene.give_time()
        assert await scene.ask_until_served() == (await scene.row())["access_token"]


async def test_a_late_save_revives_a_connection(database: Database) -> None:
    """Where only the holder has lost the database, others record its user as lost, until its grant is saved."""
    async with (
        fault_harness(database) as scene,
        ConnectionStore.open(database.dsn, max_size=1) as store,
        scene.accounts() as accounts,
        TokenManager(store, accounts, cache_ttl=0) as sibling,
    ):
        with scene.proxy.hold(b"finish_refresh") as held:
            caller = asyncio.create_task(scene.tokens.get_valid_token(scene.user))
            await held.reached()
            await away(scene)
        token = await caller
        with pytest.raises(ReauthorizationRequired):
            await ask_until_served(sibling, scene.user)
        scene.proxy.heal()
        await scene.saved()
        assert await sibling.get_valid_token(scene.user) == token
        await scene.check()


async def test_shutdown_saves_what_is_kept(database: Database) -> None:
    """A grant that the database could not take before is saved by `aclose()`, once the database is back."""
    async with fault_harness(database) as scene:
        with scene.proxy.hold(b"finish_refresh") as held:
            caller = asyncio.create_task(scene.tokens.get_valid_token(scene.user))
            await held.reached()
            await away(scene)
        token = await caller
        scene.proxy.heal()
        await scene.tokens.aclose()
        assert (await scene.row())["access_token"] == token
        await scene.check()


@pytest.mark.parametrize(("flush", "patience"), [(0.3, 2), (10, 0.3)], ids=["gives up", "is cancelled"])
async def test_a_grant_lost_at_shutdown_is_told(
    database: Database,
    flush: float,
    patience: float,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """If the database stays away, `aclose()` ends in time, names the user as critical, and leaves no task."""
    monkeypatch.setattr(source, "SAVE_TIMEOUT", flush)
    async with fault_harness(database) as scene:
        with scene.proxy.hold(b"finish_refresh") as held:
            caller = asyncio.create_task(scene.tokens.get_valid_token(scene.user))
            await held.reached()
            await away(scene)
        token = await caller
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await scene.tokens.aclose()
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("spotconn")]
        assert dict(await scene.row()) == dict(scene.before)
    (critical,) = [record for record in caplog.records if record.levelname == "CRITICAL"]
    assert str(scene.user) in critical.getMessage()
    assert token not in caplog.text
    assert scene.before["refresh_token"] not in caplog.text


@pytest.mark.parametrize(
    "statement",
    [
        "delete from public.spotify_connections where user_id = $1",
        (
            "update public.spotify_connections set access_token = 'a', refresh_token = 'r', "
            "expires_at = now() + interval '1 hour' where user_id = $1"
        ),
    ],
    ids=["disconnect", "reconnect"],
)
async def test_a_foreign_write_beats_a_kept_grant(database: Database, statement: str) -> None:
    """A disconnect or a reconnect by another client while a grant waits to be saved is not undone by it."""
    async with fault_harness(database) as scene, scene.admin() as admin:
        with scene.proxy.hold(b"finish_refresh") as held:
            caller = asyncio.create_task(scene.tokens.get_valid_token(scene.user))
            await held.reached()
            await away(scene)
        await caller
        await admin.execute(statement, scene.user)
        scene.proxy.heal()
        await scene.saved()
        left = await admin.fetch("select access_token from public.spotify_connections where user_id = $1", scene.user)
        if statement.startswith("delete"):
            assert left == []
            with pytest.raises(NotConnected):
                await scene.tokens.get_valid_token(scene.user)
        else:
            assert [row["access_token"] for row in left] == ["a"]
            assert await scene.tokens.get_valid_token(scene.user) == "a"


@pytest.mark.long
@pytest.mark.parametrize("fault", [away, half_open, terminate])
async def test_a_lost_database_delays_nobody_who_has_a_usable_token(
    database: Database, fault: Callable[[FaultHarness], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    """A remembered token that ends soon is served at once; its refresh in the background may fail, and is logged."""
    async with fault_harness(database, ttl=100, cache_ttl=30) as scene:
        with scene.proxy.hold(b"begin_refresh") as held:
            token = await scene.tokens.get_valid_token(scene.user)
            if fault in UNANSWERED:
                scene.hurry_database()
            await held.reached()
            await fault(scene)
        await asyncio.gather(*scene.tokens._source.refreshes.tasks, return_exceptions=True)
        async with asyncio.timeout(0.2):
            assert await scene.tokens.get_valid_token(scene.user) == token
        scene.proxy.heal()
    assert "a refresh in the background failed with DatabaseUnavailable" in caplog.text
