"""The process and the event loop that an object belongs to.

A child of fork shares the sockets of its parent and the epoll that watches them: each write, read or unregistering in
the child affects the parent. So the objects of this library are closed in a child, and their sockets are replaced there
by a dead one. Neither a task that goes on in an inherited event loop nor a connection that is closed by garbage
collection can then reach the sockets of the parent.
"""

import asyncio
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from types import MethodType
from typing import Any, Self
from weakref import WeakKeyDictionary, WeakSet

_IN_CHILD = (
    "this {name} was made before a fork and is closed in the child process: make it there "
    "(gunicorn, uvicorn: in the lifespan of the application; Celery: in worker_process_init)"
)
_IN_OTHER_LOOP = (
    "this {name} belongs to another event loop: make it in the one that uses it "
    "(a web service: in its lifespan; asyncio.run for each job: within the job)"
)
_CLOSED = "this {name} is closed"


class Closing(ABC):
    """What the end of an `async with` block closes."""

    async def __aenter__(self) -> Self:
        """Return this object; nothing is opened."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close as `aclose()` does."""
        await self.aclose()

    @abstractmethod
    async def aclose(self) -> None:
        """Close this object."""


class Affinity:
    """The process that makes the object, and the event loop in which it is made or first checked.

    Args:
        name: of the object, for errors.
        loop: the event loop, if known.
        transports: a method that returns the transports of the connections that must not be used in a child of fork.
        after_fork: a method to call in each child of fork while its object exists.

    Attributes:
        closed: whether `close` was called.
    """

    def __init__(
        self,
        name: str,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        transports: Callable[[], list[Any]] | None = None,
        after_fork: Callable[[], None] | None = None,
    ) -> None:
        self._name = name
        self._forks = _forks.count
        self._loop: dict[str, asyncio.AbstractEventLoop] = {}
        if (home := loop or running_loop()) is not None:
            self._loop["home"] = home
        self.closed: bool = False
        if transports is not None:
            _forks.transports.add(transports)
            _forks.prepare()
        if after_fork is not None:
            self.call_after_fork(after_fork)

    @staticmethod
    def call_after_fork(callback: Callable[[], None]) -> None:
        """Call a method in each child of fork while its object exists."""
        _forks.callbacks.add(callback)

    @property
    def forked(self) -> bool:
        """Return whether this is a child of the process that the object belongs to."""
        return self._forks != _forks.count

    def check(self) -> None:
        """Raise RuntimeError if the object is closed, or this is a child of fork or another event loop."""
        if self.closed:
            raise RuntimeError(_CLOSED.format(name=self._name))
        self.check_home()

    def check_home(self) -> None:
        """Raise RuntimeError if this is a child of fork or another event loop."""
        if self.forked:
            raise RuntimeError(_IN_CHILD.format(name=self._name))
        running = running_loop()
        # Of two threads that come first, setdefault lets one have it.
        if running is not None and self._loop.setdefault("home", running) is not running:
            raise RuntimeError(_IN_OTHER_LOOP.format(name=self._name))

    def close(self) -> bool:
        """Make `check` fail from now on, and return whether there is something to close: not in a child of fork.

        Raises:
            RuntimeError: in another event loop.
        """
        if self.forked:
            return False
        self.check_home()
        self.closed = True
        return True


def keep_from_children(carrier: object) -> None:
    """Replace a socket by a dead one in each child of fork, while its carrier exists.

    Args:
        carrier: a transport of asyncio or a stream of httpcore: both give the socket by `get_extra_info`.
    """
    _forks.carriers.add(carrier)
    _forks.prepare()


def kill_socket(carrier: Any) -> None:
    """Replace the socket of a transport or stream by a dead one, without a word to the event loop."""
    with suppress(Exception):
        number = carrier.get_extra_info("socket").fileno()
        if number >= 0:
            os.dup2(_forks.prepare().fileno(), number, inheritable=False)


class _WeakMethods:
    """Holds one method of each object while the object exists.

    weakref.WeakMethod does so, too, but prints an error where the interpreter ends before the object (Python 3.13).
    """

    def __init__(self) -> None:
        self._functions = WeakKeyDictionary[object, Callable[[Any], Any]]()

    def add(self, method: Callable[[], Any]) -> None:
        if isinstance(method, MethodType):
            self._functions[method.__self__] = method.__func__

    def all(self) -> list[Callable[[], Any]]:
        return [MethodType(function, owner) for owner, function in self._functions.items()]


class _Forks:
    """The work to do in a child of fork.

    Attributes:
        count: forks between the first process and this one.
        carriers: of connections of the parent.
        transports: methods that return more of them.
        callbacks: methods to call once no socket is the parent's any more.
    """

    def __init__(self) -> None:
        self.count = 0
        self.carriers = WeakSet[object]()
        self.transports = _WeakMethods()
        self.callbacks = _WeakMethods()
        self._dead: socket.socket | None = None

    def prepare(self) -> socket.socket:
        """Return the dead socket, made before the fork: in the child there may be no file descriptor left."""
        if self._dead is None:
            self._dead, peer = socket.socketpair()
            peer.close()
        return self._dead

    def in_child(self) -> None:
        self.count += 1
        carriers: list[Any] = [*self.carriers]
        for transports in self.transports.all():
            with suppress(Exception):
                carriers += transports()
        self.carriers.clear()
        for carrier in carriers:
            kill_socket(carrier)
        for callback in self.callbacks.all():
            with suppress(Exception):
                callback()


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in this thread, if any."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


_forks = _Forks()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forks.in_child)
