"""A bot for Telegram: python examples/telegram_bot.py shows a chat on a simulated Telegram and a simulated Spotify.

With DATABASE_URL, SPOTIFY_CLIENT_ID, SPOTIFY_REDIRECT_URI (its path is /callback) and TELEGRAM_BOT_TOKEN set it serves
the real ones. Its users are rows of a table of its own, by their numbers at Telegram:

    create table public.chats (id bigint primary key);
    spotconn schema --apply --users 'public.chats(id bigint)'

Who opens the link connects *their* Spotify to the chat that asked for it: docs/how-to/bot.md says what follows.
"""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import asyncpg
import httpx
import uvicorn
from simulated_telegram import SimulatedTelegram, converse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from demo_services import SCOPES, has_settings, print_line, run, simulated
from spotconn import (
    AskUser,
    Completed,
    ConnectFailed,
    ConnectFlow,
    MissingScope,
    SpotconnError,
    SpotifyUnavailable,
    TokenManager,
    TryLater,
    UnknownUser,
    integer_id,
)
from spotconn.testing import add_user
from web_api import get_json

PORT = 8767
POLL = 25
"""Seconds that Telegram waits for a message before it answers that there is none."""
RETRY_DELAY = 3.0
"""Seconds after a failed poll."""
SIGN_UP = "insert into public.chats (id) values ($1) on conflict do nothing"

log = logging.getLogger("telegram_bot")


