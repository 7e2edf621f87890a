"""The bot for Telegram over real HTTP: who gets a link, what comes of it, and what chat and browser are told."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from uuid import UUID

import httpx
import pytest
from simulated_telegram import SimulatedTelegram
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from telegram_bot import Bot

from spotconn import ConnectFlow, ConnectionStore, SpotifyAccounts, TokenManager
from spotconn.testing import FakeSpotify, add_user
from spotconn.testing._server import serve
from support.consent import agree
from support.database import Database
from support.listening import until
from support.programs import run

ANN, BEN, GROUP = 42, 43, -1001


@dataclass
class Scene:
    """A bot that polls, between a simulated Telegram and a simulated Spotify."""

    bot: Bot
    telegram: SimulatedTelegram
    browser: httpx.AsyncClient

    async def ask(self, person: int, text: str) -> str:
        """Write to the bot in private, and return what it says."""
        await self.telegram.write(person, text)
        return await self.telegram.read(person)

    async def link(self, person: int) -> str:
        """Return the link that the bot gives."""
        return f"http{(await self.ask(person, '/connect')).partition('http')[2]}"

    async def is_connected(self, person: int) -> bool:
        return (await self.bot.tokens.status(person)).connected


@pytest.fixture
async def scene(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, database: Database
) -> AsyncIterator[Scene]:
    spotify.add_account("alice", display_name="Alice\nForged")
    telegram = SimulatedTelegram("marked-token")

    async def callback(request: Request) -> Response:
        return await bot.callback(request)

    async def sign_up(person: int) -> UUID:
        return await add_user(database.admin_dsn, user_id=person)

    app = Starlette(routes=[Route("/callback", callback), Mount("/", telegram)])
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serve(app))
        tokens = await stack.enter_async_context(TokenManager(store, accounts))
        flow = ConnectFlow(store, accounts, redirect_uri=f"{url}/callback", scopes=["user-top-read"])
        clients = [
            await stack.enter_async_context(httpx.AsyncClient(base_url=base, timeout=60))
            for base in (f"{url}/botmarked-token/", accounts.api_url, url)
        ]
        bot = Bot(tokens, flow, clients[0], clients[1], sign_up)
        polling = asyncio.create_task(bot.poll())
        try:
            yield Scene(bot, telegram, clients[2])
        finally:
            polling.cancel()
            await asyncio.wait([polling])


@pytest.mark.long
async def test_it_runs_without_settings() -> None:
    """Somebody connects, is asked for one scope more, has an answer, and undoes it."""
    status, out, err = await run("telegram_bot.py", PORT="0")
    assert (status, err) == (0, "")
    assert "page: The Spotify account Ann is connected to the Telegram chat of Ann." in out
    assert "bot: not granted: user-top-read; connect again and ask for user-read-email user-top-read" in out
    assert out.endswith("Ann: /undo\nbot: Spotify is disconnected.\n")
    assert "state=" not in out


async def test_with_settings_the_token_of_the_bot_is_needed() -> None:
    """It is named, and nothing is asked."""
    settings = {"DATABASE_URL": "postgresql://app:hush@127.0.0.1:1/db", "SPOTIFY_CLIENT_ID": "0123456789abcdef"}
    status, out, err = await run("telegram_bot.py", PORT="0", TELEGRAM_BOT_TOKEN="", **settings)
    assert (status, err) == (1, "")
    assert "TELEGRAM_BOT_TOKEN: expected" in out
    assert "hush" not in out


async def test_the_chat_that_asked_gets_the_account_and_both_ends_are_told(scene: Scene) -> None:
    """A person whom the service did not know; the page names the chat, and the chat the account, each in one line."""
    scene.telegram.join(ANN, "Ann")
    answer = await scene.browser.get(await agree(await scene.link(ANN)))
    assert answer.status_code == 200
    assert answer.text.startswith("The Spotify account Alice Forged is connected to the Telegram chat of Ann.\n")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert await scene.telegram.read(ANN) == "Connected to the Spotify account Alice Forged. Is that not yours? /undo"
    assert " / " in await scene.ask(ANN, "/top")
    assert await scene.ask(ANN, "/undo") == "Spotify is disconnected."
    assert await scene.ask(ANN, "/undo") == "Nothing was connected."


async def test_a_link_is_given_in_private_and_works_once(scene: Scene) -> None:
    """A group gets none. A second look at the callback, and one that nobody started, connect nothing."""
    scene.telegram.join(ANN, "Ann")
    await scene.telegram.write(ANN, "/connect", chat=GROUP)
    assert await scene.telegram.read(GROUP) == "Please write to me in private."
    callback = await agree(await scene.link(ANN))
    await scene.browser.get(callback)
    await scene.telegram.read(ANN)
    await scene.ask(ANN, "/undo")
    said = {
        callback: "This link was used",
        "/callback?code=x&state=forged": "Not connected",
        "/callback": "Not connected",
    }
    for url, beginning in said.items():
        answer = await scene.browser.get(url)
        assert (answer.status_code, answer.text.partition(":")[0]) == (409, beginning)
    assert not await scene.is_connected(ANN)


async def test_a_connected_chat_takes_no_other_account(scene: Scene, spotify: FakeSpotify) -> None:
    """Somebody else who opens a link of the chat is told; after /undo it takes theirs."""
    scene.telegram.join(ANN, "Ann")
    spotify.add_account("bob")
    connected = list[str]()
    for account in ("alice", "bob"):
        answer = await scene.browser.get(await agree(await scene.link(ANN), account))
        connected.append(f"{answer.status_code} {(await scene.bot.tokens.status(ANN)).spotify_user_id}")
        if answer.is_success:
            await scene.telegram.read(ANN)
    await scene.ask(ANN, "/undo")
    await scene.browser.get(await agree(await scene.link(ANN), "bob"))
    assert (await scene.bot.tokens.status(ANN)).spotify_user_id == "bob"
    assert connected == ["200 alice", "409 alice"]


async def test_a_chat_that_cannot_be_told_is_not_connected(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody would be there to undo it. No log shows the token of the bot, which is in each URL of Telegram."""
    scene.telegram.join(BEN, "Ben")
    link = await scene.link(BEN)
    scene.telegram.leave(BEN)
    with caplog.at_level(logging.WARNING):
        answer = await scene.browser.get(await agree(link))
    assert answer.status_code == 503
    assert not await scene.is_connected(BEN)
    assert "Telegram: HTTPStatusError" in caplog.text
    assert "marked-token" not in caplog.text


