"""One scenario after the other on one world: what is started, done and collected."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

from failover.history import Call, History
from failover.processes import Process
from failover.scenarios import Scenario
from failover.sessions import Sessions
from failover.timing import Timing
from failover.users import Users
from failover.ways import Way
from failover.world import World
from spotconn.testing import FakeSpotify

STARTS = 60.0
"""Seconds for a process to be ready."""
ENDS = 90.0
"""Seconds for the calls of a process to end."""
STEP = 300.0
"""Seconds for the step of a scenario, beside those that it is given."""


class Run:
    """One scenario.

    Args:
        world: healed.
        ways: each measured alone.
    """

    def __init__(self, world: World, scenario: Scenario, ways: Sequence[Way], timing: Timing) -> None:
        self._world = world
        self._scenario = scenario
        self._ways = ways
        self._timing = timing.with_longer_tokens if scenario.loses_commits else timing
        self._spotify = FakeSpotify(rotation=True, token_ttl=self._timing.token_ttl)
        self._users = Users(self._spotify, ways, self._timing.token_ttl)
        self._sessions = Sessions()
        self._clients = {
            way.name: [
                Process("failover.client", f"client {number} of {way.name}") for number in range(scenario.clients)
            ]
            for way in ways
        }
        self._beside = Process("failover.beside", "the process beside the clients")
        self.histories = {
            way.name: History(
                scenario.name,
                way.name,
                synchronous=scenario.synchronous,
                hangs=scenario.hangs,
            )
            for way in ways
        }

    @property
    def _processes(self) -> list[Process]:
        return [*chain(*self._clients.values()), self._beside]

    async def run(self) -> list[History]:
        """Return what happened, by way."""
        await self._world.heal()
        await self._world.set_synchronous(on=self._scenario.synchronous)
        await self._users.connect_all(self._world.primary_dsn())
        async with self._spotify.serve() as url:
            try:
                await self._start(url)
                async with self._sessions.counted(self._world.server_dsns()):
                    await self._play()
                await self._collect()
                await asyncio.gather(*[self._close(way) for way in self._ways], self._beside.close())
            finally:
                await asyncio.gather(*[process.abandon() for process in self._processes])
            await self._judge_users(url)
        return [*self.histories.values()]

    async def _start(self, url: str) -> None:
        settings: dict[str, Any] = {"timing": asdict(self._timing), "url": url}
        for way in self._ways:
            own = {
                "dsn": self._world.dsn(way, way.client),
                "listen_dsn": self._world.listen_dsn(way),
                "users": [str(user) for user in self._users.of[way.name]],
                "uvloop": way.uvloop,
            }
            for client in self._clients[way.name]:
                await client.start(settings | own)
        pools = {way.name: self._world.dsn(way, way.pool) for way in self._ways}
        fresh = {way.fresh: [*self._world.fresh_dsns(way)] for way in self._ways}
        await self._beside.start(settings | {"pools": pools, "fresh": fresh})
        for way in self._ways:
            for client in self._clients[way.name]:
                loop = (await client.answer(STARTS))["loop"]
                assert loop.startswith("uvloop") is way.uvloop
        await self._beside.answer(STARTS)

    async def _play(self) -> None:
        for process in self._processes:
            process.order("go")
        await asyncio.sleep(self._timing.warm)
        for history in self.histories.values():
            history.began = time.time()
        async with asyncio.timeout(STEP):
            await self._scenario.play(self._world, self._timing)
        await asyncio.sleep(self._timing.settles)
        for name, times in (await self._users.disconnect_victims(self._world.primary_dsn())).items():
            self.histories[name].disconnected = times
        await asyncio.sleep(self._timing.observed)

    async def _collect(self) -> None:
        for process in self._processes:
            process.order("stop")
        for way in self._ways:
            history = self.histories[way.name]
            for client in self._clients[way.name]:
                try:
                    history.add(await client.answer(ENDS))
                except (RuntimeError, TimeoutError) as error:
                    history.problems.append(f"a client reported nothing: {error!r}")
            history.clients = len(self._clients[way.name])
            history.sessions = self._sessions.most.get(way.client, 0)
        beside = await self._beside.answer(ENDS)
        for way in self._ways:
            history = self.histories[way.name]
            history.pool = [Call(**write) for write in beside["writes"].get(way.name, [])]
            history.fresh = [Call(**write) for write in beside["writes"].get(way.fresh, [])]
            history.late = max(history.late, beside["late"])

    async def _close(self, way: Way) -> None:
        """Let the clients of a way close everything."""
        closings = [client.close() for client in self._clients[way.name]]
        for error in await asyncio.gather(*closings, return_exceptions=True):
            if error is not None:
                self.histories[way.name].problems.append(f"a client did not close: {error!r}")

    async def _judge_users(self, url: str) -> None:
        """Refresh each user by another process: who is lost, and who is connected again."""
        answers = await self._users.refresh_all(self._world.primary_dsn(), url, self._timing)
        for name, failed in answers.items():
            history = self.histories[name]
            victims = history.disconnected
            history.connected_again = [user for user in victims if user not in failed]
            history.lost = {user: text for user, text in failed.items() if user not in victims}
            history.lost |= {
                call.user: call.text
                for call in history.bad
                if call.error in {"ReauthorizationRequired", "NotConnected"} and not history.explained(call)
            }
