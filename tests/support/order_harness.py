"""A database, Spotify and callers for one TokenManager, whose every wait ends when a test says so."""

import asyncio
import random
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Collection, Hashable, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from typing import Any, TypeVar, cast
from uuid import UUID

import asyncpg
import httpx

from spotconn import (
    ConnectionStore,
    DatabaseUnavailable,
    Profile,
    ReauthorizationRequired,
    SpotconnError,
    SpotifyAccounts,
    SpotifyUnavailable,
    TokenGrant,
    TokenManager,
)
from spotconn._database import statements
from spotconn._database.access_tokens import AccessTokens
from spotconn._database.bound_pool import BoundPool
from spotconn._database.refreshes import Refreshes
from spotconn._stopwatch import Stopwatch
from spotconn.cipher import TokenColumn
from spotconn.models import fingerprint
from support.memory_database import MINUTE, MemoryDatabase, Row, State

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
ENDS_SOON = 5.0
"""Seconds that a token lives which nobody is given."""
_ABOUT = " to "
"""Comes in the text of an error before the refresh token that was sent."""
ACCESS, SAVES = 3, 12
"""Places of arguments of `finish_refresh`."""
LONG_AGO = 1e6
"""Seconds before the virtual clock's zero at which the user has connected."""
OLD_LEASE = UUID(int=99)
"""Of a process that has let it run out."""

T = TypeVar("T")
Fault = Callable[[str, Counter[str]], "Exception | None"]
"""The error of an operation, by its name and how often each was begun before."""


class Lost(DatabaseUnavailable):
    """The operation is done, and its answer is lost."""


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


class RewritingCipher:
    """Marks each stored text with the number of a key, so that a rekey changes the text and not the token."""

    key = 1

    def encrypt(self, token: str, *, user_id: UUID, column: TokenColumn) -> str:  # noqa: ARG002
        return f"{self.key}:{token}"

    def decrypt(self, stored: str, *, user_id: UUID, column: TokenColumn) -> str:  # noqa: ARG002
        return stored.partition(":")[2]

    def rewrite(self, stored: str) -> str:
        """Return the text of the same token under the present key."""
        return f"{self.key}:{stored.partition(':')[2]}"


@dataclass
class Authorization:
    """What a user has agreed to: one chain of refresh tokens.

    Attributes:
        number: of the authorization; the first is 0.
        refresh_token: the only one that Spotify still accepts.
    """

    number: int
    refresh_token: str


