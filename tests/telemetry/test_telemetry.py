"""Spans and metrics of an instrumented manager, against a real Postgres and a FakeSpotify over real HTTP."""

import asyncio
import gc
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from opentelemetry.sdk.metrics.export import Gauge, Histogram, Sum
from opentelemetry.trace import SpanKind, StatusCode

from spotconn import (
    ConnectionStore,
    DatabaseUnavailable,
    MissingScope,
    NotConnected,
    ReauthorizationRequired,
    RefreshInProgress,
    SpotifyAccounts,
    SpotifyUnavailable,
    TokenManager,
)
from spotconn._database.acquire import TIMEOUT
from spotconn._database.pending_connects import Claim
from spotconn.cipher import TokenColumn
from spotconn.telemetry import instrument
from spotconn.testing import Answer, FakeSpotify
from support.connections import OWN_APP, connect
from support.database import Database
from support.exported import Exported
from support.listening import until
from support.watched_store import WatchedStore, everything, report

REQUESTS, RESPONSES = "spotconn.token.requests", "spotconn.spotify.responses"
REFRESH, LEASE, POOL = "spotconn.refresh.duration", "spotconn.lease.wait.duration", "spotconn.pool.wait.duration"
ENTRIES, REAUTHORIZE = "spotconn.cache.entries", "spotconn.connections.reauthorize"
REFUSALS = "spotconn.spotify.unexpected_refusals"
APP_REFUSALS, APP_REFUSED = "spotconn.app.refusals", "spotconn.app.refused"
CALL = "spotconn.get_valid_token"


@pytest.fixture
def exported() -> Iterator[Exported]:
    gc.collect()  # the caches of the tests before
    caught = Exported()
    yield caught
    caught.close()


@pytest.fixture
def watched(store: ConnectionStore) -> WatchedStore:
    return WatchedStore(store.pool._pool)


@pytest.fixture
async def tokens(watched: WatchedStore, accounts: SpotifyAccounts, exported: Exported) -> AsyncIterator[TokenManager]:
    async with TokenManager(watched, accounts, refresh_timeout=2, lease=3) as manager:
        yield exported.instrument(manager)


async def test_a_stored_token_is_fresh_and_then_from_the_cache(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID, exported: Exported
) -> None:
    """The first call reads the database and has a span; the others come from memory and have none."""
    await connect(store, spotify, user)
    for _ in range(3):
        await tokens.get_valid_token(user)
    await tokens.get_access_token(user)
    assert exported.outcomes() == {("fresh",): 1, ("cache",): 3}
    assert exported.span(CALL).attributes == {"spotconn.outcome": "fresh"}
    assert exported.points(RESPONSES) == {}
    assert exported.points(REFRESH) == {}


async def test_a_refresh_is_counted_timed_and_traced(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID, exported: Exported
) -> None:
    """One call, one refresh, one answer of Spotify; the refresh is a child of the call, the call one of the caller."""
    await connect(store, spotify, user, ttl=-1)
    with exported.tracing.get_tracer("service").start_as_current_span("request") as request:
        await tokens.get_valid_token(user)
    assert exported.outcomes() == {("refreshed",): 1}
    assert exported.points(REFRESH) == {(): 1}
    assert exported.points(RESPONSES) == {(200, OWN_APP): 1}
    assert 0 < exported.seconds(REFRESH) < 5
    call, refresh = exported.span(CALL), exported.span("spotconn.refresh")
    assert call.attributes == {"spotconn.outcome": "refreshed"}
    assert call.parent == request.get_span_context()
    assert refresh.parent == call.context
    times = [call.start_time, refresh.start_time, refresh.end_time, call.end_time]
    assert times == sorted(time for time in times if time)
    assert {span.status.status_code for span in (call, refresh)} == {StatusCode.UNSET}


