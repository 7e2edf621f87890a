"""A TCP proxy on loopback that breaks the way to Postgres on demand.

It knows so much of the protocol that it can tell which statement is being executed, also where a prepared statement
is executed by its name only.
"""

import asyncio
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Self

_PARSE = re.compile(rb"P\0...(__asyncpg_stmt_\w+__|)\0([^\0]+)\0", re.DOTALL)
_BIND = re.compile(rb"B\0...[^\0]*\0(__asyncpg_stmt_\w+__|)\0", re.DOTALL)


REACHED_TIMEOUT = 10.0


class Hold:
    """Holds the request of one execution of a statement, or the answer to it, while its `with` block lasts."""

    def __init__(self, statement: bytes, *, answer: bool, skip: int) -> None:
        self._statement = statement
        self._skip = skip
        self.answer = answer
        self._reached = asyncio.Event()
        self._release = asyncio.Event()

    def takes(self, executed: bytes) -> bool:
        """Whether an execution is the one to be held; those before it are counted off."""
        if self._reached.is_set() or self._statement not in executed:
            return False
        self._skip -= 1
        return self._skip < 0

    async def wait(self) -> None:
        self._reached.set()
        await self._release.wait()

    async def reached(self) -> None:
        """Wait until it is being held.

        Raises:
            TimeoutError: that did not happen within `REACHED_TIMEOUT` seconds.
        """
        await asyncio.wait_for(self._reached.wait(), REACHED_TIMEOUT)

    def release(self) -> None:
        self._release.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Replacement:
    """Replaces bytes of the executions of a statement, or of the answers to them, while its `with` block lasts."""

    def __init__(self, statement: bytes, old: bytes, new: bytes, *, answer: bool) -> None:
        self._statement = statement
        self._old = old
        self._new = new
        self.answer = answer
        self._active = False

    def applied(self, executed: bytes, data: bytes, *, answer: bool) -> bytes:
        """Return what goes on."""
        if not self._active or answer is not self.answer or self._statement not in executed:
            return data
        return data.replace(self._old, self._new)

    def __enter__(self) -> Self:
        self._active = True
        return self

    def __exit__(self, *_: object) -> None:
        self._active = False


class FaultProxy:
    """Forwards bytes both ways, until told otherwise.

    Attributes:
        delay: seconds that every burst takes.
        refuses: whether new connections are cut at once.
        executed: the texts of the prepared statements that were executed.
    """

    def __init__(self, port: int) -> None:
        self._named = self._target = port
        self._links: set[asyncio.Task[None]] = set()
        self._holds: list[Hold] = []
        self._replacements: list[Replacement] = []
        self._requests, self._answers = asyncio.Event(), asyncio.Event()
        self._port = 0
        self.delay = 0.0
        self.refuses = False
        self.executed: list[bytes] = []
        self.thaw()

    @asynccontextmanager
    async def serve(self, host: str = "127.0.0.1") -> AsyncGenerator[Self]:
        server = await asyncio.start_server(self._connected, host, 0)
        self._port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            while self._links:
                self.cut()
                await asyncio.wait(self._links)

    def dsn(self, dsn: str) -> str:
        """The same database through this proxy."""
        return dsn.replace(f":{self._named}/", f":{self._port}/")

    def hold(self, statement: bytes, *, answer: bool = False, skip: int = 0) -> Hold:
        """Hold the next execution of a statement whose text contains the given bytes.

        Args:
            statement: bytes of its text.
            answer: hold what the server answers to it, by which time it is committed, rather than the request.
            skip: executions to let pass before.
        """
        hold = Hold(statement, answer=answer, skip=skip)
        self._holds.append(hold)
        return hold

    def replace(self, statement: bytes, old: bytes, new: bytes, *, answer: bool = False) -> Replacement:
        """Replace bytes of each execution of a statement by as many others, as a server that mixes up its clients.

        Args:
            statement: bytes of its text.
            old: bytes.
            new: bytes.
            answer: in what the server answers to it, rather than in the request.
        """
        replacement = Replacement(statement, old, new, answer=answer)
        self._replacements.append(replacement)
        return replacement

    def turn_to(self, port: int) -> None:
        """Lead new connections to another server, as HAProxy or a virtual address does; those that are open stay."""
        self._target = port

    def cut(self) -> None:
        """Cut all connections; what is held of them is dropped."""
        for link in self._links:
            link.cancel()

    def freeze(self, *, requests: bool = True, answers: bool = True) -> None:
        """Forward nothing that way, with all sockets open, as a half-open connection does."""
        for flows, stopped in ((self._requests, requests), (self._answers, answers)):
            if stopped:
                flows.clear()

    def thaw(self) -> None:
        """Forward again, also what has come in meanwhile."""
        self._requests.set()
        self._answers.set()

    def heal(self) -> None:
        """Be a good proxy from now on."""
        self.delay = 0.0
        self.refuses = False
        self.thaw()

    def _due(self, executed: bytes, *, answer: bool) -> Hold | None:
        for hold in self._holds:
            if hold.answer is answer and hold.takes(executed):
                self._holds.remove(hold)
                return hold
        return None

    def _replaced(self, executed: bytes, data: bytes, *, answer: bool) -> bytes:
        for replacement in self._replacements:
            data = replacement.applied(executed, data, answer=answer)
        return data

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        try:
            if not self.refuses:
                with suppress(OSError):
                    await self._link(reader, writer)
            writer.close()
        except asyncio.CancelledError:  # cut
            writer.transport.abort()
        finally:
            self._links.discard(task)

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
        statements: dict[bytes, bytes] = {}
        answer_hold: Hold | None = None
        executed = b""

        async def ask() -> None:
            nonlocal answer_hold, executed
            while data := await reader.read(65536):
                statements.update(_PARSE.findall(data))
                for name in _BIND.findall(data):
                    executed = statements.get(name, b"")
                    self.executed.append(executed)
                    answer_hold = self._due(executed, answer=True)
                    if hold := self._due(executed, answer=False):
                        await hold.wait()
                data = self._replaced(executed, data, answer=False)
                await self._forward(data, server_writer, self._requests)

        async def answer() -> None:
            nonlocal answer_hold
            while data := await server_reader.read(65536):
                if hold := answer_hold:
                    answer_hold = None
                    await hold.wait()
                data = self._replaced(executed, data, answer=True)
                await self._forward(data, writer, self._answers)

        ways = [asyncio.create_task(ask()), asyncio.create_task(answer())]
        try:
            # Either end's leaving ends both ways.
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            server_writer.transport.abort()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _forward(self, data: bytes, writer: asyncio.StreamWriter, flows: asyncio.Event) -> None:
        await asyncio.sleep(self.delay)
        await flows.wait()
        writer.write(data)
        await writer.drain()
