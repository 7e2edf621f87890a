"""Processes beside the measuring one, so that what they do is not counted as the library's."""

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks import ROOT


class Child:
    """A process that answers each line with one line of JSON."""

    def __init__(self, stdin: asyncio.StreamWriter, stdout: asyncio.StreamReader) -> None:
        self._stdin = stdin
        self._stdout = stdout

    async def read(self) -> Any:
        """Its next answer."""
        return json.loads(await self._stdout.readline())

    async def request(self, line: str) -> Any:
        """Its answer to a line."""
        self._stdin.write(f"{line}\n".encode())
        return await self.read()


@asynccontextmanager
async def child(module: str, *arguments: object) -> AsyncGenerator[Child]:
    """Run a module of this package as a process; it ends with its standard input, so also with this process."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        f"benchmarks.{module}",
        *map(str, arguments),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 24,
    )
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("a child without pipes")
    try:
        yield Child(process.stdin, process.stdout)
    finally:
        process.stdin.close()
        await process.wait()
