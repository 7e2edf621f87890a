"""The three nodes of the failover tests do what the tests take them to do."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from failover.patroni import INSTALL, Cluster, missing
from failover.programs import folder_of_programs
from support import folder_keeper

_KILLED = """
import asyncio, os, signal
from failover.clusters import cluster_world

async def main():
    async with cluster_world() as world:
        world._primary.freeze()
        print(world._primary.folder.parent, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def programs() -> None:
    if absent := missing():
        pytest.skip(f"not on this system: {', '.join(absent)} ({INSTALL})")


@pytest.fixture
def cluster() -> Generator[Cluster]:
    with folder_of_programs() as folder:
        made = Cluster(folder)
        made.start()
        made.leader().execute("create schema failover")
        yield made


def _roles(cluster: Cluster) -> list[bool]:
    return sorted(node.execute("select pg_is_in_recovery()")[0][0] for node in cluster.nodes)


def test_a_switchover_loses_nothing(cluster: Cluster) -> None:
    """What was committed before is at the new leader, which the two others follow."""
    cluster.set_synchronous(on=True)
    old = cluster.leader()
    old.execute("create table made_before()")
    cluster.switch()
    cluster.wait_until_whole()
    assert cluster.leader() is not old
    assert cluster.leader().execute("select from pg_class where relname = 'made_before'")
    assert _roles(cluster) == [False, True, True]


def test_a_leader_without_etcd_demotes_itself(cluster: Cluster) -> None:
    """It lives on at its address, read-only, before another leads; then it follows that one."""
    old = cluster.leader()
    old.etcd.freeze()
    end = time.monotonic() + 60
    while not old._holds("select pg_is_in_recovery()") and time.monotonic() < end:
        time.sleep(0.1)
    assert old._holds("select pg_is_in_recovery()")
    assert cluster.leader() is not old
    old.heal()
    cluster.wait_until_whole()


def test_nothing_is_there_after_the_process_that_started_it() -> None:
    """Killed, with a frozen node: all its processes end and its folder goes."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path[1:]])}
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED], capture_output=True, text=True, check=False, env=environment
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = Path(killed.stdout.strip())
    end = time.monotonic() + 60
    while folder.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not folder.exists()
    assert folder_keeper.processes_in(folder) == []
