"""The two servers of the failover tests do what the tests take them to do."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import pytest

from support import folder_keeper
from support.replication import Pair, replicated

_KILLED = """
import os, signal
from support.replication import replicated
with replicated() as pair:
    pair.primary.freeze()
    print(pair.primary.folder.parent, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def _tables(pair: Pair) -> set[str]:
    return {row[0] for row in pair.primary.execute("select relname from pg_class where relname like 'made_%'")}


@pytest.mark.long
def test_what_was_committed_on_both_survives_each_change() -> None:
    """A switchover, a killed primary and a split: what the standby had is there, what only the old one has is not."""
    with replicated(synchronous=True) as pair:
        first = pair.primary
        first.execute("create table made_first()")
        assert pair.switch() is not first
        pair.primary.execute("create table made_second()")
        pair.primary.kill()
        assert pair.promote() is first
        pair.rejoin()
        pair.set_synchronous(on=False)
        pair.primary.freeze()
        pair.promote()
        pair.standby.thaw()
        pair.standby.execute("create table made_on_the_old_one()")
        pair.rejoin()
        assert _tables(pair) == {"made_first", "made_second"}


@pytest.mark.long
def test_what_replication_missed_is_lost_with_its_server() -> None:
    """Commits after `pause_replication` are not on the promoted standby, and the rejoined server drops them."""
    with replicated() as pair:
        pair.primary.execute("create table made_before()")
        pair.wait_until_replayed()
        pair.pause_replication()
        pair.primary.execute("create table made_after()")
        pair.primary.kill()
        pair.promote()
        assert _tables(pair) == {"made_before"}
        pair.rejoin()
        assert _tables(pair) == {"made_before"}
        pair.primary.set_read_only()
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            pair.primary.execute("create table made_read_only()")


@pytest.mark.long
async def test_a_frozen_server_accepts_and_says_nothing() -> None:
    """A connection to it is opened by the kernel and gets no answer; thawed, it answers."""
    with replicated() as pair:
        pair.primary.freeze()
        reader, writer = await asyncio.open_connection(pair.primary.host, pair.primary.port)
        writer.write(b"\0\0\0\x08\x04\xd2\x16\x2f")  # whether it speaks TLS
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.3)
        pair.primary.thaw()
        assert await asyncio.wait_for(reader.read(1), 30) == b"N"
        writer.close()


@pytest.mark.long
def test_nothing_is_there_after_the_process_that_started_it() -> None:
    """Killed, with a frozen server: its processes end and its folder goes."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path[1:])}
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED], capture_output=True, text=True, check=False, env=environment
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = Path(killed.stdout.strip())
    end = time.monotonic() + 30
    while folder.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not folder.exists()
    assert folder_keeper.processes_in(folder) == []