async def test_calls_that_share_a_refresh_are_linked_to_it(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID, exported: Exported
) -> None:
    """Each of them was refreshed; one is the parent of the refresh, and the others have a link to it."""
    await connect(store, spotify, user, ttl=-1)
    with spotify.hold() as held:
        calls_under_way = asyncio.gather(*[tokens.get_valid_token(user) for _ in range(4)])
        await held.reached()
        (flight,) = tokens._source.refreshes._flights.values()
        await until(lambda: len(flight.outcome._callbacks or ()) == 4)
    await calls_under_way
    assert exported.outcomes() == {("refreshed",): 4}
    assert exported.points(REFRESH) == {(): 1}
    refresh = exported.span("spotconn.refresh")
    calls = exported.spans(CALL)
    assert len(calls) == 4
    (parent,) = [call for call in calls if call.context == refresh.parent]
    assert not parent.links
    assert [link.context for call in calls if call is not parent for link in call.links] == [refresh.context] * 3


async def test_a_wait_for_another_process(
    watched: WatchedStore,
    store: ConnectionStore,
    accounts: SpotifyAccounts,
    spotify: FakeSpotify,
    user: UUID,
    exported: Exported,
) -> None:
    """A call that another process refreshed for has waited; the wait is timed, and no refresh is counted here."""
    await connect(store, spotify, user, ttl=-1)
    async with TokenManager(store, accounts) as other, TokenManager(watched, accounts) as tokens:
        exported.instrument(tokens)
        with spotify.hold() as held:
            first = asyncio.create_task(other.get_valid_token(user))
            await held.reached()
            second = asyncio.create_task(tokens.get_valid_token(user))
            await watched.busy.wait()
            held.release()
            assert await first == await second
    assert exported.outcomes() == {("waited",): 1}
    assert exported.points(LEASE) == {(): 1}
    assert 0.02 < exported.seconds(LEASE) < 10
    assert exported.points(REFRESH) == {}
    assert exported.span(CALL).attributes == {"spotconn.outcome": "waited"}


async def test_a_lease_that_runs_out_is_waited_for_and_taken_over(
    tokens: TokenManager, watched: WatchedStore, spotify: FakeSpotify, user: UUID, exported: Exported,
    admin: asyncpg.Connection,
) -> None:  # fmt: skip
    """The call has waited, and then this process refreshed: it counts as refreshed, and the wait is timed."""
    stored = await connect(watched, spotify, user, ttl=-1)
    await watched.begin_refresh(user, seen=stored.fingerprint, lease=30)
    call = asyncio.create_task(tokens.get_valid_token(user))
    await watched.busy.wait()
    await admin.execute("update spotconn.refresh_state set lease_until = now()")
    await call
    assert exported.outcomes() == {("refreshed",): 1}
    assert exported.points(LEASE) == exported.points(REFRESH) == {(): 1}


async def test_a_wait_in_vain(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID, exported: Exported
) -> None:
    """A holder that never answers: the error is counted, and so is the wait."""
    stored = await connect(store, spotify, user, ttl=-1)
    await store.begin_refresh(user, seen=stored.fingerprint, lease=30)
    async with TokenManager(store, accounts, refresh_timeout=0.5, lease=2) as tokens:
        exported.instrument(tokens)
        with pytest.raises(RefreshInProgress):
            await tokens.get_valid_token(user)
    assert exported.outcomes() == {("RefreshInProgress", "error"): 1}
    assert exported.points(LEASE) == {(): 1}