class Spotify:
    """Grants tokens. Unless told otherwise, each refresh replaces the refresh token, and the old one is refused.

    Attributes:
        rotates: whether a refresh replaces the refresh token.
        ends: when each access token ends, in seconds since the epoch.
        granted_at: when each was granted.
        of: the number of the authorization of each token.
        requests: how often Spotify was asked to refresh.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._tokens = 0
        self._authorizations: list[Authorization] = []
        self.rotates = True
        self.ends: dict[str, float] = {}
        self.granted_at: dict[str, float] = {}
        self.of: dict[str, int] = {}
        self.requests = 0

    def authorize(self, life: float = LIFE) -> TokenGrant:
        """Begin an authorization."""
        authorization = Authorization(len(self._authorizations), f"refresh-{self._tokens}")
        self._authorizations.append(authorization)
        self.of[authorization.refresh_token] = authorization.number
        return self._grant(authorization, life)

    def accepts(self, refresh_token: str) -> bool:
        """Return whether a refresh token is the last of its authorization."""
        return self._authorizations[self.of[refresh_token]].refresh_token == refresh_token

    def refresh(self, refresh_token: str) -> TokenGrant:
        """Give tokens that were never granted before."""
        authorization = self._authorizations[self.of[refresh_token]]
        if authorization.refresh_token != refresh_token:
            raise refused()
        if self.rotates:
            authorization.refresh_token = f"refresh-{self._tokens}"
            self.of[authorization.refresh_token] = authorization.number
        return self._grant(authorization, LIFE)

    def grant_beside(self, refresh_token: str, life: float) -> str:
        """Grant an access token to somebody else, and leave the refresh token as it is."""
        return self._grant(self._authorizations[self.of[refresh_token]], life).access_token

    def _grant(self, authorization: Authorization, life: float) -> TokenGrant:
        token, now = f"token-{self._tokens}", self._clock()
        self._tokens += 1
        self.ends[token], self.granted_at[token], self.of[token] = now + life, now, authorization.number
        return TokenGrant(
            access_token=token,
            refresh_token=authorization.refresh_token,
            expires_at=datetime.fromtimestamp(now + life, UTC),
            expires_in=LIFE,
        )


class OrderHarness:
    """What the manager meets: one row, Spotify, and the clock.

    Args:
        now: seconds of virtual time.
        remaining: seconds that the stored token is good for; None where nothing is stored.
        fault: gives the errors.
        run_sync: whether an operation is done when it begins, and only its answer waits; else it is done when its
            answer comes in.

    Attributes:
        database: holds the row.
        spotify: grants the tokens.
        cipher: of the store.
        begun: how often each operation was begun.
        broken: what should never happen.
        possible: the authorizations, by number, whose tokens may be served now; None for the answer that there is none.
        expected: the number of the authorization that must be stored; None where no row may be.
        closing: whether the manager was told to close.
        went_back: whether the database has lost commits, or an old row was written.
        skipped: seconds that have passed though nobody has waited for them.
        askings: the callers that wait.
        on_begin: is called with each operation that begins.
        on_request: is called when Spotify is asked for the first time.
    """

    def __init__(
        self, now: Callable[[], float], remaining: float | None, fault: Fault, *, run_sync: bool = False
    ) -> None:
        self._now = now
        self._fault = fault
        self._run_sync = run_sync
        self._operations: list[Operation] = []
        self.spotify = Spotify(self.clock)
        self.cipher = RewritingCipher()
        self.expected: int | None = None if remaining is None else 0
        self.database = MemoryDatabase(self.clock, None if remaining is None else self._first_row(remaining))
        self.begun: Counter[str] = Counter()
        self.broken: list[str] = []
        self.possible: set[int | None] = {self.expected}
        self.closing = self.went_back = False
        self.skipped = 0.0
        self.askings: list[Asking] = []
        self.on_begin: Callable[[Operation], object] = self._operations.append
        self.on_request: Callable[[], None] = _nothing
        self._of_another: TokenGrant | None = None
        self._identity_at: dict[str, tuple[str, float | None]] = {}
        self._identity_of: dict[str, tuple[str, float | None]] = {}

    def clock(self) -> float:
        """Seconds since the epoch."""
        return EPOCH + self._now()

    def waited(self) -> float:
        """Seconds for which something has waited."""
        return self._now() - self.skipped

    def pending(self) -> list[Operation]:
        """The operations under way, the oldest first."""
        self._operations[:] = [one for one in self._operations if not one.future.done()]
        return self._operations

    def stored(self) -> tuple[str, str] | None:
        """The stored access and refresh token."""
        row = self.database.row
        return None if row is None else (_plain(row.access_token), _plain(row.refresh_token))

    # What happens beside the manager.

    def granted_lately(self) -> None:
        """Let the stored token be one that was granted ten seconds ago."""
        assert self.database.row is not None
        now = self.clock()
        state = State(fingerprint(self.database.row.refresh_token), saved_at=now - 10, granted_at=now - 10, saves=1)
        self.database.state = state
        self.spotify.granted_at[OLD] = now - 10
        self.database.history.clear()
        self.database.commit()

    def lease_has_lapsed(self) -> None:
        """Let another process have the grant of a refresh whose lease has run out before it saves."""
        assert self.database.row is not None
        now = self.clock()
        self.database.state = State(
            fingerprint(self.database.row.refresh_token),
            lease_id=OLD_LEASE,
            leased_at=now - 16,
            lease_until=now - 1,
            saved_at=now - 4000,
            saves=1,
        )
        self._of_another = self.spotify.refresh("refresh-0")

    def another_writes_meanwhile(self) -> None:
        """Let a client write another access token while Spotify is asked for the first time."""
        self.on_request = self.another_access_token_is_written

    def another_row_meanwhile(self) -> None:
        """Let a client write the row of a new authorization while Spotify is asked for the first time."""
        self.on_request = self.another_row_is_written

    def another_connects_meanwhile(self) -> None:
        """Let it do so, and let the manager hear of it at once."""

        def connect() -> None:
            self.another_row_is_written()
            self.heard()

        self.on_request = connect

    def another_saves(self) -> None:
        """Let that other process save."""
        grant = self._of_another
        assert grant is not None
        self.database.finish_refresh(
            USER,
            bytes.fromhex(fingerprint(self._stored_text("refresh-0"))),
            bytes.fromhex(fingerprint(self._stored_text(OLD))),
            self._stored_text(grant.access_token),
            self._stored_text(grant.refresh_token or ""),
            None,
            LIFE,
            16.0,
            None,
            OLD_LEASE,
            None,
            False,  # noqa: FBT003
            None,
            None,
            None,
        )

    def another_connects(self) -> None:
        """Let the user authorize anew through another process."""
        grant = self.spotify.authorize()
        texts = self._stored_text(grant.access_token), self._stored_text(grant.refresh_token or "")
        self.written(self.spotify.of[grant.access_token])
        self.database.save(USER, "ann", *texts, grant.expires_at, None, None, None, None, LIFE, 0.0, None, None, None)

    def fails_over(self, lost: int) -> None:
        """Lose the last commits, and what they had changed."""
        self.database.go_back(-1 - lost)
        self._went_back()

    def old_row_is_written(self) -> None:
        """Let a client write the whole row as it was at first."""
        self.database.row = self.database.history[0][0]
        self.database.commit()
        self._went_back()

    def another_name_is_written(self) -> None:
        """Let a client write the tokens as they were at first, as those of another account."""
        row = self.database.history[0][0]
        assert row is not None
        self.database.row = replace(row, spotify_user_id="bob", connected_at=self.clock())
        self.database.commit()
        self._went_back()

    def another_row_is_written(self) -> None:
        """Let a client write the tokens of a new authorization, whose access token has ended, past the functions."""
        grant = self.spotify.authorize(-1)
        texts = self._stored_text(grant.access_token), self._stored_text(grant.refresh_token or "")
        self.written(self.spotify.of[grant.access_token])
        self.database.row = Row("ann", *texts, self.spotify.ends[grant.access_token], self.clock())
        self.database.commit()

    def another_access_token_is_written(self) -> None:
        """Let a client write another access token of the same authorization, which ends soon."""
        row = self.database.row
        assert row is not None
        token = self.spotify.grant_beside(_plain(row.refresh_token), ENDS_SOON)
        ends = self.spotify.ends[token]
        self.database.row = replace(row, access_token=self._stored_text(token), expires_at=ends)
        self.database.commit()

    def rekeyed(self) -> None:
        """Store other texts of the same tokens."""
        self.cipher.key += 1
        self.database.rekey(self.cipher.rewrite)

    def written(self, authorization: int | None) -> None:
        """Note whose tokens are stored from now on; those of before are served until the manager hears of it."""
        self.expected = authorization
        self.possible.add(authorization)
        for asking in self.askings:
            asking.possible.add(authorization)

    def heard(self) -> None:
        """Note that the manager knows of the last write."""
        self.possible = {self.expected}

    def granted(self, refresh_token: str, grant: TokenGrant) -> TokenGrant:
        """Note for which account and authorization a refresh was granted."""
        self._identity_of[grant.access_token] = self._identity_at[refresh_token]
        return grant

    def turn_is_asked_for(self) -> None:
        """Note whose refresh token is going to be sent."""
        if (row := self.database.row) is not None:
            self._identity_at[_plain(row.refresh_token)] = row.spotify_user_id, row.connected_at

    def restored(self, access_token: str) -> None:
        """Note that a grant was saved again over the row that stands now."""
        row = self.database.row
        if row is not None and (row.spotify_user_id, row.connected_at) != self._identity_of[access_token]:
            self.broken.append(f"{access_token} is saved again over the row of another account or authorization")

    async def wait_for(self, name: str, perform: Callable[[], T], about: object = None) -> T:
        """Suspend until the operation is ended from outside, and give its answer."""
        error = self._fault(name, self.begun)
        self.begun[name] += 1
        if isinstance(error, SpotifyUnavailable):
            error = SpotifyUnavailable(
                f"{error}{_ABOUT}{about}", retry_after=error.retry_after, answered=error.answered
            )

        def outcome() -> object:
            try:
                if error is None or isinstance(error, Lost):
                    answer = perform()
                    return error or answer
            except SpotconnError as failed:
                return failed.with_traceback(None)
            return error

        done = outcome() if self._run_sync else None
        future: asyncio.Future[Any] = asyncio.Future(loop=asyncio.get_running_loop())
        self.on_begin(Operation(name, about, future, (lambda: done) if self._run_sync else outcome))
        answer = await future
        if isinstance(answer, SpotconnError):
            raise answer
        return answer  # type: ignore[no-any-return]

    def _first_row(self, remaining: float) -> Row:
        grant = self.spotify.authorize(remaining)
        texts = self._stored_text(grant.access_token), self._stored_text(grant.refresh_token or "")
        self.spotify.granted_at[OLD] = self.clock() - LONG_AGO
        return Row("ann", *texts, self.clock() + remaining, EPOCH - LONG_AGO)

    def _stored_text(self, token: str) -> str:
        return f"{self.cipher.key}:{token}"

    def _went_back(self) -> None:
        self.went_back = True
        stored = self.stored()
        self.written(None if stored is None else self.spotify.of[stored[0]])


def _nothing() -> None:
    """Do nothing."""


def _plain(stored: str) -> str:
    return stored.partition(":")[2]


class Pool(BoundPool):
    """The pool of a store whose statements a harness answers."""

    _NAMES: Mapping[str, str] = {
        statements.GET: "get",
        statements.GET_MANY: "get_many",
        statements.GET_ACCESS_TOKENS: "get_many",
        statements.SAVE: "save",
        statements.DELETE: "delete",
        statements.BEGIN_REFRESH: "begin_refresh",
        statements.FINISH_REFRESH: "finish_refresh",
        statements.FAIL_REFRESH: "fail_refresh",
    }

    def __init__(self, harness: OrderHarness) -> None:
        super().__init__(asyncpg.create_pool("postgresql://nobody@127.0.0.1:1/none"), name="ConnectionStore")
        self.checked = True
        self._harness = harness

    async def row_of(  # as there
        self,
        user_id: UUID | None,
        query: str,
        *args: object,
        read: bool = False,  # noqa: ARG002
        ahead: bool = False,  # noqa: ARG002
        queue: Hashable = None,  # noqa: ARG002
        session: Any = None,  # noqa: ARG002
    ) -> Any:
        return await self._answer(query, user_id, *args)

    async def value(self, query: str, *, check: Any = None) -> Any:  # noqa: ARG002  which server it is: always this one
        return "this server"

    async def rows_of(self, user_ids: list[UUID], query: str, *, reuse: bool = False) -> Any:  # noqa: ARG002
        return await self.fetch(None, query, user_ids)

    @asynccontextmanager
    async def _acquire(self, *, reuse: bool, **_: object) -> AsyncGenerator[Any]:  # noqa: ARG002  as there
        yield None

    async def fetch(self, session: Any, query: str, user_ids: list[UUID]) -> Any:  # noqa: ARG002  as there
        return await self._answer(query, user_ids)

    async def _answer(self, query: str, *args: object) -> Any:
        name = self._NAMES[query]
        return await self._harness.wait_for(name, partial(self._perform, name, *args))

    def _perform(self, name: str, *args: Any) -> object:
        if name == "delete":
            self._harness.written(None)
        if name == "save":
            self._harness.written(self._harness.spotify.of[_plain(args[2])])
        if name == "begin_refresh":
            self._harness.turn_is_asked_for()
        sent = [arg.elapsed if isinstance(arg, Stopwatch) else arg for arg in args]
        answer = getattr(self._harness.database, name)(*sent)
        if name == "finish_refresh" and sent[SAVES] is not None and answer is not None and answer["saved"]:
            self._harness.restored(_plain(str(sent[ACCESS])))
        return answer


def open_store(harness: OrderHarness) -> ConnectionStore:
    """A store over the row of a harness, with the answers of sql/schema.sql."""
    pool = Pool(harness)
    store = ConnectionStore(pool._pool, cipher=harness.cipher)
    store.pool = pool
    store.refreshes = Refreshes(pool, store._rows)
    store.tokens = AccessTokens(pool, store._rows)
    return store


_NO_NETWORK = httpx.AsyncClient(transport=httpx.MockTransport(lambda _request: httpx.Response(500)))
"""Never used; a client of its own for each order would read the certificates each time."""


class Accounts(SpotifyAccounts):
    """Asks the Spotify of a harness."""

    def __init__(self, harness: OrderHarness) -> None:
        super().__init__("demo-client", "demo-secret", http=_NO_NETWORK, clock=harness.clock)
        self._harness = harness

    async def refresh(
        self,
        refresh_token: str,
        *,
        user_id: UUID | None = None,  # noqa: ARG002
        timeout: float = 10,  # noqa: ARG002, ASYNC109  as there
        begin_within: float | None = None,  # noqa: ARG002
    ) -> TokenGrant:
        harness = self._harness
        twice = any((one.name, one.about) == ("refresh", refresh_token) for one in harness.pending())
        if twice and not harness.went_back:  # a row that goes back may take its lease along
            harness.broken.append(f"{refresh_token} is refreshed twice at once")
        if harness.closing:
            harness.broken.append(f"{refresh_token} is refreshed while the manager closes")
        if not harness.spotify.requests:
            harness.on_request()
        harness.spotify.requests += 1
        granted = partial(self._granted, refresh_token)
        return await harness.wait_for("refresh", granted, about=refresh_token)

    def _granted(self, refresh_token: str) -> TokenGrant:
        return self._harness.granted(refresh_token, self._harness.spotify.refresh(refresh_token))


def open_manager(harness: OrderHarness, **options: Any) -> TokenManager:
    """A manager over a harness."""
    manager = TokenManager(open_store(harness), Accounts(harness), clock=harness.clock, **options)
    manager._source.refresher.watch._closed = True  # its timer has no end
    return manager


async def reconnect(manager: TokenManager, harness: OrderHarness) -> None:
    """Let the user authorize anew through the store of a manager."""
    try:
        await manager.store.save(USER, harness.spotify.authorize(), Profile(spotify_user_id="ann"))
    finally:
        harness.heard()


async def disconnect(manager: TokenManager, harness: OrderHarness) -> None:
    """Let the user disconnect through the store of a manager."""
    try:
        await manager.store.delete(USER)
    finally:
        harness.heard()


# The faults.


def refused() -> ReauthorizationRequired:
    """Return Spotify's invalid_grant."""
    return ReauthorizationRequired("invalid", datetime.fromtimestamp(EPOCH, UTC))


