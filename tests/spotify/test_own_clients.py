"""The clients that the library makes itself: how many, what a storm with cancellations leaves of them, their end."""

import asyncio
import math
import random
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from spotconn._spotify import clients as _clients
from spotconn._spotify.http_library import CALLS_PER_CLIENT, library
from spotconn.accounts import SpotifyAccounts
from spotconn.models import TokenGrant
from support.upstream import answer

GRANT = answer(200, {"access_token": "at", "token_type": "Bearer", "expires_in": 3600}, Connection="keep-alive")
AMPLE = 60
"""Seconds: no call of these tests is to end for want of time."""
ON_HTTPX2 = library.__name__ == "httpx2"


class Server:
    """Answers each request with a grant, once `released`.

    Attributes:
        waiting: how many requests have come and have no answer yet.
    """

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.released.set()
        self.waiting = 0
        self._reached = asyncio.Condition()
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open[asyncio.create_task(self._serve(reader, writer))] = writer

    async def close(self) -> None:
        """Hang up, and wait until nothing of it is left."""
        self.released.set()
        for writer in self._open.values():
            writer.transport.abort()
        await asyncio.gather(*self._open)
        await asyncio.sleep(0)  # in which the transports close

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                [length] = [int(line[15:]) for line in head.lower().splitlines() if line.startswith(b"content-length:")]
                await reader.readexactly(length)
                await self._answer(writer)
        writer.close()

    async def _answer(self, writer: asyncio.StreamWriter) -> None:
        self.waiting += 1
        async with self._reached:
            self._reached.notify_all()
        await self.released.wait()
        self.waiting -= 1
        writer.write(GRANT)
        await writer.drain()

    async def reached(self, number: int) -> None:
        """Wait until that many requests have come."""
        async with asyncio.timeout(AMPLE), self._reached:
            await self._reached.wait_for(lambda: self.waiting >= number)


