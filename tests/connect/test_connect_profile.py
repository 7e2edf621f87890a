"""Whose account it is: what Spotify's answer to that may cost a connect, and what not."""

from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import httpx
import pytest

from spotconn import (
    ConnectFailed,
    ConnectFlow,
    ConnectionStore,
    SpotifyAccounts,
    SpotifyUnavailable,
)
from spotconn.testing import FakeSpotify
from support.connections import rows
from support.consent import REDIRECT_URI, SCOPES, agree, pending


async def test_an_account_that_spotify_refuses_to_the_app_is_reported_in_its_words(
    flow: ConnectFlow, spotify: FakeSpotify, admin: asyncpg.Connection, user: UUID, before: list[asyncpg.Record]
) -> None:
    """A 403 in plain text is a reason of its own, with Spotify's words."""
    spotify.add_account("alice", refusal="User not registered in the Developer Dashboard")
    callback = await agree(await flow.start(user))
    with pytest.raises(ConnectFailed, match="User not registered in the Developer Dashboard") as raised:
        await flow.finish(user, callback)
    assert raised.value.reason == "not_allowed"
    assert await rows(admin) == before


async def test_an_account_without_name_and_email_connects(
    flow: ConnectFlow, spotify: FakeSpotify, admin: asyncpg.Connection, user: UUID
) -> None:
    """display_name and email are optional."""
    spotify.add_account("alice", display_name=None, email=None)
    await flow.finish(user, await agree(await flow.start(user)))
    assert [(row["display_name"], row["email"]) for row in await rows(admin)] == [(None, None)]


@pytest.fixture
async def shaky(store: ConnectionStore, spotify: FakeSpotify) -> AsyncIterator["Shaky"]:
    """A flow whose calls of GET /v1/me can be made to fail."""
    spotify.add_account("alice", display_name="Alice")
    shaky = Shaky()
    async with (
        spotify.serve() as url,
        httpx.AsyncClient(transport=shaky) as http,
        SpotifyAccounts("demo-client", "demo-secret", http=http, accounts_url=url, api_url=url) as accounts,
    ):
        shaky.flow = ConnectFlow(store, accounts, redirect_uri=REDIRECT_URI, scopes=SCOPES)
        yield shaky


class Shaky(httpx.AsyncHTTPTransport):
    """Real HTTP to the fake, except for the answers of GET /v1/me that a test puts first."""

    flow: ConnectFlow

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[httpx.Response] = []
        self.requested = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/me":
            self.requested += 1
            if self.answers:
                return self.answers.pop(0)
        return await super().handle_async_request(request)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_a_profile_that_comes_late_is_waited_for(
    shaky: Shaky, admin: asyncpg.Connection, user: UUID, status: int
) -> None:
    """429 and 5xx of the profile are tried again, and the connection is saved."""
    callback = await agree(await shaky.flow.start(user))
    shaky.answers = [httpx.Response(status, headers={"retry-after": "0"}, text="later") for _ in range(2)]
    await shaky.flow.finish(user, callback)
    assert shaky.requested == 3
    assert [row["display_name"] for row in await rows(admin)] == ["Alice"]


@pytest.mark.parametrize(
    ("answer", "raised"),
    [
        (httpx.Response(429, headers={"retry-after": "13749"}), SpotifyUnavailable),
        (httpx.Response(403, text="<html>gateway</html>"), SpotifyUnavailable),
        (httpx.Response(200, text="not json"), SpotifyUnavailable),
        (httpx.Response(401, json={"error": {"status": 401, "message": "Invalid access token"}}), ConnectFailed),
    ],
)
async def test_a_profile_that_does_not_come_changes_nothing(
    shaky: Shaky,
    admin: asyncpg.Connection,
    user: UUID,
    before: list[asyncpg.Record],
    monkeypatch: pytest.MonkeyPatch,
    answer: httpx.Response,
    raised: type[Exception],
) -> None:
    """Without a readable profile within the deadline nothing is saved and the old connection stays."""
    monkeypatch.setattr("spotconn._completion.TIMEOUT", 2.0)
    callback = await agree(await shaky.flow.start(user))
    shaky.answers = [httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)] * 50
    with pytest.raises(raised):
        await shaky.flow.finish(user, callback)
    assert await rows(admin) == before
    assert await pending(admin) == 0
