"""A database, Spotify and callers for one TokenManager, whose every wait ends when a test says so."""

import asyncio
import random
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any, TypeVar, cast
from uuid import UUID, uuid4

import asyncpg
import httpx

from spotconn import (
    Connection,
    ConnectionStore,
    DatabaseUnavailable,
    NotConnected,
    ReauthorizationRequired,
    SpotconnError,
    SpotifyAccounts,
    SpotifyUnavailable,
    TokenGrant,
    TokenManager,
)
from spotconn.errors import ReauthorizationReason
from spotconn.models import Outcome, RecordedFailure, RefreshFailure, RefreshTurn, parse_user_id

USER = UUID("6f1d0c6e-3f0f-4a52-9d25-1f7a35d3b6a1")
OLD = "token-0"
EPOCH = 1_800_000_000.0
"""The virtual clock's zero, in seconds since the epoch."""
LIFE = 3600.0
"""Seconds that a granted token lives."""
MIN_TTL = 3000.0
"""What a job demands."""
RETRY_AFTER = 60.0
"""Seconds after a failure that Spotify answers until the database lets the next refresh through."""

T = TypeVar("T")
Fault = Callable[[str, Counter[str]], Exception | None]
"""The error of an operation, by its name and how often each was begun before."""


@dataclass
class Row:
    """The one stored connection, with its lease and failure."""

    access_token: str
    refresh_token: str
    expires_at: datetime
    lease_id: UUID | None = None
    lease_until: datetime | None = None
    failure: RecordedFailure | None = None

    def connection(self) -> Connection:
        """The row as the store gives it."""
        return Connection(
            id=USER,
            user_id=USER,
            spotify_user_id="ann",
            access_token=self.access_token,
            refresh_token=self.refresh_token,
            expires_at=self.expires_at,
            connected_at=None,
            display_name=None,
            email=None,
            scope=None,
            failure=self.failure,
        )


@dataclass(eq=False)
class Operation:
    """A statement or a request under way.

    Attributes:
        name: of the method that waits for it.
        about: what it is about.
        future: what the method waits for.
        perform: does it, and gives the answer or the error.
    """

    name: str
    about: object
    future: "asyncio.Future[object]"
    perform: Callable[[], object]

    def end(self) -> None:
        """Do it, and let the answer come in, unless who waited for it was cancelled."""
        if not self.future.done():
            self.future.set_result(self.perform())


class OrderHarness:
    """What the manager meets: one row, Spotify, and the clock.

    Args:
        now: seconds of virtual time.
        remaining: seconds that the stored token is good for; None where nothing is stored.
        fault: gives the errors.
        run_sync: whether an operation is done when it begins, and only its answer waits; else it is done when its
            answer comes in.

    Attributes:
        begun: how often each operation was begun.
        refreshed: how often Spotify was asked to end, by refresh token.
        broken: what should never happen.
        on_begin: is called with each operation that begins.
    """

    def __init__(
        self, now: Callable[[], float], remaining: float | None, fault: Fault, *, run_sync: bool = False
    ) -> None:
        self._now = now
        self._fault = fault
        self._run_sync = run_sync
        self._operations: list[Operation] = []
        self.row = None if remaining is None else Row(OLD, "refresh-0", self.after(remaining))
        self.granted = 0
        self.begun: Counter[str] = Counter()
        self.refreshed: Counter[str] = Counter()
        self.broken: list[str] = []
        self.on_begin: Callable[[Operation], object] = self._operations.append

    def clock(self) -> float:
        """Seconds since the epoch."""
        return EPOCH + self._now()

    def after(self, seconds: float) -> datetime:
        """The moment so many seconds from now."""
        return datetime.fromtimestamp(self.clock() + seconds, UTC)

    def pending(self) -> list[Operation]:
        """The operations under way, the oldest first."""
        self._operations[:] = [one for one in self._operations if not one.future.done()]
        return self._operations

    def grant(self) -> TokenGrant:
        """Tokens that were never granted before."""
        self.granted += 1
        return TokenGrant(
            access_token=f"token-{self.granted}",
            refresh_token=f"refresh-{self.granted}",
            expires_at=self.after(LIFE),
        )

    def reconnect(self) -> None:
        """Replace the row by what another process has got from Spotify."""
        grant = self.grant()
        self.row = Row(grant.access_token, grant.refresh_token or "", grant.expires_at + timedelta(seconds=1))

    async def wait_for(self, name: str, perform: Callable[[], T], about: object = None) -> T:
        """Suspend until the operation is ended from outside, and give its answer."""
        error = self._fault(name, self.begun)
        self.begun[name] += 1

        def outcome() -> object:
            try:
                return _raise(error) if error else perform()
            except SpotconnError as failed:
                return failed.with_traceback(None)

        done = outcome() if self._run_sync else None
        future: asyncio.Future[Any] = asyncio.Future(loop=asyncio.get_running_loop())
        self.on_begin(Operation(name, about, future, (lambda: done) if self._run_sync else outcome))
        answer = await future
        if isinstance(answer, SpotconnError):
            raise answer
        return answer  # type: ignore[no-any-return]