@asynccontextmanager
async def spotify() -> AsyncGenerator[tuple[SpotifyAccounts, Server]]:
    server = Server()
    listening = await asyncio.start_server(server.connected, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        async with SpotifyAccounts("app", accounts_url=url, api_url=url) as accounts:
            yield accounts, server
    finally:
        listening.close()
        await server.close()


def calls_of(accounts: SpotifyAccounts) -> dict[Any, int]:
    """The clients, and the calls that each has under way."""
    assert accounts._http.own is not None
    return accounts._http.own._calls


def pools_of(accounts: SpotifyAccounts) -> list[Any]:
    return [client._transport._pool for client in calls_of(accounts)]


async def test_clients_are_few_in_quiet_and_as_many_as_a_storm_needs() -> None:
    """One call after the other has one client; of a storm a client takes as many calls as is good for its library."""
    async with spotify() as (accounts, _):
        for _ in range(3):
            await accounts.refresh("rt", timeout=AMPLE)
        assert len(calls_of(accounts)) == 1
        await asyncio.gather(*[accounts.refresh("rt", timeout=AMPLE) for _ in range(50)])
        assert len(calls_of(accounts)) == max(1, math.ceil(50 / CALLS_PER_CLIENT))
        assert set(calls_of(accounts).values()) == {0}


async def test_with_httpx2_there_is_one_client() -> None:
    """It has no limit to the calls that it takes; those of httpx have."""
    assert math.isinf(CALLS_PER_CLIENT) is ON_HTTPX2


async def test_a_call_cancelled_at_any_moment_leaves_room_for_the_next() -> None:
    """Some libraries keep a connection of a call that is cancelled at the wrong moment; no other call waits for it."""
    async with spotify() as (accounts, _):
        for steps in range(30):
            for _ in range(4):
                task = asyncio.create_task(accounts.refresh("rt", timeout=AMPLE))
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            await accounts.refresh("rt", timeout=AMPLE)
        assert list(calls_of(accounts).values()) == [0]


@pytest.mark.skipif(not ON_HTTPX2, reason="the pool of httpx keeps connections of cancelled calls")
@pytest.mark.parametrize("cancellations", [1, 2])
async def test_a_storm_with_cancellations_loses_no_connection_and_no_answer(cancellations: int) -> None:
    """Who is not cancelled gets a grant from the one client, whose pool then has idle connections and no request.

    Calls are cancelled before and while they connect, send, wait for the answer and read it, some of them twice.
    """
    plan = random.Random(5)
    async with spotify() as (accounts, server):
        for _ in range(6):
            calls = [asyncio.create_task(accounts.refresh("rt", timeout=AMPLE)) for _ in range(40)]
            doomed = dict.fromkeys(plan.sample(calls, 20), cancellations)
            while doomed:
                await asyncio.sleep(0)
                for call in plan.sample(list(doomed), 1):
                    call.cancel()
                    doomed[call] -= 1
                    if not doomed[call]:
                        del doomed[call]
            ended = await asyncio.gather(*calls, return_exceptions=True)
            lost = [end for end in ended if not isinstance(end, TokenGrant | asyncio.CancelledError)]
            assert (lost, sum(isinstance(end, TokenGrant) for end in ended) >= 20) == ([], True)
        [pool] = pools_of(accounts)
        await accounts.refresh("rt", timeout=AMPLE)
        assert (pool._requests, {one.is_idle() for one in pool.connections}) == ([], {True})
        # No more connections than calls at once, and as many at the other end.
        assert len(pool.connections) <= 40
        server.released.clear()
        storm = [asyncio.create_task(accounts.refresh("rt", timeout=AMPLE)) for _ in range(40)]
        await server.reached(40)
        assert len(pool.connections) == 40
        server.released.set()
        assert {type(grant) for grant in await asyncio.gather(*storm)} == {TokenGrant}


async def test_answers_that_come_late_are_not_lost() -> None:
    """Calls that wait for their answers do not keep others from theirs."""
    async with spotify() as (accounts, server):
        server.released.clear()
        calls = [asyncio.create_task(accounts.refresh("rt", timeout=AMPLE)) for _ in range(30)]
        await server.reached(30)
        for call in calls[::2]:
            call.cancel()
        await asyncio.wait(calls[::2])
        server.released.set()
        assert [type(await call) for call in calls[1::2]] == [TokenGrant] * 15


async def test_clients_are_closed() -> None:
    """aclose() closes the clients that were made here, and may be called twice; no other is made after it."""
    async with spotify() as (accounts, _):
        await accounts.refresh("rt", timeout=AMPLE)
        await accounts.aclose()
        await accounts.aclose()
        [client] = calls_of(accounts)
        assert client.is_closed
        with pytest.raises(RuntimeError, match="closed"):
            await accounts.refresh("rt")


async def request_of(listener: socket.socket) -> socket.socket:
    """The connection over which the next request has begun to come."""
    loop = asyncio.get_running_loop()
    listener.settimeout(0)
    async with asyncio.timeout(20):
        peer, _ = await loop.sock_accept(listener)
        assert await loop.sock_recv(peer, 1) == b"P"
    return peer


async def test_a_close_that_is_cancelled_closes_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """aclose() closes all clients, also if one of them fails."""
    monkeypatch.setattr(_clients, "CALLS_PER_CLIENT", 4)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        accounts = SpotifyAccounts("app", accounts_url=f"http://127.0.0.1:{silent.getsockname()[1]}")
        calls = [asyncio.create_task(accounts.refresh("rt", timeout=AMPLE)) for _ in range(12)]
        peers = [await request_of(silent) for _ in calls]
        closing = asyncio.create_task(accounts.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert [client.is_closed for client in calls_of(accounts)] == [True] * 3
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        for peer in peers:
            peer.close()


IMPORTED = """
import sys
if sys.argv[1:]:
    sys.modules[sys.argv[1]] = None
import spotconn
print(*sorted({"httpx", "httpx2"} & {name for name, module in sys.modules.items() if module}))
print(sorted(name for name in sys.meta_path if "Alias" in type(name).__name__))
"""


@pytest.mark.parametrize("missing", ["", "httpx2"])
def test_one_library_is_imported(missing: str) -> None:
    """httpx2 where it is installed, or httpx; never both, and neither takes the other's name."""
    command = [sys.executable, "-c", IMPORTED, *([missing] if missing else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split("\n")[:2] == ["httpx" if missing else library.__name__, "[]"]
