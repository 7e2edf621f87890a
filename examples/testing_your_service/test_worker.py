"""A test of the worker in a process of its own."""

import subprocess
import sys
from pathlib import Path
from uuid import UUID

WORKER = Path(__file__).with_name("worker.py")


def test_a_worker(spotconn_env: None, spotconn_user: UUID) -> None:
    """It finds the private Postgres and the simulated Spotify of the test."""
    command = [sys.executable, str(WORKER), str(spotconn_user)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert printed.count(" / ") == 2
