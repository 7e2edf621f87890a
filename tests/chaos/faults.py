"""The faults of a plan, done to a world at their times."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import asyncpg

from chaos.history import Fault, Request, Step
from chaos.plan import Action
from chaos.world import World
from spotconn import AesGcmSivCipher, ConnectionAdmin, SpotconnError
from support.database_clock import DatabaseClock

REKEY_TIMEOUT = 8.0
HEALS = 30.0
"""Seconds to set the clock of the database right."""
SEEN = 0.3
"""Seconds until every statement reads the clock as it was set."""
SAVES, REFRESHED_WITHIN = 0.2, 4.0
"""Seconds in which most grants are saved, and most ended tokens are refreshed."""
LAST_RETURN = 12.0
"""Seconds before the end from which no row goes back in time: the processes need some to mend it."""
CLOSING = 0.5
"""Seconds before the end of the plan at which the first process is told to close."""

BROKEN = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)
_STALE = "select * from public.spotify_connections where user_id = $1"
_WRITE_ROW = """
update public.spotify_connections set spotify_user_id = $2, access_token = $3, refresh_token = $4, expires_at = $5,
    connected_at = $6, display_name = $7, email = $8, scope = $9
where user_id = $1
"""
_AGE_ROW = """
update public.spotify_connections
set expires_at = least(expires_at, spotconn.now() + make_interval(secs => $2)) where user_id = $1
"""


_SNAPSHOT = """
select to_jsonb(stored) as stored, to_jsonb(state) as state
from public.spotify_connections as stored join spotconn.refresh_state as state using (user_id) where user_id = $1
"""
# No trigger fires: the rows of another server just are earlier ones.
_SILENCE = """
set local session_replication_role = replica;
alter table public.spotify_connections disable trigger spotconn_notify_change
"""
_NOTIFY = "alter table public.spotify_connections enable always trigger spotconn_notify_change"
_PUT_BACK = "insert into {0} select * from jsonb_populate_record(null::{0}, $1)"
_NOTE = """
insert into chaos.written (at, user_id, operation, writer, refresh_token)
select clock_timestamp(), user_id, $2, 'failover', refresh_token from public.spotify_connections where user_id = $1
"""


class Faults:
    """Does the faults.

    Args:
        world: to break.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._running: set[asyncio.Task[None]] = set()
        self._clock = asyncio.Lock()

    async def run(self) -> None:
        """Do all at their times."""
        for action in self._world.plan.faults:
            await asyncio.sleep(self._world.start + action.at - time.time())
            task = asyncio.create_task(self._do(action))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        await asyncio.sleep(self._world.start + self._world.plan.seconds - CLOSING - time.time())

    async def end(self) -> None:
        """Wait for all faults."""
        if self._running:
            await asyncio.wait(self._running, timeout=10)

    async def heal(self) -> None:
        """Leave nothing broken."""
        for task in self._running:
            task.cancel()
        self._world.proxy.heal()
        self._world.spotify.heal()
        for process in self._world.processes:
            process.thaw()
        if self._world.history.steps:
            async with asyncio.timeout(HEALS):
                await self._step_clock(0.0)

    async def _do(self, action: Action) -> None:
        done: Callable[..., Awaitable[None]] = getattr(self, f"_{action.kind}")
        began, vain = time.time(), False
        try:
            await done(**action.args)
        except BROKEN:
            vain = True  # other faults were in the way
        finally:
            self._world.history.faults.append(Fault(action.kind, action.args, began, time.time(), vain))

    async def _cut(self) -> None:
        self._world.proxy.cut()

    async def _refuse(self, seconds: float) -> None:
        self._world.proxy.refuses = True
        self._world.proxy.cut()
        await asyncio.sleep(seconds)
        self._world.proxy.refuses = False

    async def _freeze_network(self, seconds: float, *, requests: bool, answers: bool) -> None:
        self._world.proxy.freeze(requests=requests, answers=answers)
        await asyncio.sleep(seconds)
        self._world.proxy.thaw()

    async def _slow_network(self, seconds: float, delay: float) -> None:
        self._world.proxy.delay = delay
        await asyncio.sleep(seconds)
        self._world.proxy.delay = 0.0

    async def _hold(self, statement: str, seconds: float, *, answer: bool) -> None:
        with self._world.proxy.hold(statement.encode(), answer=answer):
            await asyncio.sleep(seconds)

    async def _terminate(self) -> None:
        async with self._world.session() as admin:
            await admin.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'")

    async def _restart(self) -> None:
        await asyncio.to_thread(self._world.database.server.restart, immediate=True)

    async def _lock_row(self, user: int, seconds: float) -> None:
        async with self._world.session() as admin, admin.transaction():
            await admin.execute(_STALE + " for update", self._world.users[user])
            await asyncio.sleep(seconds)

    async def _spotify(self, mode: str, seconds: float, delay: float) -> None:
        change = self._world.spotify.break_down(mode, delay)
        await asyncio.sleep(seconds)
        self._world.spotify.heal(change)

    async def _lose_answer(self) -> None:
        self._world.spotify.lose += 1

    async def _foreign_same_end(self, user: int, seconds: float) -> None:
        await self._world.spotify.asked(user=user, seconds=seconds)
        grant = self._world.spotify.authorize_elsewhere(user)
        async with self._world.session() as admin:
            await admin.execute(
                "update public.spotify_connections set access_token = $2, refresh_token = $3 where user_id = $1",
                self._world.users[user],
                grant.access_token,
                grant.refresh_token,
            )

    async def _foreign_names(self, user: int, seconds: float) -> None:
        await self._world.spotify.asked(user=user, seconds=seconds)
        async with self._world.session() as admin:
            await admin.execute(
                "update public.spotify_connections set display_name = $2 where user_id = $1",
                self._world.users[user],
                f"name {time.time()}",
            )

    @property
    def _too_late(self) -> bool:
        return time.time() > self._world.start + self._world.plan.seconds - LAST_RETURN

    async def _foreign_stale_row(self, user: int, seconds: float) -> None:
        if self._too_late:
            return
        user_id = self._world.users[user]
        async with self._world.session() as admin:
            row = await admin.fetchrow(_STALE, user_id)
            if row is None:
                return
            lasting = self._world.spotify.lasting
            lasting.add(user)
            await age(admin, user_id, -5.0)
            await asyncio.sleep(seconds / 2)
            await self._world.spotify.asked(user=user, seconds=seconds)
            lasting.discard(user)
            columns = ("spotify_user_id", "access_token", "refresh_token", "expires_at", "connected_at")
            names = ("display_name", "email", "scope")
            await admin.execute(_WRITE_ROW, user_id, *[row[column] for column in (*columns, *names)])

    async def _foreign_refresh_token(self, user: int, seconds: float) -> None:
        await self._world.spotify.asked(user=user, seconds=seconds)
        grant = self._world.spotify.authorize_elsewhere(user)
        async with self._world.session() as admin:
            await admin.execute(
                "update public.spotify_connections set refresh_token = $2 where user_id = $1",
                self._world.users[user],
                grant.refresh_token,
            )

    async def _step_clock(self, offset: float) -> None:
        async with self._clock:
            step = Step(time.time(), float("inf"), offset)
            self._world.history.steps.append(step)
            while step.ended > time.time():
                with suppress(*BROKEN):  # it may be set all the same: once more, until it is known
                    async with self._world.session("clock") as admin:
                        await DatabaseClock(admin).set_offset(offset)
                    step.ended = time.time()
                await asyncio.sleep(SEEN)
            step.ended += SEEN

    async def _fail_over(self, user: int, refreshes: int, *, kills: bool) -> None:
        """Let the rows of a user be those of a server that has missed the last refreshes."""
        if self._too_late:
            return
        user_id = self._world.users[user]
        async with self._world.session() as admin:
            await age(admin, user_id, -5.0)
            if (earlier := await admin.fetchrow(_SNAPSHOT, user_id)) is None:
                return
        if (last := await self._refreshed(user, refreshes)) is None:
            return
        if kills:
            await self._kill(int(last.process[1]), 0.0)
        async with self._world.session("failover") as admin, admin.transaction():
            await admin.execute(_SILENCE)
            there = await admin.execute("delete from public.spotify_connections where user_id = $1", user_id)
            await admin.execute("delete from spotconn.refresh_state where user_id = $1", user_id)
            await admin.execute(_PUT_BACK.format("public.spotify_connections"), earlier["stored"])
            await admin.execute(_PUT_BACK.format("spotconn.refresh_state"), earlier["state"])
            await admin.execute(_NOTE, user_id, "INSERT" if there == "DELETE 0" else "UPDATE")
            await admin.execute(_NOTIFY)
        await self._terminate()
        self._world.proxy.cut()

    async def _refreshed(self, user: int, refreshes: int) -> Request | None:
        """Wait until a user is refreshed some times, each for long, and return the last request."""
        last: Request | None = None
        lasting = self._world.spotify.lasting
        lasting.add(user)
        try:
            for number in range(refreshes):
                if number:
                    async with self._world.session() as admin:
                        await age(admin, self._world.users[user], -5.0)
                since = time.time() if last is None else last.ended or last.began
                last = await self._world.spotify.granted(user, since, REFRESHED_WITHIN) or last
                await asyncio.sleep(SAVES)
        finally:
            lasting.discard(user)
        return last

    async def _age(self, user: int, left: float) -> None:
        async with self._world.session() as admin:
            await age(admin, self._world.users[user], left)

    async def _rekey(self, ring: int) -> None:
        keys = self._world.keys if ring == 0 else self._world.keys[::-1]
        with suppress(SpotconnError):
            async with (
                asyncio.timeout(REKEY_TIMEOUT),
                ConnectionAdmin.open(
                    self._world.database.admin_dsn,
                    cipher=AesGcmSivCipher(keys),
                    server_settings={"application_name": "rekey"},
                ) as admin,
            ):
                await admin.rekey()

    async def _freeze(self, process: int, seconds: float) -> None:
        frozen = self._world.processes[process]
        frozen.freeze()
        await asyncio.sleep(seconds)
        frozen.thaw()

    async def _kill(self, process: int, seconds: float) -> None:
        killed = self._world.processes[process]
        await self._world.spotify.asked(process=killed.name, seconds=seconds)
        if not killed.runs:
            return
        await killed.kill()
        begun = await self._world.begin_process(process)
        with suppress(TimeoutError):  # the database may be away; then it has ended, and is started once more at the end
            await begun.ready()
            await begun.go(self._world.start)


async def age(admin: asyncpg.Connection, user: Any, left: float) -> None:
    """Let the access token of a user end in `left` seconds, as the row has it."""
    await admin.execute(_AGE_ROW, user, left)
