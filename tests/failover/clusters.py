"""The world of three nodes of Patroni with one etcd, behind HAProxy, and PgBouncer before that."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import asyncpg

from failover import haproxy
from failover.patroni import DATABASE, INSTALL, LOOP_WAIT, Cluster, Node, missing
from failover.pgbouncer import PgBouncer
from failover.programs import folder_of_programs, wait_until
from failover.two_servers import END_POOLS
from failover.ways import HOSTS, POOLER, PROXY, Way, logins_sql
from failover.world import Missing, World
from spotconn.testing import apply_schema

WAYS = (HOSTS, PROXY, POOLER)
POOLS_END = 4
"""Seconds in which the sessions of pools are ended on an old primary."""


class ClusterWorld(World):
    """Three nodes: each fault is what it is, and Patroni decides who takes over."""

    name = "Patroni"
    ways = WAYS

    def __init__(self, cluster: Cluster, proxy: haproxy.HAProxy, pooler: PgBouncer) -> None:
        self._cluster = cluster
        self._proxy = proxy
        self._pooler = pooler
        self._primary = cluster.leader()

    def dsn(self, way: Way, login: str) -> str:
        parameters = f"?{way.parameters}" if way.parameters else ""
        return f"postgresql://{login}:{login}@{self._address(way)}/{DATABASE}{parameters}"

    def listen_dsn(self, way: Way) -> str | None:
        """Behind the pooler, notifications come through HAProxy alone."""
        return self.dsn(PROXY, way.client) if way.route == "pooler" else None

    def fresh_dsns(self, way: Way) -> Sequence[str]:
        return [f"postgresql://{way.fresh}:{way.fresh}@{host}/{DATABASE}" for host in self._address(way).split(",")]

    def primary_dsn(self) -> str:
        return self._primary.admin_dsn

    def server_dsns(self) -> Sequence[str]:
        return [node.admin_dsn for node in self._cluster.nodes]

    async def heal(self) -> None:
        await asyncio.to_thread(self._heal)

    async def set_synchronous(self, *, on: bool) -> None:
        await asyncio.to_thread(self._cluster.set_synchronous, on=on)

    async def switch(self) -> None:
        await asyncio.to_thread(self._cluster.switch)
        await self._taken_over()

    async def kill(self) -> None:
        await asyncio.to_thread(self._primary.kill)
        await self._taken_over()

    async def freeze(self) -> None:
        await asyncio.to_thread(self._primary.freeze)
        await self._taken_over()

    async def wake(self, seconds: float) -> None:
        """Freeze the primary for some seconds.

        Patroni 3.0.2 gives one that wakes the leader's lock back, and rewinds what was committed in between.
        """
        old, awake = self._primary, asyncio.create_task(asyncio.sleep(seconds))
        await self.freeze()
        await awake
        await asyncio.to_thread(old.thaw)
        await asyncio.sleep(LOOP_WAIT)
        await asyncio.to_thread(self._cluster.wait_until_whole)
        self._primary = await asyncio.to_thread(self._cluster.leader)

    async def isolate(self) -> None:
        """Cut the primary off from etcd: it demotes itself, and another one takes over."""
        await asyncio.to_thread(self._primary.etcd.freeze)
        await self._taken_over()

    async def split(self) -> None:
        """Freeze Patroni alone: its Postgres goes on as a primary, with the sessions that it has."""
        old = self._primary
        await asyncio.to_thread(old.freeze_patroni)
        await self._taken_over()
        await asyncio.to_thread(old.refuse_sessions)
        for _ in range(POOLS_END):
            await asyncio.to_thread(old.execute, END_POOLS)
            await asyncio.sleep(1)

    async def restart(self) -> None:
        await asyncio.to_thread(self._primary.restart)

    async def lose_commits(self, seconds: float) -> None:
        await asyncio.to_thread(self._primary.pause_replication)
        await asyncio.sleep(seconds)
        await self.kill()

    async def delay_commits(self, seconds: float) -> None:
        await asyncio.to_thread(self._primary.pause_replication)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(self._primary.thaw)

    def _address(self, way: Way) -> str:
        ports = {
            "hosts": [node.entry.port for node in self._cluster.nodes],
            "proxy": [self._proxy.port],
            "pooler": [self._pooler.port],
        }[way.route]
        return ",".join(f"127.0.0.1:{port}" for port in ports)

    async def _taken_over(self) -> None:
        self._primary = await asyncio.to_thread(self._cluster.new_leader, self._primary)

    def _heal(self) -> None:
        """The node that was first leads again, as DSNs name it first."""
        cluster = self._cluster
        for node in cluster.nodes:
            node.heal()
        cluster.leader()
        cluster.set_synchronous(on=False)
        first = cluster.nodes[0]
        if cluster.leader() is not first:
            cluster.switch(first)
            cluster.wait_until_whole()
        self._primary = first
        for way in (PROXY, POOLER):
            wait_until(partial(_writes, *self.fresh_dsns(way)), f"{way.name} does not lead to the primary")


async def _insert(dsn: str) -> None:
    connection = await asyncpg.connect(dsn, timeout=3, command_timeout=3, statement_cache_size=0)
    try:
        await connection.execute("insert into failover.written (writer) values ('heal')")
    finally:
        connection.terminate()


def _writes(dsn: str) -> bool:
    try:
        asyncio.run(_insert(dsn))
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
        return False
    return True


async def _prepare(node: Node) -> None:
    admin = await asyncpg.connect(node.dsn_of_admin("postgres"))
    await admin.execute(f"create database {DATABASE}")
    await admin.close()
    await apply_schema(node.admin_dsn)
    admin = await asyncpg.connect(node.admin_dsn)
    for statement in logins_sql(WAYS):
        await admin.execute(statement)
    await admin.close()


@asynccontextmanager
async def cluster_world() -> AsyncGenerator[ClusterWorld]:
    """Start everything; however the block ends, nothing of it is left, also when this process is killed."""
    if absent := missing():
        raise Missing(f"{', '.join(absent)} ({INSTALL})")
    with folder_of_programs() as folder:
        cluster = await asyncio.to_thread(Cluster, folder)
        await asyncio.to_thread(cluster.start)
        await _prepare(await asyncio.to_thread(cluster.leader))
        nodes = {node.name: (node.port, node.rest) for node in cluster.nodes}
        proxy = await asyncio.to_thread(haproxy.to_primary, folder / "haproxy", nodes)
        pooler = PgBouncer(folder / "pgbouncer", proxy.port, [login for way in WAYS for login in way.logins])
        await asyncio.to_thread(pooler.start)
        world = ClusterWorld(cluster, proxy, pooler)
        await world.heal()
        yield world
