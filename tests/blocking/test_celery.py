"""Real Celery workers with prefork pools, whose tasks share one BlockingTokens."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import UUID

import pytest

from support.blocking_harness import Harness

TESTS = Path(__file__).parents[1]
STARTS, TASKS, USERS, PROCESSES = 5, 40, 10, 2
SEND = """
import sys
from support.celery_tasks import answer
for number, user in enumerate(sys.argv[1:]):
    answer.delay(number, user)
"""


@contextmanager
def worker(settings: dict[str, str]) -> Generator["subprocess.Popen[bytes]"]:
    """Context manager: a worker, which the block asks to end, and which has ended in good order after it."""
    command = ["-m", "celery", "-A", "support.celery_tasks", "worker", "--pool", "prefork"]
    options = ["--concurrency", str(PROCESSES), "--without-gossip", "--without-mingle", "--without-heartbeat"]
    process = subprocess.Popen(
        [sys.executable, *command, *options, "--loglevel", "ERROR"],
        env=settings,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,  # that it runs as root, and that it has no host name
        start_new_session=True,
    )
    try:
        yield process
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.long
@pytest.mark.timeout(300)
def test_tasks_of_prefork_pools_have_their_users_tokens(harness: Harness, tmp_path: Path) -> None:
    """Forty tasks for ten users in each of five workers, half of whose tokens have run out: each task has its user's
    token after one refresh for each user, in processes that were forked by a parent which had a manager open, too, in
    every other worker. They run side by side, because Celery takes six seconds to end.
    """
    users = harness.connect(*[3600 if n % 2 else -5 for n in range(STARTS * USERS)])
    starts = [_Start(tmp_path / str(n), users[n * USERS : (n + 1) * USERS], warm=n % 2 == 0) for n in range(STARTS)]
    with ExitStack() as stack:
        workers = [stack.enter_context(worker(start.send(harness))) for start in starts]
        while any(start.waits() for start in starts):
            assert [process.poll() for process in workers] == [None] * STARTS
            time.sleep(0.02)
        for process in workers:
            process.send_signal(signal.SIGTERM)
    stored = {str(user): harness.stored(user)["access_token"] for user in users}
    assert len(set(stored.values())) == len(users)
    for start in starts:
        answers = start.answers()
        assert [token for _, token in answers] == [stored[user] for user in start.asked]
        assert len({pid for pid, _ in answers}) <= PROCESSES
    assert set(harness.spotify.refreshes.values()) == {1}
    assert harness.spotify.refresh_calls == len(users) // 2


class _Start:
    """A worker's queue and answers."""

    def __init__(self, folder: Path, users: list[UUID], *, warm: bool) -> None:
        folder.mkdir()
        self.asked = [str(users[n % len(users)]) for n in range(TASKS)]
        self._folder = folder
        self._warm = {"WARM_UP": str(users[1])} if warm else {}

    def send(self, harness: Harness) -> dict[str, str]:
        """Send the tasks, and return the settings of the worker."""
        settings = os.environ | self._warm
        settings |= {"CELERY_FOLDER": str(self._folder), "DATABASE_URL": harness.dsn, "SPOTIFY_URL": harness.url}
        settings["PYTHONPATH"] = os.pathsep.join([str(TESTS), *sys.path])
        subprocess.run([sys.executable, "-c", SEND, *self.asked], env=settings, check=True, timeout=60)
        return settings

    def waits(self) -> bool:
        return len(list((self._folder / "answers").iterdir())) < TASKS

    def answers(self) -> list[tuple[int, str]]:
        return [json.loads((self._folder / "answers" / str(n)).read_text()) for n in range(TASKS)]