def _raise(error: Exception) -> object:
    raise error


class Store(ConnectionStore):
    """A store over the row of a harness, with the answers of sql/schema.sql."""

    def __init__(self, harness: OrderHarness) -> None:
        super().__init__(asyncpg.create_pool("postgresql://nobody@127.0.0.1:1/none"))
        self._harness = harness

    async def get(self, user_id: UUID | str) -> Connection:  # noqa: ARG002  there is one user
        return await self._harness.wait_for("get", self._get)

    async def get_many(self, user_ids: Iterable[UUID | str]) -> Any:
        ids = {parse_user_id(user_id) for user_id in user_ids}
        return await self._harness.wait_for("get_many", lambda: self._get_many(ids))

    async def delete(self, user_id: UUID | str) -> bool:  # noqa: ARG002  as above
        try:
            return await self._harness.wait_for("delete", self._delete)
        finally:
            self._notify_watchers(USER)

    async def begin_refresh(
        self,
        user_id: UUID | str,  # noqa: ARG002  as above
        *,
        seen: datetime,
        lease: float = 15,
    ) -> RefreshTurn:
        return await self._harness.wait_for("begin_refresh", lambda: self._begin(seen, lease))

    async def finish_refresh(self, turn: RefreshTurn, grant: TokenGrant) -> Connection | None:
        saved = await self._harness.wait_for("finish_refresh", lambda: self._finish(turn, grant))
        if saved is None:
            self._notify_watchers(USER)
        return saved

    async def fail_refresh(self, turn: RefreshTurn, failure: RefreshFailure) -> bool:
        return await self._harness.wait_for("fail_refresh", lambda: self._fail(turn, failure))

    def _get(self) -> Connection:
        if self._harness.row is None:
            raise NotConnected("no Spotify connection is stored for this user")
        return self._harness.row.connection()

    def _get_many(self, user_ids: Collection[UUID]) -> dict[UUID, Connection]:
        row = self._harness.row
        return {} if row is None else {USER: row.connection()} if USER in user_ids else {}

    def _delete(self) -> bool:
        found = self._harness.row is not None
        self._harness.row = None
        return found

    def _begin(self, seen: datetime, lease: float) -> RefreshTurn:
        row, now = self._harness.row, self._harness.after(0)
        if row is None:
            return RefreshTurn(outcome=Outcome.GONE, user_id=USER)
        outcome = _outcome(row, seen, now)
        lapsed = row.lease_id is not None
        if outcome is Outcome.GRANTED:
            row.lease_id, row.lease_until = uuid4(), self._harness.after(lease)
        return RefreshTurn(
            outcome=outcome,
            user_id=USER,
            connection=row.connection(),
            lease_id=row.lease_id if outcome is Outcome.GRANTED else None,
            lapsed=outcome is Outcome.GRANTED and lapsed,
            retry_after=_retry_after(row, outcome, now),
        )

    def _finish(self, turn: RefreshTurn, grant: TokenGrant) -> Connection | None:
        row = self._harness.row
        if row is None or turn.connection is None or row.expires_at != turn.connection.expires_at:
            return None
        refresh_token = grant.refresh_token or row.refresh_token
        self._harness.row = Row(grant.access_token, refresh_token, grant.expires_at)
        return self._harness.row.connection()

    def _fail(self, turn: RefreshTurn, failure: RefreshFailure) -> bool:
        row = self._harness.row
        if row is None or row.lease_id != turn.lease_id:
            return False
        row.lease_id = row.lease_until = None
        if failure.reason is not None:
            retry_at = self._harness.after(RETRY_AFTER) if failure.reason == "unavailable" else None
            row.failure = RecordedFailure(reason=failure.reason, since=self._harness.after(0), retry_at=retry_at)
        return True


