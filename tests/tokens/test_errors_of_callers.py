"""No error belongs to two callers, and what belongs to a caller is left alone.

Two callers make the same call that fails. The first catches its error and is suspended in its own code when the
second is raised to. Every public call is driven, each caller inside and outside an `except` block of its own.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from uuid import UUID, uuid4

import asyncpg
import pytest

from spotconn import (
    ConfigurationError,
    ConnectFlow,
    ConnectionAdmin,
    ConnectionStore,
    DatabaseUnavailable,
    SpotconnError,
    SpotifyAccounts,
    SpotifyUnavailable,
    TokenManager,
)
from spotconn._tokens.batch import BATCH
from spotconn._tokens.local_backoff import LocalBackoffs
from spotconn._tokens.single_flight import SingleFlight
from spotconn._tracebacks import Failure as SharedFailure
from spotconn.testing import Answer, FakeSpotify
from support.callers import (
    PATIENCE,
    Call,
    Caller,
    all_caught,
    check_apart,
    check_end,
    check_waiting,
    frames,
    library_frames,
    look_up,
)
from support.connections import connect
from support.consent import REDIRECT_URI, SCOPES
from support.database import Database, serving
from support.failing_calls import (
    FAILURES,
    Failure,
    Setup,
    away,
    drain,
    hurry,
    manager,
    refused,
    revoked,
    throttled,
    unavailable,
    unreachable,
)
from support.fault_proxy import FaultProxy
from support.leak_detector import text_of
from support.public_calls import public_calls


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    """A server of this module's own."""
    with serving() as own:
        yield own


@pytest.fixture
async def setup(database: Database) -> AsyncIterator[Setup]:
    """All that the calls need."""
    spotify = FakeSpotify(rotation=True)
    async with spotify.serve() as url, FaultProxy(database.server.port).serve() as proxy:
        dsn = proxy.dsn(database.dsn)
        async with (
            ConnectionStore.open(dsn, min_size=1, max_size=2, statement_cache_size=100) as store,
            ConnectionAdmin.open(proxy.dsn(database.admin_dsn), statement_cache_size=100) as overseer,
            SpotifyAccounts("demo-client", "demo-secret", accounts_url=url, api_url=url) as accounts,
            manager(store, accounts) as tokens,
        ):
            admin = await asyncpg.connect(database.admin_dsn)
            rows = await admin.fetch("insert into auth.users (email) values ('a'), ('b') returning id")
            await admin.close()
            user, nobody = (row["id"] for row in rows)
            flow = ConnectFlow(store, accounts, redirect_uri=REDIRECT_URI, scopes=SCOPES)
            connected = await connect(store, spotify, user)
            with ExitStack() as until_the_end:
                yield Setup(
                    database, proxy, spotify, store, accounts, tokens, flow, overseer, connected, nobody, until_the_end
                )


ORDERS = [(one, two, together) for one in (False, True) for two in (False, True) for together in (False, True)]
"""Whether each caller handles an error of its own, and whether both begin at once."""
PUBLIC_FRAMES = {"get_valid_token", "_answers_of", "async_auth_flow", "auth_flow", "sync_auth_flow"}
"""Frames of the library that its errors pass through on the way out: their locals hold no token."""
LISTS = {"ConnectionAdmin.expiring", "ConnectionAdmin.failing", "ConnectionAdmin.migrate"}
"""What these read holds no token, and their frames stay."""
RAISES_NOTHING = {
    "AesGcmSivCipher.encrypt",
    "AesGcmSivCipher.generate_key",
    "ConnectFlow.aclose",
    "ConnectionStore.unwatch",
    "ConnectionStore.watch",
    "SpotifyAccounts.authorize_url",
    "TokenManager.aclose",
}


STORED = [one for one in FAILURES if one.prepare in {throttled, refused, revoked, unavailable, unreachable}]
"""Failures that are remembered: by the process, or by the database."""


async def drive(first: Caller, second: Caller, call: Call, *, together: bool) -> None:
    """Let both fail, the second while the first is suspended in its own code, and let them end."""
    tasks = [asyncio.create_task(first.run(call))]
    if not together:
        await all_caught([first])
    tasks.append(asyncio.create_task(second.run(call)))
    callers = first, second
    await all_caught(callers)
    check_waiting(tasks)
    check_apart(callers)
    await check_end(callers, tasks)