async def test_errors_are_counted_by_their_type(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID, exported: Exported
) -> None:
    """A malformed call, an unknown user and a missing scope; a span has the error's text as its status."""
    with pytest.raises(ValueError, match="UUID"):
        await tokens.get_valid_token("nobody")
    with pytest.raises(NotConnected) as raised:
        await tokens.get_valid_token(user)
    await connect(store, spotify, user)
    with pytest.raises(MissingScope):
        await tokens.get_valid_token(user, scopes=["streaming"])
    assert exported.outcomes() == dict.fromkeys(
        [("ValueError", "error"), ("NotConnected", "error"), ("MissingScope", "error")], 1
    )
    unconnected, missing = exported.spans(CALL)
    assert (unconnected.status.status_code, unconnected.status.description) == (StatusCode.ERROR, str(raised.value))
    assert unconnected.attributes == {"spotconn.outcome": "error", "error.type": "NotConnected"}
    assert missing.attributes == {"spotconn.outcome": "error", "error.type": "MissingScope"}
    assert not [span.events for span in (unconnected, missing) if span.events]


class Faulty:
    """A key store that fails with what it was given in its words."""

    def encrypt(self, token: str, *, user_id: UUID, column: TokenColumn) -> str:
        raise NotImplementedError

    def decrypt(self, stored: str, *, user_id: UUID, column: TokenColumn) -> str:  # noqa: ARG002  as the protocol has it
        raise RuntimeError(f"cannot decrypt {stored} of {user_id}")


async def test_a_foreign_error_is_named_without_its_words(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID, exported: Exported
) -> None:
    """An error that is none of the library's may quote anything: only its class is exported."""
    stored = await connect(store, spotify, user)
    async with TokenManager(ConnectionStore(store.pool._pool, cipher=Faulty()), accounts) as tokens:
        with pytest.raises(RuntimeError, match=stored.access_token):
            await exported.instrument(tokens).get_valid_token(user)
    assert exported.outcomes() == {("RuntimeError", "error"): 1}
    assert exported.span(CALL).status.status_code is StatusCode.ERROR
    assert [word for word in (stored.access_token, str(user)) if word in exported.text()] == []


async def test_an_outage_at_spotify(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID, exported: Exported
) -> None:
    """Every answer is counted by its status, also those that were retried; call and refresh have failed."""
    await connect(store, spotify, user, ttl=-1)
    spotify.script(*[Answer.unavailable()] * 30)
    with pytest.raises(SpotifyUnavailable):
        await tokens.get_valid_token(user)
    assert exported.outcomes() == {("SpotifyUnavailable", "error"): 1}
    assert exported.points(REFRESH) == {("SpotifyUnavailable",): 1}
    assert exported.points(RESPONSES) == {(503, OWN_APP): spotify.token_calls}
    assert exported.points(REAUTHORIZE) == {}
    for name in (CALL, "spotconn.refresh"):
        assert exported.span(name).status.status_code is StatusCode.ERROR
    assert exported.span("spotconn.refresh").attributes == {"error.type": "SpotifyUnavailable"}


async def test_no_answer_of_spotify(
    store: ConnectionStore, spotify: FakeSpotify, accounts: SpotifyAccounts, user: UUID, exported: Exported
) -> None:
    """Where nothing comes back, there is the type of the fault in place of a status: refused, and timed out."""
    await connect(store, spotify, user, ttl=-1)
    async with (
        SpotifyAccounts("demo-client", "demo-secret", accounts_url="http://127.0.0.1:1") as unreachable,
        TokenManager(store, unreachable, refresh_timeout=2, lease=3) as tokens,
    ):
        with pytest.raises(SpotifyUnavailable):
            await exported.instrument(tokens).get_valid_token(user)
    assert set(exported.points(RESPONSES)) == {("ConnectError", OWN_APP)}
    async with TokenManager(store, accounts, refresh_timeout=1, lease=2) as tokens:
        with spotify.hold() as held, pytest.raises(SpotifyUnavailable):
            await exported.instrument(tokens).get_valid_token(user)
        held.release()
    assert exported.points(RESPONSES)["CancelledError", OWN_APP] == 1


