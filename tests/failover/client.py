"""One process of a service: a manager that is asked for each user in turn, whatever becomes of the last call.

The first line of standard input gives the settings as JSON, each further line is an order: "go", "stop". It prints one
line of JSON for each: that it is ready, and what has happened. It closes everything once its standard input ends.
"""

import asyncio
import json
import logging
import sys
import time
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

from failover.timing import MARGIN, PERIOD, POOL_SIZE, SLOW, Timing
from spotconn import ConnectionStore, SpotconnError, SpotifyAccounts, TokenManager, TryLater

ENDING = 30.0
"""Seconds for calls to end once no more begin."""


class Lines(logging.Handler):
    """Collects warnings and worse."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(f"{record.created:.3f} {record.levelname} {record.name}: {record.getMessage()[:300]}")


class Callers:
    """Makes the calls, each in a task of its own.

    Attributes:
        late: seconds that a call began after its time, at most: the machine was busy.
    """

    def __init__(self, tokens: TokenManager, users: list[UUID]) -> None:
        self._tokens = tokens
        self._users = users
        self._running: set[asyncio.Task[None]] = set()
        self.calls = 0
        self.bad: list[dict[str, Any]] = []
        self.slowest = 0.0
        self.late = 0.0
        self.served: dict[int, float] = {}

    async def run(self, stopped: asyncio.Event) -> None:
        """Begin a call for each user once in a period."""
        pause, number = PERIOD / len(self._users), 0
        due = time.monotonic()
        while not stopped.is_set():
            task = asyncio.create_task(self._call(number % len(self._users)))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            number += 1
            self.late = max(self.late, time.monotonic() - due)
            due += pause
            await asyncio.sleep(due - time.monotonic())

    @property
    def result(self) -> dict[str, Any]:
        """What happened, but for the calls that never ended."""
        return {name: getattr(self, name) for name in ("calls", "bad", "slowest", "served", "late")}

    async def end(self) -> int:
        """Wait for the calls under way, and return how many do not end."""
        if self._running:
            await asyncio.wait(self._running, timeout=ENDING)
        hung = len(self._running)
        for task in self._running:
            task.cancel()
        return hung

    async def _call(self, user: int) -> None:
        began, error, passing, text = time.time(), "", True, ""
        try:
            await self._tokens.get_valid_token(self._users[user])
            self.served[user] = max(began, self.served.get(user, 0.0))
        except Exception as failure:  # noqa: BLE001  the oracle judges it
            error, passing, text = _public_name(failure), isinstance(failure, TryLater), str(failure)[:200]
        ended = time.time()
        self.calls += 1
        self.slowest = max(self.slowest, ended - began)
        if error or ended - began > SLOW:
            call = {"began": began, "ended": ended, "error": error, "passing": passing, "user": user, "text": text}
            self.bad.append(call)


def _public_name(error: Exception) -> str:
    if not isinstance(error, SpotconnError):
        return type(error).__name__
    return next(one.__name__ for one in type(error).__mro__ if one.__module__ == "spotconn.errors")


async def open_manager(stack: AsyncExitStack, settings: dict[str, Any], timing: Timing) -> TokenManager:
    store = await stack.enter_async_context(
        ConnectionStore.open(
            settings["dsn"],
            timeout=timing.timeout,
            listen_dsn=settings["listen_dsn"],
            max_size=POOL_SIZE,
        )
    )
    accounts = await stack.enter_async_context(
        SpotifyAccounts("demo-client", "demo-secret", accounts_url=settings["url"], api_url=settings["url"])
    )
    return await stack.enter_async_context(
        TokenManager(
            store,
            accounts,
            refresh_window=timing.window,
            expiry_margin=MARGIN,
            refresh_timeout=timing.refresh_timeout,
            lease=timing.lease,
            cache_ttl=timing.cache_ttl,
        )
    )


async def main(settings: dict[str, Any]) -> None:
    orders = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    async with AsyncExitStack() as stack:
        tokens = await open_manager(stack, settings, Timing(**settings["timing"]))
        print(json.dumps({"loop": type(loop).__module__}), flush=True)
        if await orders.readline():
            callers, stopped = Callers(tokens, [UUID(user) for user in settings["users"]]), asyncio.Event()
            running = asyncio.create_task(callers.run(stopped))
            await orders.readline()
            stopped.set()
            await running
            hung = await callers.end()
            print(json.dumps(callers.result | {"hung": hung, "logged": lines.texts}), flush=True)
            await orders.read()
    transport.close()


if __name__ == "__main__":
    lines = Lines()
    logging.basicConfig(level=logging.WARNING, handlers=[lines])
    given = json.loads(sys.stdin.readline())
    if given["uvloop"]:
        import uvloop

        uvloop.run(main(given))
    else:
        asyncio.run(main(given))
