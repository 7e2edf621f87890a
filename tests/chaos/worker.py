"""One process with several managers, which makes its calls of the plan.

The first line of standard input gives the settings as JSON, with the calls. It prints one line of JSON for each event.
It closes everything and reports what is left once its standard input ends. It is started so that it dies with its
parent, also while it is stopped.
"""

import asyncio
import gc
import json
import logging
import sys
import time
from contextlib import AsyncExitStack, suppress
from typing import Any
from uuid import UUID

import httpx

from chaos.callers import Callers, Service
from chaos.plan import LEASE, MANAGERS, MARGIN, REFRESH_TIMEOUT, STORE_TIMEOUT, WINDOW, Action
from spotconn import AesGcmSivCipher, ConnectFlow, ConnectionStore, DatabaseUnavailable, SpotifyAccounts, TokenManager

BEAT = 0.05
LATE = 0.2
"""Seconds late from which a heartbeat is reported."""
ENDING = 25.0
"""Seconds that callers have to end once no more calls begin."""
REDIRECT_URI = "http://127.0.0.1:8000/callback"


def emit(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def run_delay() -> float:
    """Return the seconds that this thread was ready to run and the machine ran others."""
    with open("/proc/thread-self/schedstat", encoding="ascii") as file:  # noqa: PTH123  twenty times a second
        return int(file.read().split()[1]) / 1e9


async def beat(process: str) -> None:
    """Report each heartbeat that comes late, without the time for which the machine ran others."""
    while True:
        began, delayed = time.time(), run_delay()
        await asyncio.sleep(BEAT)
        late = time.time() - began - BEAT - (run_delay() - delayed)
        if late > LATE:
            emit({"event": "beat", "process": process, "at": time.time(), "late": late})


async def serve(stack: AsyncExitStack, settings: dict[str, Any], number: int) -> Service:
    """Open a manager of its own store and accounts."""
    url = f"{settings['url']}/owner/{settings['process']}/{number}"
    owner = f"{settings['process']}/{number}"
    store = await stack.enter_async_context(
        ConnectionStore.open(
            settings["dsn"],
            cipher=AesGcmSivCipher(settings["keys"]),
            timeout=STORE_TIMEOUT,
            max_size=4,
            server_settings={"application_name": owner},
        )
    )
    accounts = await stack.enter_async_context(
        SpotifyAccounts("demo-client", "demo-secret", accounts_url=url, api_url=url)
    )
    tokens = await stack.enter_async_context(
        TokenManager(
            store,
            accounts,
            refresh_window=WINDOW,
            expiry_margin=MARGIN,
            refresh_timeout=REFRESH_TIMEOUT,
            lease=LEASE,
            cache_ttl=2,
        )
    )
    flow = ConnectFlow(store, accounts, redirect_uri=REDIRECT_URI, scopes=["user-read-email"])
    return Service(number, tokens, flow, url, {})


async def opened(stack: AsyncExitStack, settings: dict[str, Any], number: int) -> Service:
    """Open a manager once the database lets it."""
    while True:
        with suppress(DatabaseUnavailable):
            return await serve(stack, settings, number)
        await asyncio.sleep(0.2)


async def make_calls(settings: dict[str, Any], start: float, callers: Callers, ending: asyncio.Event) -> None:
    """Make the calls at their times; those before now belong to a process that was killed."""
    for at, kind, args in settings["calls"]:
        wait = start + at - time.time()
        if wait < 0 and settings["restarted"]:
            continue
        with suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await ending.wait()
        if ending.is_set():
            return
        callers.begin(Action(at, kind, args))


async def main() -> None:
    orders = asyncio.StreamReader(limit=1 << 24)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    settings = json.loads(await orders.readline() or "null")
    if settings is None:
        return
    process = settings["process"]

    def unhandled(_loop: object, context: dict[str, Any]) -> None:
        error = context.get("exception")
        emit(
            {
                "event": "problem",
                "process": process,
                "text": f"{context['message']}: {error!r} {context.get('task') or ''}",
            }
        )

    loop.set_exception_handler(unhandled)
    before = asyncio.all_tasks()
    async with AsyncExitStack() as stack:
        browser = await stack.enter_async_context(httpx.AsyncClient(timeout=60))
        services = [await opened(stack, settings, number) for number in range(MANAGERS)]
        heart = asyncio.create_task(beat(process), name="heart")
        callers = Callers(process, services, [UUID(user) for user in settings["users"]], browser, emit)
        ending = asyncio.Event()
        print('{"event": "ready"}', flush=True)
        if start := await orders.readline():
            calls = asyncio.create_task(make_calls(settings, float(start), callers, ending), name="calls")
            await orders.read()
            ending.set()
            await calls
        if callers.running:
            await asyncio.wait(callers.running, timeout=ENDING)
        callers.end()
        heart.cancel()
    transport.close()
    await asyncio.sleep(0.05)
    for task in asyncio.all_tasks() - before:
        emit({"event": "problem", "process": process, "text": f"a task is left: {task.get_name()} {task.get_coro()}"})
    gc.collect()
    print('{"event": "closed"}', flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    logging.getLogger("asyncio").setLevel(logging.INFO)
    asyncio.run(main())