async def test_connections_to_reauthorize(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID, exported: Exported
) -> None:
    """One that Spotify has ended counts once, however often it is asked for."""
    await connect(store, spotify, user, ttl=-1)
    spotify.revoke("alice")
    for _ in range(3):
        with pytest.raises(ReauthorizationRequired):
            await tokens.get_valid_token(user)
    assert exported.points(REAUTHORIZE) == {(OWN_APP, "revoked"): 1}
    assert exported.outcomes() == {("ReauthorizationRequired", "error"): 3}
    assert exported.points(RESPONSES) == {(400, OWN_APP): 1}
    assert exported.points(REFUSALS) == {(OWN_APP,): 1}
    assert exported.points(REFRESH) == {("ReauthorizationRequired",): 1}


async def test_an_app_that_is_refused(
    tokens: TokenManager,
    store: ConnectionStore,
    accounts: SpotifyAccounts,
    spotify: FakeSpotify,
    users: list[UUID],
    exported: Exported,
) -> None:
    """Each answer counts; the other metric is 1 until it is over, and says nothing of single users."""
    await connect(store, spotify, users[0])
    await connect(store, spotify, users[1], account="bob", named=False)
    for _ in range(2):
        await report(tokens, users[0], 403, "Active premium subscription required for the owner of the app.")
    await report(tokens, users[1], 403, "User not registered in the Developer Dashboard")
    counts = {(OWN_APP, "premium_required"): 2, ("user_not_registered",): 1}
    assert exported.points(APP_REFUSALS) == counts
    for _ in range(2):  # as long as it lasts, and not once alone
        assert exported.points(APP_REFUSED) == {(OWN_APP, "premium_required"): 1}
    accounts.refusals.end("premium_required")
    assert exported.points(APP_REFUSED) == {(OWN_APP, "premium_required"): 0}
    assert exported.points(APP_REFUSALS) == counts


async def test_refusals_of_several_apps(store: ConnectionStore, users: list[UUID], exported: Exported) -> None:
    """Requests count for the app that sent them; a refusal for the only app that was asked, else for none."""
    spotify = FakeSpotify(other_apps={"second": "secret"})
    apps = {OWN_APP: "demo-secret", "second": "secret"}
    for user, app in zip(users, (OWN_APP, "second", "second"), strict=True):
        await connect(store, spotify, user, account=str(user), ttl=-1, app=app, named=user != users[2])
        spotify.revoke(str(user))
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(spotify.serve())
        own, second = [
            await stack.enter_async_context(SpotifyAccounts(app, secret, accounts_url=url, api_url=url))
            for app, secret in apps.items()
        ]
        tokens = await stack.enter_async_context(TokenManager(store, own, other_apps=[second]))
        exported.instrument(tokens)
        for user in users:
            with pytest.raises(ReauthorizationRequired):
                await tokens.get_valid_token(user)
    assert exported.points(RESPONSES) == {(400, OWN_APP): 2, (400, "second"): 2}
    assert exported.points(REFUSALS) == {(OWN_APP,): 1, ("second",): 1, (): 1}
    assert exported.points(REAUTHORIZE) == {(OWN_APP, "revoked"): 1, ("second", "revoked"): 1, ("revoked",): 1}


async def test_a_refusal_after_six_months_is_expected(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID, exported: Exported,
    admin: asyncpg.Connection,
) -> None:  # fmt: skip
    """It is a connection to reauthorize, and no unexpected refusal."""
    await connect(store, spotify, user, ttl=-1)
    await admin.execute("update public.spotify_connections set connected_at = now() - interval '190 days'")
    spotify.revoke("alice")
    with pytest.raises(ReauthorizationRequired):
        await tokens.get_valid_token(user)
    assert exported.points(REAUTHORIZE) == {(OWN_APP, "expired"): 1}
    assert exported.points(REFUSALS) == {}


async def test_a_replaced_token_is_one_request(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID, exported: Exported
) -> None:
    """A rejected token costs a refresh; one that is no longer the stored one is answered by a call within the call."""
    before = await connect(store, spotify, user)
    await tokens.replace_rejected(user, before.access_token)
    assert exported.outcomes() == {("refreshed",): 1}
    assert exported.span("spotconn.refresh").parent == exported.span("spotconn.replace_rejected").context
    await tokens.replace_rejected(user, before.access_token)
    assert exported.outcomes() == {("refreshed",): 1, ("fresh",): 1}
    assert len(exported.spans("spotconn.replace_rejected")) == 2
    assert not exported.spans(CALL)


