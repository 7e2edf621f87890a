"""A TCP proxy on loopback that counts the round trips of the connections through it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress


class CountingProxy:
    """Forwards bytes both ways; a round trip is a burst from the client that follows an answer.

    Attributes:
        connections: that were opened.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.round_trips = 0
        self.connections = 0

    @asynccontextmanager
    async def serve(self) -> AsyncGenerator["CountingProxy"]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        task.add_done_callback(self._tasks.discard)
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._target)
        response_seen = True

        async def ask() -> None:
            nonlocal response_seen
            while data := await reader.read(65536):
                self.round_trips += response_seen
                response_seen = False
                upstream_writer.write(data)
            upstream_writer.close()

        async def answer() -> None:
            nonlocal response_seen
            while data := await upstream_reader.read(65536):
                response_seen = True
                writer.write(data)
            writer.close()

        with suppress(ConnectionError, asyncio.CancelledError):
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(ask())
                    both.create_task(answer())
            finally:
                writer.close()
                upstream_writer.close()