@pytest.mark.parametrize("failure", FAILURES, ids=str)
async def test_two_callers_share_no_error(setup: Setup, failure: Failure) -> None:
    """Each caller of a call that fails has an error object of its own, and all that it handled stays as it was."""
    await failure.prepare(setup)
    for one, two, together in ORDERS:
        first, second = Caller("first", within=one), Caller("second", within=two)
        await drive(first, second, partial(failure.call, setup), together=together)
        for caller in (first, second):
            assert isinstance(caller.error, failure.kind)
            check_library(caller, failure, setup)


def check_library(caller: Caller, failure: Failure, setup: Setup) -> None:
    """Check that no frame of the library shows below the public call, and no token anywhere."""
    assert list(caller.links()) == [caller.error], "the errors of asyncpg and httpx hold what was sent"
    for link in caller.links():
        shown = [
            frame for frame in library_frames(link) if not frame.f_globals["__name__"].startswith(("httpx.", "httpx2."))
        ]
        assert failure.name in LISTS or {frame.f_code.co_name for frame in shown} <= PUBLIC_FRAMES
    assert caller.error is not None
    said = text_of(caller.error)
    assert not [secret for secret in setup.secrets() if secret in said]


def test_every_public_call_is_driven() -> None:
    """A call that is added must be driven here, too, unless it raises nothing of the library's."""
    assert {failure.name for failure in FAILURES} == public_calls() - RAISES_NOTHING


def crowd(size: int) -> list[Caller]:
    """Callers, every second one with an error of its own in hand."""
    return [Caller(f"caller {number}", within=number % 2 == 1) for number in range(size)]


async def all_apart(callers: list[Caller], tasks: list[asyncio.Task[str]]) -> None:
    """Wait until all have caught their errors, look at them, and let them end."""
    await all_caught(callers)
    check_waiting(tasks)
    check_apart(callers)
    await check_end(callers, tasks)


@pytest.mark.parametrize("failure", STORED, ids=str)
async def test_no_error_is_raised_twice(setup: Setup, failure: Failure) -> None:
    """A failure that is remembered gives each later caller an object of its own, one after the other and at once."""
    await failure.prepare(setup)
    callers, tasks = crowd(8), list[asyncio.Task[str]]()
    for caller in callers:
        tasks.append(asyncio.create_task(caller.run(partial(failure.call, setup))))
        if len(tasks) <= len(callers) / 2:
            await all_caught([caller])
    await all_apart(callers, tasks)


def test_a_local_pause_gives_its_error_as_another_object_each_time() -> None:
    """Neither the error that began the pause nor the remembered one is raised again."""
    pauses, user, began = LocalBackoffs(), uuid4(), SpotifyUnavailable("no answer", answered=False)
    began.add_note("of the first caller")
    pauses.begin(user, "token", began, 0.0)
    found = [pauses.error(user, "token", 0.1) for _ in range(2)]
    assert len({id(error) for error in (began, *found)}) == 3
    for error in found:
        assert isinstance(error, SpotifyUnavailable)
        assert not hasattr(error, "__notes__")


async def test_callers_of_one_read_share_no_error(setup: Setup) -> None:
    """Two read, and two wait to share the next statement, for which there is no connection: each has its own error."""
    callers = crowd(4)
    first, second = (setup.proxy.hold(b"get_access_tokens") for _ in range(2))
    with first, second:
        call = partial(setup.tokens.get_valid_token, setup.user)
        tasks = [asyncio.create_task(caller.run(call)) for caller in callers]
        await first.reached()
        await second.reached()
        setup.proxy.refuses = True
        setup.proxy.cut()
    await all_apart(callers, tasks)
    assert {type(caller.error) for caller in callers} == {DatabaseUnavailable}


