"""Connections that are kept from children of fork from their log-in on."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import asyncpg

from spotconn._affinity import Affinity, keep_from_children, kill_socket

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

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the loop itself."""
        return getattr(self._loop, name)

    async def create_connection(self, *args: Any, **options: Any) -> Any:
        """As the loop's own."""
        return self._protected(await self._loop.create_connection(*args, **options))

    async def create_unix_connection(self, *args: Any, **options: Any) -> Any:
        """As the loop's own."""
        return self._protected(await self._loop.create_unix_connection(*args, **options))

    def _protected(self, made: tuple[Any, Any]) -> tuple[Any, Any]:
        if self._affinity.forked:  # while it was being made: it is the parent's
            kill_socket(made[0])
            made[0].abort()
            raise ConnectionAbortedError("the process has forked")
        with suppress(TypeError):  # a transport of uvloop that takes no weak reference
            keep_from_children(made[0])
        return made


def protected(connect: Connect) -> Connect:
    """Return a function like `asyncpg.connect` for the option `connect` of a pool."""

    async def connect_protected(*args: Any, loop: asyncio.AbstractEventLoop, **options: Any) -> asyncpg.Connection:
        connection = await connect(*args, loop=_ProtectedLoop(loop), **options)
        # asyncpg looks for the running task by the connection's loop, and has no public way to set it.
        setattr(connection, "_loop", loop)  # noqa: B010
        return connection

    return connect_protected