async def test_what_is_no_text_is_passed_over(scene: Scene) -> None:
    """Other updates, and messages such as pictures, do not stop the bot."""
    scene.telegram.join(ANN, "Ann")
    await scene.telegram.add(edited_message={})
    await scene.telegram.add(message={"chat": {"id": ANN, "type": "private"}, "from": {"id": ANN}, "photo": []})
    await scene.telegram.add(message={"chat": {"id": GROUP, "type": "channel"}, "text": "/connect"})
    assert await scene.ask(ANN, "hello") == "/connect, /top or /undo"


async def test_who_cannot_be_answered_holds_up_nobody(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for the pause after a failed poll."""
    monkeypatch.setattr("telegram_bot.RETRY_DELAY", 3600)
    scene.telegram.join(ANN, "Ann")
    scene.telegram.join(BEN, "Ben")
    await scene.telegram.write(BEN, "hello")
    scene.telegram.leave(BEN)
    assert await scene.ask(ANN, "hello") == "/connect, /top or /undo"


async def test_it_goes_on_after_a_sign_up_that_failed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own database may be away, or its rows may not be those of the schema: each message has an answer."""

    async def away(*_: object, **__: object) -> None:
        raise ConnectionRefusedError

    async def without_effect(*_: object, **__: object) -> None:
        pass

    scene.telegram.join(ANN, "Ann")
    said: list[str] = []
    for sign_up in (away, without_effect):
        monkeypatch.setattr(f"{__name__}.add_user", sign_up)
        said += [await scene.ask(ANN, "/connect"), await scene.ask(ANN, "/top")]
    assert [text.partition(".")[0] for text in said] == ["Not possible just now"] * 2 + ["This bot is out of order"] * 2
    assert "UnknownUser: user_id: no such user in auth.users" in caplog.text


async def test_it_goes_on_after_telegram_was_away(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A poll that fails is repeated after a pause."""
    monkeypatch.setattr("telegram_bot.RETRY_DELAY", 0.01)
    scene.telegram.join(ANN, "Ann")
    scene.telegram.token = "another"
    await until(lambda: scene.telegram.refused > 1)
    scene.telegram.token = "marked-token"
    assert await scene.ask(ANN, "hello") == "/connect, /top or /undo"
