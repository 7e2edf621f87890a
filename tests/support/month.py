"""A service whose users come and go for a simulated month; the test is tests/tokens/test_month.py."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg

from spotconn import (
    AesGcmSivCipher,
    ConfigurationError,
    ConnectFlow,
    ConnectionStore,
    SpotconnError,
    SpotifyAccounts,
    TokenManager,
    events,
)
from spotconn.testing import Answer, FakeClock, FakeSpotify
from support.bulk import connect_many
from support.consent import REDIRECT_URI, SCOPES
from support.database import Database
from support.database_clock import DatabaseClock, database_clock
from support.exported import Exported
from support.fault_proxy import FaultProxy
from support.listening import until
from support.tables import Sizes, sizes_of

DAY = 86_400.0
USERS = 12_000
"""Connected at each time; as many come as leave."""
CALLED, NEW, REJECTED, REVOKED, CANCELLED, BATCH = 16, 3, 2, 2, 4, 60
"""Users in a step: who are called for, sign up and leave, have a refused access token or a revoked consent, whose
callers are cancelled, and of one job."""
CACHED = {"listening": 10, "pooled": 100}
"""Connections cached by each manager. A step of its clock empties the cache of one that listens, but not of another."""


_Call: TypeAlias = Coroutine[Any, Any, object]


class Month:
    """Two managers over one database, whose clocks and those of Spotify and the event loop are stepped together.

    Args:
        database: of the service.
        admin: a superuser's connection to it.
        steps: of a day, each longer than a token lasts.

    Attributes:
        outcomes: of all calls, by what they were.
    """

    def __init__(self, database: Database, admin: asyncpg.Connection, *, steps: int) -> None:
        self._database, self._admin, self._steps = database, admin, steps
        self._clock = FakeClock(time.time())
        self._spotify = FakeSpotify(rotation=True, clock=self._clock)
        self._lots = random.Random("a month")
        self._users: list[UUID] = []
        self._accounts: dict[UUID, str] = {}
        self._managers: dict[str, TokenManager] = {}
        self._signed_up = 0
        self.outcomes: Counter[str] = Counter()

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        """Context manager: connect the users and open the service."""
        async with AsyncExitStack() as stack:
            self._database_clock: DatabaseClock = await stack.enter_async_context(database_clock(self._admin))
            self._proxy = await stack.enter_async_context(FaultProxy(self._database.server.port).serve())
            self._url = await stack.enter_async_context(self._spotify.serve())
            self._exported = Exported()
            stack.callback(self._exported.close)
            await self._sign_up(USERS)
            cipher = AesGcmSivCipher([AesGcmSivCipher.generate_key()])
            for name, statements in {"listening": 100, "pooled": 0}.items():
                self._managers[name] = await stack.enter_async_context(self._manager(name, cipher, statements))
            self._exported.instrument(self._managers["listening"])
            yield

    @asynccontextmanager
    async def _manager(self, name: str, cipher: AesGcmSivCipher, statements: int) -> AsyncGenerator[TokenManager]:
        dsn = self._proxy.dsn(self._database.dsn)
        async with (
            ConnectionStore.open(dsn, cipher=cipher, max_size=4, statement_cache_size=statements) as store,
            SpotifyAccounts(
                "demo-client", "demo-secret", accounts_url=self._url, api_url=self._url, clock=self._clock
            ) as accounts,
            TokenManager(
                store,
                accounts,
                refresh_timeout=2,
                lease=5,
                cache_size=CACHED[name],
                on_event=self._count_event,
                clock=self._clock,
            ) as tokens,
            ConnectFlow(store, accounts, redirect_uri=REDIRECT_URI, scopes=SCOPES, clock=self._clock) as self._flow,
        ):
            yield tokens

    async def day(self, number: int) -> Sizes:
        """Live one day, and return what the process holds at its end."""
        for step in range(self._steps):
            if step % (self._steps // 2) == 1:
                self._spotify.script(*self._lots.sample(_FAILURES, 4))
            await self._usual()
            if step == self._steps // 2:
                await self._odd(number)
            await self._step()
        self._spotify_forgets()
        return sizes_of(self._managers, self._exported, flow=self._flow)

    async def _usual(self) -> None:
        """What happens in each step."""
        called = self._lots.sample(self._users, CALLED)
        await self._call(called)
        await self._call(called)  # cached, as far as there is room
        await self._call(called[:6], self._managers.values())
        for user in called[:REJECTED]:
            await self._reject(user)
        for user in called[-REVOKED:]:
            self._spotify.revoke(self._accounts[user])
        await self._cancel(self._lots.sample(self._users, CANCELLED))
        await self._connect_again(called[-REVOKED:])
        await self._leave(self._lots.sample(self._users, NEW))
        await self._sign_up(NEW)

    async def _odd(self, number: int) -> None:
        """What happens once a day, or on some days."""
        await self._work_through(self._lots.sample(self._users, BATCH), most=BATCH if number % 2 else BATCH // 2)
        await self._report_refusals(self._lots.sample(self._users, 20))
        await self._move_tokens(self._lots.sample(self._users, 4))
        await self._admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app' and random() < 0.5"
        )
        self._spotify.script(*[Answer.unavailable()] * 40)
        if number % 5 == 2:
            await self._lose_database(self._lots.sample(self._users, 20))
        if number % 5 == 4:
            self._spotify.script(*[_INVALID_CLIENT] * 6)
        await self._call(self._lots.sample(self._users, CALLED))

    async def _call(self, users: Iterable[UUID], managers: Collection[TokenManager] = ()) -> None:
        """Have the tokens of users got, each by one of the managers or by all at once."""
        all_managers = [*self._managers.values()]
        calls = [(tokens, user) for user in users for tokens in managers or [self._lots.choice(all_managers)]]
        await _each([tokens.get_valid_token(user) for tokens, user in calls], self._note)

    async def _note(self, call: _Call) -> None:
        try:
            await call
        except SpotconnError as error:
            self.outcomes[type(error).__name__] += 1
        else:
            self.outcomes["token"] += 1

    async def _reject(self, user: UUID) -> None:
        tokens = self._managers["listening"]
        with suppress(SpotconnError):
            refused = await tokens.get_valid_token(user)
            self._spotify.reject_access_token(refused)
            await self._admin.execute(  # it is older than a minute
                "update spotconn.refresh_state set saved_at = saved_at - interval '2 minutes' where user_id = $1", user
            )
            await self._note(tokens.replace_rejected(user, refused))

    async def _cancel(self, users: Iterable[UUID]) -> None:
        """Cancel callers, each at another point."""
        tasks = [
            asyncio.create_task(self._note(self._lots.choice([*self._managers.values()]).get_valid_token(user)))
            for user in users
        ]
        for task in tasks:
            await asyncio.sleep(self._lots.uniform(0, 0.004))
            task.cancel()
        await asyncio.wait(tasks)

    async def _connect_again(self, users: Iterable[UUID]) -> None:
        """Let users connect through their browsers; the first of them closes the page before it is there."""
        for number, user in enumerate(users):
            await self._call([user])
            with suppress(ConfigurationError):  # while Spotify refuses the app
                begun = await self._flow.begin(user)
                finish = self._flow.complete(self._spotify.agree(begun.url, self._accounts[user]), begun.cookie)
                finishing = asyncio.create_task(self._note(finish))
                if not number:
                    await asyncio.sleep(self._lots.uniform(0, 0.01))
                    finishing.cancel()
                await asyncio.wait([finishing])

    async def _leave(self, users: Sequence[UUID]) -> None:
        """Let users disconnect, or delete their accounts."""
        for number, user in enumerate(users):
            if number % 2:
                await self._managers["listening"].disconnect(user)
            await self._admin.execute("delete from auth.users where id = $1", user)
            self._users.remove(user)
            self._spotify.revoke(self._accounts[user])
            del self._spotify.accounts[self._accounts.pop(user)]
            await self._call([user])

    async def _sign_up(self, number: int) -> None:
        users = await connect_many(self._admin, self._spotify, [-60.0] * number, first=self._signed_up)
        self._users += users
        self._accounts |= {user: f"account-{n}" for n, user in enumerate(users, self._signed_up)}
        self._signed_up += number

    async def _work_through(self, users: list[UUID], *, most: int) -> None:
        """Have a job get the tokens of users, which may end early."""
        answers = self._managers["pooled"].get_valid_tokens(users, concurrency=10)
        with suppress(ConfigurationError):
            async with aclosing(answers):
                async for _, found in answers:
                    self.outcomes["job"] += isinstance(found, str)
                    most -= 1
                    if not most:
                        break

    async def _report_refusals(self, users: Sequence[UUID]) -> None:
        tokens = self._managers["listening"]
        for user in users:
            tokens.report_answer(user, 403, "User not registered in the Developer Dashboard")
        await until(lambda: not tokens._source.answers.tasks)
        for user in users[:5]:
            tokens.report_answer(user, 200)

    async def _move_tokens(self, users: Sequence[UUID]) -> None:
        """Give some users the stored text of another's token, which does not decrypt as theirs."""
        await self._call(users)
        await self._admin.execute(
            "update public.spotify_connections set access_token = (select access_token from "
            "public.spotify_connections where user_id = $1) where user_id = any($2)",
            users[0],
            users[1:],
        )
        await self._call(users)

    async def _lose_database(self, users: Sequence[UUID]) -> None:
        """Let the database go while Spotify answers, so that grants have to be saved later."""
        with self._spotify.hold() as held:
            calls = asyncio.create_task(self._call(users))
            async with asyncio.timeout(60):
                await held.reached()
            self._proxy.refuses = True
            self._proxy.cut()
        await calls
        await self._call(self._lots.sample(self._users, 5))
        self._proxy.heal()

    async def _step(self) -> None:
        """Let time pass, once nothing is under way."""
        sources = [tokens._source for tokens in self._managers.values()]
        await until(lambda: not any(source.refreshes.tasks or source.answers.tasks for source in sources))
        seconds = DAY / self._steps
        self._clock.step(seconds)
        await self._database_clock.step(seconds)
        loop: Any = asyncio.get_running_loop()  # a SteppedLoop
        loop.ahead += seconds
        await until(lambda: not any(source.refresher.unsaved._unsaved for source in sources))

    def _spotify_forgets(self) -> None:
        """Drop what the simulated Spotify holds of tokens that have ended; it runs in the same process."""
        issued, now = self._spotify._tokens, self._clock()
        issued.access = {token: found for token, found in issued.access.items() if found[1] > now}
        issued.revoked.clear()
        issued.codes.clear()
        self._spotify.refreshes.clear()
        self._spotify.forget_answers()
        self._exported.clear()
        self._proxy.executed.clear()

    def _count_event(self, event: events.Event) -> None:
        self.outcomes[type(event).__name__] += 1


_INVALID_CLIENT = Answer(status=400, json={"error": "invalid_client"})
_FAILURES = [Answer.unavailable(), Answer.unavailable(500), Answer.truncated(), Answer.reset(), Answer(status=404)]


async def _each(
    calls: Iterable[Coroutine[Any, Any, object]],
    run: Callable[[Coroutine[Any, Any, object]], Coroutine[Any, Any, None]],
) -> None:
    """Make calls, twenty at once."""
    waiting = iter([*calls])

    async def go_on() -> None:
        for call in waiting:
            await run(call)

    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(go_on())
