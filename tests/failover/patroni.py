"""Three nodes of Patroni with one etcd: a leader and two standbys by streaming replication."""

import asyncio
import json
import os
import secrets
import signal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import httpx

from failover import haproxy
from failover.programs import READY, Program, find, free_port, wait_until
from support.database import SYSTEM_15

PROGRAMS = ("patroni", "etcd", "haproxy", "pgbouncer")
INSTALL = "Debian: apt-get install postgresql-15 patroni etcd-server haproxy pgbouncer"
NAMES = ("one", "two", "three")
SCOPE = "spotconn"
TTL, LOOP_WAIT, RETRY_TIMEOUT = 20, 2, 3
"""Seconds of Patroni: the least `ttl` that it allows, and `loop_wait + 2 * retry_timeout` below it."""
HOST = "127.0.0.1"
DATABASE = "spotconn"

_PARAMETERS = {
    "fsync": "off",  # commits survive a server that is killed; fsync is for machines that are
    "max_connections": 500,
    "shared_buffers": "16MB",
    "unix_socket_directories": "",
    "wal_keep_size": "256MB",
    "wal_retrieve_retry_interval": "200ms",
}


def missing() -> list[str]:
    """Return the programs that are not installed."""
    absent = [program for program in PROGRAMS if find(program) is None]
    return absent if (SYSTEM_15 / "postgres").is_file() else [*absent, "postgres 15"]


