"""The processes below another one."""

import asyncio
from pathlib import Path


async def descendants(pid: int) -> list[int]:
    """The children and grandchildren of a process, once there are any."""
    async with asyncio.timeout(20):
        while not (found := _children(pid)):
            await asyncio.sleep(0.02)
    return found + [grandchild for child in found for grandchild in _children(child)]


async def gone(pids: list[int], folder: Path | None = None) -> None:
    """Wait until processes have ended and a folder, if one is given, is empty."""
    async with asyncio.timeout(20):
        while any(Path(f"/proc/{pid}").exists() for pid in pids) or (folder and list(folder.iterdir())):
            await asyncio.sleep(0.02)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