def nothing_fails(_name: str, _begun: Mapping[str, int]) -> Exception | None:
    """All is well."""
    return None


def database_is_away(name: str, _begun: Mapping[str, int]) -> Exception | None:
    """No statement has an answer."""
    return None if name == "refresh" else _away()


def first_statement_fails(name: str, begun: Mapping[str, int]) -> Exception | None:
    """The database is away for a moment."""
    return None if any(begun.values()) else _away()


def first_save_fails(name: str, begun: Mapping[str, int]) -> Exception | None:
    """The database is away just when a refresh is to be saved."""
    return _away() if name == "finish_refresh" and not begun.get(name) else None


def first_saves_fail(name: str, begun: Mapping[str, int]) -> Exception | None:
    """The database is away when a refresh is to be saved, and once more."""
    return _away() if name == "finish_refresh" and begun.get(name, 0) < 2 else None


def saves_fail_for_long(name: str, begun: Mapping[str, int]) -> Exception | None:
    """The database takes no refresh until the time of every caller is over."""
    return _away() if name == "finish_refresh" and begun.get(name, 0) < 12 else None


def first_request_fails(name: str, begun: Mapping[str, int]) -> Exception | None:
    """Spotify answers the first request with 503."""
    return spotify_is_away(name, begun) if not begun.get("refresh") else None


