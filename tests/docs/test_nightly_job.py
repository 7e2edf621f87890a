"""The nightly job: a few users at a time, one user's trouble is nobody else's, and a clean end on SIGTERM."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import httpx
import pytest

from nightly_job import CONCURRENCY, for_each, stopped_by, tracks_of
from spotconn import ConfigurationError, ConnectionStore, Profile, SpotifyAccounts, TokenManager
from spotconn.testing import Answer, FakeSpotify
from support.connections import connect
from support.consent import SCOPES

MANY = 20


@pytest.fixture
async def tokens(store: ConnectionStore, accounts: SpotifyAccounts) -> AsyncIterator[TokenManager]:
    async with TokenManager(store, accounts) as manager:
        yield manager


@pytest.fixture
async def http(accounts: SpotifyAccounts) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=accounts.api_url, timeout=60) as client:
        yield client


@pytest.fixture
async def many(admin: asyncpg.Connection, store: ConnectionStore, spotify: FakeSpotify) -> list[UUID]:
    """Users whose tokens have run out."""
    rows = await admin.fetch("insert into auth.users (email) select 'x' from generate_series(1, $1) returning id", MANY)
    for number, row in enumerate(rows):
        await connect(store, spotify, row["id"], account=f"user{number}", ttl=-1, scope=frozenset(SCOPES))
    return [row["id"] for row in rows]


async def test_each_user_ends_in_one_place(
    tokens: TokenManager, http: httpx.AsyncClient, many: list[UUID], users: list[UUID], spotify: FakeSpotify
) -> None:
    """Those who have to connect are told apart, and the others do not suffer."""
    spotify.revoke("user3")
    report = await for_each([*many, users[0]], tracks_of(tokens, http), asyncio.Event())
    assert (set(report.ask), report.later) == ({users[0], many[3]}, [])
    assert sorted(report.done) == sorted(set(many) - {many[3]})
    assert report.count == MANY + 1


async def test_what_passes_is_left_for_later(
    tokens: TokenManager, http: httpx.AsyncClient, many: list[UUID], spotify: FakeSpotify
) -> None:
    """Spotify asks for a minute's pause, which holds for all; each user is counted once."""
    spotify.script(Answer.too_many_requests("60"))
    report = await for_each(many, tracks_of(tokens, http), asyncio.Event())
    assert report.later
    assert sorted([*report.done, *report.later]) == sorted(many)


async def test_no_more_than_a_few_at_once(many: list[UUID]) -> None:
    """All places are taken, and none beyond."""
    running, most, full = 0, 0, asyncio.Event()

    async def job(_user_id: UUID) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == CONCURRENCY:
            full.set()
        await full.wait()
        await asyncio.sleep(0)
        running -= 1

    report = await for_each(many, job, asyncio.Event())
    assert (most, sorted(report.done)) == (CONCURRENCY, sorted(many))


async def test_a_user_who_takes_too_long_is_left_for_later(many: list[UUID]) -> None:
    """The work for one user has its time, and the place is free again."""

    async def job(user_id: UUID) -> None:
        if user_id == many[0]:
            await asyncio.Event().wait()

    report = await for_each(many, job, asyncio.Event(), per_user=0.1)
    assert (report.later, sorted(report.done)) == ([many[0]], sorted(many[1:]))


@pytest.mark.parametrize(
    ("odd", "ends_in"),
    [
        (httpx.Response(200, json={"items": []}), "done"),
        (httpx.Response(200, text="<html>"), "later"),
        (httpx.Response(200, json={"items": [{}]}), "failed"),
        (httpx.Response(200, text="null"), "failed"),
    ],
)
async def test_what_the_work_meets_for_one_user_ends_nothing_for_the_others(
    tokens: TokenManager,
    many: list[UUID],
    capsys: pytest.CaptureFixture[str],
    odd: httpx.Response,
    ends_in: str,
) -> None:
    """No top tracks, no JSON, and JSON of another shape: only that user is not done, and a fault is named by class."""
    odd_one = f"Bearer {await tokens.get_valid_token(many[2])}"

    async def web_api(request: httpx.Request) -> httpx.Response:
        if request.headers["Authorization"] == odd_one:
            return odd
        return httpx.Response(200, json={"items": [{"name": "a song"}]})

    async with httpx.AsyncClient(transport=httpx.MockTransport(web_api), base_url=tokens.accounts.api_url) as http:
        report = await for_each(many, tracks_of(tokens, http), asyncio.Event())
    assert many[2] in getattr(report, ends_in)
    assert set(report.done) >= {user for user in many if user != many[2]}
    assert report.count == MANY
    printed = capsys.readouterr().out
    assert ends_in != "failed" or f"{many[2]}: {'TypeError' if odd.content == b'null' else 'KeyError'}\n" in printed
    assert "BQ" not in printed


async def test_what_an_engineer_must_mend_ends_the_job(
    store: ConnectionStore, many: list[UUID], spotify: FakeSpotify
) -> None:
    """Refused credentials of the app are met by those under way only."""
    async with spotify.serve() as url:
        accounts = SpotifyAccounts("demo-client", "not-the-secret", accounts_url=url, api_url=url)
        async with (
            accounts,
            TokenManager(store, accounts) as tokens,
            httpx.AsyncClient(base_url=url, timeout=60) as http,
        ):
            waiting = iter(many)
            with pytest.raises(ConfigurationError):
                await for_each(waiting, tracks_of(tokens, http), asyncio.Event())
    assert len(list(waiting)) >= MANY - CONCURRENCY


async def test_users_of_another_app_do_not_end_the_job(
    store: ConnectionStore, many: list[UUID], users: list[UUID], spotify: FakeSpotify
) -> None:
    """They are named, and all others are done."""
    grant = spotify.authorize("user0").model_copy(update={"expires_in": 0})
    await store.save(users[0], grant, Profile(spotify_user_id="user0"), client_id="app-b")
    async with spotify.serve() as url:
        accounts = SpotifyAccounts("demo-client", "demo-secret", accounts_url=url, api_url=url)
        async with (
            accounts,
            TokenManager(store, accounts) as tokens,
            httpx.AsyncClient(base_url=url, timeout=60) as http,
        ):
            report = await for_each([users[0], *many], tracks_of(tokens, http), asyncio.Event())
    assert (report.other_app, sorted(report.done)) == ([users[0]], sorted(many))


async def test_sigterm_lets_those_under_way_finish(
    tokens: TokenManager, http: httpx.AsyncClient, many: list[UUID], store: ConnectionStore, spotify: FakeSpotify
) -> None:
    """The signal comes while Spotify has acted on refreshes and not answered: those are saved, nobody else is begun."""
    waiting, handler = iter(many), signal.getsignal(signal.SIGTERM)
    with stopped_by(signal.SIGTERM) as stop, spotify.hold() as held:
        job = asyncio.create_task(for_each(waiting, tracks_of(tokens, http), stop))
        await held.reached()
        while spotify.refresh_calls < CONCURRENCY:
            await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        held.release()
        report = await job
    assert signal.getsignal(signal.SIGTERM) is handler
    assert sorted(report.done) == sorted(many[:CONCURRENCY])
    assert list(waiting) == many[CONCURRENCY:]
    assert spotify.refresh_calls == CONCURRENCY
    for user_id in many:
        assert spotify.accepts_refresh((await store.get(user_id)).refresh_token)
