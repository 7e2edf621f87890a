"""An ASGI app as a real HTTP server on loopback, in the running event loop or in a thread of its own."""

import asyncio
import socket
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from spotconn.testing._shared_event import SharedEvent

CLOSE_TIMEOUT = 5
"""Seconds that requests under way have at the end, after they are cancelled."""


@asynccontextmanager
async def serve(app: ASGIApp, port: int = 0) -> AsyncGenerator[str]:
    """Context manager: serve an app; requests still under way at the end are cancelled.

    It handles no signals and logs nothing.

    Args:
        app: to serve.
        port: on 127.0.0.1; 0 for a free one.

    Yields:
        The base URL.
    """
    running: set[asyncio.Task[object]] = set()

    async def track(scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        if task is not None:
            running.add(task)
            task.add_done_callback(running.discard)
        await app(scope, receive, send)

    with socket.create_server(("127.0.0.1", port)) as listening:
        config = uvicorn.Config(track, lifespan="off", log_config=None, log_level="critical")
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        # The connections inherit it. asyncio sets it only on sockets made with the number of their protocol; without
        # it each answer waits 40 ms for an acknowledgement.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Started and stopped by hand: Server.serve() would take over the signals of the whole program.
        await server.startup(sockets=[listening])
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            for listener in server.servers:
                listener.close()
            # A socket just accepted needs some steps of the loop to become a connection that shutdown() knows of.
            for _ in range(5):
                await asyncio.sleep(0)
            for task in running:
                task.cancel()
            await _close_connections(server)


async def _close_connections(server: uvicorn.Server) -> None:
    """Close what is open. `Server.shutdown` does so, too, but sleeps for 0.1 seconds or more in any case."""
    state = server.server_state
    for connection in list(state.connections):
        connection.shutdown()
    with suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_TIMEOUT):
            while state.connections or state.tasks:  # noqa: ASYNC110  uvicorn sets no event
                await asyncio.sleep(0.001)
            for listener in server.servers:
                await listener.wait_closed()


@contextmanager
def serve_in_thread(app: ASGIApp, port: int = 0) -> Generator[str]:
    """Context manager: serve an app in an event loop and a thread of its own; else as `serve`.

    Args:
        app: to serve; it is called in that thread.
        port: on 127.0.0.1; 0 for a free one.

    Yields:
        The base URL.
    """
    started, stopped = Future[str](), SharedEvent()
    with ThreadPoolExecutor(1, thread_name_prefix="spotconn-server") as threads:
        server = threads.submit(asyncio.run, _serve_until(app, port, started, stopped))
        either: list[Future[Any]] = [started, server]
        try:
            wait(either, return_when=FIRST_COMPLETED)
            if server.done():
                server.result()  # raises what hindered it
            yield started.result()
        finally:
            stopped.set()


async def _serve_until(app: ASGIApp, port: int, started: Future[str], stopped: SharedEvent) -> None:
    """Serve an app, hand over its base URL, and end when `stopped` is set."""
    async with serve(app, port) as url:
        started.set_result(url)
        await stopped.wait()