async def test_a_job_over_many_users(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, users: list[UUID], exported: Exported
) -> None:
    """Its refreshes are counted and traced, each for itself, linked to the job; no request is counted."""
    for user in users:
        await connect(store, spotify, user, account=str(user), ttl=-1)
    with exported.tracing.get_tracer("service").start_as_current_span("job") as job:
        async with aclosing(tokens.get_valid_tokens(users)) as answers:
            assert len([token async for _, token in answers if isinstance(token, str)]) == 3
    assert exported.outcomes() == {}
    assert exported.points(REFRESH) == {(): 3}
    refreshes = exported.spans("spotconn.refresh")
    assert [link.context for span in refreshes for link in span.links] == [job.get_span_context()] * 3


async def test_a_batch_of_many_waits_for_the_pool_once(
    tokens: TokenManager, watched: WatchedStore, spotify: FakeSpotify, users: list[UUID], exported: Exported
) -> None:
    """The wait of a job's one statement is recorded as that of any other."""
    for user in users:
        await connect(watched, spotify, user, account=str(user))
    before = exported.points(POOL)[()]
    async with aclosing(tokens.get_valid_tokens(users)) as answers:
        assert len([token async for _, token in answers if isinstance(token, str)]) == 3
    assert exported.points(POOL)[()] == before + 1


async def test_a_refresh_in_the_background_has_a_trace_of_its_own(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID, exported: Exported
) -> None:
    """Nobody waits for it: the call is fresh, and the refresh is linked to where it came from."""
    await connect(store, spotify, user, ttl=100)
    with exported.tracing.get_tracer("service").start_as_current_span("request") as request:
        await tokens.get_valid_token(user)
    await asyncio.wait(tokens._source.refreshes.tasks)
    await tokens.aclose()
    assert exported.outcomes() == {("fresh",): 1}
    assert exported.points(REFRESH) == {(): 1}
    refresh = exported.span("spotconn.refresh")
    assert refresh.parent is None
    assert [link.context for link in refresh.links] == [request.get_span_context()]
    own = refresh.context
    assert own is not None
    assert own.trace_id != request.get_span_context().trace_id


async def test_a_refresh_in_the_background_without_a_trace(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID, exported: Exported
) -> None:
    """Where the caller has no span there is nothing to link to."""
    await connect(store, spotify, user, ttl=100)
    await tokens.get_valid_token(user)
    await asyncio.wait(tokens._source.refreshes.tasks)
    await tokens.aclose()
    assert (exported.span("spotconn.refresh").parent, list(exported.span("spotconn.refresh").links)) == (None, [])


async def test_a_refresh_whose_caller_has_gone(
    watched: WatchedStore,
    store: ConnectionStore,
    accounts: SpotifyAccounts,
    spotify: FakeSpotify,
    user: UUID,
    exported: Exported,
) -> None:
    """The call ends as cancelled; the refresh that it started goes on in a trace of its own, linked to the call."""
    await connect(store, spotify, user, ttl=-1)
    async with TokenManager(watched, accounts) as tokens:
        caller = asyncio.create_task(exported.instrument(tokens).get_valid_token(user))
        await watched.requested.wait()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
    assert exported.outcomes() == {("CancelledError", "error"): 1}
    call, refresh = exported.span(CALL), exported.span("spotconn.refresh")
    assert call.status.status_code is StatusCode.ERROR
    assert (refresh.parent, [link.context for link in refresh.links]) == (None, [call.context])


