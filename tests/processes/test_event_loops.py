"""Objects belong to one event loop: in another one they say so before anything is spent."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from spotconn import (
    AesGcmSivCipher,
    ConnectFlow,
    ConnectionAdmin,
    ConnectionStore,
    SpotifyAccounts,
    TokenManager,
)
from spotconn.testing import FakeSpotify
from support.bulk import connect_many
from support.consent import REDIRECT_URI, SCOPES
from support.database import Database
from support.loops import LoopThread, loop_thread
from support.public_coroutines import CALLS, Objects, answers, outcome

THREADS_PROGRAM = Path(__file__).parents[1] / "support" / "threads_program.py"

WAY_OUT = "belongs to another event loop: make it in the one that uses it"
TABLES = (
    "public.spotify_connections",
    "spotconn.refresh_state",
    "spotconn.pending_connect",
)


class World:
    """A database with an expired and a fresh connection, and a Spotify, all on a loop of their own."""

    def __init__(self, loop: LoopThread, database: Database, spotify: FakeSpotify, url: str) -> None:
        self.loop = loop
        self.database = database
        self.spotify = spotify
        self.url = url
        self.dsn = database.login_dsn("chief")
        self.expired, self.fresh, *self.others = loop.run(self._users())

    def state(self) -> tuple[list[list[asyncpg.Record]], int]:
        """Return all that a call could change or spend."""
        return self.loop.run(self._rows()), self.spotify.token_calls

    def accounts(self) -> SpotifyAccounts:
        return SpotifyAccounts("demo-client", "demo-secret", accounts_url=self.url, api_url=self.url)

    async def _users(self) -> list[UUID]:
        admin = await asyncpg.connect(self.database.admin_dsn)
        try:
            await admin.execute("delete from auth.users")
            if not await admin.fetchval("select exists (select from pg_roles where rolname = 'chief')"):
                await admin.execute("create role chief login password 'chief'; grant service_role, spotconn to chief")
            return await connect_many(admin, self.spotify, [-5, 3600, -5, -5, -5, -5])
        finally:
            await admin.close()

    async def _rows(self) -> list[list[asyncpg.Record]]:
        admin = await asyncpg.connect(self.database.admin_dsn)
        try:
            return [await admin.fetch(f"select * from {table} order by user_id") for table in TABLES]
        finally:
            await admin.close()


@pytest.fixture
def world(prepared: Database, spotify: FakeSpotify) -> Iterator[World]:
    """The servers."""
    with loop_thread() as loop:
        serving = spotify.serve()
        yield World(loop, prepared, spotify, loop.run(serving.__aenter__()))
        loop.run(serving.__aexit__(None, None, None))


@asynccontextmanager
async def opened(world: World, accounts: SpotifyAccounts | None = None) -> AsyncGenerator[Objects]:
    """Context manager: one of each class."""
    async with AsyncExitStack() as stack:
        cipher = AesGcmSivCipher([AesGcmSivCipher.generate_key()])
        store = await stack.enter_async_context(ConnectionStore.open(world.dsn))
        admin = await stack.enter_async_context(ConnectionAdmin.open(world.dsn, cipher=cipher))
        if accounts is None:
            accounts = await stack.enter_async_context(world.accounts())
        tokens = await stack.enter_async_context(TokenManager(store, accounts))
        flow = ConnectFlow(store, accounts, redirect_uri=REDIRECT_URI, scopes=SCOPES)
        await flow.start(world.expired)
        yield Objects(tokens, store, admin, accounts, flow, world.expired, f"{REDIRECT_URI}?code=a-code&state=a-state")


@pytest.fixture
def objects(world: World) -> Iterator[Objects]:
    """One of each class, used in the loop that they belong to."""
    with loop_thread() as home:
        context = opened(world)
        made = home.run(context.__aenter__())
        home.run(made.accounts.profile(home.run(made.tokens.get_valid_token(world.fresh))))
        before = world.state()
        yield made
        # The right loop goes on, over the connections that it has.
        assert world.state() == before
        assert home.run(made.tokens.get_valid_token(world.expired))
        assert home.run(made.tokens.status(world.fresh)).connected
        assert home.run(made.admin.stats()).connections == 6
        assert world.spotify.refresh_calls == 1
        home.run(context.__aexit__(None, None, None))


@pytest.mark.parametrize("runs", ["asyncio.run", "a thread"])
def test_each_call_in_another_loop_says_the_way_out(objects: Objects, runs: str) -> None:
    """Each public coroutine raises RuntimeError before a lease, a request or a change of a row, also when repeated."""
    for _ in range(2):
        if runs == "asyncio.run":
            said = asyncio.run(answers(objects))
        else:
            with loop_thread() as other:
                said = other.run(answers(objects))
        assert set(said) == set(CALLS)
        assert {name for name, text in said.items() if not text.startswith("RuntimeError: this ")} == set()
        assert {name for name, text in said.items() if WAY_OUT not in text} == set()


def test_a_cached_token_may_be_served_in_another_loop(objects: Objects, world: World) -> None:
    """What needs neither the database nor Spotify may come; nothing else does."""
    said = asyncio.run(outcome(objects.tokens.get_valid_token(world.fresh)))
    assert said == "returned str" or WAY_OUT in said


@pytest.mark.parametrize("close", ["tokens", "accounts"])
def test_the_objects_are_not_closed_from_another_loop(objects: Objects, close: str) -> None:
    """Closing waits for work of the right loop, so it belongs there, too."""
    thing: TokenManager | SpotifyAccounts = getattr(objects, close)
    with pytest.raises(RuntimeError, match=WAY_OUT):
        asyncio.run(thing.aclose())


def test_asyncio_run_for_each_job_with_the_accounts_of_the_module(world: World) -> None:
    """The first job uses them; each later one is told so before its refresh token is spent."""
    accounts = world.accounts()

    async def job(user: UUID) -> str:
        async with opened(world, accounts) as made:
            return await outcome(made.tokens.get_valid_token(user))

    async def first(user: UUID) -> str:
        said = await job(user)
        await accounts._http.aclose()  # what it leaves open is not the matter here
        return said

    assert asyncio.run(first(world.expired)) == "returned str"
    spent = world.spotify.token_calls
    for user in world.others:
        with pytest.raises(RuntimeError, match=f"this SpotifyAccounts {WAY_OUT}"):
            asyncio.run(job(user))
    assert world.spotify.token_calls == spent
    rows, _ = world.state()
    assert all(world.spotify.accepts_refresh(row["refresh_token"]) for row in rows[0])


def test_a_store_made_outside_of_a_loop_belongs_to_the_loop_of_its_pool(world: World, objects: Objects) -> None:
    """A pool has its loop from the start, and the store over it has the same."""
    pool = objects.store.pool._pool
    store, admin = ConnectionStore(pool), ConnectionAdmin(pool)
    for call in (store.get(world.fresh), admin.stats()):
        with pytest.raises(RuntimeError, match=WAY_OUT):
            asyncio.run(call)


def test_no_manager_is_made_over_what_belongs_to_another_loop(objects: Objects) -> None:
    """It would have to fail at its first call, which may be that of a user."""

    async def make() -> TokenManager:
        return TokenManager(objects.store, objects.accounts)

    with pytest.raises(RuntimeError, match=WAY_OUT):
        asyncio.run(make())


def _app(tokens: Callable[[], TokenManager], **options: Any) -> Starlette:
    async def answer(request: Request) -> PlainTextResponse:
        user: str = request.path_params["user"]
        return PlainTextResponse(await outcome(tokens().get_valid_token(user, min_ttl=60)))

    return Starlette(routes=[Route("/{user}", answer)], **options)


def test_a_sync_test_client_without_the_lifespan(objects: Objects, world: World) -> None:
    """Its requests run in a loop of their own, so a manager of the module says where to make it."""
    client = TestClient(_app(lambda: objects.tokens))
    assert WAY_OUT in client.get(f"/{world.expired}").text


def test_a_sync_test_client_with_the_lifespan(world: World) -> None:
    """A manager made in the lifespan of the application works."""
    made: list[TokenManager] = []

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncGenerator[None]:
        async with opened(world) as objects:
            made.append(objects.tokens)
            yield

    with TestClient(_app(lambda: made[0], lifespan=lifespan)) as client:
        for user in (world.expired, world.fresh, world.expired):
            assert client.get(f"/{user}").text == "returned str"


def test_threads_with_loops_of_their_own_end_in_order(world: World) -> None:
    """Four threads and a manager of a closed loop: each call says the way out, and the interpreter ends well."""
    path = os.pathsep.join([str(THREADS_PROGRAM.parents[1]), *sys.path])
    ended = subprocess.run(
        [sys.executable, str(THREADS_PROGRAM), world.dsn, world.url, str(world.expired)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=40,
    )
    assert ended.returncode == 0, ended.stderr
    [said] = ended.stdout.splitlines()
    assert said.startswith(f"RuntimeError: this TokenManager {WAY_OUT}")
    assert world.spotify.token_calls == 0


def test_each_call_after_its_block_says_that_it_is_closed(world: World) -> None:
    """Not that the database is away; and nothing is asked for."""

    async def use() -> dict[str, str]:
        async with opened(world) as made:
            pass
        return await answers(made)

    said = asyncio.run(use())
    assert {
        name: text for name, text in said.items() if not re.fullmatch(r"RuntimeError: this \w+ is closed", text)
    } == {}
    assert world.spotify.token_calls == 0
