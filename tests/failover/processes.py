"""The processes of a scenario as their parent sees them."""

import asyncio
import json
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
ENDS = 60.0
"""Seconds to close."""


class Process:
    """A process that takes orders and answers each by a line of JSON; it ends with this one.

    Args:
        module: that it runs.
        name: for what goes wrong with it.
    """

    def __init__(self, module: str, name: str) -> None:
        self._module = module
        self._name = name
        self._process: asyncio.subprocess.Process

    async def start(self, settings: dict[str, Any]) -> None:
        guard = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *guard, sys.executable, "-m", self._module,
            stdin=pipe, stdout=pipe, limit=1 << 26,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path[1:]])},
        )  # fmt: skip
        self.order(json.dumps(settings))

    def order(self, line: str) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(line.encode() + b"\n")

    async def answer(self, seconds: float) -> dict[str, Any]:
        """Return the next line that it prints."""
        assert self._process.stdout is not None
        async with asyncio.timeout(seconds):
            line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name} ended with {await self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def close(self) -> None:
        """Let it close everything and end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(ENDS):
                await self._process.wait()
        except TimeoutError:
            raise RuntimeError(f"{self._name} does not end") from None
        if self._process.returncode:
            raise RuntimeError(f"{self._name} ended with {self._process.returncode}")

    async def abandon(self) -> None:
        """End it at once, however it is."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
