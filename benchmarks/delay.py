"""A TCP proxy that holds all bytes back for a while, as distance does; run as a process of its own.

Arguments: the port to pass on to, seconds to hold back in each direction. It prints the port it listens on. Bytes keep
their order and their pauses: each read is passed on by itself, the same time later, so nothing is slowed to a rate.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from typing import cast

from support.fleet_worker import lines

Act = Callable[[asyncio.Transport], object]


class End(asyncio.Protocol):
    """One end of a connection through the proxy; what arrives here leaves at the other end, later."""

    def __init__(self, delay: float, *, target: int | None = None) -> None:
        self._delay = delay
        self._target = target
        self._transport: asyncio.Transport | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._other: End | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connect onwards, if this is the client's end; it is not read before that."""
        self._transport = cast("asyncio.Transport", transport)
        if self._target is not None:
            self._transport.pause_reading()
            self._dialling = asyncio.create_task(self._dial(self._target))

    async def _dial(self, port: int) -> None:
        other = End(self._delay)
        other._other, self._other = self, other
        await asyncio.get_running_loop().create_connection(lambda: other, "127.0.0.1", port)
        if self._transport is not None:
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Pass on later."""
        self._later(lambda transport: transport.write(data))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  the name is asyncio's
        """Close the other end once it has everything."""
        self._later(lambda transport: transport.close())

    def _later(self, act: Act) -> None:
        if self._other is not None:
            asyncio.get_running_loop().call_later(self._delay, self._other._do, act)  # noqa: SLF001  the two ends are one thing

    def _do(self, act: Act) -> None:
        if self._transport is not None and not self._transport.is_closing():
            act(self._transport)


async def main(target: str, delay: str) -> None:
    """Serve until the standard input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: End(float(delay), target=int(target)), "127.0.0.1", 0)
    print(json.dumps(server.sockets[0].getsockname()[1]), flush=True)
    async for _ in lines():
        pass
    server.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
