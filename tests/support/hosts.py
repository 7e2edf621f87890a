"""Hosts of a database URL that do not serve, each on a port of loopback: by real sockets and a real server."""

import asyncio
import os
import signal
import socket
import struct
from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

from spotconn.testing import EmbeddedPostgres


class Listener:
    """A host that accepts connections, and answers each first message with the same bytes.

    Args:
        answer: nothing where it hangs.

    Attributes:
        port: of it.
        opened: connections that were made.
        tasks: of this host.
    """

    def __init__(self, answer: bytes = b"") -> None:
        self._answer = answer
        self._writers: list[asyncio.StreamWriter] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.opened = 0

    @property
    def open_now(self) -> int:
        """How many connections the clients have not closed."""
        return sum(not writer.is_closing() for writer in self._writers)

    @asynccontextmanager
    async def serve(self, address: str = "127.0.0.1", port: int = 0) -> AsyncGenerator["Listener"]:
        server = await asyncio.start_server(self._connected, address, port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for writer in self._writers:
                writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        self._writers.append(writer)
        with suppress(OSError):
            while received := await reader.read(65536):
                if self._answer:
                    # Eight bytes ask for TLS.
                    writer.write(b"N" if len(received) == 8 else self._answer)
        writer.transport.abort()


def refusal(sqlstate: str) -> bytes:
    """Return the answer of a server that ends the login."""
    fields = f"SFATAL\0VFATAL\0C{sqlstate}\0Mrefused\0\0".encode()
    return b"E" + struct.pack("!I", len(fields) + 4) + fields


@contextmanager
def closed_port() -> Generator[int]:
    """A port where nothing listens while the block lasts."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@contextmanager
def dropping_port(address: str = "127.0.0.1", port: int = 0) -> Generator[int]:
    """A port whose queue is full: the kernel drops each SYN, as a firewall does."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind((address, port))
        listening.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.settimeout(0)
            client.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


@contextmanager
def frozen(server: EmbeddedPostgres) -> Generator[None]:
    """Stop all processes of a server while the block lasts: its kernel still accepts connections and bytes."""
    postmaster = int((server.folder / "data" / "postmaster.pid").read_text().split()[0])
    os.kill(postmaster, signal.SIGSTOP)
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    stopped = [postmaster, *map(int, children)]
    try:
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
