"""As much of Telegram's Bot API as the bot of the examples needs, as an ASGI application, and people who write to it.

https://core.telegram.org/bots/api
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

LONGEST_POLL = 0.2
"""Seconds that an empty answer waits; the real one waits as long as the bot asks for."""
Update = dict[str, Any]


class SimulatedTelegram:
    """Takes messages from people, and what the bot answers them.

    Args:
        token: of the one bot that there is.

    Attributes:
        token: as given.
        refused: calls with another token.
    """

    def __init__(self, token: str) -> None:
        self.token = token
        self.refused = 0
        self._names: dict[int, str] = {}
        self._updates: list[Update] = []
        self._chats = defaultdict[int, asyncio.Queue[str]](asyncio.Queue)
        self._written = asyncio.Condition()
        self._app = Starlette(routes=[Route("/bot{token}/{method}", self._call, methods=["POST"])])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await self._app(scope, receive, send)

    def join(self, person: int, name: str) -> None:
        """Add a person. The id of a private chat is that of its person."""
        self._names[person] = name

    def leave(self, person: int) -> None:
        """Remove a person: the bot can neither look at the chat any more nor write to it."""
        del self._names[person]

    async def write(self, person: int, text: str, *, chat: int | None = None) -> None:
        """Write to the bot: in private, or in a group."""
        message = {
            "message_id": len(self._updates) + 1,
            "from": {"id": person, "is_bot": False, "first_name": self._names[person]},
            "chat": {"id": chat or person, "type": "group" if chat else "private"},
            "text": text,
        }
        await self.add(message=message)

    async def add(self, **update: Any) -> None:
        """Add an update of any kind."""
        async with self._written:
            self._updates.append({"update_id": len(self._updates) + 1, **update})
            self._written.notify_all()

    async def read(self, chat: int) -> str:
        """Wait for the next text that the bot writes."""
        return await self._chats[chat].get()

    async def _call(self, request: Request) -> JSONResponse:
        if request.path_params["token"] != self.token:
            self.refused += 1
            return JSONResponse({"ok": False, "error_code": 401, "description": "Unauthorized"}, 401)
        arguments: Mapping[str, Any] = await request.json()
        match request.path_params["method"]:
            case "getUpdates":
                result: Any = await self._after(arguments["offset"])
            case "sendMessage" if arguments["chat_id"] < 0 or arguments["chat_id"] in self._names:
                result = {"message_id": 1}
                self._chats[arguments["chat_id"]].put_nowait(arguments["text"])
            case "getChat" if arguments["chat_id"] in self._names:
                result = {"id": arguments["chat_id"], "first_name": self._names[arguments["chat_id"]]}
            case _:
                return JSONResponse({"ok": False, "error_code": 400, "description": "Bad Request"}, 400)
        return JSONResponse({"ok": True, "result": result})

    async def _after(self, offset: int) -> list[Update]:
        """Wait for updates from an id on, for a while."""
        async with self._written:
            try:
                async with asyncio.timeout(LONGEST_POLL):
                    await self._written.wait_for(lambda: len(self._updates) >= max(offset, 1))
            except TimeoutError:
                return []
            return self._updates[max(offset, 1) - 1 :]


async def converse(telegram: SimulatedTelegram, print_line: Callable[[str], None]) -> None:
    """Let Ann write to the bot, and follow its links to the simulated Spotify."""
    telegram.join(42, "Ann")
    for text in ("/top", "/top", "/top", "/undo"):
        print_line(f"Ann: {text}")
        await telegram.write(42, text)
        said, _, link = (await telegram.read(42)).partition("http")
        print_line(f"bot: {said}{'http...' if link else ''}")
        if link:
            print_line(f"page: {await agree(f'http{link}', 'ann')}")
            print_line(f"bot: {await telegram.read(42)}")


async def agree(url: str, account: str) -> str:
    """Agree on Spotify's page, and return what the page says to which it leads."""
    form = dict(parse_qsl(urlsplit(url).query)) | {"account": account, "decision": "agree"}
    async with httpx.AsyncClient(timeout=60, follow_redirects=True) as browser:
        return (await browser.post(url.partition("?")[0], data=form)).text