async def test_callers_of_one_refresh_share_no_error(setup: Setup) -> None:
    """A refresh that many wait for, in passes over many users too, fails for each with an object of its own."""
    await refused(setup)
    calls: list[Call] = [
        partial(setup.tokens.get_valid_token, setup.user),
        partial(setup.tokens.replace_rejected, setup.user, setup.connected.access_token),
        *[lambda: drain(setup.tokens.get_valid_tokens([setup.user]))] * 2,
    ] * 2
    callers = crowd(len(calls))
    with setup.spotify.hold() as held:
        tasks = [asyncio.create_task(caller.run(call)) for caller, call in zip(callers, calls, strict=True)]
        await held.reached()
        async with asyncio.timeout(PATIENCE):
            while _waiting(setup) < len(calls):
                await asyncio.sleep(0.01)
    await all_apart(callers, tasks)
    assert {type(caller.error) for caller in callers} == {ConfigurationError}
    assert setup.spotify.token_calls == 1


def _waiting(setup: Setup) -> int:
    """How many wait for the one refresh that is under way."""
    (flight,) = setup.tokens._source.refreshes._flights.values()
    return len(flight.outcome._callbacks or ())


async def test_a_refresh_in_the_background_fails_for_nobody_else(setup: Setup) -> None:
    """Who joins a refresh of the background, or comes after it, has an error of its own."""
    async with setup.superuser() as admin:
        await admin.execute("update public.spotify_connections set expires_at = now() + interval '100 seconds'")
    hurry(setup)
    setup.spotify.script(*[Answer.reset()] * 1000)
    call = partial(setup.tokens.get_valid_token, setup.user, min_ttl=3000)
    callers = crowd(6)
    with setup.spotify.hold(before=True) as held:
        assert await setup.tokens.get_valid_token(setup.user) == setup.connected.access_token
        await held.reached()
        tasks = [asyncio.create_task(caller.run(call)) for caller in callers[:3]]
    await all_caught(callers[:3])
    tasks += [asyncio.create_task(caller.run(call)) for caller in callers[3:]]
    await all_apart(callers, tasks)
    assert {type(caller.error) for caller in callers} == {SpotifyUnavailable}


async def test_each_user_of_a_batch_has_an_error_of_its_own(setup: Setup) -> None:
    """While the database is away, each answer of each pass is another object, which was never raised to anybody."""
    await away(setup)
    users = [setup.user, *[uuid4() for _ in range(BATCH + 1)]]
    answers = [answer for _ in range(2) async for _, answer in setup.tokens.get_valid_tokens(users)]
    assert len({id(answer) for answer in answers}) == len(answers) == 2 * len(users)
    for answer in answers:
        assert isinstance(answer, DatabaseUnavailable)
        assert (answer.__traceback__, answer.__context__, answer.__cause__) == (None, None, None)


class Moody:
    """A cipher of the caller's that cannot decrypt."""

    def __init__(self, failure: type[Exception]) -> None:
        self._failure = failure

    def encrypt(self, token: str, *, user_id: UUID, column: str) -> str:
        raise self._failure(token, user_id, column)

    def decrypt(self, stored: str, *, user_id: UUID, column: str) -> str:  # noqa: ARG002  the protocol's
        shelf = f"shelf of {user_id}"
        try:
            look_up(shelf)
        except LookupError as error:
            raise self._failure(column) from error
        return shelf


class Uncopied(Exception):
    """An error that is made with another number of arguments than it keeps."""

    def __init__(self, column: str) -> None:
        super().__init__("no key for", column)


@asynccontextmanager
async def moody(setup: Setup, failure: type[Exception]) -> AsyncGenerator[TokenManager]:
    """A manager whose store has a cipher that cannot decrypt."""
    async with (
        ConnectionStore.open(setup.database.dsn, min_size=1, max_size=2, cipher=Moody(failure)) as store,
        manager(store, setup.accounts) as tokens,
    ):
        yield tokens


def locals_of(error: BaseException | None, function: Callable[..., object]) -> list[dict[str, object]]:
    """The local variables of a function's frames in a traceback."""
    assert error is not None
    return [frame.f_locals for frame in frames(error) if frame.f_code is function.__code__]


@pytest.mark.parametrize("of", ["one read", "the store", "a pass"])
async def test_an_error_of_the_callers_cipher_keeps_its_frames(setup: Setup, of: str) -> None:
    """The traceback goes on in the cipher, with its local variables, also where two callers share the read."""
    async with moody(setup, KeyError) as tokens:
        call: Call = {
            "one read": lambda: tokens.get_valid_token(setup.user),
            "the store": lambda: tokens.store.get(setup.user),
            "a pass": lambda: drain(tokens.get_valid_tokens([setup.user])),
        }[of]
        callers = crowd(2)
        tasks = [asyncio.create_task(caller.run(call)) for caller in callers]
        await all_caught(callers)
        check_waiting(tasks)
        for caller in callers:
            assert isinstance(caller.error, KeyError)
            (found,) = locals_of(caller.error, Moody.decrypt)
            assert found["shelf"] == f"shelf of {setup.user}"
        assert callers[0].error is not callers[1].error
        await check_end(callers, tasks)


