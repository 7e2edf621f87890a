"""The worker processes as their parent sees them: it starts, freezes, kills and ends them, each by its id."""

import asyncio
import json
import os
import re
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from chaos.history import History

STARTS = 60.0
ENDS = 60.0
"""Seconds to start and to end, on a machine that is busy."""
TESTS = Path(__file__).parents[1]

# As FakeSpotify makes tokens and codes, and as libraries complain.
SECRET = re.compile(r"\b(?:AQ|BQ)[\w-]{30,}")
_RECORD = re.compile(r"(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) ")
EXPECTED = (
    "Spotify has refused the refresh tokens of many users",
    "could not be compared with their last grants before shutdown",  # the first process closes without a database
)
FOLLOWING = 12
"""Lines of a log that are shown after a complaint."""
COMPLAINTS = ("Traceback", "never retrieved", "never awaited", "Warning:", "was destroyed", "unclosed", "CRITICAL")


class Process:
    """One worker process.

    Args:
        name: such as "w1.0".
        history: takes what it reports.
        secrets: texts that no log may hold.
    """

    def __init__(self, name: str, history: History, secrets: list[str]) -> None:
        self.name = name
        self._history = history
        self._secrets = secrets
        self._ready, self._closed = asyncio.Event(), False
        self._frozen_since: float | None = None
        self._killed = False
        self._shown, self._foreign = 0, False
        self._readers: list[asyncio.Task[None]] = []
        self._process: asyncio.subprocess.Process

    async def start(self, settings: dict[str, Any]) -> None:
        """Start it; it dies with this process, also while it is frozen."""
        guard = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *guard, sys.executable, "-W", "default", "-m", "chaos.worker",
            stdin=pipe, stdout=pipe, stderr=pipe, limit=1 << 24,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path[1:]])},
        )  # fmt: skip
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(settings | {"process": self.name}).encode() + b"\n")
        self._readers = [asyncio.create_task(self._read_events()), asyncio.create_task(self._read_log())]

    async def ready(self) -> None:
        async with asyncio.timeout(STARTS):
            await self._ready.wait()

    async def go(self, start: float) -> None:
        """Let it make its calls, whose times count from `start`."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(f"{start}\n".encode())
            await self._process.stdin.drain()

    @property
    def runs(self) -> bool:
        return self._process.returncode is None and not self._killed

    def freeze(self) -> None:
        if self.runs and self._frozen_since is None:
            self._frozen_since = time.time()
            self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        if self.runs and self._frozen_since is not None:
            self._process.send_signal(signal.SIGCONT)
            span = self._frozen_since, time.time()
            self._history.stalls.setdefault(self.name, []).append(span)
        self._frozen_since = None

    async def kill(self) -> None:
        if self.runs:
            self._killed = True
            self._process.kill()
            self._history.kills[self.name] = time.time()
        await self._collect()

    async def leave(self) -> None:
        """Let it close everything and end."""
        self.thaw()
        self._history.closings[self.name] = time.time()
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(ENDS):
                await self._process.wait()
        except TimeoutError:
            self._history.problems.append(f"{self.name}: it does not end")
            self._process.kill()
        await self._collect()
        if self._process.returncode or not self._closed:
            self._history.problems.append(f"{self.name}: it ended with {self._process.returncode}")

    async def abandon(self) -> None:
        """End it at once, however it is."""
        if self.runs:
            self._process.kill()
        await self._collect()

    async def _collect(self) -> None:
        await self._process.wait()
        await asyncio.gather(*self._readers)

    async def _read_events(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            with suppress(json.JSONDecodeError):  # the half of a line, of a process that was killed
                event = json.loads(line)
                if event["event"] == "ready":
                    self._ready.set()
                elif event["event"] == "closed":
                    self._closed = True
                else:
                    self._history.record(event)
            self._check(line.decode())

    async def _read_log(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            text = line.decode()
            self._check(text, COMPLAINTS)
            if not text.startswith("DEBUG httpcore"):
                self._history.logs.append((time.time(), self.name, SECRET.sub("<token>", text.rstrip())))

    def _check(self, line: str, complaints: tuple[str, ...] = ()) -> None:
        if SECRET.search(line) or any(secret in line for secret in self._secrets):
            shown = SECRET.sub("<token>", line)
            self._history.problems.append(f"{self.name}: a secret in a log: {shown[:40]}")
            return
        if _RECORD.match(line):
            self._shown, self._foreign = 0, line.split()[1].startswith("asyncpg")
        if self._foreign:  # its pool logs that it could not open a connection, with a traceback
            return
        if any(text in line for text in complaints) and not any(text in line for text in EXPECTED):
            self._history.problems.append(f"{self.name}: {line.strip()[:300]}")
            self._shown = FOLLOWING
        elif self._shown and complaints:
            self._shown -= 1
            self._history.problems[-1] += f"\n        {line.strip()[:200]}"
