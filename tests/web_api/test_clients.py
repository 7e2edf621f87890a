"""tekore and spotipy, the real packages, with the tokens of stored connections, against a FakeSpotify over HTTP."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from uuid import UUID

import asyncpg
import httpx
import pytest
import spotipy
import tekore
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import spotipy_client
import tekore_client
from spotconn import Connection, ConnectionStore, NotConnected, SpotifyAccounts, TokenManager, TryLater
from spotconn.testing import Answer, FakeSpotify
from spotconn.testing._server import serve
from support.connections import connect
from support.consent import SCOPES
from support.tls import certificate, tls_front

UNKNOWN = Answer(json={"access_token": "BQ-unknown-to-the-web-api", "token_type": "Bearer", "expires_in": 3600})


@pytest.fixture
async def tokens(store: ConnectionStore, accounts: SpotifyAccounts) -> AsyncIterator[TokenManager]:
    async with TokenManager(store, accounts) as manager:
        yield manager


@pytest.fixture
async def alice(store: ConnectionStore, spotify: FakeSpotify, user: UUID) -> Connection:
    """A stored connection with a token good for an hour."""
    return await connect(store, spotify, user, scope=frozenset(SCOPES))


async def by_tekore(tokens: TokenManager, user: UUID) -> str:
    """The account, as tekore reads it."""
    async with tekore_client.client_of(tokens, user) as client:
        return (await client.current_user()).id


async def by_spotipy(tokens: TokenManager, user: UUID) -> str:
    """The account, as spotipy reads it."""
    profile: dict[str, str] = await spotipy_client.in_thread(spotipy_client.client_of(tokens, user).me)
    return profile["id"]


Ask = Callable[[TokenManager, UUID], Awaitable[str]]
each_client = pytest.mark.parametrize("ask", [by_tekore, by_spotipy])


@each_client
async def test_the_stored_token_is_used(
    ask: Ask, tokens: TokenManager, alice: Connection, spotify: FakeSpotify
) -> None:
    """A good token is sent as it is stored."""
    assert await ask(tokens, alice.user_id) == "alice"
    assert spotify.token_calls == 0


@each_client
async def test_a_token_that_ran_out_is_refreshed_first(
    ask: Ask, tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """The client never sees a 401 for it."""
    await connect(store, spotify, user, ttl=-1)
    assert await ask(tokens, user) == "alice"
    assert spotify.refresh_calls == 1


@each_client
async def test_one_rejected_token_costs_one_refresh(
    ask: Ask, tokens: TokenManager, alice: Connection, spotify: FakeSpotify
) -> None:
    """Ten callers at once whose token Spotify has ended early all get their answer, after one refresh."""
    spotify.reject_access_token(alice.access_token)
    assert await asyncio.gather(*(ask(tokens, alice.user_id) for _ in range(10))) == ["alice"] * 10
    assert spotify.refresh_calls == 1


@each_client
async def test_no_connection_is_told_as_such(ask: Ask, tokens: TokenManager, user: UUID) -> None:
    """The errors of spotconn come through the other package as they are."""
    with pytest.raises(NotConnected):
        await ask(tokens, user)


async def test_a_second_401_goes_to_the_caller(tokens: TokenManager, alice: Connection, spotify: FakeSpotify) -> None:
    """A request is repeated once; then each package raises its own error, and tekore's holds no token."""
    for expected, ask in ((tekore.Unauthorised, by_tekore), (spotipy.SpotifyException, by_spotipy)):
        stored = await connect(tokens.store, spotify, alice.user_id, scope=alice.scope)
        spotify.reject_access_token(stored.access_token)
        spotify.script(UNKNOWN)
        calls = spotify.refresh_calls
        with pytest.raises(expected) as raised:
            await ask(tokens, alice.user_id)
        assert spotify.refresh_calls == calls + 1
        assert "BQ" not in str(raised.value)
        assert "BQ" not in str(vars(raised.value))


async def test_both_read_what_the_web_api_has(tokens: TokenManager, alice: Connection) -> None:
    """tekore checks every field of the fake's answers; both see the same tracks, and a page leads to the next."""
    async with tekore_client.client_of(tokens, alice.user_id) as client:
        page = await client.current_user_top_tracks(limit=5)
        rest = await client.next(page)
    assert rest is not None
    assert [len(page.items), len(rest.items), page.total, rest.next] == [5, 3, 8, None]
    other = spotipy_client.client_of(tokens, alice.user_id)
    tracks = await spotipy_client.in_thread(partial(other.current_user_top_tracks, limit=8))
    assert [track["name"] for track in tracks["items"]] == [track.name for track in (*page.items, *rest.items)]


