"""The FastAPI example over real HTTP: each kind of error has its answer, and none tells what it must not."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import asyncpg
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from fastapi_app import build_app
from spotconn import ConnectionStore, SpotifyAccounts, TokenManager
from spotconn.testing import Answer, FakeSpotify
from spotconn.testing._server import serve
from support.connections import connect
from support.consent import SCOPES

INSIDE = ("invalid_client", "SPOTIFY_CLIENT", "Traceback", "postgres", "schema", "Error", "upstream")


@asynccontextmanager
async def serving(tokens: TokenManager) -> AsyncGenerator[httpx.AsyncClient]:
    """A client of the running service, which has opened its manager and closes it."""

    @asynccontextmanager
    async def opened() -> AsyncGenerator[TokenManager]:
        async with tokens:
            yield tokens

    app = build_app(opened)
    async with app.router.lifespan_context(app) as kept:
        state = dict(kept or {})

        async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "state": dict(state)}, receive, send)

        async with serve(with_state) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
            yield client


@pytest.fixture
async def client(store: ConnectionStore, accounts: SpotifyAccounts) -> AsyncIterator[httpx.AsyncClient]:
    """Of a service on the database and the Spotify of the test."""
    async with serving(TokenManager(store, accounts)) as client:
        yield client


async def problem(client: httpx.AsyncClient, path: str, user: UUID) -> tuple[httpx.Response, str]:
    """An answer that is a whole problem of RFC 9457 and tells nothing of the inside, and its type."""
    answer = await client.get(path, headers={"X-User": str(user)})
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body.keys() == {"type", "title", "status", "detail"}
    assert body["status"] == answer.status_code
    assert not [word for word in INSIDE if word in answer.text]
    return answer, body["type"].rpartition(":")[2]


async def test_a_connected_user_is_served(
    client: httpx.AsyncClient, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """With a token that is good, that has run out, and that Spotify has ended early."""
    for ttl in (3600, -1):
        await connect(store, spotify, user, ttl=ttl, scope=frozenset(SCOPES))
        answer = await client.get("/me", headers={"X-User": str(user)})
        assert (answer.status_code, answer.json()["spotify_user_id"]) == (200, "alice")
    stored = await connect(store, spotify, user, scope=frozenset(SCOPES))
    spotify.reject_access_token(stored.access_token)
    answer = await client.get("/top-tracks", headers={"X-User": str(user)})
    assert (answer.status_code, len(answer.json()["tracks"])) == (200, 5)


async def test_a_user_who_has_to_connect_gets_409(
    client: httpx.AsyncClient, store: ConnectionStore, spotify: FakeSpotify, users: list[UUID]
) -> None:
    """Not connected, revoked, and without the scope that a route needs."""
    nobody, revoked, narrow = users
    await connect(store, spotify, revoked, account="bob", ttl=-1)
    spotify.revoke("bob")
    await connect(store, spotify, narrow, scope=frozenset())
    for user, words in ((nobody, "no Spotify connection"), (revoked, "revoked"), (narrow, "user-top-read")):
        answer, kind = await problem(client, "/top-tracks", user)
        assert (answer.status_code, kind) == (409, "connect-spotify")
        assert words in answer.json()["detail"]
    assert (await client.get("/me", headers={"X-User": str(narrow)})).status_code == 200


@pytest.mark.parametrize(
    ("fault", "pause"), [(Answer.too_many_requests("17"), 17), (Answer.unavailable(), None)], ids=["429", "503"]
)
async def test_what_passes_gets_503_and_when_to_come_back(
    client: httpx.AsyncClient,
    store: ConnectionStore,
    spotify: FakeSpotify,
    user: UUID,
    fault: Answer,
    pause: int | None,
) -> None:
    """Retry-After is what Spotify asked for, or a few seconds."""
    await connect(store, spotify, user, ttl=-1)
    spotify.script(*[fault] * 30)
    answer, kind = await problem(client, "/me", user)
    assert (answer.status_code, kind) == (503, "try-later")
    seconds = int(answer.headers["retry-after"])
    assert seconds == pause if pause else 1 <= seconds <= 5


async def test_a_web_api_out_of_reach_gets_503(store: ConnectionStore, spotify: FakeSpotify, user: UUID) -> None:
    """Also when only the Web API does not answer, and not a word of where it was sought."""
    await connect(store, spotify, user)
    accounts = SpotifyAccounts("demo-client", "demo-secret", api_url="http://127.0.0.1:1")
    async with accounts, serving(TokenManager(store, accounts)) as client:
        answer, kind = await problem(client, "/me", user)
    assert (answer.status_code, kind, answer.headers["retry-after"]) == (503, "try-later", "5")


@pytest.mark.parametrize(("retry_after", "pause"), [("7", "7"), ("0", "1"), ("soon", "5"), (None, "5")])
async def test_a_web_api_that_has_enough_gets_503(
    store: ConnectionStore, spotify: FakeSpotify, user: UUID, retry_after: str | None, pause: str
) -> None:
    """The pause that the Web API asks for is handed on, where it is a number of seconds."""

    async def enough(_request: Request) -> Response:
        return Response("Too many requests", 429, {} if retry_after is None else {"Retry-After": retry_after})

    await connect(store, spotify, user)
    async with serve(Starlette(routes=[Route("/v1/me", enough)])) as api_url:
        accounts = SpotifyAccounts("demo-client", "demo-secret", api_url=api_url)
        async with accounts, serving(TokenManager(store, accounts)) as client:
            answer, kind = await problem(client, "/me", user)
    assert (answer.status_code, kind, answer.headers["retry-after"]) == (503, "try-later", pause)


async def test_what_an_engineer_must_mend_gets_500_and_is_logged(
    store: ConnectionStore, spotify: FakeSpotify, user: UUID, caplog: pytest.LogCaptureFixture
) -> None:
    """The user learns nothing of the inside; the log has it, without the secret."""
    await connect(store, spotify, user, ttl=-1)
    async with spotify.serve() as url:
        accounts = SpotifyAccounts("demo-client", "not-the-secret", accounts_url=url, api_url=url)
        async with accounts, serving(TokenManager(store, accounts)) as client:
            answer, kind = await problem(client, "/me", user)
    assert (answer.status_code, kind) == (500, "out-of-order")
    (record,) = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert "invalid_client" in record.getMessage()
    assert "not-the-secret" not in caplog.text


async def test_a_damaged_database_gets_500(client: httpx.AsyncClient, admin: asyncpg.Connection, user: UUID) -> None:
    """A grant that is missing is no fault of the user and does not pass."""
    await admin.execute("revoke usage on schema spotconn from spotconn")
    try:
        answer, kind = await problem(client, "/me", user)
    finally:
        await admin.execute("grant usage on schema spotconn to spotconn")
    assert (answer.status_code, kind) == (500, "out-of-order")


async def test_nobody_is_signed_in_by_a_malformed_id(client: httpx.AsyncClient) -> None:
    """Who asks must be told, as a UUID."""
    assert (await client.get("/me")).status_code == 422
    assert (await client.get("/me", headers={"X-User": "alice"})).status_code == 422
