"""No error belongs to two callers, and what belongs to a caller is left alone.

Two callers make the same call that fails. The first catches its error and is suspended in its own code when the
second is raised to. Every public call is driven, each caller inside and outside an `except` block of its own.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from functools import partial

import asyncpg
import pytest
from callers import Call, Caller, all_caught, check_apart, check_end, check_waiting, library_frames
from failing_calls import FAILURES, Failure, Setup, manager
from test_secrets import public_calls

from conftest import Database, serving
from fault_proxy import FaultProxy
from helpers import REDIRECT_URI, SCOPES, connect
from spotconn import (
    ConnectFlow,
    ConnectionAdmin,
    ConnectionStore,
    SpotifyAccounts,
)
from spotconn.testing import FakeSpotify
from witness import said_by


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
PUBLIC_FRAMES = {"get_valid_token", "_handed_out", "async_auth_flow"}
"""Frames of the library that its errors pass through on the way out: their locals hold no token."""
LISTS = {"ConnectionAdmin.expiring", "ConnectionAdmin.failing"}
"""What these read holds no token, and their frames stay."""
RAISES_NOTHING = {
    "AesGcmSivCipher.encrypt",
    "AesGcmSivCipher.generate_key",
    "ConnectionStore.unwatch",
    "ConnectionStore.watch",
    "SpotifyAccounts.authorize_url",
}


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
    for link in caller.links():
        shown = [frame for frame in library_frames(link) if not frame.f_globals["__name__"].startswith("httpx.")]
        assert failure.name in LISTS or {frame.f_code.co_name for frame in shown} <= PUBLIC_FRAMES
    assert caller.error is not None
    said = said_by(caller.error)
    assert not [secret for secret in setup.secrets() if secret in said]


def test_every_public_call_is_driven() -> None:
    """A call that is added must be driven here, too, unless it raises nothing of the library's."""
    assert {failure.name for failure in FAILURES} == public_calls() - RAISES_NOTHING
