"""The process and the event loop that an object belongs to.

A child of fork shares the sockets of its parent, and the epoll that watches them: what it writes, reads or merely
stops watching is the parent's. So the objects of this library are closed in a child, and their sockets are replaced
there by a dead one. Nothing of the parent's can be reached then: not by a task that goes on in an inherited event
loop, nor by a connection that is closed when it is garbage collected.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakMethod, WeakSet

_IN_CHILD = (
    "this {name} was made before a fork and is closed in the child process: make it there "
    "(gunicorn, uvicorn: in the lifespan of the application; Celery: in worker_process_init)"
)
_IN_OTHER_LOOP = (
    "this {name} belongs to another event loop: make it in the one that uses it "
    "(a web service: in its lifespan; asyncio.run for each job: within the job)"
)
_CLOSED = "this {name} is closed"


class Carrier(Protocol):
    """A transport of asyncio, or a stream of httpcore."""

    def get_extra_info(self, name: str) -> Any:
        """Return the socket for the name "socket"."""
        ...


class Affinity:
    """Belongs to the process that makes it, and to the event loop in which it is made or first checked.

    Args:
        name: what the object is called in errors.
        loop: the event loop, where it is known.
        after_fork: a method that is called in each child of fork, unless its object is gone.

    Attributes:
        closed: whether `close` was called.
    """

    def __init__(
        self,
        name: str,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        after_fork: Callable[[], None] | None = None,
    ) -> None:
        self._name = name
        self._forks = _forks.count
        self._loop = [loop or _running_loop()]
        self.closed = False
        if after_fork is not None:
            call_in_children(after_fork)

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process that it belongs to."""
        return self._forks != _forks.count

    def check(self) -> None:
        """Raise RuntimeError where the object must not be used: closed, in a child, in another event loop."""
        if self.closed:
            raise RuntimeError(_CLOSED.format(name=self._name))
        self.check_home()

    def check_home(self) -> None:
        """As `check`, but let a closed one pass."""
        if self.forked:
            raise RuntimeError(_IN_CHILD.format(name=self._name))
        running = _running_loop()
        if running is None:
            return
        if self._loop[0] is None:
            self._loop[0] = running
        if self._loop[0] is not running:
            raise RuntimeError(_IN_OTHER_LOOP.format(name=self._name))

    def close(self) -> None:
        """Let `check` fail from now on."""
        self.closed = True


def keep_from_children(carrier: Carrier, owner: object = None) -> None:
    """Replace the socket of a connection by a dead one in each child of fork, as long as the connection exists.

    Args:
        carrier: of the socket.
        owner: exists as long as the connection, where the carrier takes no weak reference, as some of uvloop's.
    """
    if owner is None:
        _forks.carriers.add(carrier)
    else:
        _forks.owned[owner] = carrier


def call_in_children(method: Callable[[], None]) -> None:
    """Call a method in each child of fork, once no socket there is the parent's, unless its object is gone."""
    _forks.callbacks.append(WeakMethod(method, _forks.callbacks.remove))


class ConnectingLoop:
    """An event loop that keeps the connections made through it from children of fork, from their first moment on.

    A fork in the middle of a log-in would let parent and child speak in one conversation otherwise. In a child it
    makes no connection: neither again, nor to cancel a statement of the parent's.

    Args:
        loop: does all the rest.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._forks = _forks.count

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the loop itself."""
        return getattr(self._loop, name)

    async def create_connection(
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], host: str, port: int, **options: Any
    ) -> tuple[asyncio.BaseTransport, asyncio.BaseProtocol]:
        """As the loop's own."""
        self._check()
        failure = OSError(f"no address of {host}")
        for family, kind, protocol, _, address in await self._addresses(host, port):
            try:
                with _guarded_socket(family, kind, protocol) as made:
                    await self._loop.sock_connect(made, address)
                    if options.get("ssl"):
                        options.setdefault("server_hostname", host)
                    return _kept(await self._loop.create_connection(protocol_factory, sock=made, **options))
            except OSError as error:
                failure = error
        raise failure

    async def create_unix_connection(
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], path: str
    ) -> tuple[asyncio.BaseTransport, asyncio.BaseProtocol]:
        """As the loop's own."""
        self._check()
        with _guarded_socket(socket.AF_UNIX, socket.SOCK_STREAM, 0) as made:
            await self._loop.sock_connect(made, path)
            return _kept(await self._loop.create_unix_connection(protocol_factory, sock=made))

    def _check(self) -> None:
        if self._forks != _forks.count:
            raise ConnectionAbortedError("this pool was made before a fork")

    async def _addresses(self, host: str, port: int) -> list[tuple[Any, ...]]:
        numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        with suppress(socket.gaierror):  # a name, which takes a thread
            return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=numeric))
        return list(await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))


class _SocketCarrier:
    """A socket that no transport carries yet."""

    def __init__(self, made: socket.socket) -> None:
        self._made = made

    def get_extra_info(self, name: str) -> Any:
        """Return the socket for the name "socket"."""
        return self._made if name == "socket" else None


@contextmanager
def _guarded_socket(family: int, kind: int, protocol: int) -> Generator[socket.socket]:
    """Context manager: a new socket, kept from children of fork and closed if the block fails."""
    made = socket.socket(family, kind, protocol)
    carrier = _SocketCarrier(made)
    keep_from_children(carrier)
    try:
        made.setblocking(False)  # noqa: FBT003  of the standard library
        yield made
    except BaseException:
        made.close()
        raise


def _kept(
    made: tuple[asyncio.BaseTransport, asyncio.BaseProtocol],
) -> tuple[asyncio.BaseTransport, asyncio.BaseProtocol]:
    keep_from_children(made[0])
    return made


class _Forks:
    """What is to be done in a child of fork.

    Attributes:
        count: how many forks lie between the first process and this one.
        callbacks: methods to call.
        carriers: connections that are the parent's.
        owned: more of them, by their owners.
    """

    def __init__(self) -> None:
        self.count = 0
        self.callbacks: list[WeakMethod[Callable[[], None]]] = []
        self.carriers = WeakSet[Carrier]()
        self.owned = WeakKeyDictionary[object, Carrier]()

    def in_child(self) -> None:
        self.count += 1
        self._replace_sockets()
        for callback in list(self.callbacks):
            if (method := callback()) is not None:
                with suppress(Exception):
                    method()

    def _replace_sockets(self) -> None:
        carriers = [*self.carriers, *self.owned.values()]
        if not carriers:
            return
        self.carriers.clear()
        self.owned.clear()
        dead, peer = socket.socketpair()
        peer.close()
        for carrier in carriers:
            with suppress(Exception):
                number = carrier.get_extra_info("socket").fileno()
                if number >= 0:
                    os.dup2(dead.fileno(), number, inheritable=False)
            # What waits in an inherited event loop ends at once then, and asks the server to cancel nothing.
            if abort := getattr(carrier, "abort", None):
                with suppress(Exception):
                    abort()
        dead.close()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


_forks = _Forks()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forks.in_child)
