"""What a program does with a flow: the forms of a callback, starts side by side, and the end of the flow."""

import asyncio
import threading
from collections.abc import Callable
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg
import httpx
import pytest
from starlette.datastructures import URL

from spotconn import ConnectFlow, ConnectionStore, SpotifyAccounts
from spotconn._spotify.redirect import UrlObject
from spotconn.events import Connected, Event
from spotconn.testing import FakeSpotify
from support.consent import REDIRECT_URI, agree, pending


def _path_and_query(url: str) -> str:
    return f"/callback?{urlsplit(url).query}"


@pytest.mark.parametrize("form", [httpx.URL, URL, _path_and_query])
async def test_the_callback_may_be_what_a_framework_has(
    flow: ConnectFlow, user: UUID, form: Callable[[str], str | UrlObject]
) -> None:
    """A URL object of httpx or Starlette, or path and query."""
    assert (await flow.finish(user, form(await agree(await flow.start(user))))).spotify_user_id == "alice"


async def test_a_callback_in_another_form_spends_nothing(
    flow: ConnectFlow, user: UUID, spotify: FakeSpotify, admin: asyncpg.Connection
) -> None:
    """A query without its "?" is an error of the program: the authorization is still under way."""
    callback = await agree(await flow.start(user))
    with pytest.raises(ValueError, match="callback_url"):
        await flow.finish(user, urlsplit(callback).query)
    assert (await pending(admin), spotify.token_calls) == (1, 0)
    assert (await flow.finish(user, callback)).spotify_user_id == "alice"


async def test_starts_live_side_by_side(flow: ConnectFlow, user: UUID, admin: asyncpg.Connection) -> None:
    """A link that a browser fetches ahead does not end the start that the user follows, however often."""
    first = await flow.start(user)
    for _ in range(19):
        await flow.start(user)
    assert (await flow.finish(user, await agree(first))).spotify_user_id == "alice"
    assert await pending(admin) == 19


async def test_the_end_of_a_flow_waits_for_its_events(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID
) -> None:
    """A slow hook has its event when the block ends, and a closed flow refuses calls."""
    emitted: list[Event] = []
    called = threading.Event()
    spotify.add_account("alice")

    def slow(event: Event) -> None:
        called.wait(10)
        emitted.append(event)

    made = ConnectFlow(store, accounts, redirect_uri=REDIRECT_URI, scopes=(), on_event=slow)
    async with made as flow:
        callback = await agree(await flow.start(user))
        await flow.finish(user, callback)
        asyncio.get_running_loop().call_later(0.2, called.set)
        assert emitted == []
    assert [type(event) for event in emitted] == [Connected]
    for call in (flow.start(user), flow.finish(user, callback)):
        with pytest.raises(RuntimeError, match="this ConnectFlow is closed"):
            await call
    await flow.aclose()


async def test_a_hook_that_hangs_does_not_keep_a_flow_open(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID
) -> None:
    """The end of a flow is bounded."""
    released = threading.Event()
    spotify.add_account("alice")
    flow = ConnectFlow(store, accounts, redirect_uri=REDIRECT_URI, scopes=(), on_event=lambda _: released.wait(60))
    await flow.finish(user, await agree(await flow.start(user)))
    try:
        async with asyncio.timeout(20):
            await flow.aclose()
    finally:
        released.set()
