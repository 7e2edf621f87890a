"""A proxy on loopback that refuses what Supavisor 2.10 refuses in transaction mode, in its words, and ends the client.

It reads the messages of the client one by one, and finds the statements in them by their first words, outside of
literals. As Supavisor does, it does not look into the body of a DO. It goes before PgBouncer, which does the pooling.
Texts and codes: supabase/supavisor, lib/supavisor/errors/session_leak_error.ex and invalid_startup_option_error.ex,
lib/supavisor/protocol/session_leaks.ex and startup_options.ex, of September to November 2026.
"""

import asyncio
import re
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Self

_LITERAL = re.compile(r"\$(\w*)\$.*?\$\1\$|[eE]?'(?:[^'\\]|\\.|'')*'|\"[^\"]*\"", re.DOTALL)
LEAKS = {
    r"set\s+(?!local\b|transaction\b|constraints\b)|reset\b": "session-level SET statement",
    r"set\s+constraints\b": "session-level SET CONSTRAINTS statement",
    r"select\b.*\bset_config\s*\([^)]*false": "session-level set_config() call",
    r"discard\b": "DISCARD statement",
    r"select\b.*\bpg_(?:try_)?advisory_(?:lock|unlock)": "session-level advisory lock",
    r"(?:un)?listen\b": "LISTEN statement",
    r"declare\b.*\bwith\s+hold\b": "WITH HOLD cursor",
    r"create\s+temp(?:orary)?\b(?!.*\bon\s+commit\s+drop\b)": "temporary table creation",
    r"load\b": "LOAD statement",
}
_BOOLEANS = {"true", "false", "on", "off", "yes", "no", "1", "0"}


def leak_of(sql: str) -> str | None:
    """Return what a message would leave on the session of the server, in Supavisor's words."""
    for statement in _LITERAL.sub("''", sql).split(";"):
        for pattern, leak in LEAKS.items():
            if re.match(pattern, statement.strip(), re.DOTALL | re.IGNORECASE):
                return leak
    return None


def _refusal(state: str, text: str) -> bytes:
    fields = f"SFATAL\0VFATAL\0C{state}\0M{text}\0\0".encode()
    return b"E" + struct.pack("!I", len(fields) + 4) + fields


class RefusingPooler:
    """Forwards what is not refused.

    Attributes:
        refused: what was, in Supavisor's words.
        logins: connections that were opened.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._port = 0
        self._links: set[asyncio.Task[None]] = set()
        self.refused: list[str] = []
        self.logins = 0

    @asynccontextmanager
    async def serve(self) -> AsyncGenerator[Self]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.close_idle()
            if self._links:
                await asyncio.wait(self._links)

    def through(self, dsn: str) -> str:
        """The DSN that leads here instead of to the pooler behind."""
        assert f":{self._target}/" in dsn
        return dsn.replace(f":{self._target}/", f":{self._port}/")

    def close_idle(self) -> None:
        """Close all clients without a word, as `client_idle_timeout` does."""
        for link in self._links:
            link.cancel()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await self._link(reader, writer)
        except asyncio.CancelledError:
            pass
        finally:
            self._links.discard(task)
            writer.close()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = await self._start_up(reader, writer)
        if refusal := self._option(body):
            writer.write(_refusal("22023", refusal))
            return
        self.logins += 1
        behind_reader, behind = await asyncio.open_connection("127.0.0.1", self._target)
        behind.write(struct.pack("!I", len(body) + 4) + body)
        ways = [
            asyncio.create_task(self._ask(reader, behind, writer)),
            asyncio.create_task(_copy(behind_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            behind.transport.abort()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _start_up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        while True:
            (size,) = struct.unpack("!I", await reader.readexactly(4))
            body = await reader.readexactly(size - 4)
            if struct.unpack("!I", body[:4])[0] != 80877103:  # a request for TLS
                return body
            writer.write(b"N")

    def _option(self, body: bytes) -> str | None:
        """Return what is wrong with an option of the start-up."""
        for name, value in re.findall(r"(?:-c\s*|--)(\w+)=(\S*)", body.decode(errors="replace").replace("\0", " ")):
            if name == "jit" and value.lower() not in _BOOLEANS:
                return f'parameter "{name}" requires a Boolean value'
            if name == "log_level" and value not in {"debug", "info", "notice", "warning", "error"}:
                return f'invalid value for parameter "{name}": "{value}"'
        return None

    async def _ask(
        self, reader: asyncio.StreamReader, behind: asyncio.StreamWriter, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            head = await reader.readexactly(5)
            kind, size = struct.unpack("!cI", head)
            body = await reader.readexactly(size - 4)
            if leak := self._leak(kind, body):
                self.refused.append(leak)
                writer.write(_refusal("XX000", f"(ESESSIONLEAK) {leak} is not allowed in transaction mode"))
                await writer.drain()
                return
            behind.write(head + body)
            await behind.drain()

    def _leak(self, kind: bytes, body: bytes) -> str | None:
        if kind not in {b"Q", b"P"}:
            return None
        texts = body.decode(errors="replace").split("\0")
        return leak_of(texts[0] if kind == b"Q" else texts[1])


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
