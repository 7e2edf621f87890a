"""Connections that are kept from children of fork from their log-in on."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, cast

import asyncpg

from spotconn._affinity import Affinity, keep_from_children, kill_socket

ADDRESS_TIMEOUT = 1.0
"""Seconds for each address of a name but the last, or one that drops packets would take the whole time to connect."""

Connect = Callable[..., Awaitable[asyncpg.Connection]]


class _ProtectedLoop:
    """An event loop whose new transports are kept from children of fork.

    In a child that goes on with an inherited loop, asyncpg would read in the log-in of its parent, and crash.

    Args:
        loop: does everything else.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._affinity = Affinity("pool", loop=loop)
        self._transports: list[Any] = []

    def abort(self) -> None:
        """Close all transports at once: asyncpg leaves some open where a log-in fails, and TLS waits for its peer."""
        for transport in self._transports:
            transport.abort()

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the loop itself."""
        return getattr(self._loop, name)

    async def create_connection(self, factory: Callable[[], Any], *args: Any, **options: Any) -> Any:
        """Create a connection as the loop does, and protect it."""
        made: list[Any] = []

        def recording() -> Any:
            made.append(factory())
            _ignore_late_data(made[-1])
            return made[-1]

        try:
            return self._protected(await self._connect(recording, *args, **options))
        except BaseException:
            for protocol in made:
                _retrieve_later(protocol)
            raise

    async def _connect(self, factory: Any, host: Any = None, port: Any = None, **options: Any) -> tuple[Any, Any]:
        # Not `happy_eyeballs_delay`: uvloop lacks it, and asyncio loses a socket where it is cancelled.
        addresses = await self._addresses(host, port)
        if options.get("ssl"):
            options.setdefault("server_hostname", host)
        for address in addresses[:-1]:
            with suppress(OSError):
                async with asyncio.timeout(ADDRESS_TIMEOUT):
                    return await self._loop.create_connection(factory, address, port, **options)
        return await self._loop.create_connection(factory, addresses[-1], port, **options)

    async def _addresses(self, host: Any, port: Any) -> list[Any]:
        """Return the addresses of a name; what is none, or has one address, as it is."""
        with suppress(ValueError):
            ip_address(host)
            return [host]
        found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM) if host else []
        addresses = list(dict.fromkeys(info[4][0] for info in found))
        return addresses if len(addresses) > 1 else [host]

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
    """Return a function like `asyncpg.connect` for the option `connect` of a pool."""

    async def connect_protected(*args: Any, loop: asyncio.AbstractEventLoop, **options: Any) -> asyncpg.Connection:
        protected_loop = _ProtectedLoop(loop)
        try:
            connection = await connect(*args, loop=protected_loop, **options)
        except BaseException:
            protected_loop.abort()
            raise
        # asyncpg looks for the running task by the connection's loop, and has no public way to set it.
        setattr(connection, "_loop", loop)  # noqa: B010
        return connection

    return connect_protected
