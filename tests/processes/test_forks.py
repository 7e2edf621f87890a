"""A child of fork reaches nothing of its parent's, and the parent goes on as if there were no child."""

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest

from spotconn import ConnectionStore
from spotconn.testing import FakeSpotify
from support.bulk import connect_many
from support.counting_proxy import CountingProxy
from support.database import SYSTEM_15, Database, serving
from support.fault_proxy import FaultProxy
from support.public_coroutines import CALLS, CLOSING, public_coroutines
from support.tls import certificate, tls_front

PROGRAM = Path(__file__).parents[1] / "support" / "fork_program.py"
SOURCES = os.pathsep.join([str(PROGRAM.parents[1]), *sys.path])
USERS = 12
"""One that is watched, one that only children ask for, one to warm up with, and one for each round of the parent."""


class Program:
    """The program as a process, and its stations."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def at(self) -> dict[str, Any]:
        """Wait for the next station."""
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), 30)
        station: dict[str, Any] = json.loads(line or "null") or {"at": f"ended with {await self._process.wait()}"}
        return station

    def go_on(self) -> None:
        """Let it leave the station."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")

    async def passes(self, name: str) -> dict[str, Any]:
        """Wait for a station, which must be this one, and let the program go on."""
        station = await self.at()
        assert station["at"] == name, station
        self.go_on()
        return station


@asynccontextmanager
async def program(settings: dict[str, object], pem: Path | None = None) -> AsyncGenerator[Program]:
    """Context manager: the program, which has ended by itself when the block ends."""
    pipe = asyncio.subprocess.PIPE
    trusted = {"SSL_CERT_FILE": str(pem)} if pem else {}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(PROGRAM),
        json.dumps(settings),
        stdin=pipe,
        stdout=pipe,
        start_new_session=True,
        env=os.environ | trusted | {"PYTHONPATH": SOURCES},
    )
    try:
        yield Program(process)
        assert await asyncio.wait_for(process.wait(), 10) == 0
    finally:
        with suppress(ProcessLookupError):  # also children that are left
            os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()


class World:
    """The servers, what counts in front of them, and the users in them."""

    def __init__(self, admin: asyncpg.Connection, spotify: FakeSpotify, users: list[UUID]) -> None:
        self.admin = admin
        self.spotify = spotify
        self.users = users
        self.proxies: list[CountingProxy] = []
        self.settings: dict[str, object] = {"users": [str(user) for user in users]}
        self.pem: Path | None = None
        self.plain_url = ""

    def bursts(self) -> int:
        """Count what has reached the servers."""
        return sum(proxy.round_trips for proxy in self.proxies)

    async def backends(self) -> set[int]:
        """Return the process ids of the program's sessions."""
        sessions = await self.admin.fetch("select pid from pg_stat_activity where usename = 'chief'")
        return {row["pid"] for row in sessions}

    async def change(self) -> None:
        """Change the watched row behind the back of the program, which is told of it by the trigger only."""
        grant = self.spotify.authorize("account-0")
        await self.admin.execute(
            "update public.spotify_connections set access_token = $2, refresh_token = $3, expires_at = $4"
            " where user_id = $1",
            self.users[0],
            grant.access_token,
            grant.refresh_token,
            grant.expires_at,
        )

    async def wrong_rows(self) -> list[str]:
        """Say which rows hold the tokens of another account, or a refresh token that Spotify has replaced."""
        stored = await self.admin.fetch("select * from public.spotify_connections")
        async with httpx.AsyncClient(base_url=self.plain_url) as http:
            owners = [await _owner(http, row["access_token"]) for row in stored]
        return [
            row["spotify_user_id"]
            for row, owner in zip(stored, owners, strict=True)
            if owner != row["spotify_user_id"] or not self.spotify.accepts_refresh(row["refresh_token"])
        ]


async def _owner(http: httpx.AsyncClient, token: str) -> str:
    answer = await http.get("/v1/me", headers={"Authorization": f"Bearer {token}"})
    owner: str = answer.json()["id"]
    return owner


