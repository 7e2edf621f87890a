"""The servers, the users and the worker processes of a run."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import asyncpg

from chaos import audit
from chaos.history import History
from chaos.plan import Plan
from chaos.processes import Process
from chaos.spotify import ChaosSpotify, account_of
from spotconn import AesGcmSivCipher, ConnectionStore, Profile
from support.database import Database
from support.fault_proxy import FaultProxy

FIRST_TTL = 6
"""Seconds that the first tokens live."""


@dataclass
class World:
    """Everything that runs.

    Attributes:
        keys: the ring of the services; a rekey may use another order.
        url: of Spotify.
        start: the time from which the plan counts, in seconds since the epoch.
        processes: those that run now, by number.
    """

    plan: Plan
    history: History
    database: Database
    proxy: FaultProxy
    spotify: ChaosSpotify
    url: str
    keys: list[str]
    users: list[UUID] = field(default_factory=list[UUID])
    start: float = 0.0
    processes: list[Process] = field(default_factory=list[Process])
    _born: dict[int, int] = field(default_factory=dict[int, int])

    @property
    def cipher(self) -> AesGcmSivCipher:
        return AesGcmSivCipher(self.keys)

    @asynccontextmanager
    async def session(self, name: str = "foreign") -> AsyncGenerator[asyncpg.Connection]:
        """A superuser's session past the proxy; the triggers record its name."""
        connection = await asyncpg.connect(
            self.database.admin_dsn, timeout=10, command_timeout=30, server_settings={"application_name": name}
        )
        try:
            yield connection
        finally:
            connection.terminate()

    async def begin_process(self, number: int) -> Process:
        """Start a process under its number, in place of one that was killed."""
        born = self._born[number] = self._born.get(number, -1) + 1
        process = Process(f"w{number}.{born}", self.history, [*self.keys, "demo-secret", "app:app"])
        if number < len(self.processes):
            self.processes[number] = process
        else:
            self.processes.append(process)
        await process.start(
            {
                "dsn": self.proxy.dsn(self.database.dsn),
                "url": self.url,
                "keys": self.keys,
                "users": [str(user) for user in self.users],
                "calls": [(call.at, call.kind, call.args) for call in self.plan.calls[number]],
                "restarted": born > 0,
            }
        )
        return process

    async def connect_all(self) -> None:
        """Add the users, each connected to an account of its own."""
        async with self.session() as admin:
            await audit.install(admin)
            for _ in range(self.plan.users):
                self.users.append(await admin.fetchval("insert into auth.users default values returning id"))
        async with ConnectionStore.open(self.database.dsn, cipher=self.cipher, max_size=2) as store:
            for number, user in enumerate(self.users):
                grant = self.spotify.authorize_elsewhere(number, ttl=FIRST_TTL)
                await store.save(user, grant, Profile(spotify_user_id=account_of(number)))


@asynccontextmanager
async def world_of(plan: Plan, database: Database) -> AsyncGenerator[World]:
    """Context manager: the servers and the processes. However the block ends, nothing of them is left."""
    history = History(users=plan.users)
    spotify = ChaosSpotify(history, ttls=plan.ttls, latencies=plan.latencies)
    keys = [AesGcmSivCipher.generate_key() for _ in range(2)]
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(spotify.serve())
        proxy = await stack.enter_async_context(FaultProxy(database.server.port).serve())
        world = World(plan, history, database, proxy, spotify, url, keys)
        await world.connect_all()
        try:
            await _start_all(world)
            yield world
        finally:
            await asyncio.gather(*[process.abandon() for process in world.processes])


async def _start_all(world: World) -> None:
    for number in range(len(world.plan.calls)):
        await world.begin_process(number)
    for process in world.processes:
        await process.ready()
    world.start = time.time()
    for process in world.processes:
        await process.go(world.start)


def summary(history: History) -> dict[str, Any]:
    """Return the figures of a run."""
    errors: dict[str, int] = {}
    for call in history.calls:
        if call.error:
            errors[call.error] = errors.get(call.error, 0) + 1
    return {
        "calls": len(history.calls),
        "served": sum(call.result is not None for call in history.calls),
        "errors": errors,
        "requests": len(history.requests),
        "refreshes": sum(request.granted is not None for request in history.requests),
        "writes": len(history.writes),
        "killed": len(history.kills),
        "faults": Counter("in_vain" if fault.vain else fault.kind for fault in history.faults),
    }