class Node(Program):
    """A Patroni with its Postgres.

    Attributes:
        port: of Postgres.
        rest: port of Patroni's REST API.
        etcd: the way to etcd; frozen, the node is isolated from it.
        entry: the way of clients to Postgres.
    """

    def __init__(self, folder: Path, etcd_port: int, password: str) -> None:
        settings = folder / "settings.json"
        super().__init__(folder, find("patroni") or "patroni", str(settings))
        self.name = folder.name
        self.port, self.rest = free_port(), free_port()
        self.etcd = haproxy.relay(folder.with_name(f"{self.name}-etcd"), etcd_port)
        self.entry = haproxy.relay(folder.with_name(f"{self.name}-entry"), self.port)
        self._password = password
        self.write(settings.name, json.dumps(self._settings(), indent=2))

    def __repr__(self) -> str:
        return f"<Node {self.name} port={self.port}>"

    def _settings(self) -> dict[str, Any]:
        """The configuration file, of which YAML is the usual form."""
        rest, data = f"{HOST}:{self.rest}", str(self.folder / "data")
        superuser = {"username": "postgres", "password": self._password}
        hba = [f"host {database} all {HOST}/32 scram-sha-256" for database in ("all", "replication")]
        replication = {"username": "replicator", "password": self._password}
        return {
            "scope": SCOPE,
            "name": self.name,
            "restapi": {"listen": rest, "connect_address": rest},
            "etcd3": {"hosts": [f"{HOST}:{self.etcd.port}"], "use_proxies": True},
            "bootstrap": {
                "dcs": {
                    "ttl": TTL,
                    "loop_wait": LOOP_WAIT,
                    "retry_timeout": RETRY_TIMEOUT,
                    "postgresql": {"use_pg_rewind": True, "use_slots": True, "parameters": _PARAMETERS},
                },
                "initdb": [{"encoding": "UTF8"}, {"locale": "C.UTF-8"}, "data-checksums", "no-sync"],
            },
            "postgresql": {
                "listen": f"{HOST}:{self.port}",
                "connect_address": f"{HOST}:{self.port}",
                "data_dir": data,
                "bin_dir": str(SYSTEM_15),
                "pgpass": str(self.folder / "pgpass"),
                "pg_hba": hba,
                "authentication": {"superuser": superuser, "replication": replication, "rewind": superuser},
                "basebackup": [{"checkpoint": "fast"}, "no-sync"],
            },
        }

    def dsn(self, login: str, password: str | None = None, database: str = DATABASE) -> str:
        """Return the DSN of a login, whose password is its name by default."""
        return f"postgresql://{login}:{quote(password or login, safe='')}@{HOST}:{self.port}/{database}"

    @property
    def admin_dsn(self) -> str:
        """Of the superuser."""
        return self.dsn("postgres", self._password)

    def dsn_of_admin(self, database: str) -> str:
        return self.dsn("postgres", self._password, database)

    def execute(self, statement: str, database: str = "postgres") -> list[asyncpg.Record]:
        """Run a statement as the superuser and return its rows."""
        return asyncio.run(self._execute(statement, database))

    async def _execute(self, statement: str, database: str) -> list[asyncpg.Record]:
        admin = await asyncpg.connect(self.dsn_of_admin(database), timeout=3, command_timeout=READY)
        try:
            return await admin.fetch(statement)
        finally:
            admin.terminate()

    def kill(self) -> None:
        """End all its processes, as a machine that loses its power: no address of it takes connections."""
        super().kill()
        self.entry.kill()

    def freeze_patroni(self) -> None:
        """Stop Patroni, but not its Postgres."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def refuse_sessions(self) -> None:
        """Let no new client in; those that are there stay."""
        self.entry.finish()

    def restart(self) -> None:
        """Restart Postgres in its place, by Patroni."""
        answer = self.ask("POST", "/restart", json={}, timeout=READY)
        if answer is None or answer.status_code != 200:
            raise RuntimeError(f"no restart: {answer and answer.text}")

    def pause_replication(self) -> None:
        """Let the standbys receive nothing from here on, until it is thawed or killed."""
        for (pid,) in self.execute("select pid from pg_stat_replication"):
            os.kill(pid, signal.SIGSTOP)

    def heal(self) -> None:
        """Let everything go on that was stopped, and start what was ended."""
        for program in (self.etcd, self, self.entry):
            program.thaw()
            if not program.runs:
                program.kill()
                program.start()

    def takes_writes(self) -> bool:
        """Return whether a write is committed."""
        return self._holds("insert into failover.written (writer) values ('failover') returning true", DATABASE)

    def streams(self, standbys: int, *, synchronous: bool) -> bool:
        """Return whether so many standbys receive what is committed, and one of them as asked."""
        waits = "bool_or(sync_state = 'sync')"
        waits = waits if synchronous else f"not {waits}"
        return self._holds(
            f"select count(*) = {standbys} and {waits} from pg_stat_replication where state = 'streaming'"
        )

    def _holds(self, query: str, database: str = "postgres") -> bool:
        try:
            return bool(self.execute(query, database)[0][0])
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
            return False

    def ask(self, method: str, path: str, *, timeout: float = 2, **options: Any) -> httpx.Response | None:
        """Ask Patroni; None where it does not answer."""
        try:
            return httpx.request(
                method, f"http://{HOST}:{self.rest}{path}", trust_env=False, timeout=timeout, **options
            )
        except httpx.HTTPError:
            return None


class Cluster:
    """The nodes, of which one is the leader.

    Attributes:
        synchronous: whether commits wait for one of the standbys.
    """

    def __init__(self, folder: Path) -> None:
        password = secrets.token_urlsafe(24)
        etcd = _etcd(folder / "etcd")
        self.nodes = [Node(folder / name, etcd, password) for name in NAMES]
        self.synchronous = False

    def start(self) -> None:
        """Start all nodes and wait until they follow their leader."""
        for node in self.nodes:
            node.start()
        self.wait_until_whole()

    def members(self) -> list[dict[str, Any]]:
        """Return what the first node that answers knows of all."""
        for node in self.nodes:
            if node.runs and (answer := node.ask("GET", "/cluster")) and answer.status_code == 200:
                members: list[dict[str, Any]] = answer.json()["members"]
                return members
        return []

    def leader(self) -> Node:
        """Wait until there is one leader and return it."""
        found: Node = wait_until(lambda: found[0] if len(found := self._leaders()) == 1 else None, "no leader")
        return found

    def new_leader(self, old: Node) -> Node:
        """Wait until another node leads and takes a write."""
        new: Node = wait_until(lambda: next(iter(self._leaders(old)), None), "no new leader")
        wait_until(new.takes_writes, "the new leader takes no writes")
        return new

    def wait_until_whole(self) -> None:
        """Wait until there is one leader, and the others follow it, synchronously where that is asked."""
        wait_until(self._is_whole, "the cluster is not whole")

    def set_synchronous(self, *, on: bool) -> None:
        """Let commits wait for one of the standbys, or not."""
        answer = self.leader().ask("PATCH", "/config", json={"synchronous_mode": on})
        if answer is None or answer.status_code != 200:
            raise RuntimeError(f"no synchronous mode: {answer and answer.text}")
        self.synchronous = on
        self.wait_until_whole()

    def switch(self, candidate: Node | None = None) -> None:
        """Switch over as planned, to a node or to whichever Patroni chooses."""
        leader = self.leader()
        wanted = {"candidate": candidate.name} if candidate else {}
        answer = leader.ask("POST", "/switchover", json={"leader": leader.name} | wanted, timeout=READY)
        if answer is None or answer.status_code != 200:
            raise RuntimeError(f"no switchover: {answer and answer.text}")

    def _leaders(self, old: Node | None = None) -> list[Node]:
        """Return the nodes, without one, whose Patroni says that it is the primary."""
        answers = [(node, node.ask("GET", "/primary")) for node in self.nodes if node is not old and node.runs]
        return [node for node, answer in answers if answer is not None and answer.status_code == 200]

    def _is_whole(self) -> bool:
        members = self.members()
        roles = {member["role"] for member in members}
        same = {(member["state"], member.get("timeline")) for member in members}
        whole = len(members) == len(NAMES) and len(same) == 1 and ("sync_standby" in roles) is self.synchronous
        leaders = self._leaders() if whole else []
        return len(leaders) == 1 and leaders[0].streams(len(NAMES) - 1, synchronous=self.synchronous)


def _etcd(folder: Path) -> int:
    client, peer = free_port(), free_port()
    urls = {"client": f"http://{HOST}:{client}", "peer": f"http://{HOST}:{peer}"}
    etcd = Program(
        folder,
        find("etcd") or "etcd",
        "--name=etcd",
        f"--data-dir={folder}/data",
        f"--listen-client-urls={urls['client']}",
        f"--advertise-client-urls={urls['client']}",
        f"--listen-peer-urls={urls['peer']}",
        f"--initial-advertise-peer-urls={urls['peer']}",
        f"--initial-cluster=etcd={urls['peer']}",
        "--log-level=error",
    )
    etcd.start()
    wait_until(lambda: _healthy(client), "etcd is not healthy")
    return client


def _healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://{HOST}:{port}/health", trust_env=False, timeout=1).status_code == 200
    except httpx.HTTPError:
        return False
