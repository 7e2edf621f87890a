"""A program that forks with everything open, for the tests of what holds then in the children and in the parent.

Its argument gives the settings as JSON. It prints a line of JSON at each station and waits there for a line of
standard input, so a test can look in between at what has reached the servers. While it waits its event loop stands
still; so nothing that is seen then comes from the parent.
"""

import asyncio
import gc
import json
import logging
import os
import select
import sys
import threading
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any, NoReturn
from uuid import UUID

import asyncpg
import httpx

from spotconn import AesGcmSivCipher, ConnectFlow, ConnectionAdmin, ConnectionStore, SpotifyAccounts, TokenManager
from support.consent import REDIRECT_URI, SCOPES
from support.public_coroutines import Objects, answers, outcome

SETTINGS: dict[str, Any] = json.loads(sys.argv[1])
USERS = [UUID(user) for user in SETTINGS["users"]]
WATCHED, VICTIM, WARM, *EXPIRED = USERS
LOOP = asyncio.new_event_loop()
CIPHER = AesGcmSivCipher([AesGcmSivCipher.generate_key()])
TURN = 0.005
ENDINGS = ["new loop, exit", "exit", "os._exit", "del", "leave the blocks", "aclose"]


class Logged(logging.Handler):
    """Collects what is said loudly."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class House:
    """All that the parent has opened; `leave` leaves the blocks."""

    def __init__(self) -> None:
        self.stack = AsyncExitStack()
        self.release_hook = threading.Event()
        self.events: list[str] = []
        self.objects: Objects

    async def open(self) -> None:
        """Open it with the settings, and warm it up: every connection that is kept has been used."""
        accounts = await self._accounts()
        store = await self._store()
        tokens = await self.stack.enter_async_context(
            TokenManager(store, accounts, on_event=self._told, cache_ttl=300)
        )  # seldom a heartbeat
        admin = await self.stack.enter_async_context(ConnectionAdmin.open(SETTINGS["dsn"], cipher=CIPHER))
        flow = ConnectFlow(store, accounts, redirect_uri=REDIRECT_URI, scopes=SCOPES)
        callback = f"{REDIRECT_URI}?code=a-code&state=a-state"
        self.objects = Objects(tokens, store, admin, accounts, flow, VICTIM, callback)
        async with asyncio.timeout(20):
            await tokens.get_valid_token(WARM)
            await admin.stats()
            while not tokens._cache.trusted:
                await asyncio.sleep(TURN)
            await tokens.get_valid_token(WATCHED)

    async def _store(self) -> ConnectionStore:
        dsn = SETTINGS["dsn"]
        if SETTINGS["own"] != "pool":
            return await self.stack.enter_async_context(ConnectionStore.open(dsn, min_size=3, max_size=4))
        pool = await self.stack.enter_async_context(asyncpg.create_pool(dsn, min_size=0, max_size=4))
        return ConnectionStore(pool, listen_dsn=dsn)

    async def _accounts(self) -> SpotifyAccounts:
        client = None
        if SETTINGS["own"] == "client":
            client = await self.stack.enter_async_context(httpx.AsyncClient())
        url = SETTINGS["url"]
        accounts = SpotifyAccounts("demo-client", "demo-secret", http=client, accounts_url=url, api_url=url)
        return await self.stack.enter_async_context(accounts)

    def _told(self, event: object) -> None:
        """Hold the thread of the hook, which is in the middle of its work at the fork."""
        self.release_hook.wait(30)
        self.events.append(type(event).__name__)


class Child:
    """A child process, which asks at once, says what the answers were, and ends when it is told to."""

    def __init__(self, house: House, ending: str) -> None:
        self.ending = ending
        reports, report = os.pipe()
        orders, order = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _live(house, ending, report, orders)
        self._order = order
        with os.fdopen(reports) as lines:
            os.close(report)
            self.answers: dict[str, str] = json.loads(lines.readline() or "null")

    def end(self) -> int:
        """Let it end, and return its exit code."""
        os.write(self._order, b".")
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _live(house: House, ending: str, report: int, orders: int) -> NoReturn:
    sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115  of tasks that are destroyed while pending
    inherited = not ending.startswith("new loop")
    found: dict[str, str] = (
        LOOP.run_until_complete(answers(house.objects)) if inherited else asyncio.run(answers(house.objects))
    )
    os.write(report, json.dumps(found).encode() + b"\n")
    while not select.select([orders], [], [], 0 if inherited else None)[0]:
        LOOP.run_until_complete(asyncio.sleep(TURN))
    _end(house, ending)
    os._exit(0)


def _end(house: House, ending: str) -> None:
    if ending.endswith(" exit") or ending == "exit":
        sys.exit()  # which collects everything
    if ending == "del":
        vars(house).clear()
        gc.collect()
    elif ending == "leave the blocks":
        LOOP.run_until_complete(house.stack.aclose())
    elif ending == "aclose":
        for thing in (house.objects.tokens, house.objects.accounts):
            LOOP.run_until_complete(thing.aclose())
    LOOP.run_until_complete(asyncio.sleep(TURN))


async def work(house: House, expired: UUID, token_before: str) -> dict[str, str]:
    """Refresh one user, read over several connections at once, and wait for a change that is heard of."""
    tokens, store = house.objects.tokens, house.objects.store
    async with asyncio.timeout(4):
        granted = await tokens.get_valid_token(expired)
        await asyncio.gather(*[store.get(WATCHED) for _ in range(3)])
        while (token := await tokens.get_valid_token(WATCHED)) == token_before:
            await asyncio.sleep(TURN)
    return {"granted": granted, "watched": token}


def at(station: str, **found: object) -> None:
    """Tell where the program is, and wait."""
    print(json.dumps({"at": station, **found}), flush=True)
    sys.stdin.readline()


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return LOOP.run_until_complete(coroutine)


def children_beside_a_parent(house: House, logged: Logged) -> None:
    """Fork children that end in every way, one after the other, while the parent goes on."""
    watched = run(house.objects.tokens.get_valid_token(WATCHED))
    expired = iter(EXPIRED)
    at("warm")
    children = [Child(house, ending) for ending in ENDINGS]
    at("asked", answers={child.ending: child.answers for child in children})
    at("change")
    done = run(work(house, next(expired), watched))
    for child in children:
        at("ending")
        code = child.end()
        at("ended", ending=child.ending, code=code)
        at("change")
        done = run(work(house, next(expired), done["watched"]))
    house.release_hook.set()
    run(house.stack.aclose())
    at("over", logged=logged.lines, events=house.events)


def fork_in_a_flight(house: House) -> None:
    """Fork while a refresh waits for an answer; one child goes on with it, one cancels all that it has inherited."""
    at("warm")
    flight = LOOP.create_task(house.objects.tokens.get_valid_token(VICTIM))
    print(json.dumps({"at": "flying"}), flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        run(asyncio.sleep(TURN))
    sys.stdin.readline()
    waiting, hasty = Heir(flight, cancels=False), Heir(flight, cancels=True)
    at("forked", hasty=hasty.report())
    token = run(outcome_or_token(flight))
    at("landed", token=token, waiting=waiting.report())
    house.release_hook.set()
    run(house.stack.aclose())
    at("over")


async def outcome_or_token(flight: "asyncio.Task[str]") -> str:
    async with asyncio.timeout(10):
        await asyncio.wait([flight])
    return flight.result() if flight.exception() is None else await outcome(flight)


class Heir:
    """A child that goes on with a flight of its parent."""

    def __init__(self, flight: "asyncio.Task[str]", *, cancels: bool) -> None:
        reports, report = os.pipe()
        orders, self._order = os.pipe()
        self._reports = reports
        if os.fork() == 0:
            sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115  as above
            if cancels:
                for task in asyncio.all_tasks(LOOP):
                    task.cancel()
                run(asyncio.sleep(0.1))
            while not cancels and not select.select([orders], [], [], 0)[0]:
                run(asyncio.sleep(TURN))
            os.write(report, f"{_state(flight)}\n".encode())
            os._exit(0)
        os.close(report)

    def report(self) -> str:
        os.write(self._order, b".")
        with os.fdopen(self._reports) as lines:
            said = lines.readline().strip()
        os.wait()
        return said


def _state(flight: "asyncio.Task[str]") -> str:
    if not flight.done():
        return "waits"
    if flight.cancelled():
        return "cancelled"
    return "a token" if flight.exception() is None else type(flight.exception()).__name__


def main() -> None:
    asyncio.set_event_loop(LOOP)
    logged = Logged()
    logging.getLogger("spotconn").addHandler(logged)
    house = House()
    run(house.open())
    if SETTINGS["scenario"] == "flight":
        fork_in_a_flight(house)
    else:
        children_beside_a_parent(house, logged)


if __name__ == "__main__":
    main()
