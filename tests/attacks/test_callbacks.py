"""Callbacks that no Spotify has sent: nothing is spent by them, and nothing of them is kept."""

import gc
import secrets
import urllib.parse
from collections.abc import Callable
from types import ModuleType
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectFailed, ConnectFlow
from spotconn._spotify.redirect import read_callback
from spotconn.testing import FakeSpotify
from support.consent import agree, altered, pending, state_of

ODD: list[Callable[[str], str]] = [
    lambda url: altered(url, code="\u00e4\u20ac"),
    lambda url: f"/?state={state_of(url)}&code=hush\ud800",
    lambda url: f"/?state={state_of(url)}&code=hush%ED%A0%80",
    lambda url: altered(url, code="hush\x00"),
    lambda url: altered(url, code="hush\r\nHost: evil"),
    lambda url: altered(url, code="c" * 2049),
    lambda url: altered(url, code="c" * 2_000_000),
    lambda url: altered(url, code=""),
    lambda url: url + "&code=hush",
    lambda url: url + "&state=hush",
    lambda url: url + "&error=a&error=b",
    lambda url: altered(url, other="o" * 9000),
    lambda url: url + "&a=b" * 30,
    lambda url: altered(url, state="hush\ud800".encode("utf-8", "replace").decode()),
    lambda url: f"/?code=hush&state={state_of(url)}\ud800",
    lambda url: f"/?code=hush&state={state_of(url)}%00",
    lambda url: f"/?code=hush&state={state_of(url)}%0A",
    lambda url: altered(url, state="s" * 100_000),
    lambda url: f"/?error=access_denied&state={state_of(url)}\ud800",
    lambda _url: f"/?error=%00&state={'f' * 13}.{'A' * 43}",
]


@pytest.mark.parametrize("change", ODD)
async def test_an_odd_callback_is_a_connect_that_failed_and_spends_nothing(
    flow: ConnectFlow, user: UUID, spotify: FakeSpotify, admin: asyncpg.Connection, change: Callable[[str], str]
) -> None:
    """It is refused as the user's, without its values, and the right callback still connects."""
    callback = await agree(await flow.start(user))
    with pytest.raises(ConnectFailed) as raised:
        await flow.finish(user, change(callback))
    assert raised.value.reason in {"code_rejected", "state_mismatch"}
    assert "hush" not in f"{raised.value!r}"
    assert raised.value.__context__ is None
    assert (await pending(admin), spotify.token_calls) == (1, 0)
    assert (await flow.finish(user, callback)).spotify_user_id == "alice"


async def test_an_odd_error_is_not_repeated(flow: ConnectFlow, user: UUID, spotify: FakeSpotify) -> None:
    """What stands in `error` is never the text of an exception."""
    for error in ("hush\ud800", "%00hush", "hush" * 500, "%3Cscript%3Ehush"):
        state = state_of(await flow.start(user))
        with pytest.raises(ConnectFailed) as raised:
            await flow.finish(user, f"/?error={error}&state={state}")
        assert raised.value.reason == "denied"
        assert "hush" not in f"{raised.value!r}"
    assert spotify.token_calls == 0


def holders(backwards: str) -> int:
    """Return how many objects that the garbage collector sees hold a string with the reverse of a text."""
    wanted = backwards[::-1]
    return sum(
        issubclass(type(held), str) and held is not wanted and wanted in held  # isinstance may run code of the object
        for container in gc.get_objects()
        # Their names are in a dict of their own; the early CPython 3.12 lists what `_asyncio` holds without an end.
        if not issubclass(type(container), ModuleType)
        for held in gc.get_referents(container)
    )


def test_no_cache_keeps_a_callback() -> None:
    """After a callback was read no object of the process holds its code; urlsplit would have kept the whole URL."""
    backwards = secrets.token_hex(20)
    read_callback(f"https://example.com/callback?state=s&code={backwards[::-1]}")
    assert holders(backwards) == 0
    urllib.parse.urlsplit(f"https://example.com/callback?state=s&code={backwards[::-1]}")
    assert holders(backwards) > 0