@asynccontextmanager
async def counted(world: World, port: int) -> AsyncGenerator[int]:
    """Context manager: a counting proxy before a port; gives its own."""
    proxy = CountingProxy(port)
    world.proxies.append(proxy)
    async with proxy.serve():
        yield proxy.port


@asynccontextmanager
async def surroundings(
    admin: asyncpg.Connection, spotify: FakeSpotify, dsn: str, *, pem: Path | None = None
) -> AsyncGenerator[World]:
    """Context manager: users, half-way servers and settings for the program."""
    users = await connect_many(admin, spotify, [3600] + [-5] * (USERS - 1))
    world = World(admin, spotify, users)
    async with AsyncExitStack() as stack:
        world.plain_url = await stack.enter_async_context(spotify.serve())
        port = int(world.plain_url.rpartition(":")[2])
        if pem is not None:
            port = await stack.enter_async_context(tls_front(port, pem))
        port = await stack.enter_async_context(counted(world, port))
        target = int(dsn.rpartition(":")[2].partition("/")[0])
        database = await stack.enter_async_context(counted(world, target))
        scheme = "https" if pem else "http"
        world.pem = pem
        world.settings |= {"dsn": dsn.replace(f":{target}/", f":{database}/"), "url": f"{scheme}://127.0.0.1:{port}"}
        yield world


async def children_leave_the_parent_alone(world: World, own: str) -> None:
    """Go through the stations, and look at everything."""
    async with program(world.settings | {"scenario": "children", "own": own}, world.pem) as run:
        await run.passes("warm")
        asked = world.bursts(), await world.backends()
        station = await run.passes("asked")
        assert world.bursts() == asked[0]
        for answers in station["answers"].values():
            assert set(answers) == set(CALLS)
            assert {name: said for name, said in answers.items() if not _names_the_way_out(said)} == {}
        await _parent_works(world, run)
        for _ in station["answers"]:
            ending = await run.at()
            assert ending["at"] == "ending", ending
            before = world.bursts()
            run.go_on()
            ended = await run.passes("ended")
            assert (ended["code"], world.bursts()) == (0, before), ended["ending"]
            await _parent_works(world, run)
        last = await run.at()
        assert last["at"] == "over", last
        run.go_on()
    assert last["logged"] == []
    assert set(last["events"]) == {"Refreshed"}
    assert len(last["events"]) == 2 + len(station["answers"]) == world.spotify.refresh_calls
    assert await world.wrong_rows() == []


async def _parent_works(world: World, run: Program) -> None:
    """Let the parent work; it must do so over the connections that it had before."""
    before = await world.backends()
    station = await run.at()
    assert station["at"] == "change", station
    assert await world.backends() == before
    await world.change()
    run.go_on()


def _names_the_way_out(said: str) -> bool:
    return said.startswith("RuntimeError: this ") and "made before a fork" in said and "make it there" in said


def test_the_table_of_calls_is_complete() -> None:
    """Each public coroutine of the classes that hold connections is made in a child and in another event loop."""
    assert set(CALLS) == public_coroutines() - CLOSING


@pytest.mark.parametrize("own", ["nothing", "pool", "client"])
async def test_children_do_not_disturb_their_parent(
    chief: str, admin: asyncpg.Connection, spotify: FakeSpotify, own: str
) -> None:
    """Children say where to make an object, send nothing, and end in every way while their parent goes on."""
    async with surroundings(admin, spotify, chief) as world:
        await children_leave_the_parent_alone(world, own)


@pytest.mark.long
@pytest.mark.parametrize("own", ["nothing", "client"])
async def test_children_do_not_disturb_their_parent_over_tls(
    chief: str, admin: asyncpg.Connection, spotify: FakeSpotify, own: str, tmp_path: Path
) -> None:
    """The same over TLS to Spotify, where a single byte of a child would end the conversation."""
    async with surroundings(admin, spotify, chief, pem=certificate(tmp_path)) as world:
        await children_leave_the_parent_alone(world, own)


