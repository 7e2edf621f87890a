"""Connections that are kept from children of fork from their log-in on."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, cast

import asyncpg

from spotconn._affinity import Affinity, keep_from_children, kill_socket

Connect = Callable[..., Awaitable[asyncpg.Connection]]


class _ProtectedLoop:
    """An event loop whose new transports are kept from children of fork.

    In a child that goes on with an inherited loop, asyncpg would read in the log-in of its parent, and crash.

    Args:
        loop: does everything else.
        addresses: by the names for which they stand.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, addresses: Mapping[str, str]) -> None:
        self._loop = loop
        self._addresses = addresses
        self._affinity = Affinity("pool", loop=loop)
        self._transports: list[Any] = []

    def abort(self) -> None:
        """Close all transports at once: asyncpg leaves some open where a log-in fails, and TLS waits for its peer."""
        for transport in self._transports:
            transport.abort()

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the loop itself."""
        return getattr(self._loop, name)

    async def create_connection(
        self, factory: Callable[[], Any], host: Any = None, port: Any = None, **options: Any
    ) -> Any:
        """Create a connection as the loop does, and protect it."""
        made: list[Any] = []
        if options.get("ssl"):
            options.setdefault("server_hostname", host)

        def recording() -> Any:
            made.append(factory())
            _ignore_late_data(made[-1])
            return made[-1]

        try:
            address = self._addresses.get(host, host)
            return self._protected(await self._loop.create_connection(recording, address, port, **options))
        except BaseException:
            for protocol in made:
                _retrieve_later(protocol)
            raise

    async def create_unix_connection(self, *args: Any, **options: Any) -> Any:
        """Create a connection as the loop does, and protect it."""
        return self._protected(await self._loop.create_unix_connection(*args, **options))

    def _protected(self, made: tuple[Any, Any]) -> tuple[Any, Any]:
        if self._affinity.forked:  # while it was being made: it is the parent's
            kill_socket(made[0])
            made[0].abort()
            raise ConnectionAbortedError("the process has forked")
        self._transports.append(made[0])
        with suppress(TypeError):  # a transport of uvloop that takes no weak reference
            keep_from_children(made[0])
        return made


def _ignore_late_data(protocol: Any) -> None:
    """Keep asyncpg's protocol for TLS from setting a result that nobody waits for.

    Where a log-in is cancelled in the step in which the server's answer is read, its future is cancelled already.
    """
    waiter: object = getattr(protocol, "on_data", None)
    if not isinstance(waiter, asyncio.Future):
        return
    receive: Callable[[bytes], None] = protocol.data_received

    def received(data: bytes) -> None:
        if not waiter.done():
            receive(data)

    protocol.data_received = received


def _retrieve_later(protocol: object) -> None:
    """Keep the event loop from logging an error that nobody waits for.

    Where a log-in is cancelled before its connection is made, asyncpg's protocol for TLS leaves a future behind that
    fails once the connection is closed.
    """
    waiter: object = getattr(protocol, "on_data", None)
    if isinstance(waiter, asyncio.Future):
        cast("asyncio.Future[object]", waiter).add_done_callback(_retrieve)


def _retrieve(done: "asyncio.Future[object]") -> None:
    if not done.cancelled():
        done.exception()


def protected(connect: Connect) -> Connect:
    """Return a function like `asyncpg.connect` for the option `connect` of a pool.

    It has one more option, `addresses`: by the names for which they stand, so that no name service is asked for those.
    """

    async def connect_protected(
        *args: Any, loop: asyncio.AbstractEventLoop, addresses: Mapping[str, str] | None = None, **options: Any
    ) -> asyncpg.Connection:
        protected_loop = _ProtectedLoop(loop, addresses or {})
        try:
            connection = await connect(*args, loop=protected_loop, **options)
        except BaseException:
            protected_loop.abort()
            raise
        # asyncpg looks for the running task by the connection's loop, and has no public way to set it.
        setattr(connection, "_loop", loop)  # noqa: B010
        return connection

    return connect_protected
