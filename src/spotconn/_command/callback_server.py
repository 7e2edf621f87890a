"""A server on a loopback redirect URI that answers the callback of one authorization and nothing else."""

import asyncio
import errno
import hmac
import os
import socket
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from functools import partial
from html import escape
from typing import NamedTuple
from urllib.parse import urlsplit

from spotconn._command.output import print_line
from spotconn._spotify.redirect import LONGEST, is_loopback, read_callback
from spotconn.errors import ConfigurationError, ConnectFailed, TryLater

VARIABLE = "SPOTIFY_REDIRECT_URI"
LONGEST_HEAD = LONGEST + 32_768
"""Bytes of the head of a request: a callback, and the headers and cookies of a browser."""
READ_TIMEOUT = 10.0
"""Seconds for the head of a request. Browsers open connections ahead, and may send nothing on them."""
MOST_SILENT = 64
"""Connections that have sent no request yet; of more, the oldest ends, so that no flood keeps the browser out."""
CLOSE_TIMEOUT = 2.0
"""Seconds for answers that are under way when the server ends."""

_HEADERS = (
    "Content-Type: text/html; charset=utf-8",
    "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'",
    "Referrer-Policy: no-referrer",
    "X-Content-Type-Options: nosniff",
    "Cache-Control: no-store",
    "Connection: close",
)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} - spotconn</title>
<link rel="icon" href="data:,">
<style>
body {{ max-width: 34rem; margin: 20vh auto 0; padding: 0 1.25rem; font: 1.125rem/1.5 system-ui, sans-serif }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{text}</p>
</body>
</html>
"""


class Page(NamedTuple):
    """An answer to a browser."""

    status: str
    title: str
    text: str

    def response(self) -> bytes:
        """Return it as it is sent."""
        body = _PAGE.format(title=escape(self.title), text=escape(self.text)).encode()
        head = "\r\n".join((f"HTTP/1.1 {self.status}", *_HEADERS, f"Content-Length: {len(body)}", "", ""))
        return head.encode() + body


class Request(NamedTuple):
    """The head of a request: what is looked at of it."""

    method: str
    target: str
    hosts: list[str]

    @classmethod
    def of(cls, head: bytes) -> "Request | None":
        """Return what a head says, or None if it is none of HTTP/1."""
        first, *fields = head.decode("latin-1").split("\r\n")
        words = first.split(" ")
        if len(words) != len(("method", "target", "version")) or words[2] not in {"HTTP/1.1", "HTTP/1.0"}:
            return None
        names = [(name.lower(), value.strip()) for name, _, value in (field.partition(":") for field in fields)]
        return cls(words[0], words[1], [value.lower() for name, value in names if name == "host"])


def listen(redirect_uri: str) -> tuple[socket.socket, str]:
    """Listen where a redirect URI leads; at a free port where it names none (RFC 8252, section 7.3).

    Returns:
        The socket, and the redirect URI with its port.

    Raises:
        ConfigurationError: it is not on loopback, or this process may not listen there.
        TryLater: another process listens there.
    """
    parts = urlsplit(redirect_uri)
    if not is_loopback(parts):
        raise ConfigurationError(
            f"{VARIABLE} is not on this machine: for this command set it to one such as "
            "http://127.0.0.1:8888/callback, and register that with the app, too"
        )
    host = parts.hostname or ""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, parts.port or 0), family=family)
    except OSError as error:
        raise _not_listening(parts.port or 0, error) from None
    if parts.port is not None:
        return listener, redirect_uri
    return listener, parts._replace(netloc=f"{parts.netloc.rstrip(':')}:{listener.getsockname()[1]}").geturl()


def _not_listening(port: int, error: OSError) -> ConfigurationError | TryLater:
    if error.errno == errno.EADDRINUSE:
        return TryLater(f"port {port} of {VARIABLE} is taken, perhaps by your service: stop that meanwhile")
    why = os.strerror(error.errno) if error.errno else type(error).__name__
    return ConfigurationError(f"this process cannot listen on port {port} of {VARIABLE}: {why}")


class CallbackServer:
    """Receives the callback of one authorization.

    A request with another Host than the redirect URI's is refused, so a page that lets its own name lead to this
    machine (DNS rebinding) reaches nothing. So is a callback with another state, and the server goes on waiting.

    Args:
        redirect_uri: with its port.
        state: of the authorization.
    """

    def __init__(self, redirect_uri: str, state: str) -> None:
        parts = urlsplit(redirect_uri)
        self._host = parts.netloc.lower().removesuffix(":80")  # of port 80 a browser says nothing
        self._path = parts.path or "/"
        self._state = state
        self._noted = False
        loop = asyncio.get_running_loop()
        self._callback: asyncio.Future[str] = loop.create_future()
        self._page: asyncio.Future[Page] = loop.create_future()
        # The connections that have sent no request yet, as a browser opens some ahead, and the others.
        self._silent: dict[asyncio.Task[None], None] = {}  # the oldest first
        self._answering = set[asyncio.Task[None]]()

    async def callback(self) -> str:
        """Wait for the callback, and return its path and query, which hold secrets."""
        return await self._callback

    def answer(self, page: Page) -> None:
        """Send a page to the browser that waits for the answer to its callback."""
        self._page.set_result(page)

    def accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Answer the one request of a connection.

        In a task of its own: for one of `asyncio.start_server` that is cancelled, Python 3.11 prints a traceback.
        """
        task = asyncio.create_task(self._serve(reader, writer))
        task.add_done_callback(partial(self._end, writer))
        self._silent[task] = None
        if len(self._silent) > MOST_SILENT:
            oldest = next(iter(self._silent))
            del self._silent[oldest]
            oldest.cancel()

    def _end(self, writer: StreamWriter, task: asyncio.Task[None]) -> None:
        self._silent.pop(task, None)
        self._answering.discard(task)
        writer.close()

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  asyncio has made one
        with suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            head = await self._head(reader)
            self._silent.pop(task, None)
            self._answering.add(task)
            writer.write((await self._decide(head)).response())
            await writer.drain()

    async def close(self) -> None:
        """Let the answer to the callback be sent, and end all other connections."""
        self._page.cancel()  # changes nothing once there is one
        if self._answering:
            await asyncio.wait(self._answering, timeout=CLOSE_TIMEOUT)
        rest = [*self._silent, *self._answering]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _head(self, reader: StreamReader) -> bytes:
        """Return the head of a request; an empty one where it is too long."""
        with suppress(asyncio.LimitOverrunError):
            async with asyncio.timeout(READ_TIMEOUT):
                return await reader.readuntil(b"\r\n\r\n")
        return b""

    async def _decide(self, head: bytes) -> Page:
        request = Request.of(head)
        if request is None:
            return _refused("400 Bad Request", "This is no request of a browser.")
        if [host.removesuffix(":80") for host in request.hosts] != [self._host]:
            return _refused("421 Misdirected Request", "This server answers at its redirect URI only.")
        if request.target.partition("?")[0] != self._path:
            return _refused("404 Not Found", "Nothing is here.")
        if request.method != "GET":
            return _refused("405 Method Not Allowed", "Only GET is answered.")
        if not self._is_expected(request.target):
            self._note()
            return _refused("400 Bad Request", "This is not the authorization that the command waits for.")
        if not self._callback.done():
            self._callback.set_result(request.target)
        return await asyncio.shield(self._page)

    def _is_expected(self, target: str) -> bool:
        with suppress(ConnectFailed, ValueError):
            return hmac.compare_digest(read_callback(target).state.encode(), self._state.encode())
        return False

    def _note(self) -> None:
        if not self._noted:
            print_line("a callback with another state was refused, perhaps of an older page; still waiting")
        self._noted = True


def _refused(status: str, text: str) -> Page:
    return Page(status, "Not this page", text)


@asynccontextmanager
async def receiving(listener: socket.socket, redirect_uri: str, state: str) -> AsyncGenerator[CallbackServer]:
    """Context manager: serve the callback of one authorization on a socket, which is closed at the end.

    Args:
        listener: of `listen`.
        redirect_uri: with its port.
        state: of the authorization.
    """
    server = CallbackServer(redirect_uri, state)
    listening = await asyncio.start_server(server.accept, sock=listener, limit=LONGEST_HEAD)
    try:
        yield server
    finally:
        listening.close()
        await server.close()
