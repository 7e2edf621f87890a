"""The FastAPI example over real HTTP: each kind of error has its answer, and none tells what it must not."""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import asyncpg
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from fastapi_app import SCOPES, build_app, from_settings
from simulated_supabase import SimulatedSupabase
from spotconn import ConnectionStore, SpotifyAccounts
from spotconn.testing import Answer, FakeSpotify
from spotconn.testing._server import serve
from supabase_jwt import AccessTokens
from support.connections import connect
from support.single_page import Sites, running

INSIDE = ("invalid_client", "SPOTIFY_CLIENT", "Traceback", "postgres", "schema", "Error", "upstream")


@pytest.fixture
async def service(store: ConnectionStore, accounts: SpotifyAccounts) -> AsyncIterator[Sites]:
    """On the database and the Spotify of the test."""
    async with running(store, accounts, {}) as sites:
        yield sites


async def problem(service: Sites, path: str, user: UUID) -> tuple[httpx.Response, str]:
    """An answer that is a whole problem of RFC 9457 and tells nothing of the inside, and its type."""
    answer = await service.get(path, user)
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body.keys() - {"reason", "scope"} == {"type", "title", "status", "detail"}
    assert body["status"] == answer.status_code
    assert not [word for word in INSIDE if word in answer.text]
    return answer, body["type"].rpartition(":")[2]


