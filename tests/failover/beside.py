"""The process beside the clients: bare asyncpg pools that write, and new connections that do, without the library.

It takes settings and orders as `failover.client` does.
"""

import asyncio
import json
import logging
import sys
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any

import asyncpg

from failover.timing import PERIOD, POOL_SIZE

WRITE = "insert into failover.written (writer) values ('{}')"
"""Without arguments it is one message, which a transaction pooler cannot part."""
CLOSES = 1.0
"""Seconds to part from a server; a statement that timed out is cancelled there meanwhile."""
BROKEN = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)


class Writers:
    """Writes once in a period, by each pool and each new connection.

    Args:
        timeout: seconds to connect, and again to write.

    Attributes:
        late: seconds that a write began after its time, at most: the machine was busy.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._running: set[asyncio.Task[None]] = set()
        self.late = 0.0
        self.writes: dict[str, list[dict[str, Any]]] = {}

    async def run(self, pools: dict[str, asyncpg.Pool], fresh: dict[str, list[str]], stopped: asyncio.Event) -> None:
        due = time.monotonic()
        while not stopped.is_set():
            for name, pool in pools.items():
                self._begin(name, self._by_pool(pool, name))
            for name, dsns in fresh.items():
                self._begin(name, self._by_any(dsns, name))
            self.late = max(self.late, time.monotonic() - due)
            due += PERIOD
            await asyncio.sleep(due - time.monotonic())

    async def end(self) -> None:
        if self._running:
            await asyncio.wait(self._running, timeout=3 * self._timeout)
        for task in self._running:
            task.cancel()

    def _begin(self, name: str, write: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._note(name, write))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _note(self, name: str, write: Coroutine[Any, Any, None]) -> None:
        began, error = time.time(), ""
        try:
            await write
        except BROKEN as failure:
            error = type(failure).__name__
        self.writes.setdefault(name, []).append({"began": began, "ended": time.time(), "error": error})

    async def _by_pool(self, pool: asyncpg.Pool, name: str) -> None:
        async with pool.acquire(timeout=self._timeout) as connection:
            await connection.execute(WRITE.format(name))

    async def _by_any(self, dsns: list[str], name: str) -> None:
        """Connect to each host at once; the first that takes the write is enough."""
        tries = [asyncio.create_task(self._by_new(dsn, name)) for dsn in dsns]
        error: BaseException = TimeoutError()
        try:
            for ended in asyncio.as_completed(tries):
                try:
                    await ended
                except BROKEN as failure:
                    error = failure
                else:
                    return
        finally:
            for one in tries:
                one.cancel()
            await asyncio.gather(*tries, return_exceptions=True)
        raise error

    async def _by_new(self, dsn: str, name: str) -> None:
        connection = await asyncpg.connect(
            dsn, timeout=self._timeout, command_timeout=self._timeout, statement_cache_size=0
        )
        try:
            await connection.execute(WRITE.format(name))
        finally:
            with suppress(*BROKEN):
                await connection.close(timeout=CLOSES)


async def main(settings: dict[str, Any]) -> None:
    orders = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    timeout = settings["timing"]["timeout"]
    async with AsyncExitStack() as stack:
        pools: dict[str, asyncpg.Pool] = {}
        for name, dsn in settings["pools"].items():
            pool = await asyncpg.create_pool(
                dsn, min_size=1, max_size=POOL_SIZE, timeout=timeout, command_timeout=timeout, statement_cache_size=0
            )
            stack.callback(pool.terminate)
            pools[name] = pool
        print("{}", flush=True)
        if await orders.readline():
            writers, stopped = Writers(timeout), asyncio.Event()
            running = asyncio.create_task(writers.run(pools, settings["fresh"], stopped))
            await orders.readline()
            stopped.set()
            await running
            await writers.end()
            print(json.dumps({"writes": writers.writes, "late": writers.late}), flush=True)
            await orders.read()
    transport.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.CRITICAL)
    with suppress(KeyboardInterrupt):
        asyncio.run(main(json.loads(sys.stdin.readline())))