async def test_waits_for_the_pool(
    database: Database, accounts: SpotifyAccounts, spotify: FakeSpotify, users: list[UUID], exported: Exported
) -> None:
    """A statement waits for a connection, unless one is kept; a wait in vain is timed with its error."""
    async with (
        ConnectionStore.open(database.dsn, max_size=1) as store,
        TokenManager(store, accounts) as tokens,
    ):
        await connect(store, spotify, users[0])
        exported.instrument(tokens)
        await tokens.get_valid_token(users[0])
        assert exported.points(POOL) == {(): 1}
        async with store.as_user(users[1]):
            store.pool.timeout = 0.2
            with pytest.raises(DatabaseUnavailable):
                await tokens.get_valid_token(users[1])
            store.pool.timeout = TIMEOUT
        await store.pending.take(Claim("no such state", "user", users[1]))
    assert exported.points(POOL) == {(): 3, ("DatabaseUnavailable",): 1}
    assert 0.2 <= exported.seconds(POOL) < 5


async def test_the_cache_is_counted_over_all_managers(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, users: list[UUID], exported: Exported
) -> None:
    """Entries come and go, of every instrumented manager of the process."""

    def entries() -> float:
        return exported.points(ENTRIES).get((), 0)

    for user in users:  # before the managers listen: a change that they hear of would remove an entry
        await connect(store, spotify, user, account=str(user))
    async with TokenManager(store, accounts) as one, TokenManager(store, accounts) as two:
        exported.instrument(one)
        exported.instrument(two)
        before = entries()
        for user in users:
            await one.get_valid_token(user)
        await two.get_valid_token(users[0])
        assert entries() - before == 4
        await one.disconnect(users[0])
        assert entries() - before == 2


async def test_names_units_and_kinds(
    tokens: TokenManager, watched: WatchedStore, spotify: FakeSpotify, users: list[UUID], exported: Exported
) -> None:
    """As OpenTelemetry's conventions have them: dotted names, UCUM units, and attributes of few values."""
    await everything(tokens, watched, spotify, users)
    kinds = {
        name: (metric.unit, type(metric.data), getattr(metric.data, "is_monotonic", None))
        for name, metric in exported.metrics().items()
    }
    assert kinds == {
        REQUESTS: ("{request}", Sum, True),
        RESPONSES: ("{response}", Sum, True),
        REAUTHORIZE: ("{connection}", Sum, True),
        REFUSALS: ("{refusal}", Sum, True),
        APP_REFUSALS: ("{refusal}", Sum, True),
        APP_REFUSED: ("{app}", Sum, False),
        "spotconn.database.clock.offset": ("s", Gauge, None),
        ENTRIES: ("{entry}", Sum, False),
        REFRESH: ("s", Histogram, None),
        LEASE: ("s", Histogram, None),
        POOL: ("s", Histogram, None),
    }
    data = [metric.data for metric in exported.metrics().values()]
    assert {name for one in data for point in one.data_points for name in point.attributes or ()} == {
        "spotconn.outcome", "spotconn.reason", "spotconn.client_id", "error.type", "http.response.status_code"
    }  # fmt: skip
    boundaries = {
        tuple(point.explicit_bounds) for one in data if isinstance(one, Histogram) for point in one.data_points
    }
    assert boundaries == {(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 15)}
    assert {span.kind for span in exported.spans(CALL)} == {SpanKind.INTERNAL}


async def test_no_user_id_and_no_token_is_exported(
    tokens: TokenManager, watched: WatchedStore, spotify: FakeSpotify, users: list[UUID], exported: Exported
) -> None:
    """Neither in metrics nor in spans."""
    await everything(tokens, watched, spotify, users)
    text = exported.text()
    assert REFRESH in text
    assert CALL in text
    issued = spotify._tokens
    hidden = {*issued.access, *issued.refresh, *issued.revoked, "demo-secret", "alice", "bob"}
    hidden |= {form for user in users for form in (str(user), user.hex, str(user.int))}
    assert [value for value in hidden if value in text] == []