async def test_a_connected_user_is_served(
    service: Sites, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """With a token that is good, that has run out, and that Spotify has ended early."""
    for ttl in (3600, -1):
        await connect(store, spotify, user, ttl=ttl, scope=frozenset(SCOPES))
        answer = await service.get("/top-tracks", user)
        assert (answer.status_code, len(answer.json()["tracks"])) == (200, 5)
    stored = await connect(store, spotify, user, scope=frozenset(SCOPES))
    spotify.reject_access_token(stored.access_token)
    assert (await service.get("/top-tracks", user)).status_code == 200
    spotify.on("GET", "/v1/me/player/currently-playing", Answer(status=204))
    assert (await service.get("/now-playing", user)).json() == {"title": None}
    assert (await service.get("/spotify/connection", user)).json()["spotify_user_id"] == "alice"


async def test_a_user_who_has_to_connect_gets_409(
    service: Sites, store: ConnectionStore, spotify: FakeSpotify, users: list[UUID]
) -> None:
    """Not connected, revoked, and without the scope that a route needs."""
    nobody, revoked, narrow = users
    await connect(store, spotify, revoked, account="bob", ttl=-1)
    spotify.revoke("bob")
    await connect(store, spotify, narrow, scope=frozenset())
    for user, words in ((nobody, "no Spotify connection"), (revoked, "revoked"), (narrow, "user-top-read")):
        answer, kind = await problem(service, "/top-tracks", user)
        assert (answer.status_code, kind) == (409, "connect-spotify")
        assert words in answer.json()["detail"]
    assert (await service.get("/spotify/connection", narrow)).json()["connected"]


@pytest.mark.parametrize(
    ("fault", "pause"), [(Answer.too_many_requests("17"), 17), (Answer.unavailable(), None)], ids=["429", "503"]
)
async def test_what_passes_gets_503_and_when_to_come_back(
    service: Sites,
    store: ConnectionStore,
    spotify: FakeSpotify,
    user: UUID,
    fault: Answer,
    pause: int | None,
) -> None:
    """Retry-After is what Spotify asked for, or a few seconds."""
    await connect(store, spotify, user, ttl=-1, scope=frozenset(SCOPES))
    spotify.script(*[fault] * 30)
    answer, kind = await problem(service, "/top-tracks", user)
    assert (answer.status_code, kind) == (503, "try-later")
    seconds = int(answer.headers["retry-after"])
    assert seconds == pause if pause else 1 <= seconds <= 5


async def test_a_web_api_out_of_reach_gets_503(store: ConnectionStore, spotify: FakeSpotify, user: UUID) -> None:
    """Also when only the Web API does not answer, and not a word of where it was sought."""
    await connect(store, spotify, user, scope=frozenset(SCOPES))
    accounts = SpotifyAccounts("demo-client", "demo-secret", api_url="http://127.0.0.1:1")
    async with accounts, running(store, accounts, {}) as service:
        answer, kind = await problem(service, "/top-tracks", user)
    assert (answer.status_code, kind, answer.headers["retry-after"]) == (503, "try-later", "5")


@pytest.mark.parametrize(("retry_after", "pause"), [("7", "7"), ("0", "1"), ("soon", "5"), (None, "5")])
async def test_a_web_api_that_has_enough_gets_503(
    store: ConnectionStore, spotify: FakeSpotify, user: UUID, retry_after: str | None, pause: str
) -> None:
    """The pause that the Web API asks for is handed on, where it is a number of seconds."""

    async def enough(_request: Request) -> Response:
        return Response("Too many requests", 429, {} if retry_after is None else {"Retry-After": retry_after})

    await connect(store, spotify, user, scope=frozenset(SCOPES))
    async with serve(Starlette(routes=[Route("/v1/me/top/tracks", enough)])) as api_url:
        accounts = SpotifyAccounts("demo-client", "demo-secret", api_url=api_url)
        async with accounts, running(store, accounts, {}) as service:
            answer, kind = await problem(service, "/top-tracks", user)
    assert (answer.status_code, kind, answer.headers["retry-after"]) == (503, "try-later", pause)


async def test_what_an_engineer_must_mend_gets_500_and_is_logged(
    store: ConnectionStore, spotify: FakeSpotify, user: UUID, caplog: pytest.LogCaptureFixture
) -> None:
    """The user learns nothing of the inside; the log has it, without the secret."""
    await connect(store, spotify, user, ttl=-1)
    async with spotify.serve() as url:
        accounts = SpotifyAccounts("demo-client", "not-the-secret", accounts_url=url, api_url=url)
        async with accounts, running(store, accounts, {}) as service:
            answer, kind = await problem(service, "/top-tracks", user)
    assert (answer.status_code, kind) == (500, "out-of-order")
    (record,) = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert "invalid_client" in record.getMessage()
    assert "not-the-secret" not in caplog.text


async def test_a_damaged_database_gets_500(service: Sites, admin: asyncpg.Connection, user: UUID) -> None:
    """A grant that is missing is no fault of the user and does not pass."""
    await admin.execute("revoke usage on schema spotconn from spotconn")
    try:
        answer, kind = await problem(service, "/top-tracks", user)
    finally:
        await admin.execute("grant usage on schema spotconn to spotconn")
    assert (answer.status_code, kind) == (500, "out-of-order")


async def test_nobody_is_served_without_a_valid_token(service: Sites, user: UUID) -> None:
    """Neither by the routes of the example nor by those of the library."""
    valid = service.bearer(user)["Authorization"]
    for path in ("/top-tracks", "/now-playing", "/spotify/connection"):
        for header in ("", "Bearer", "Bearer x", valid[:-4], valid.replace("Bearer", "Basic"), str(user)):
            answer = await service.client.get(path, headers={"Authorization": header} if header else {})
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


async def test_a_sign_in_out_of_reach_gets_503() -> None:
    """No keys of Supabase: neither the routes of the example nor those of the library take that for a bad token."""

    async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": {"users": users}}, receive, send)

    app, project = build_app(from_settings, front_end=None), SimulatedSupabase("http://127.0.0.1:1", {})
    bearer = {"Authorization": f"Bearer {project.access_token(UUID(int=1))}"}
    async with AccessTokens(project.url) as users, serve(with_state) as url, httpx.AsyncClient(base_url=url) as client:
        for path in ("/top-tracks", "/spotify/connection"):
            answer = await client.get(path, headers=bearer)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


@pytest.mark.parametrize(("origin", "allowed"), [("page", True), ("http://evil.example", False)])
async def test_only_the_front_end_may_read_answers(service: Sites, user: UUID, origin: str, *, allowed: bool) -> None:
    """By CORS, for the routes of the example and for those of the library, in preflights and in answers."""
    origin = service.page_url if origin == "page" else origin
    for path in ("/top-tracks", "/spotify/connection"):
        asks = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
        preflight = await service.client.options(path, headers={"Origin": origin} | asks)
        answer = await service.client.get(path, headers={"Origin": origin} | service.bearer(user))
        for response in (preflight, answer):
            assert (response.headers.get("access-control-allow-origin") == origin) is allowed


@pytest.mark.long
async def test_schemathesis_finds_nothing(
    service: Sites, store: ConnectionStore, spotify: FakeSpotify, user: UUID, tmp_path: Path
) -> None:
    """What the service answers is what its OpenAPI description says, whatever is sent, and without a token as well."""
    await connect(store, spotify, user, scope=frozenset(SCOPES))
    spotify.on("GET", "/v1/me/player/currently-playing", Answer(json={"item": {"name": "Northbound"}}))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "schemathesis.cli", "run", f"{service.api_url}/openapi.json", "--max-examples", "5",
        "--header", f"Authorization: {service.bearer(user)['Authorization']}", "--no-color",
        cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        printed, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, printed.decode()
