"""A process is killed at each point of a refresh, found from outside; another one is asked for the same user."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore, SpotifyAccounts, TokenManager
from spotconn.testing import FakeSpotify
from support.connections import connect
from support.crash import CRASH, LEASE, POINTS, Point, Scene, working
from support.database import Database, serving
from support.fault_proxy import FaultProxy
from support.invariants import check_row, recorded, stored_row
from support.token_worker import digest

AT_ONCE = 2.4
"""Seconds that a refresh, or a read, may take on a busy machine; a lease is longer."""


@pytest.fixture(scope="module")
def prepared() -> Iterator[Database]:
    """A server of this module's own, whatever the other tests run on."""
    with serving() as database:
        yield database


@pytest.fixture(params=["single-use", pytest.param("reusable", marks=pytest.mark.long)])
def kind(request: pytest.FixtureRequest) -> str:
    """Of the refresh tokens: both are seen in the world."""
    return str(request.param)


@pytest.fixture(
    params=[
        pytest.param(point, id=point.name, marks=[pytest.mark.long] if point.name.startswith("before") else [])
        for point in POINTS
    ]
)
def point(request: pytest.FixtureRequest) -> Point:
    killed_at: Point = request.param
    return killed_at


@pytest.fixture
async def scene(database: Database, admin: asyncpg.Connection, kind: str, user: UUID) -> AsyncIterator[Scene]:
    spotify = FakeSpotify(rotation=kind == "single-use")
    async with spotify.serve() as url, FaultProxy(database.server.port).serve() as proxy:
        yield Scene(database, admin, proxy, spotify, url, user)


def tell(request: pytest.FixtureRequest, point: Point, *cells: str) -> None:
    """Add a row to the table that is printed at the end of the run."""
    request.node.user_properties.append((CRASH, (point.name, *cells)))


async def test_after_a_crash_another_process_serves_an_expired_user(
    point: Point, scene: Scene, kind: str, store: ConnectionStore, request: pytest.FixtureRequest
) -> None:
    """Within the lease the next process gets a new token; only a refresh token lost with the process ends it all."""
    await connect(store, scene.spotify, scene.user, ttl=-1)
    before = await stored_row(scene.admin, scene.user)
    loop = asyncio.get_running_loop()
    dsn = scene.database.dsn
    async with working(scene.proxy.dsn(dsn), scene.url) as victim, working(dsn, scene.url) as survivor:
        await survivor.ready()
        async with point.reach(scene, victim):
            await victim.kill()
            scene.proxy.cut()
        killed = loop.time()
        answer, tries = await survivor.retried_answer(scene.user)
        took = loop.time() - killed
    calls = scene.spotify.token_calls
    heard = "a new token" if "token" in answer else f"{answer['error']} ({answer.get('reason')})"
    tell(request, point, "expired", kind, heard, f"{took:.1f} s", str(calls))
    assert calls == point.calls
    assert tries == 1 or point.delay, "no lease was in the way"
    if point.lost and kind == "single-use":
        assert answer == {"error": "ReauthorizationRequired", "reason": "revoked"}
        assert took <= point.delay + AT_ONCE
        assert dict(await stored_row(scene.admin, scene.user)) == dict(before), "the tokens stay as they are"
        assert await recorded(scene.admin, scene.user) == {"leased": False, "failure": "revoked"}
    else:
        row = await stored_row(scene.admin, scene.user)
        assert answer == {"token": digest(row["access_token"])}
        assert row["access_token"] != before["access_token"]
        assert took <= point.delay + AT_ONCE
        await check_row(scene.admin, scene.spotify, scene.user, before, lease=LEASE)
        assert await recorded(scene.admin, scene.user) == {"leased": False, "failure": None}


@pytest.mark.long
@pytest.mark.parametrize("kind", ["single-use"])
async def test_a_crash_delays_nobody_while_the_token_is_usable(
    point: Point, scene: Scene, kind: str, store: ConnectionStore, request: pytest.FixtureRequest
) -> None:
    """When a process dies in a refresh in the background, the next caller is served a usable token at once."""
    connection = await connect(store, scene.spotify, scene.user, ttl=100)
    before = await stored_row(scene.admin, scene.user)
    loop = asyncio.get_running_loop()
    async with (
        SpotifyAccounts("demo-client", "demo-secret", accounts_url=scene.url) as accounts,
        TokenManager(store, accounts, cache_ttl=0) as survivor,
        working(scene.proxy.dsn(scene.database.dsn), scene.url) as victim,
    ):
        async with point.reach(scene, victim):
            assert await victim.answer() == {"token": digest(connection.access_token)}
            await victim.kill()
            scene.proxy.cut()
        killed = loop.time()
        token = await survivor.get_valid_token(scene.user)
        took = loop.time() - killed
    heard = "the same token" if token == connection.access_token else "a new token"
    tell(request, point, "usable", kind, heard, f"{took:.1f} s", str(scene.spotify.token_calls))
    assert took <= AT_ONCE
    assert token == connection.access_token or not point.delay, "nobody waits for a lease to end"
    assert scene.spotify.accepts(token)
    await check_row(scene.admin, scene.spotify, scene.user, before, lease=LEASE, refreshable=not point.lost)