@pytest.fixture(scope="module")
def encrypted_server() -> Iterator[Database]:
    """A server that speaks TLS."""
    if not SYSTEM_15.is_dir():
        pytest.skip("needs a server of PostgreSQL that speaks TLS")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)  # as root, the server runs as another
    pem = certificate(folder)
    pem.chmod(0o600)
    if os.geteuid() == 0:
        shutil.chown(pem, "nobody")
    with serving(SYSTEM_15, ssl="on", ssl_cert_file=str(pem), ssl_key_file=str(pem)) as server:
        yield server
    shutil.rmtree(folder)


@pytest.mark.long
async def test_children_do_not_disturb_their_parent_over_tls_to_postgres(
    encrypted_server: Database, spotify: FakeSpotify
) -> None:
    """The same over TLS to Postgres."""
    admin = await asyncpg.connect(encrypted_server.admin_dsn)
    await admin.execute("create role chief login password 'chief'; grant service_role, spotconn to chief")
    try:
        async with surroundings(admin, spotify, encrypted_server.login_dsn("chief")) as world:
            world.settings["dsn"] = f"{world.settings['dsn']}?sslmode=require"
            await children_leave_the_parent_alone(world, "nothing")
    finally:
        await admin.close()


@pytest.mark.parametrize("own", [False, True], ids=["the store's pool", "the caller's pool"])
def test_a_store_works_over_tls_on_uvloop(encrypted_server: Database, own: bool) -> None:  # noqa: FBT001  a parameter
    """Its transports take no weak reference."""
    uvloop = pytest.importorskip("uvloop", reason="the extra uvloop is not installed")
    dsn = f"{encrypted_server.dsn}?sslmode=require"

    async def verify() -> None:
        if own:
            async with asyncpg.create_pool(dsn, min_size=1) as pool:
                await ConnectionStore(pool).verify()
        else:
            async with ConnectionStore.open(dsn) as store:
                await store.verify()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(verify())


async def settled(world: World) -> int:
    """Count what has reached the servers, once the parent has compared what it was notified of with its row."""
    bursts, quiet = world.bursts(), 0
    async with asyncio.timeout(20):
        while quiet < 10:
            await asyncio.sleep(0.02)
            quiet = quiet + 1 if world.bursts() == bursts else 0
            bursts = world.bursts()
    return bursts


@pytest.mark.long
@pytest.mark.parametrize(
    ("waits_for", "own"),
    [("begin_refresh", "nothing"), ("begin_refresh", "pool"), ("Spotify", "nothing"), ("finish_refresh", "nothing")],
)
async def test_a_flight_is_the_parents_alone(
    chief: str, admin: asyncpg.Connection, spotify: FakeSpotify, waits_for: str, own: str
) -> None:
    """Children that go on with a refresh, or cancel it, send nothing; the parent's caller has its token."""
    async with surroundings(admin, spotify, chief) as world, AsyncExitStack() as stack:
        way = FaultProxy(int(str(world.settings["dsn"]).rpartition(":")[2].partition("/")[0]))
        await stack.enter_async_context(way.serve())
        flight = {"scenario": "flight", "own": own, "dsn": way.dsn(str(world.settings["dsn"]))}
        async with program(world.settings | flight) as run:
            await run.passes("warm")
            held = spotify.hold() if waits_for == "Spotify" else way.hold(waits_for.encode(), answer=True)
            with held:
                assert (await run.at())["at"] == "flying"
                await held.reached()
                before = await settled(world), spotify.token_calls
                run.go_on()
                forked = await run.at()
                assert forked["at"] == "forked", forked
                assert forked["hasty"] in {"cancelled", "RuntimeError", "DatabaseUnavailable"}
                assert (world.bursts(), spotify.token_calls) == before
            run.go_on()
            landed = await run.at()
            assert landed["at"] == "landed", landed
            run.go_on()
            await run.passes("over")
        stored = await admin.fetchrow("select * from public.spotify_connections where user_id = $1", world.users[1])
        assert stored is not None
        assert stored["access_token"] == landed["token"]
        assert landed["waiting"] in {"waits", "RuntimeError", "DatabaseUnavailable"}
        assert spotify.refreshes["account-1"] == 1
        assert await world.wrong_rows() == []