def first_and_fourth_save_fail(name: str, begun: Mapping[str, int]) -> Exception | None:
    """The database is away at the first attempt to save a refresh, and at the fourth."""
    return _away() if name == "finish_refresh" and begun.get(name, 0) in {0, 3} else None


def every_other_save_fails(name: str, begun: Mapping[str, int]) -> Exception | None:
    """The database is away at the first, third and fifth attempt to save a refresh."""
    return _away() if name == "finish_refresh" and begun.get(name, 0) in {0, 2, 4} else None


def answer_is_lost(name: str, begun: Mapping[str, int]) -> Exception | None:
    """The first refresh is saved, and the database is away before it can say so."""
    return Lost("the database is away") if name == "finish_refresh" and not begun.get(name) else None


def answer_to_the_lease_is_lost(name: str, begun: Mapping[str, int]) -> Exception | None:
    """The lease is granted, and the database is away before it can say so."""
    return Lost("the database is away") if name == "begin_refresh" and not begun.get(name) else None


def spotify_is_away(name: str, _begun: Mapping[str, int]) -> Exception | None:
    """Spotify answers 503."""
    return SpotifyUnavailable("Spotify answered 503", retry_after=RETRY_AFTER) if name == "refresh" else None


def network_is_away(name: str, _begun: Mapping[str, int]) -> Exception | None:
    """Spotify is out of reach for this process."""
    return SpotifyUnavailable("no connection", retry_after=RETRY_AFTER, answered=False) if name == "refresh" else None


