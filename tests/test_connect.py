"""The way of a user to a stored connection: what saves one, and everything that must not."""

from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID

import asyncpg
import httpx
import pytest

from spotconn import (
    ConnectFailed,
    ConnectFlow,
    ConnectionStore,
    SpotifyAccounts,
)
from spotconn.testing import FakeSpotify

REDIRECT_URI = "http://127.0.0.1:8000/callback"
SCOPES = ["user-read-email", "user-top-read"]


@pytest.fixture
def flow(store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify) -> ConnectFlow:
    """A flow of a confidential client; the fake knows two accounts."""
    spotify.add_account("alice", display_name="Alice", email="alice@example.com")
    spotify.add_account("bob", display_name="Bob")
    return ConnectFlow(store, accounts, redirect_uri=REDIRECT_URI, scopes=SCOPES)


async def agree(url: str, account: str = "alice", decision: str = "agree") -> str:
    """What the browser does at Spotify: the callback URL it is redirected to."""
    form = dict(parse_qsl(urlsplit(url).query)) | {"account": account, "decision": decision}
    async with httpx.AsyncClient() as browser:
        answer = await browser.post(url.partition("?")[0], data=form)
    return answer.headers["location"]


async def rows(admin: asyncpg.Connection) -> list[dict[str, Any]]:
    return [dict(row) for row in await admin.fetch("select * from public.spotify_connections order by user_id")]


async def refused(flow: ConnectFlow, user: UUID, callback: str) -> str:
    with pytest.raises(ConnectFailed) as raised:
        await flow.finish(user, callback)
    return raised.value.reason


async def test_a_user_connects(flow: ConnectFlow, spotify: FakeSpotify, admin: asyncpg.Connection, user: UUID) -> None:
    """What is saved is what Spotify granted, and nothing of the attempt stays behind."""
    connection = await flow.finish(user, await agree(await flow.start(user)))
    (row,) = await rows(admin)
    assert (row["user_id"], row["spotify_user_id"], row["display_name"]) == (user, "alice", "Alice")
    assert (row["email"], row["scope"]) == ("alice@example.com", " ".join(SCOPES))
    assert spotify.accepts(row["access_token"])
    assert spotify.accepts_refresh(row["refresh_token"])
    assert connection.access_token == row["access_token"]
    assert await admin.fetchval("select count(*) from spotconn.pending_connect") == 0