def _outcome(row: Row, seen: datetime, now: datetime) -> Outcome:
    if row.expires_at > seen:
        return Outcome.SUPERSEDED
    if row.failure and (row.failure.reason != "unavailable" or (row.failure.retry_at or now) > now):
        return Outcome.BLOCKED
    if row.lease_until is not None and row.lease_until > now:
        return Outcome.BUSY
    return Outcome.GRANTED


def _retry_after(row: Row, outcome: Outcome, now: datetime) -> float | None:
    retry_at = row.failure.retry_at if row.failure else None
    until = {Outcome.BLOCKED: retry_at, Outcome.BUSY: row.lease_until}.get(outcome)
    return None if until is None else (until - now).total_seconds()


_NO_NETWORK = httpx.AsyncClient(transport=httpx.MockTransport(lambda _request: httpx.Response(500)))
"""Never used; a client of its own for each order would read the certificates each time."""


class Accounts(SpotifyAccounts):
    """Spotify: each refresh gives tokens that were never granted before."""

    def __init__(self, harness: OrderHarness) -> None:
        super().__init__("demo-client", "demo-secret", http=_NO_NETWORK, clock=harness.clock)
        self._harness = harness

    async def refresh(self, refresh_token: str, *, timeout: float = 10) -> TokenGrant:  # noqa: ARG002, ASYNC109  as there
        if any((one.name, one.about) == ("refresh", refresh_token) for one in self._harness.pending()):
            self._harness.broken.append(f"{refresh_token} is refreshed twice at once")
        return await self._harness.wait_for("refresh", lambda: self._refresh(refresh_token), about=refresh_token)

    def _refresh(self, refresh_token: str) -> TokenGrant:
        self._harness.refreshed[refresh_token] += 1
        if self._harness.refreshed[refresh_token] > 1:
            self._harness.broken.append(f"{refresh_token} is refreshed again")
        return self._harness.grant()


def open_manager(harness: OrderHarness, **options: Any) -> TokenManager:
    """A manager over a harness."""
    return TokenManager(Store(harness), Accounts(harness), clock=harness.clock, **options)


# The faults.


def nothing_fails(_name: str, _begun: Mapping[str, int]) -> Exception | None:
    """All is well."""
    return None


def database_is_away(name: str, _begun: Mapping[str, int]) -> Exception | None:
    """No statement has an answer."""
    return None if name == "refresh" else DatabaseUnavailable("the database is away")


def first_statement_fails(name: str, begun: Mapping[str, int]) -> Exception | None:
    """The database is away for a moment."""
    return None if any(begun.values()) else DatabaseUnavailable("the database is away")


def first_save_fails(name: str, begun: Mapping[str, int]) -> Exception | None:
    """The database is away just when a refresh is to be saved."""
    if name != "finish_refresh" or begun.get(name):
        return None
    return DatabaseUnavailable("the database is away")


def spotify_is_away(name: str, _begun: Mapping[str, int]) -> Exception | None:
    """Spotify answers 503."""
    return SpotifyUnavailable("Spotify answered 503", retry_after=RETRY_AFTER) if name == "refresh" else None


def network_is_away(name: str, _begun: Mapping[str, int]) -> Exception | None:
    """Spotify is out of reach for this process."""
    return SpotifyUnavailable("no connection", retry_after=RETRY_AFTER, answered=False) if name == "refresh" else None


def spotify_refuses(name: str, _begun: Mapping[str, int]) -> Exception | None:
    """Spotify no longer accepts the refresh token."""
    reason: ReauthorizationReason = "revoked"
    return ReauthorizationRequired(reason, datetime.fromtimestamp(EPOCH, UTC)) if name == "refresh" else None


# The callers.


async def page(manager: TokenManager) -> str:
    """Any token that is good now."""
    return await manager.get_valid_token(USER)


async def job(manager: TokenManager) -> str:
    """A token that is good for long."""
    return await manager.get_valid_token(USER, min_ttl=MIN_TTL)


async def rejected(manager: TokenManager) -> str:
    """Another token than the one that was stored at first."""
    return await manager.replace_rejected(USER, OLD)


async def batch(manager: TokenManager) -> str:
    """A token by the iterator for many users."""
    async with aclosing(manager.get_valid_tokens([USER], concurrency=1)) as answers:
        async for _, answer in answers:
            if isinstance(answer, SpotconnError):
                raise answer
            return answer
    raise LookupError("no answer")


Call = Callable[[TokenManager], Any]