def spotify_refuses(name: str, _begun: Mapping[str, int]) -> Exception | None:
    """Spotify no longer accepts the refresh token."""
    return refused() if name == "refresh" else None


def _away() -> DatabaseUnavailable:
    return DatabaseUnavailable("the database is away")


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


async def unhappy(manager: TokenManager) -> str:
    """Another token than the one that is served now."""
    first = await manager.get_valid_token(USER)
    second = await manager.replace_rejected(USER, first)
    if second == first:
        raise LookupError("the token that was refused")
    return second


async def batch(manager: TokenManager) -> str:
    """A token by the iterator for many users."""
    async with aclosing(manager.get_valid_tokens([USER], concurrency=1, throttle_timeout=0)) as answers:
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
        harness: what it meets.
        possible: the authorizations that were stored while it waited; None for a time without one.
        cancelled: whether the test has cancelled it.
        errors: each error that it was given.
        hurried: whether an error came back without a suspension.
        waited: seconds that it took.
        faults: what is wrong with its token and its errors.
    """

    caller: Caller
    harness: OrderHarness
    possible: set[int | None] = field(default_factory=set[int | None])
    cancelled: bool = False
    errors: list[SpotconnError] = field(default_factory=list[SpotconnError])
    hurried: bool = False
    waited: float = 0.0
    faults: list[str] = field(default_factory=list[str])
    task: "asyncio.Task[str] | None" = None

    async def run(self, manager: TokenManager, steps: Callable[[], int], over: Callable[[], bool]) -> str:
        """Ask, and ask again if it is of that kind, until it is over."""
        self.possible = set(self.harness.possible)
        self.harness.askings.append(self)
        came = self.harness.waited()
        try:
            while True:
                begun = steps()
                try:
                    token: str = await self.caller.call(manager)
                except SpotconnError as error:
                    self.errors.append(error)
                    self.faults += self._error_faults(error)
                    self.hurried |= steps() == begun
                    if not self.caller.insists or over():
                        raise
                else:
                    self.faults += self._token_faults(token)
                    return token
        finally:
            self.harness.askings.remove(self)
            self.waited = self.harness.waited() - came

    def cancel(self) -> None:
        """Cancel it from outside."""
        assert self.task is not None
        self.cancelled = self.task.cancel()

    def _error_faults(self, error: SpotconnError) -> list[str]:
        if not isinstance(error, SpotifyUnavailable):
            return []
        faults = [] if error.retry_after is not None else [f"{self.caller} does not hear how long: {error}"]
        sent = str(error).partition(_ABOUT)[2]
        if sent in self.harness.spotify.of and self.harness.spotify.of[sent] not in self.possible:
            faults.append(f"{self.caller} hears of an authorization that had ended before it came: {error}")
        return faults

    def _token_faults(self, token: str) -> list[str]:
        spotify, now = self.harness.spotify, self.harness.clock()
        remaining, faults = spotify.ends[token] - now, list[str]()
        if remaining <= 0:
            faults.append("that has ended")
        if self.caller.call is job and remaining <= MIN_TTL and now - spotify.granted_at[token] >= MINUTE:
            faults.append("that ends too soon")
        if self.caller.call is rejected and token == OLD and not self.harness.went_back:
            faults.append("that it has refused")
        if spotify.of[token] not in self.possible:
            faults.append("of another authorization")
        return [f"{self.caller} has {token} {fault}" for fault in faults]


# The aftermath.


def faults_of(asking: Asking, errors: tuple[type[Exception], ...]) -> list[str]:
    """What is wrong with the end of one caller."""
    task, name = asking.task, str(asking.caller)
    if task is None or not task.done():
        return [f"{name} never ends"]
    if asking.hurried:
        return [f"{name} has an error without having waited"]
    if task.cancelled() or asking.cancelled:
        return [] if task.cancelled() and asking.cancelled else [f"{name}: a cancellation has come to the wrong one"]
    if (error := task.exception()) is not None:
        return asking.faults if isinstance(error, errors) else [f"{name} has {error!r}"]
    return asking.faults


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
