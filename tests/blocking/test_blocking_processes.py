"""BlockingTokens across forks and at the end of a process, in real processes."""

import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from uuid import UUID

import pytest

from spotconn.testing import Hold
from support.blocking_harness import Harness

PROGRAM = Path(__file__).parents[1] / "support" / "blocking_program.py"


@contextmanager
def program(harness: Harness, scenario: str, *users: object) -> Generator["subprocess.Popen[str]"]:
    """Context manager: the program, which has ended when the block ends."""
    path = os.pathsep.join([str(PROGRAM.parents[1]), *sys.path])
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), scenario, harness.dsn, harness.url, *map(str, users)],
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _line(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline().strip()


@pytest.mark.long
def test_children_of_fork_serve_amid_the_calls_of_their_parent(harness: Harness) -> None:
    """Four children are forked while four threads are in calls, two of them while another thread holds all locks:
    each child has the tokens of its users from a manager of its own, ends in its way, and the parent has no error.
    """
    users = harness.connect(3600, *[-5] * 4)
    with program(harness, "fork", *users) as process:
        said, complained = process.communicate(timeout=100)
    assert process.returncode == 0, complained
    assert said.splitlines() == [f"children {['BQ BQ 0'] * 4}", "parent [] True"], complained
    assert "Traceback" not in complained
    assert set(harness.spotify.refreshes.values()) == {1}
    stored = harness.sql("select refresh_token from public.spotify_connections")
    assert all(harness.spotify.accepts_refresh(row["refresh_token"]) for row in stored)


@pytest.mark.long
@pytest.mark.parametrize("scenario", ["end", "SIGINT", "SIGTERM", "daemon thread"])
def test_a_process_that_ends_amid_a_refresh_saves_it(harness: Harness, scenario: str) -> None:
    """The main thread is not held up by the call it waits in, and the end of the process waits for the refresh."""
    (user,) = harness.connect(-5)
    with harness.spotify.hold() as hold, program(harness, scenario, user) as process:
        harness.loop.run(hold.reached())
        if scenario.startswith("SIG"):
            process.send_signal(getattr(signal, scenario))
        else:
            assert process.stdin is not None
            print(file=process.stdin, flush=True)
        assert _line(process.stdout) == "ending"
        assert process.poll() is None
        harness.loop.run(_released(hold))
        _, complained = process.communicate(timeout=60)
    assert (process.returncode, complained) == (0, "")
    row = harness.stored(user)
    assert harness.spotify.accepts(row["access_token"])
    assert harness.spotify.accepts_refresh(row["refresh_token"])


def test_the_last_save_finds_the_database_by_its_name(harness: Harness) -> None:
    """At the end of the interpreter no executor looks names up any more; a new connection is made all the same."""
    with program(harness, "lookup", UUID(int=1)) as process:
        said, complained = process.communicate(timeout=60)
    assert (process.returncode, said, complained) == (0, "connected 1\n", "")


async def _released(hold: Hold) -> None:
    hold.release()