@dataclass(frozen=True)
class Caller:
    """One who asks for a token.

    Attributes:
        call: how.
        cancelled: whether the test may cancel it.
        insists: whether it asks again at once after each error.
    """

    call: Call
    cancelled: bool = False
    insists: bool = False

    def __str__(self) -> str:
        """Its name in an order."""
        return self.call.__name__ + " that insists" * self.insists


@dataclass(eq=False)
class Asking:
    """A caller that has arrived.

    Attributes:
        caller: who.
        cancelled: whether the test has cancelled it.
        errors: each error that it was given.
        hurried: whether an error came back without a suspension.
    """

    caller: Caller
    cancelled: bool = False
    errors: list[SpotconnError] = field(default_factory=list[SpotconnError])
    hurried: bool = False
    task: "asyncio.Task[str] | None" = None

    async def run(self, manager: TokenManager, steps: Callable[[], int], over: Callable[[], bool]) -> str:
        """Ask, and ask again if it is of that kind, until it is over."""
        while True:
            begun = steps()
            try:
                return await self.caller.call(manager)  # type: ignore[no-any-return]
            except SpotconnError as error:
                self.errors.append(error)
                self.hurried |= steps() == begun
                if not self.caller.insists or over():
                    raise

    def cancel(self) -> None:
        """Cancel it from outside."""
        assert self.task is not None
        self.cancelled = self.task.cancel()


# The aftermath.


def faults_of(asking: Asking, errors: tuple[type[Exception], ...], old_is_good: bool) -> list[str]:  # noqa: FBT001
    """What is wrong with the end of one caller."""
    task, name = asking.task, str(asking.caller)
    if task is None or not task.done():
        return [f"{name} never ends"]
    if asking.hurried:
        return [f"{name} has an error without having waited"]
    if task.cancelled() or asking.cancelled:
        return [] if task.cancelled() and asking.cancelled else [f"{name}: a cancellation has come to the wrong one"]
    if (error := task.exception()) is not None:
        return [] if isinstance(error, errors) else [f"{name} has {error!r}"]
    return _token_faults(name, asking, task.result(), old_is_good=old_is_good)


def _token_faults(name: str, asking: Asking, token: str, *, old_is_good: bool) -> list[str]:
    if token == OLD and (asking.caller.call in {job, rejected} or not old_is_good):
        return [f"{name} has the old token"]
    return []


def shared_errors(askings: Iterable[Asking]) -> list[str]:
    """The error objects that were raised twice, or hang on two errors."""
    owners: dict[int, str] = {}
    shared: list[str] = []
    for asking in askings:
        for error in asking.errors:
            for one in _chain(error):
                if id(one) in owners:
                    shared.append(f"{asking.caller} has the {type(one).__name__} of {owners[id(one)]}")
                owners[id(one)] = str(asking.caller)
    return shared


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    waiting: deque[BaseException | None] = deque([error])
    while waiting:
        one = waiting.popleft()
        if one is not None and one not in found:
            found.append(one)
            waiting += [one.__cause__, one.__context__]
    return found


def leftovers(manager: TokenManager) -> list[str]:
    """Where the tables of a manager still hold a task or a future, and the pending reads of its cache."""
    found = list(_futures_in(manager, "manager", set(), in_table=False))
    for name, value in vars(manager._cache).items():
        if name != "entries" and isinstance(value, dict | set | list) and value:
            found.append(f"manager._cache.{name}")
    return found


def _futures_in(thing: object, path: str, seen: set[int], *, in_table: bool) -> Iterable[str]:
    if id(thing) in seen or isinstance(thing, ConnectionStore | SpotifyAccounts):
        return
    seen.add(id(thing))
    if isinstance(thing, asyncio.Future):
        if in_table:
            yield path
    elif isinstance(thing, dict | list | set | tuple | deque | frozenset):
        for value in _members(cast("Collection[object]", thing)):
            yield from _futures_in(value, f"{path}[…]", seen, in_table=True)
    elif type(thing).__module__.startswith("spotconn"):
        for name in _attributes(thing):
            yield from _futures_in(getattr(thing, name, None), f"{path}.{name}", seen, in_table=in_table)


def _members(table: Collection[object]) -> Iterable[object]:
    if not isinstance(table, dict):
        return table
    by_key = cast("dict[object, object]", table)
    return chain(by_key, by_key.values())


def _attributes(thing: object) -> Iterable[str]:
    slots = getattr(type(thing), "__slots__", ())
    return [*getattr(thing, "__dict__", {}), *([slots] if isinstance(slots, str) else slots)]


def seed() -> None:
    """Make the library's jitter the same in each run, so that an order can be replayed."""
    random.seed(24)
