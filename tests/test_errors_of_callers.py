"""No error belongs to two callers, and what belongs to a caller is left alone.

Two callers make the same call that fails. The first catches its error and is suspended in its own code when the
second is raised to. Every public call is driven, each caller inside and outside an `except` block of its own.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest

from callers import Call, Caller, all_caught, check_apart, check_end, check_waiting, library_frames, frames
from failing_calls import FAILURES, Failure, Setup, manager
from conftest import Database, serving
from fault_proxy import FaultProxy
from helpers import REDIRECT_URI, SCOPES, connect
from spotconn import (
    ConfigurationError,
    ConnectFailed,
    ConnectFlow,
    Connection,
    ConnectionAdmin,
    ConnectionStore,
    DatabaseUnavailable,
    MissingScope,
    NotConnected,
    Profile,
    ReauthorizationRequired,
    RefreshFailure,
    RowSecurityError,
    SpotconnError,
    SpotifyAccounts,
    SpotifyUnavailable,
    TokenManager,
)
from spotconn.testing import Answer, FakeSpotify
from test_secrets import public_calls


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
            yield Setup(database, proxy, spotify, store, accounts, tokens, flow, overseer, connected, nobody)


ORDERS = [(one, two, together) for one in (False, True) for two in (False, True) for together in (False, True)]
"""Whether each caller handles an error of its own, and whether both begin at once."""


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
            check_library(caller, setup)


def check_library(caller: Caller, setup: Setup) -> None:
    print("##", [[(f.f_globals["__name__"], f.f_code.co_name) for f in frames(l)] for l in caller.links()])