async def test_only_an_instrumented_manager_has_more_to_do(
    store: ConnectionStore, accounts: SpotifyAccounts, exported: Exported
) -> None:
    """The methods of the class are as they were; only those of the object are others. Once is enough."""
    plain = TokenManager.get_valid_token
    async with TokenManager(store, accounts) as one, TokenManager(store, accounts) as two:
        exported.instrument(one)
        assert TokenManager.get_valid_token is plain
        assert {"get_valid_token", "replace_rejected"} <= vars(one).keys()
        assert not {"get_valid_token", "replace_rejected"} & vars(two).keys()
        with pytest.raises(RuntimeError, match="instrumented already"):
            exported.instrument(one)


async def test_without_an_sdk_nothing_is_exported_and_all_works(
    watched: WatchedStore, accounts: SpotifyAccounts, spotify: FakeSpotify, users: list[UUID]
) -> None:
    """The API alone swallows everything."""
    async with TokenManager(watched, accounts) as tokens:
        instrument(tokens)
        await everything(tokens, watched, spotify, users)


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A process of its own."""
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)


def test_opentelemetry_is_imported_by_those_only_who_ask() -> None:
    """Importing every other module of the package leaves it alone, although it is installed."""
    done = python("""
import importlib, pathlib, sys, spotconn
package = pathlib.Path(spotconn.__file__).parent  # pkgutil.walk_packages would import the one in question
for path in package.rglob("*.py"):
    name = ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
    if not name.startswith(("spotconn.telemetry", "spotconn.__main__")):
        importlib.import_module(name)
print([name for name in sys.modules if name.startswith("opentelemetry")])
""")
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_without_the_extra_the_error_names_it() -> None:
    """Without OpenTelemetry the package works, and its telemetry says what to install."""
    done = python("""
import sys
sys.modules["opentelemetry"] = None
import spotconn
try:
    import spotconn.telemetry
except ImportError as error:
    print(error, error.__cause__)
""")
    assert (done.stdout, done.stderr) == ('spotconn.telemetry needs an extra: pip install "spotconn[otel]" None\n', "")


QUIET = """
import asyncio, sys
from spotconn import ConnectionStore, SpotifyAccounts, TokenManager

async def main(dsn, url, user_id):
    async with (
        SpotifyAccounts("demo-client", "demo-secret", accounts_url=url) as accounts,
        ConnectionStore.open(dsn) as store,
        TokenManager(store, accounts, refresh_timeout=0.2, lease=2) as tokens,
    ):
        print(len(await tokens.get_valid_token(user_id)))

if "loud" in sys.argv:
    import logging
    logging.basicConfig()
asyncio.run(main(*sys.argv[1:4]))
"""


@pytest.mark.parametrize("logging", ["quiet", "loud"])
async def test_a_program_that_did_not_ask_for_logs_has_none(
    database: Database,
    store: ConnectionStore,
    accounts: SpotifyAccounts,
    spotify: FakeSpotify,
    user: UUID,
    logging: str,
) -> None:
    """A refresh that fails in the background prints nothing on standard error, unless logging is set up."""
    await connect(store, spotify, user, ttl=100)
    spotify.script(*[Answer.unavailable()] * 30)
    done = await asyncio.to_thread(python, QUIET, database.dsn, accounts._accounts_url, str(user), logging)
    assert re.fullmatch(r"\d+\n", done.stdout), done.stderr
    assert ("a refresh in the background failed" in done.stderr) is (logging == "loud")
    assert bool(done.stderr) is (logging == "loud")


def test_exported_catches_what_it_should(exported: Exported) -> None:
    """A token in a span or in an attribute of a metric would be found."""
    with exported.tracing.get_tracer("t").start_as_current_span("marked-span"):
        exported.metering.get_meter("t").create_counter("c").add(1, {"a": "marked-attribute"})
    text: Any = exported.text()
    assert "marked-span" in text
    assert "marked-attribute" in text