async def test_the_cause_of_an_error_of_the_callers_cipher_stays(setup: Setup) -> None:
    """What the cipher itself was handling is the cause, with its own frames."""
    async with moody(setup, KeyError) as tokens:
        with pytest.raises(KeyError) as raised:
            await tokens.store.get(setup.user)
        assert locals_of(raised.value.__cause__, look_up) == [{"order": f"shelf of {setup.user}"}]


async def test_an_error_that_cannot_be_copied_is_named(setup: Setup) -> None:
    """Where the class of a shared error does not copy, each caller has an error of its own that names the class."""
    async with moody(setup, Uncopied) as tokens:
        callers = crowd(2)
        flights = SingleFlight[UUID, object]("shared", "TokenManager")
        work = partial(tokens.store.get, setup.user)
        tasks = [asyncio.create_task(caller.run(lambda: flights.join(setup.user, work))) for caller in callers]
        await all_caught(callers)
        assert [str(caller.error) for caller in callers] == ["shared work ended with Uncopied"] * 2
        assert callers[0].error is not callers[1].error
        await check_end(callers, tasks)


def failing_ids(user: UUID) -> Iterator[UUID]:
    yield user
    look_up("ids")


async def failing_ids_later(user: UUID) -> AsyncIterator[UUID]:
    for found in failing_ids(user):
        yield found


@pytest.mark.parametrize("ids", [failing_ids, failing_ids_later])
async def test_an_error_of_the_callers_iterator_keeps_its_frames(
    setup: Setup, ids: Callable[[UUID], Iterator[UUID] | AsyncIterator[UUID]]
) -> None:
    """The users before it have their answers, then the iterator's own error comes with its local variables."""
    answers: list[str | SpotconnError] = []

    async def take() -> None:
        async for _, answer in setup.tokens.get_valid_tokens(ids(setup.user)):
            answers.append(answer)

    with pytest.raises(LookupError) as raised:
        await take()
    assert answers == [setup.connected.access_token]
    assert locals_of(raised.value, look_up) == [{"order": "ids"}]
    assert locals_of(raised.value, failing_ids) == [{"user": setup.user}]


async def test_an_error_of_the_callers_progress_keeps_its_frames(setup: Setup) -> None:
    """What `progress` raises ends the pass as it is."""

    def progress(done: object) -> None:
        look_up(f"after {done is not None}")

    with pytest.raises(LookupError) as raised:
        await drain(setup.tokens.get_valid_tokens([setup.user], progress=progress))
    assert raised.value.__context__ is None
    assert locals_of(raised.value, look_up) == [{"order": "after True"}]
    assert len(locals_of(raised.value, progress)) == 1
    passed = [frame.f_locals for frame in frames(raised.value) if frame.f_globals["__name__"].startswith("spotconn.")]
    assert passed
    assert setup.connected.access_token not in repr(passed), "the library's own frames on the way hold no token"


def test_the_text_of_an_error_of_the_callers_is_not_logged() -> None:
    """It may hold a token; the text of an error of the library does not."""
    assert str(SharedFailure(KeyError("a token"))) == "KeyError"
    assert str(SharedFailure(DatabaseUnavailable("no answer"))) == "DatabaseUnavailable: no answer"


@pytest.mark.long
async def test_an_error_of_the_callers_block_passes_as_it_is(setup: Setup) -> None:
    """What is raised inside `as_user` is the caller's: the same object, with its frames and what it was handling."""
    kept: list[LookupError] = []

    async def fail() -> None:
        async with setup.store.as_user(setup.user):
            try:
                look_up("block")
            except LookupError as error:
                kept.append(error)
                raise

    with pytest.raises(LookupError) as raised:
        await fail()
    assert raised.value is kept[0]
    assert raised.value.__context__ is None
    assert locals_of(raised.value, look_up) == [{"order": "block"}]
