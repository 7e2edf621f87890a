"""Two servers with streaming replication, a proxy that is turned to the new primary, and PgBouncer."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from _pytest.outcomes import Skipped

from failover.ways import POOLER, TWO_SERVERS, Way, logins_sql
from failover.world import DETECTION, World
from support.fault_proxy import FaultProxy
from support.pgbouncer import PgBouncer, pgbouncer
from support.postgres_server import DATABASE, Server
from support.replication import Pair, replicated

POOLS_END = 4.0
"""Seconds in which the sessions of pools are ended on an old primary."""
SETTINGS_OF_POOLER = """
server_login_retry = 1
server_connect_timeout = 3
"""
"""By default PgBouncer asks a server that did not answer again after 15 seconds."""
_REFUSE = f"alter database {DATABASE} allow_connections {{}}"
# Those that listen run nothing of these.
END_POOLS = """
select pg_terminate_backend(pid) from pg_stat_activity
where usename like 'pool_%' or (usename like 'client_%' and query ~ '(refresh|get_access_token|as_user)')
"""


class TwoServers(World):
    """A pair of servers, whose standby is promoted by this process.

    Args:
        pair: of the servers.
        proxy: to the primary.
        bouncer: before the primary, where PgBouncer is installed.
    """

    name = "two servers"

    def __init__(self, pair: Pair, proxy: FaultProxy, bouncer: PgBouncer | None) -> None:
        self._pair = pair
        self._proxy = proxy
        self._bouncer = bouncer
        self._first = pair.primary
        self.ways = [way for way in TWO_SERVERS if bouncer or way is not POOLER]

    def dsn(self, way: Way, login: str) -> str:
        if way.route == "proxy":
            return self._proxy.dsn(self._first.dsn(login))
        if way.route == "pooler":
            assert self._bouncer
            return self._bouncer.through(self._first.dsn(login))
        return self._pair.dsn(login, *([way.parameters] if way.parameters else []))

    def fresh_dsns(self, way: Way) -> Sequence[str]:
        if way.route == "hosts":
            return [server.dsn(way.fresh) for server in self._pair.servers]
        return [self.dsn(way, way.fresh)]

    def primary_dsn(self) -> str:
        return self._pair.primary.admin_dsn

    def server_dsns(self) -> Sequence[str]:
        return [server.admin_dsn for server in self._pair.servers]

    async def heal(self) -> None:
        """Undo everything; the server that was first is the primary again, as DSNs name it first."""
        await asyncio.to_thread(self._heal)
        self._turn()

    def _heal(self) -> None:
        pair = self._pair
        for server in pair.servers:
            server.thaw()
            if not server.runs:
                server.start()
            server.set("default_transaction_read_only", None)
        pair.set_synchronous(on=False)
        pair.primary.execute(_REFUSE.format("on"))
        pair.rejoin()
        if pair.primary is not self._first:
            pair.wait_until_replayed()
            pair.switch()

    async def set_synchronous(self, *, on: bool) -> None:
        await asyncio.to_thread(self._pair.set_synchronous, on=on)

    async def switch(self) -> None:
        await self._promote_after(self._pair.primary.stop, wait=0)
        await asyncio.to_thread(self._pair.rejoin)

    async def kill(self) -> None:
        await self._promote_after(self._pair.primary.kill)

    async def freeze(self) -> None:
        await self._promote_after(self._pair.primary.freeze)

    async def split(self) -> None:
        old = self._pair.primary
        await self._promote_after(lambda: None, cut=False)
        await asyncio.to_thread(old.execute, _REFUSE.format("off"))
        async with asyncio.timeout(POOLS_END + 30):
            for _ in range(10):
                await asyncio.to_thread(old.execute, END_POOLS)
                await asyncio.sleep(POOLS_END / 10)

    async def restart(self) -> None:
        await asyncio.to_thread(self._pair.primary.restart, immediate=True)

    async def turn_read_only(self) -> None:
        await self._promote_after(self._pair.primary.set_read_only, cut=False)

    async def demote(self) -> None:
        """Promote the standby and let the old primary follow it, seconds before anything is turned."""
        await asyncio.to_thread(self._pair.switch)
        await asyncio.sleep(DETECTION)
        self._turn()

    async def lose_commits(self, seconds: float) -> None:
        await asyncio.to_thread(self._pair.pause_replication)
        await asyncio.sleep(seconds)
        await self._promote_after(self._pair.primary.kill, wait=0)

    async def delay_commits(self, seconds: float) -> None:
        await asyncio.to_thread(self._pair.standby.freeze)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(self._pair.standby.thaw)

    async def take_away(self, seconds: float) -> None:
        for server in (self._pair.primary, self._pair.standby):
            await asyncio.to_thread(server.kill)
        await asyncio.sleep(seconds)
        for server in (self._pair.standby, self._pair.primary):
            await asyncio.to_thread(server.start)

    async def _promote_after(self, fault: Callable[[], None], *, wait: float = DETECTION, cut: bool = True) -> None:
        await asyncio.to_thread(fault)
        await asyncio.sleep(wait)
        await asyncio.to_thread(self._pair.promote)
        self._turn(cut=cut)

    def _turn(self, *, cut: bool = True) -> None:
        """Let the proxy and PgBouncer lead to the primary, as whoever watches the servers would."""
        self._proxy.turn_to(self._pair.primary.port)
        if cut:
            self._proxy.cut()
        if self._bouncer:
            self._bouncer.turn(self._pair.primary.port)


@asynccontextmanager
async def two_servers(programs: Path | None = None) -> AsyncGenerator[TwoServers]:
    """Context manager: the servers, the proxy and PgBouncer."""
    async with AsyncExitStack() as stack:
        pair = stack.enter_context(replicated(programs, max_connections="1000"))
        _make_logins(pair.primary)
        proxy = await stack.enter_async_context(FaultProxy(pair.primary.port).serve())
        bouncer: PgBouncer | None = None
        try:
            logins = [login for way in TWO_SERVERS for login in way.logins]
            bouncer = stack.enter_context(pgbouncer(pair.primary.port, size=10, logins=logins, more=SETTINGS_OF_POOLER))
        except Skipped as reason:
            print(f"skipped: {reason}")
        yield TwoServers(pair, proxy, bouncer)


def _make_logins(primary: Server) -> None:
    primary.execute(*logins_sql(TWO_SERVERS), database=DATABASE)
