"""A real Celery with a prefork pool, whose tasks share one BlockingTokens."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.blocking_harness import Harness

TESTS = Path(__file__).parents[1]
STARTS, TASKS, PROCESSES = 5, 40, 2
SEND = """
import sys
from support.celery_tasks import answer
for number, user in enumerate(sys.argv[1:]):
    answer.delay(number, user)
"""


@contextmanager
def worker(settings: dict[str, str]) -> Generator["subprocess.Popen[bytes]"]:
    """Context manager: a worker, which is asked to end in good order and has ended when the block ends."""
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
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.long
@pytest.mark.parametrize("start", range(STARTS))
def test_tasks_of_a_prefork_pool_have_their_users_tokens(harness: Harness, tmp_path: Path, start: int) -> None:
    """Forty tasks for ten users, half of whose tokens have run out: each has its user's token after one refresh for
    each user, in processes that were forked by a parent which had a manager open, too, in every other start.
    """
    users = harness.connect(*[3600 if n % 2 else -5 for n in range(10)])
    settings = os.environ | {
        "CELERY_FOLDER": str(tmp_path),
        "DATABASE_URL": harness.dsn,
        "SPOTIFY_URL": harness.url,
        "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]),
    }
    if start % 2 == 0:
        settings["WARM_UP"] = str(users[1])
    asked = [str(users[n % len(users)]) for n in range(TASKS)]
    subprocess.run([sys.executable, "-c", SEND, *asked], env=settings, check=True, timeout=60)
    with worker(settings) as process:
        while len(list((tmp_path / "answers").iterdir())) < TASKS:
            assert process.poll() is None
            time.sleep(0.02)
    answers = [json.loads((tmp_path / "answers" / str(n)).read_text()) for n in range(TASKS)]
    stored = {str(user): harness.stored(user)["access_token"] for user in users}
    assert [token for _, token in answers] == [stored[user] for user in asked]
    assert len(set(stored.values())) == len(users)
    assert len({pid for pid, _ in answers}) <= PROCESSES
    assert set(harness.spotify.refreshes.values()) == {1}
    assert harness.spotify.refresh_calls == 5