@dataclass(frozen=True)
class Bot:
    """Answers messages, and Spotify's callback.

    Attributes:
        tokens: of its users, whose ids are those of their private chats.
        flow: over the store of `tokens`.
        telegram: a client with the URL of the bot as its base. That URL holds the bot's token, and httpx logs URLs at
            INFO: keep its logger at WARNING.
        spotify: a client of the Web API.
        sign_up: makes a user.
    """

    tokens: TokenManager
    flow: ConnectFlow
    telegram: httpx.AsyncClient
    spotify: httpx.AsyncClient
    sign_up: Callable[[int], Awaitable[object]]

    async def poll(self) -> None:
        """Answer messages until it is cancelled."""
        offset = 0
        while True:
            try:
                updates = await self.call("getUpdates", offset=offset, timeout=POLL, allowed_updates=["message"])
                for update in updates:
                    offset = update["update_id"] + 1
                    await self._answer(update.get("message", {}))
            except httpx.HTTPError as error:
                log.warning("Telegram: %s", type(error).__name__)
                await asyncio.sleep(RETRY_DELAY)

    async def call(self, method: str, **arguments: Any) -> Any:
        """Call a method of the Bot API."""
        answer = await self.telegram.post(method, json=arguments)
        answer.raise_for_status()
        return answer.json()["result"]

    async def write(self, chat: int, text: str) -> None:
        """Write to a chat: a text that cannot be forwarded, and whose links Telegram does not open for a preview."""
        preview = {"is_disabled": True}
        await self.call("sendMessage", chat_id=chat, text=text, protect_content=True, link_preview_options=preview)

    async def _answer(self, message: dict[str, Any]) -> None:
        if "text" not in message or "from" not in message:
            return
        chat, person = message["chat"]["id"], message["from"]["id"]
        if message["chat"]["type"] == "private":
            text = await self._reply(person, message["text"].partition(" ")[0])
        else:  # everybody in a group would see the link
            text = "Please write to me in private."
        try:
            await self.write(chat, text)
        except httpx.HTTPError as error:  # such as a chat that the bot may not write to: the others have their answers
            log.warning("Telegram: %s", type(error).__name__)

    async def _reply(self, person: int, command: str) -> str:
        try:
            try:
                return await self._done(person, command)
            except AskUser as error:
                scopes = error.scopes if isinstance(error, MissingScope) else None
                return f"{error}\n{await self._link(person, scopes)}"
        except (TryLater, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            log.warning("%s", type(error).__name__)
            return "Not possible just now. Please try again later."
        except SpotconnError as error:
            log.critical("%s: %s", type(error).__name__, error)
            return "This bot is out of order. It has been logged."

    async def _done(self, person: int, command: str) -> str:
        match command:
            case "/connect":
                return await self._link(person, None)
            case "/top":
                auth = self.tokens.auth(person, scopes=["user-top-read"])
                page = await get_json(self.spotify, auth, "/v1/me/top/tracks", limit=3)
                return " / ".join(track["name"] for track in page["items"])
            case "/undo":
                gone = await self.tokens.disconnect(person)
                return "Spotify is disconnected." if gone else "Nothing was connected."
            case _:
                return "/connect, /top or /undo"

    async def _link(self, person: int, scopes: frozenset[str] | None) -> str:
        try:
            url = await self.flow.start(person, scopes=scopes)
        except UnknownUser:
            await self.sign_up(person)
            url = await self.flow.start(person, scopes=scopes)
        return f"Connect your Spotify within ten minutes. The link works once; give it to nobody: {url}"

    async def callback(self, request: Request) -> PlainTextResponse:
        """Answer Spotify's redirect. The page says whose chat it was, to a reader whom somebody has sent the link."""
        try:
            completed = await self.flow.complete_unbound(request.url, same_account=True)
            owner, account = await self._announce(completed)
        except AskUser as error:
            if isinstance(error, ConnectFailed) and error.reason == "state_used":  # most often a page loaded twice
                return page("This link was used: the chat says what came of it.", 409)
            return page(f"Not connected: {error}. Ask the bot for another link.", 409)
        except SpotconnError as error:
            log.log(logging.WARNING if error.retryable else logging.CRITICAL, "%s: %s", type(error).__name__, error)
            return page("Not connected. Ask the bot for another link later.", 503)
        return page(
            f"The Spotify account {account} is connected to the Telegram chat of {owner}.\n"
            "Is that not you? Remove this app at https://www.spotify.com/account/apps now.",
        )

    async def _announce(self, completed: Completed) -> tuple[str, str]:
        """Show the account in the chat, and return the names of both. A chat that cannot be told is not connected."""
        person, profile = completed.user_id and integer_id(completed.user_id), completed.profile
        assert person  # noqa: S101  `start` began it, for the number of somebody at Telegram
        account = one_line(profile.display_name or profile.spotify_user_id)
        try:
            owner = await self.call("getChat", chat_id=person)
            await self.write(person, f"Connected to the Spotify account {account}. Is that not yours? /undo")
            return one_line(owner["first_name"]), account
        except httpx.HTTPError as error:
            log.warning("Telegram: %s", type(error).__name__)
        await self.tokens.disconnect(person)
        raise SpotifyUnavailable("the chat could not be told", answered=False)


def one_line(name: str) -> str:
    """Return a name, which its owner chose, without what would look like a line of this program's own."""
    return " ".join(name.split())


def page(text: str, status: int = 200) -> PlainTextResponse:
    """Return a page that no cache keeps, and whose address, which holds a code, no other page gets to know."""
    return PlainTextResponse(text, status, {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})


@asynccontextmanager
async def real() -> AsyncGenerator[Bot]:
    """Open a bot with the settings of the environment."""
    token = os.environ.get("TELEGRAM_BOT_TOKEN")
    dsn = os.environ.get("SPOTCONN_DATABASE_URL") or os.environ["DATABASE_URL"]
    if not token:
        raise ValueError("TELEGRAM_BOT_TOKEN: expected the token of your bot")
    async with (
        TokenManager.from_env() as tokens,
        ConnectFlow.from_env(tokens.store, tokens.accounts, scopes=SCOPES) as flow,
        asyncpg.create_pool(dsn, min_size=0, max_size=1, statement_cache_size=0) as pool,
        clients(f"https://api.telegram.org/bot{token}/", tokens) as (telegram, spotify),
    ):
        yield Bot(tokens, flow, telegram, spotify, lambda person: pool.execute(SIGN_UP, person))


@asynccontextmanager
async def demonstrated(url: str, token: str) -> AsyncGenerator[Bot]:
    """Open a bot between a simulated Telegram and a simulated Spotify, where Ann has an account."""
    async with simulated() as simulation:
        simulation.spotify.add_account("ann", display_name="Ann")
        tokens = simulation.tokens
        flow = ConnectFlow(tokens.store, tokens.accounts, redirect_uri=f"{url}/callback", scopes=["user-read-email"])
        async with flow, clients(f"{url}/bot{token}/", tokens) as (telegram, spotify):
            yield Bot(tokens, flow, telegram, spotify, lambda person: add_user(simulation.dsn, user_id=person))


Clients = tuple[httpx.AsyncClient, httpx.AsyncClient]


@asynccontextmanager
async def clients(telegram_url: str, tokens: TokenManager) -> AsyncGenerator[Clients]:
    """Open the clients of Telegram and of the Web API."""
    async with (
        httpx.AsyncClient(base_url=telegram_url, timeout=POLL + 10) as telegram,
        httpx.AsyncClient(base_url=tokens.accounts.api_url, timeout=10) as spotify,
    ):
        yield telegram, spotify


async def main(_arguments: list[str]) -> int:
    telegram = None if has_settings() else SimulatedTelegram("demo-token")
    with socket.create_server(("127.0.0.1", int(os.environ.get("PORT") or PORT))) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        opened = real() if telegram is None else demonstrated(url, telegram.token)
        async with opened as bot, asyncio.TaskGroup() as group:
            app = Starlette(routes=[Route("/callback", bot.callback), *([Mount("/", telegram)] if telegram else [])])
            server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
            polling = group.create_task(bot.poll())
            server_task = group.create_task(server.serve(sockets=[listening]))
            await (server_task if telegram is None else converse(telegram, print_line))
            polling.cancel()
            server.should_exit = True
    return 0


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(run(main))
