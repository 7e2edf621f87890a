"""The examples as programs of their own, with no settings but those a test gives."""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def environment(**settings: str) -> dict[str, str]:
    hidden = ("DATABASE_URL", "SPOTCONN_", "SPOTIFY_")
    return {name: value for name, value in os.environ.items() if not name.startswith(hidden)} | settings


@asynccontextmanager
async def started(name: str, *arguments: str, **settings: str) -> AsyncGenerator[asyncio.subprocess.Process]:
    """A process, in which every warning is an error; it has ended when the block ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        str(EXAMPLES / name),
        *arguments,
        env=environment(**settings),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def run(name: str, *arguments: str, **settings: str) -> tuple[int | None, str, str]:
    """Run one to its end: its status and what it said."""
    async with started(name, *arguments, **settings) as process:
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def line_with(process: asyncio.subprocess.Process, words: str) -> str:
    """The next line of a process's output that has these words."""
    assert process.stdout is not None
    async for line in process.stdout:
        if words in line.decode():
            return line.decode()
    raise AssertionError(f"it ended without {words!r}")
