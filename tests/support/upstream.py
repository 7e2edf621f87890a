"""A server that gives scripted bytes."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from urllib.parse import parse_qs

import httpx

CUT = b""
"""Hang up in place of an answer."""


def answer(status: int, body: object = "", **headers: str) -> bytes:
    content = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
    fields = {"Content-Length": str(len(content)), "Connection": "close", **headers}
    lines = [f"HTTP/1.1 {status} X", *(f"{name.replace('_', '-')}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode() + content


class Upstream:
    """Gives scripted bytes, one script entry per request; the last entry repeats, and CUT hangs up."""

    def __init__(self, *script: bytes) -> None:
        self.script = list(script)
        self.requests: list[tuple[str, httpx.Headers, str]] = []
        self.url = ""
        self._open: list[asyncio.StreamWriter] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await self._respond(reader, writer)
        writer.close()

    async def _respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line, *fields = head.strip().split("\r\n")
        headers = httpx.Headers([(name, value) for name, _, value in (field.partition(": ") for field in fields)])
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.requests.append((line, headers, body.decode()))
        writer.write(self.script.pop(0) if len(self.script) > 1 else self.script[0])

    async def close(self) -> None:
        # A connection may have been accepted and not yet be ours: its tasks are waited for, until none is left.
        current = asyncio.current_task()
        while tasks := [task for task in asyncio.all_tasks() if task is not current]:
            for writer in self._open:
                writer.transport.abort()
            await asyncio.wait(tasks, timeout=0.05)
        for writer in self._open:
            writer.transport.abort()
            with suppress(ConnectionError):
                await writer.wait_closed()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.url.rpartition(":")[2])

    @property
    def form(self) -> dict[str, list[str]]:
        """The form of the only request."""
        [(_, _, body)] = self.requests
        return parse_qs(body, strict_parsing=True)


@asynccontextmanager
async def upstream(*script: bytes) -> AsyncGenerator[Upstream]:
    served = Upstream(*script)
    server = await asyncio.start_server(served._serve, "127.0.0.1", 0)
    served.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield served
    finally:
        server.close()
        await served.close()
