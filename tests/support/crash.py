"""Real processes to be killed, and the points of a refresh at which they are, found from outside."""

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg

from spotconn.testing import Answer, FakeSpotify
from support.database import Database
from support.fault_proxy import FaultProxy

CRASH = "crash"
"""The property of a test's report that is a row of the crash matrix, printed at the end of the run."""
CRASH_COLUMNS = ("killed", "token was", "refresh tokens", "the next process gets", "after", "token calls")
LEASE = 4.5
MANAGER: dict[str, Any] = {"lease": LEASE, "refresh_timeout": 3, "cache_ttl": 0}
"""Arguments of every manager."""


class Worker:
    """A real process with a manager of its own."""

    def __init__(self, process: asyncio.subprocess.Process, settings: dict[str, Any]) -> None:
        self._process = process
        self._is_ready = False
        self._answer = b""
        self._write(json.dumps(settings))

    async def ready(self) -> None:
        if not self._is_ready:
            assert await self._line() == b"ready\n"
            self._is_ready = True

    def order(self, user: UUID) -> None:
        self._write(str(user))

    async def answer(self) -> dict[str, Any]:
        await self.ready()
        line, self._answer = self._answer or await self._line(), b""
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def retried_answer(self, user: UUID) -> tuple[dict[str, Any], int]:
        """What a caller gets who tries again when the lease is over, as RefreshInProgress says; and at which try."""
        tries = 0
        while True:
            tries += 1
            self.order(user)
            answer = await self.answer()
            if answer.get("error") != "RefreshInProgress":
                return answer, tries
            await asyncio.sleep(answer["retry_after"])

    async def kill(self) -> None:
        self._process.kill()
        await self._process.wait()

    async def leave(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()

    async def order_until(self, reached: Coroutine[Any, Any, None], user: UUID) -> None:
        """Order until a point is reached, also where a turn is given back before it on a busy machine."""
        await self.ready()
        reaching = asyncio.create_task(reached)
        self.order(user)
        while not reaching.done():
            answering = asyncio.create_task(self._line())
            await asyncio.wait([reaching, answering], return_when=asyncio.FIRST_COMPLETED)
            if answering.cancel():
                return
            self._answer = answering.result()
            if "token" in json.loads(self._answer):  # the point comes in the background
                await reaching
            else:
                self.order(user)

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())

    async def _line(self) -> bytes:
        assert self._process.stdout is not None
        return await self._process.stdout.readline()


@asynccontextmanager
async def working(dsn: str, url: str) -> AsyncGenerator[Worker]:
    """A process that starts up; it ends with the block, and with this process."""
    script = str(Path(__file__).with_name("token_worker.py"))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, script, stdin=pipe, stdout=pipe)
    worker = Worker(process, {"dsn": dsn, "url": url, "manager": MANAGER})
    try:
        yield worker
    finally:
        await worker.leave()


@dataclass(frozen=True)
class Scene:
    """A user, and what is between a process and its ends.

    Attributes:
        url: of Spotify.
    """

    database: Database
    admin: asyncpg.Connection
    proxy: FaultProxy
    spotify: FakeSpotify
    url: str
    user: UUID


@asynccontextmanager
async def before_the_claim(scene: Scene, victim: Worker) -> AsyncGenerator[None]:
    with scene.proxy.hold(b"begin_refresh") as held:
        await victim.order_until(held.reached(), scene.user)
        yield


@asynccontextmanager
async def after_the_claim(scene: Scene, victim: Worker) -> AsyncGenerator[None]:
    with scene.proxy.hold(b"begin_refresh", answer=True) as held:
        await victim.order_until(held.reached(), scene.user)
        yield


@asynccontextmanager
async def before_spotify_acts(scene: Scene, victim: Worker) -> AsyncGenerator[None]:
    scene.spotify.script(Answer.black_hole())
    with scene.spotify.hold(before=True, calls=1) as held:
        await victim.order_until(held.reached(), scene.user)
        yield


@asynccontextmanager
async def while_spotify_answers(scene: Scene, victim: Worker) -> AsyncGenerator[None]:
    with scene.spotify.hold(calls=1) as held:
        await victim.order_until(held.reached(), scene.user)
        yield


@asynccontextmanager
async def after_the_answer(scene: Scene, victim: Worker) -> AsyncGenerator[None]:
    with scene.proxy.hold(b"finish_refresh") as held:
        await victim.order_until(held.reached(), scene.user)
        yield


GATE = """
create table public.gate (is_open boolean);
grant select on public.gate to public;
create function public.wait_at_gate() returns trigger language plpgsql as $$
begin
    while not exists (select from public.gate) loop
        perform pg_sleep(0.01);
    end loop;
    return new;
end
$$;
create trigger wait_at_gate before update on public.spotify_connections
    for each row execute function public.wait_at_gate()
"""
NO_GATE = """
drop trigger wait_at_gate on public.spotify_connections;
drop function public.wait_at_gate;
drop table public.gate
"""


@asynccontextmanager
async def during_the_save(scene: Scene, victim: Worker) -> AsyncGenerator[None]:
    """The save is within its statement in Postgres, and ends when the process is dead.

    It waits for no lock, for which it would wait half a second at most.
    """
    await scene.admin.execute(GATE)
    try:
        with scene.proxy.hold(b"finish_refresh") as held:
            await victim.order_until(held.reached(), scene.user)
            held.release()
            waiting = "select count(*) from pg_stat_activity where usename = 'app' and wait_event = 'PgSleep'"
            while not await scene.admin.fetchval(waiting):
                await asyncio.sleep(0.01)
            yield
    finally:
        await scene.admin.execute("insert into public.gate values (true)")
        await scene.admin.execute(NO_GATE)  # after the save, whose lock it waits for


@asynccontextmanager
async def after_the_save(scene: Scene, victim: Worker) -> AsyncGenerator[None]:
    with scene.proxy.hold(b"finish_refresh", answer=True) as held:
        await victim.order_until(held.reached(), scene.user)
        yield


@dataclass(frozen=True)
class Point:
    """Where a process is killed and what that costs the next one.

    Attributes:
        reach: brings the process there.
        delay: seconds that the next process may wait for the dead one, beside its own work.
        calls: of Spotify in all.
        lost: whether the only refresh token that is good dies with the process, if tokens are single-use.
    """

    reach: Callable[[Scene, Worker], AbstractAsyncContextManager[None]]
    delay: float
    calls: int
    lost: bool = False

    @property
    def name(self) -> str:
        return self.reach.__name__.replace("_", " ")


POINTS = [
    Point(before_the_claim, 0, 1),
    Point(after_the_claim, LEASE, 1),
    Point(before_spotify_acts, LEASE, 2),
    Point(while_spotify_answers, LEASE, 2, lost=True),
    Point(after_the_answer, LEASE, 2, lost=True),
    Point(during_the_save, 0, 1),
    Point(after_the_save, 0, 1),
]