async def test_spotipy_in_the_thread_of_the_loop_is_refused(tokens: TokenManager, alice: Connection) -> None:
    """Where the loop would wait for itself for ever, the error says what to do."""
    client = spotipy_client.client_of(tokens, alice.user_id)
    with pytest.raises(RuntimeError, match=r"executor of your own, with loop\.run_in_executor"):
        client.me()


async def test_threads_do_not_take_the_place_of_the_name_lookup(
    store: ConnectionStore, spotify: FakeSpotify, admin: asyncpg.Connection, tmp_path: Path
) -> None:
    """More threads wait for tokens than the event loop's default executor has workers, and Spotify's host has a name
    that is looked up there: each thread gets its token.
    """
    rows = await admin.fetch("insert into auth.users (email) select n from generate_series(1, 24) as n returning id")
    for number, row in enumerate(rows):
        await connect(store, spotify, row["id"], account=f"account-{number}", ttl=-1)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
    pem = certificate(tmp_path, "localhost")
    async with spotify.serve() as url, tls_front(httpx.URL(url).port or 0, pem) as port:
        named = f"https://localhost:{port}"
        async with (
            httpx.AsyncClient(verify=ssl.create_default_context(cafile=pem), trust_env=False) as http,
            SpotifyAccounts("demo-client", "demo-secret", http=http, accounts_url=named, api_url=named) as accounts,
            TokenManager(store, accounts) as tokens,
            asyncio.timeout(25),
        ):
            waiting = [spotipy_client.StoredConnection(tokens, row["id"]) for row in rows]
            found = await asyncio.gather(*[spotipy_client.in_thread(one.get_access_token) for one in waiting])
    assert all(spotify.accepts(token) for token in found)
    assert spotify.refresh_calls == 24


async def test_a_thread_waits_for_a_bounded_time(
    tokens: TokenManager, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """While Spotify is silent the thread gives up; the refresh goes on and is saved for the next caller."""
    before = await connect(store, spotify, user, ttl=-1)
    connection = spotipy_client.StoredConnection(tokens, user, timeout=0.2)
    with spotify.hold() as held:
        waiting = asyncio.create_task(spotipy_client.in_thread(connection.get_access_token))
        await held.reached()
        with pytest.raises(TryLater, match=r"no token within 0\.2 seconds"):
            await waiting
    probe = spotipy_client.StoredConnection(tokens, user)
    token = await spotipy_client.in_thread(probe.get_access_token)
    assert token == (await store.get(user)).access_token != before.access_token
    assert spotify.refresh_calls == 1


async def test_a_missing_scope_costs_no_refresh(store: ConnectionStore, spotify: FakeSpotify, user: UUID) -> None:
    """The player's 401 "Permissions missing" speaks of a scope: it goes to the caller at once."""
    paths = list[str]()

    async def refuse(request: Request) -> JSONResponse:
        paths.append(request.url.path)
        return JSONResponse({"error": {"status": 401, "message": "Permissions missing"}}, 401)

    await connect(store, spotify, user)
    async with (
        spotify.serve() as url,
        serve(Starlette(routes=[Route("/v1/me/", refuse)])) as api_url,
        SpotifyAccounts("demo-client", "demo-secret", accounts_url=url, api_url=api_url) as accounts,
        TokenManager(store, accounts) as tokens,
    ):
        for expected, ask in ((tekore.Unauthorised, by_tekore), (spotipy.SpotifyException, by_spotipy)):
            with pytest.raises(expected):
                await ask(tokens, user)
    assert paths == ["/v1/me/", "/v1/me/"]
    assert spotify.token_calls == 0


async def test_spotipy_logs_no_token(tokens: TokenManager, alice: Connection, caplog: pytest.LogCaptureFixture) -> None:
    """Also at DEBUG, where spotipy by itself logs the headers of each request."""
    caplog.set_level(logging.DEBUG)
    assert await by_spotipy(tokens, alice.user_id) == "alice"
    assert caplog.records
    assert alice.access_token not in caplog.text
