"""A service, its users and its operator for a simulated year; the test is tests/tokens/test_year.py."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg

from remind_users import remind
from spotconn import (
    ConnectFlow,
    ConnectionAdmin,
    ConnectionStore,
    NotConnected,
    Profile,
    ReauthorizationRequired,
    SpotifyAccounts,
    TokenManager,
    events,
)
from spotconn.testing import FakeClock, FakeSpotify, step_database_clock
from support.consent import REDIRECT_URI, SCOPES
from support.database_clock import database_clock

USERS, MONTHS, STEPS = 1000, 12, 5
START, STEP = datetime(2027, 1, 1, tzinfo=UTC), timedelta(days=365) / (MONTHS * STEPS)
OLD_APP, NEW_APP = "old-app", "new-app"
FIRST, SECOND, REFUSED, NEVER = "first letter", "second letter", "refused", "never"
REVOKES, DISCONNECTS, DELETES, SILENT = "revokes", "disconnects", "deletes the account", "is never asked for"
HABITS = [*[FIRST] * 10, *[SECOND] * 4, REFUSED, NEVER, REVOKES, DISCONNECTS, DELETES, SILENT]
"""When a user comes back, or what else they do; one after the other have these."""
_SIGN_UP = "insert into auth.users (email) select 'user-' || n from generate_series(0, $1 - 1) as n returning id, email"
COME_BACK = {FIRST, SECOND, REFUSED}


@dataclass
class Person:
    """A user, and what the year has brought so far.

    Attributes:
        number: in the sequence in which they sign up.
        user_id: of auth.users.
        letters: by the end that they name, how long before it each was sent.
        last_token: when a call last gave a token.
        answer: to the last call.
        returns: whether the next step is to connect again.
    """

    number: int
    user_id: UUID
    letters: dict[datetime, list[timedelta]] = field(default_factory=dict[datetime, list[timedelta]])
    last_token: datetime = START
    answer: str = ""
    returns: bool = False
    is_connected: bool = False

    @property
    def habit(self) -> str:
        return HABITS[self.number % len(HABITS)]

    @property
    def account(self) -> str:
        return f"account-{self.number}"

    @property
    def first_step(self) -> int:
        """All have connected within the first half of the year."""
        return self.number * STEPS * MONTHS // 2 // USERS


class Year:
    """The service with its app, the operator's job on two hosts, and the clocks.

    Attributes:
        people: by their user id.
        answers: to calls for a token, by what they were.
        connects: the first of a user, and those that came again.
        pruned: connections, by their reason.
        told: what the hook of the manager and of the flow was given.
    """

    def __init__(self, dsn: str, admin: asyncpg.Connection, admin_dsn: str) -> None:
        self.clock = FakeClock(START.timestamp())
        self.spotify = FakeSpotify(
            client_id=OLD_APP, client_secret="first", other_apps={NEW_APP: "new"}, rotation=True, clock=self.clock
        )
        self.people: dict[UUID, Person] = {}
        self.answers: Counter[str] = Counter()
        self.connects: Counter[str] = Counter()
        self.told: list[events.Event] = []
        self.pruned: Counter[str] = Counter()
        self._by_address: dict[str, Person] = {}
        self._secret = "first"
        self._dsn, self._admin, self._admin_dsn = dsn, admin, admin_dsn

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        """Context manager: set the clock of the database to the start, serve Spotify and open the operator's job."""
        async with database_clock(self._admin), AsyncExitStack() as stack:
            await step_database_clock(self._admin_dsn, (START - datetime.now(UTC)).total_seconds())
            self._url = await stack.enter_async_context(self.spotify.serve())
            self.store = await stack.enter_async_context(ConnectionStore.open(self._dsn, min_size=1, max_size=4))
            self._hosts = [
                (
                    await stack.enter_async_context(ConnectionAdmin.open(self._admin_dsn, max_size=1)),
                    await stack.enter_async_context(_session(self._admin_dsn)),
                )
                for _ in range(2)
            ]
            self.house = self._hosts[0][0]
            for row in await self._admin.fetch(_SIGN_UP, USERS):
                person = Person(int(row["email"].partition("-")[2]), row["id"])
                self.spotify.add_account(person.account)
                self.people[person.user_id] = self._by_address[row["email"]] = person
            yield

    @property
    def now(self) -> datetime:
        return datetime.fromtimestamp(self.clock(), UTC)

    @asynccontextmanager
    async def service(self, app: str, *, other: str | None = None, retired: str | None = None) -> AsyncGenerator[None]:
        """Context manager: a deployment of the service, with the app of new connections."""
        async with AsyncExitStack() as stack:
            self.app = app
            apps = [await stack.enter_async_context(self._accounts(name)) for name in (app, other) if name]
            self.tokens = await stack.enter_async_context(
                TokenManager(
                    self.store,
                    apps[0],
                    other_apps=apps[1:],
                    retired_client_ids=[retired] if retired else [],
                    on_event=self.told.append,
                    clock=self.clock,
                )
            )
            self._flow = ConnectFlow(
                self.store,
                apps[0],
                redirect_uri=REDIRECT_URI,
                scopes=SCOPES,
                on_event=self.told.append,
                clock=self.clock,
            )
            await stack.enter_async_context(self._flow)
            yield

    def _accounts(self, app: str) -> SpotifyAccounts:
        secret: Callable[[], str] = (lambda: self._secret) if app == OLD_APP else (lambda: "new")
        return SpotifyAccounts(app, secret, accounts_url=self._url, api_url=self._url, clock=self.clock)

    def rotate_secret(self) -> None:
        """Give the old app another secret; the service reads it where it is kept."""
        self._secret = "second"
        self.spotify.rotate_secret(self._secret, client_id=OLD_APP)

    async def step(self) -> None:
        """Let five days pass, for the service, the simulated Spotify and the database."""
        self.clock.step(STEP.total_seconds())
        await step_database_clock(self._admin_dsn, STEP.total_seconds())

    async def connect(self, people: Iterable[Person]) -> None:
        """Let users connect, or connect again; a fifth of them, of each habit, through their browsers."""
        await _each(self._connect, people)

    async def _connect(self, person: Person) -> None:
        again = person.is_connected or person.answer
        self.connects["again" if again else "first"] += 1
        if person.number // len(HABITS) % 5 == 0:
            callback = self.spotify.agree(await self._flow.start(person.user_id), person.account)
            await self._flow.finish(person.user_id, callback)
        else:  # in a quarter of the time
            grant = self.spotify.authorize(person.account, SCOPES, client_id=self.app)
            await self.store.save(person.user_id, grant, Profile(spotify_user_id=person.account), client_id=self.app)
        person.returns, person.is_connected, person.last_token = False, True, self.now

    async def call(self, people: Iterable[Person]) -> None:
        """Have three calls for the token of each user, or one that is refused."""
        await _each(self._call, people)

    async def _call(self, person: Person) -> None:
        for _ in range(3):
            try:
                token = await self.tokens.get_valid_token(person.user_id)
            except ReauthorizationRequired as error:
                return self._refused(person, error.reason)
            except NotConnected:
                return self._refused(person, "not connected")
            assert self.spotify.accepts(token)
            self.answers["token"] += 1
            person.answer, person.last_token = "token", self.now
        return None

    def _refused(self, person: Person, answer: str) -> None:
        self.answers[answer] += 1
        person.answer, person.returns = answer, person.returns or person.habit in COME_BACK

    async def write_letters(self, *, hosts: int) -> None:
        """Run the daily job, on several hosts at once."""
        await asyncio.gather(*(remind(admin, users, self._send, now=self.now) for admin, users in self._hosts[:hosts]))

    async def _send(self, address: str, end: datetime) -> None:
        person = self._by_address[address]
        letters = person.letters.setdefault(end, [])
        letters.append(end - self.now)
        person.returns = person.returns or person.habit == FIRST or (person.habit == SECOND and len(letters) == 2)

    async def prune(self, *, retired: Iterable[str]) -> list[Person]:
        """Prune, and return who has lost the connection by that."""
        before = await self._connected()
        done = await self.house.prune(dead_for=timedelta(days=90), retired_client_ids=retired, write=True)
        gone = [self.people[user_id] for user_id in before - await self._connected()]
        assert done.total == len(gone)
        self.pruned.update(done.model_dump(exclude={"not_final", "too_recent"}))
        return gone

    async def sign_off(self, person: Person) -> None:
        """Let a user disconnect, or delete the account."""
        person.is_connected = False
        if person.habit == DISCONNECTS:
            assert await self.tokens.disconnect(person.user_id)
        else:
            await self._admin.execute("delete from auth.users where id = $1", person.user_id)

    async def _connected(self) -> set[UUID]:
        return {row["user_id"] for row in await self._admin.fetch("select user_id from public.spotify_connections")}


async def _each(work: Callable[[Person], Awaitable[None]], people: Iterable[Person]) -> None:
    """Have the same done for many users, for ten at once."""
    waiting = iter([*people])

    async def go_on() -> None:
        for person in waiting:
            await work(person)

    async with asyncio.TaskGroup() as group:
        for _ in range(10):
            group.create_task(go_on())


@asynccontextmanager
async def _session(dsn: str) -> AsyncGenerator[asyncpg.Connection]:
    session = await asyncpg.connect(dsn)
    try:
        yield session
    finally:
        await session.close()
