"""A mail server that keeps the letters it takes (RFC 5321, of one recipient each)."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from email import message_from_bytes
from email.message import Message


class MailServer:
    """Takes letters on a port of loopback.

    Attributes:
        letters: those it has taken, in their order.
        port: where it listens.
        hold: while it is cleared, no letter is taken: the command RCPT waits for it.
        waiting: set once a command waits.
    """

    def __init__(self) -> None:
        self.letters: list[Message] = []
        self.port = 0
        self.hold = asyncio.Event()
        self.hold.set()
        self.waiting = asyncio.Event()

    @property
    def recipients(self) -> list[str]:
        return [str(letter["To"]) for letter in self.letters]

    @asynccontextmanager
    async def serve(self) -> AsyncGenerator[None]:
        """Context manager: listen; what is connected at the end is cut off."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            self.hold.set()
            server.close()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(b"220 mail\r\n")
            while line := await reader.readline():
                answer = await self._answer(line.strip().upper(), reader, writer)
                writer.write(answer + b"\r\n")
                await writer.drain()
                if answer.startswith(b"221"):
                    break
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def _answer(self, command: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        if command.startswith(b"RCPT"):
            self.waiting.set()
            await self.hold.wait()
            if b"REFUSED@" in command or b"<>" in command:  # of what is no address, from Python 3.13 on
                return b"550 no such mailbox"
        elif command == b"DATA":
            writer.write(b"354 go on\r\n")
            text = await reader.readuntil(b"\r\n.\r\n")
            self.letters.append(message_from_bytes(text[:-3]))
        elif command == b"QUIT":
            return b"221 bye"
        return b"250 ok"
