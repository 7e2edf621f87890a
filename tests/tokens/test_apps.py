"""Connections of several apps in one manager, of an app that it does not have, and of none that is known."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from urllib.parse import parse_qsl
from uuid import UUID

import asyncpg
import httpx
import pytest

from spotconn import (
    ConfigurationError,
    ConnectFlow,
    ConnectionStore,
    NotConnected,
    OtherApp,
    ReauthorizationRequired,
    SpotifyAccounts,
    SpotifyUnavailable,
    TokenManager,
    events,
)
from spotconn._spotify import client_secret
from spotconn.testing import Answer, FakeSpotify
from support.connections import OWN_APP, connect, stored_state
from support.consent import REDIRECT_URI, agree
from support.watched_store import WatchedStore

APP_B, APP_C = "app-b", "app-c"


class Apps:
    """Accounts of each app of the fake, and of one with a wrong secret."""

    def __init__(self, own: SpotifyAccounts, b: SpotifyAccounts, c: SpotifyAccounts, wrong_b: SpotifyAccounts) -> None:
        self.own, self.b, self.c, self.wrong_b = own, b, c, wrong_b


@pytest.fixture
def spotify() -> FakeSpotify:
    """It knows three apps; refresh tokens are strictly single-use."""
    return FakeSpotify(rotation=True, other_apps={APP_B: "secret-b", APP_C: None})


@pytest.fixture
async def apps(spotify: FakeSpotify) -> AsyncIterator[Apps]:
    """Over real HTTP."""
    registered = [(OWN_APP, "demo-secret"), (APP_B, "secret-b"), (APP_C, None), (APP_B, "wrong")]
    async with spotify.serve() as url, AsyncExitStack() as stack:
        made = [SpotifyAccounts(*app, accounts_url=url, api_url=url) for app in registered]
        yield Apps(*[await stack.enter_async_context(one) for one in made])


async def test_each_connection_is_refreshed_with_its_own_app(
    store: ConnectionStore, apps: Apps, spotify: FakeSpotify, users: list[UUID]
) -> None:
    """One manager for all; Spotify is asked once for each, with the right app, and the event names it."""
    told: list[events.Event] = []
    for user, app in zip(users, (OWN_APP, APP_B, APP_C), strict=True):
        await connect(store, spotify, user, account=app, ttl=-1, app=app)
    async with TokenManager(store, apps.own, other_apps=[apps.b, apps.c], on_event=told.append) as tokens:
        for user in users:
            assert spotify.accepts(await tokens.get_valid_token(user))
    assert spotify.refresh_calls_by_app == {OWN_APP: 1, APP_B: 1, APP_C: 1}
    assert [(event.user_id, event.client_id) for event in told if isinstance(event, events.Refreshed)] == [
        (user, app) for user, app in zip(users, (OWN_APP, APP_B, APP_C), strict=True)
    ]


async def test_another_app_is_named_and_nothing_is_recorded(
    store: ConnectionStore, apps: Apps, spotify: FakeSpotify, user: UUID, admin: asyncpg.Connection
) -> None:
    """Spotify is not asked, and no lease taken: neither the first time nor again."""
    await connect(store, spotify, user, ttl=-1, app=APP_B)
    before = await stored_state(admin, user)
    async with TokenManager(store, apps.own, other_apps=[apps.c], cache_ttl=0) as tokens:
        for _ in range(3):
            with pytest.raises(OtherApp, match=r"app-b.*demo-client, app-c.*SPOTCONN_OTHER_APPS") as raised:
                await tokens.get_valid_token(user)
            assert isinstance(raised.value, ConfigurationError)
            assert (raised.value.client_id, raised.value.known) == (APP_B, (OWN_APP, APP_C))
    assert spotify.token_calls == 0
    assert await stored_state(admin, user) == before


@pytest.mark.parametrize("ttl", [3600, 60])
async def test_a_good_token_of_another_app_is_served(
    store: ConnectionStore, apps: Apps, spotify: FakeSpotify, user: UUID, ttl: float
) -> None:
    """Fresh or stale; a call that needs it for longer hears which app is missing, as does one after a 401."""
    stored = await connect(store, spotify, user, ttl=ttl, app=APP_B)
    async with TokenManager(store, apps.own) as tokens:
        assert await tokens.get_valid_token(user) == stored.access_token
        if tasks := tokens._source.refreshes.tasks:
            await asyncio.wait(tasks)
        assert await tokens.get_valid_token(user) == stored.access_token
        assert [pair async for pair in tokens.get_valid_tokens([user])] == [(user, stored.access_token)]
        if ttl < 3000:
            with pytest.raises(OtherApp):
                await tokens.get_valid_token(user, min_ttl=3000)
        spotify.reject_access_token(stored.access_token)
        with pytest.raises(OtherApp):
            await tokens.replace_rejected(user, stored.access_token)
    assert spotify.token_calls == 0


async def test_another_app_is_the_answer_of_one_user(
    store: ConnectionStore, apps: Apps, spotify: FakeSpotify, users: list[UUID]
) -> None:
    """It never ends a pass over many."""
    for user, app in zip(users[:2], (APP_B, OWN_APP), strict=True):
        await connect(store, spotify, user, account=app, ttl=-1, app=app)
    async with TokenManager(store, apps.own) as tokens:
        answers = {user: answer async for user, answer in tokens.get_valid_tokens(users)}
    assert isinstance(answers[users[0]], OtherApp)
    assert isinstance(token := answers[users[1]], str)
    assert spotify.accepts(token)
    assert isinstance(answers[users[2]], NotConnected)


async def test_a_process_waits_for_one_that_has_the_app(
    store: ConnectionStore, apps: Apps, spotify: FakeSpotify, user: UUID
) -> None:
    """What that one is granted serves it, too."""
    watched = WatchedStore(store.pool._pool)
    await connect(store, spotify, user, ttl=-1, app=APP_B)
    async with TokenManager(watched, apps.own) as foreign, TokenManager(store, apps.b) as right:
        with spotify.hold() as held:
            refreshing = asyncio.create_task(right.get_valid_token(user))
            await held.reached()
            waiting = asyncio.create_task(foreign.get_valid_token(user))
            await watched.busy.wait()
            held.release()
        assert await waiting == await refreshing
    assert spotify.refresh_calls_by_app == {APP_B: 1}


async def test_the_app_of_a_connection_is_found_out(
    store: ConnectionStore, apps: Apps, spotify: FakeSpotify, user: UUID, admin: asyncpg.Connection
) -> None:
    """Where it is not known, the apps are tried in order within one lease; from then on it is."""
    told: list[events.Event] = []
    await connect(store, spotify, user, ttl=-1, app=APP_B, named=False)
    async with TokenManager(store, apps.own, other_apps=[apps.c, apps.b], on_event=told.append) as tokens:
        assert spotify.accepts(await tokens.get_valid_token(user))
    assert spotify.refresh_calls_by_app == {OWN_APP: 1, APP_C: 1, APP_B: 1}
    state = await stored_state(admin, user)
    assert (state["client_id"], state["refused_by"], state["failure"]) == (APP_B, [], None)
    assert (await store.get(user)).client_id == APP_B
    assert [type(event) for event in told] == [events.Refreshed]


async def test_a_refusal_counts_when_all_apps_refuse(
    store: ConnectionStore, apps: Apps, spotify: FakeSpotify, user: UUID, admin: asyncpg.Connection
) -> None:
    """And only for processes that know no other: one that does asks Spotify with that one alone."""
    told: list[events.Event] = []
    await connect(store, spotify, user, ttl=-1, app=APP_C, named=False)
    async with TokenManager(store, apps.own, other_apps=[apps.b], cache_ttl=0) as wrong:
        for _ in range(2):
            with pytest.raises(ReauthorizationRequired):
                await wrong.get_valid_token(user)
        assert (await wrong.status(user)).reauthorization == "revoked"
    assert spotify.refresh_calls_by_app == {OWN_APP: 1, APP_B: 1}
    state = await stored_state(admin, user)
    assert (state["client_id"], state["refused_by"]) == (None, [APP_B, OWN_APP])
    assert state["retry_at"] - state["failed_at"] == timedelta(hours=1)
    async with TokenManager(store, apps.own, cache_ttl=0) as narrower:
        with pytest.raises(ReauthorizationRequired):
            await narrower.get_valid_token(user)
    async with TokenManager(store, apps.b, other_apps=[apps.c], on_event=told.append) as right:
        assert (status := await right.status(user)).connected
        assert status.reauthorization is None
        assert spotify.accepts(await right.get_valid_token(user))
    assert spotify.refresh_calls_by_app == {OWN_APP: 1, APP_B: 1, APP_C: 1}
    assert [
        (type(event), event.client_id) for event in told if isinstance(event, events.Recovered | events.Refreshed)
    ] == [(events.Recovered, APP_C), (events.Refreshed, APP_C)]
    assert len(told) == 2


async def test_the_count_of_refusals_begins_anew_with_each_app(
    store: ConnectionStore, apps: Apps, spotify: FakeSpotify, user: UUID, admin: asyncpg.Connection
) -> None:
    """A wrong process cannot use up the second opinions of the right one."""
    await connect(store, spotify, user, ttl=-1, app=APP_C, named=False)
    spotify.revoke("alice")
    for accounts, refused_by in ((apps.own, [OWN_APP]), (apps.b, [APP_B, OWN_APP])):
        async with TokenManager(store, accounts, cache_ttl=0) as tokens:
            with pytest.raises(ReauthorizationRequired):
                await tokens.get_valid_token(user)
        state = await stored_state(admin, user)
        assert (state["refused_by"], state["refusals"]) == (refused_by, 1)


async def test_an_app_without_an_answer_is_asked_again(
    store: ConnectionStore, apps: Apps, spotify: FakeSpotify, user: UUID, admin: asyncpg.Connection
) -> None:
    """A refusal of one app and no answer for another mark nobody; the one that refused is not asked again."""
    await connect(store, spotify, user, ttl=-1, app=APP_B, named=False)
    async with TokenManager(store, apps.own, other_apps=[apps.wrong_b], cache_ttl=0) as tokens:
        with pytest.raises(ConfigurationError, match="invalid_client"):
            await tokens.get_valid_token(user)
    state = await stored_state(admin, user)
    assert (state["refused_by"], state["failure"], state["lease_id"]) == ([OWN_APP], None, None)
    async with TokenManager(store, apps.own, other_apps=[apps.b], cache_ttl=0) as tokens:
        assert spotify.accepts(await tokens.get_valid_token(user))
    assert spotify.refresh_calls_by_app == {OWN_APP: 1, APP_B: 2}


async def test_a_secret_that_cannot_be_read_is_the_trouble_of_its_app(
    store: ConnectionStore, apps: Apps, spotify: FakeSpotify, users: list[UUID]
) -> None:
    """A job over the users of several apps goes on with those of the others."""

    def read() -> str:
        raise OSError("hush")

    await connect(store, spotify, users[0], ttl=-1, app=APP_B)
    await connect(store, spotify, users[1], ttl=-1)
    url = apps.own.api_url
    async with (
        SpotifyAccounts(APP_B, read, accounts_url=url, api_url=url) as unread,
        TokenManager(store, apps.own, other_apps=[unread]) as tokens,
    ):
        answers = dict([answer async for answer in tokens.get_valid_tokens(users[:2], concurrency=1)])
        assert isinstance(answers[users[0]], ConfigurationError)
        assert spotify.accepts(str(answers[users[1]]))
        assert not unread._admission.is_refused


async def test_a_secret_that_is_refused_is_not_waited_for_by_users_of_other_apps(
    store: ConnectionStore, apps: Apps, spotify: FakeSpotify, users: list[UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read for those alone whose refresh was held back; where it stands may be slow."""
    monkeypatch.setattr(client_secret, "REREAD_INTERVAL", 0.0)
    reads: list[str] = []

    def read() -> str:
        reads.append("wrong")
        return "wrong"

    await connect(store, spotify, users[0], ttl=-1, app=APP_B)
    await connect(store, spotify, users[1], ttl=-1)
    url = apps.own.api_url
    async with (
        SpotifyAccounts(APP_B, read, accounts_url=url, api_url=url) as refused,
        TokenManager(store, apps.own, other_apps=[refused]) as tokens,
    ):
        for count in (2, 3):
            with pytest.raises(ConfigurationError):
                await tokens.get_valid_token(users[0])
            assert len(reads) == count
        assert spotify.accepts(await tokens.get_valid_token(users[1]))
        assert len(reads) == 3


async def test_a_pause_of_an_app_concerns_no_other(
    store: ConnectionStore, apps: Apps, spotify: FakeSpotify, user: UUID
) -> None:
    """Spotify asks a wrong app to wait for an hour; the right one is not kept waiting."""
    await connect(store, spotify, user, ttl=-1, app=APP_B, named=False)
    spotify.script(Answer.too_many_requests("3600"))
    async with TokenManager(store, apps.own, cache_ttl=0) as wrong:
        with pytest.raises(SpotifyUnavailable):
            await wrong.get_valid_token(user)
    async with TokenManager(store, apps.b) as right:
        assert spotify.accepts(await right.get_valid_token(user))


@pytest.mark.parametrize("refused", [True, False])
async def test_trouble_of_spotify_is_this_process_s_where_the_app_is_not_known(
    store: ConnectionStore,
    apps: Apps,
    spotify: FakeSpotify,
    user: UUID,
    admin: asyncpg.Connection,
    *,
    refused: bool,
) -> None:
    """The date of a second opinion of others stays, and this process waits by itself."""
    await connect(store, spotify, user, ttl=-1, app=APP_B, named=False)
    if refused:
        async with TokenManager(store, apps.own, cache_ttl=0) as wrong:
            with pytest.raises(ReauthorizationRequired):
                await wrong.get_valid_token(user)
    before = await stored_state(admin, user)
    async with TokenManager(store, apps.b, cache_ttl=0, refresh_timeout=0.2) as right:
        spotify.script(*[Answer.unavailable()] * 9)
        calls = spotify.token_calls
        for _ in range(3):
            with pytest.raises(SpotifyUnavailable):
                await right.get_valid_token(user)
        asked = spotify.token_calls - calls
        assert asked <= 9
        with pytest.raises(SpotifyUnavailable):
            await right.get_valid_token(user)
        assert spotify.token_calls - calls == asked
    after = await stored_state(admin, user)
    assert (after["failure"], after["retry_at"]) == (before["failure"], before["retry_at"])


async def test_a_second_app_has_no_more_time_than_one_alone(
    store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """No request of it begins in the second half of the time: an answer that is cut off may be the only good one."""
    loop = asyncio.get_running_loop()
    began: dict[str, list[float]] = {OWN_APP: [], APP_B: []}

    async def answer(request: httpx.Request) -> httpx.Response:
        form = dict(parse_qsl(request.content.decode()))
        began[form["client_id"]].append(loop.time() - started)
        if form["client_id"] == OWN_APP:
            await asyncio.sleep(0.8)
            return httpx.Response(400, json={"error": "invalid_grant"})
        return httpx.Response(503)

    await connect(store, spotify, user, ttl=-1, app=APP_B, named=False)
    async with (
        httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http,
        SpotifyAccounts(OWN_APP, http=http) as own,
        SpotifyAccounts(APP_B, http=http) as b,
        TokenManager(store, own, other_apps=[b], refresh_timeout=2, lease=3) as tokens,
    ):
        started = loop.time()
        with pytest.raises(SpotifyUnavailable):
            await tokens.get_valid_token(user)
    assert len(began[OWN_APP]) == 1
    assert began[APP_B]
    assert max(began[APP_B]) < 1.1


async def test_a_refusal_is_told_by_the_process_that_has_the_app(
    store: ConnectionStore, apps: Apps, spotify: FakeSpotify, user: UUID
) -> None:
    """Also where a wrong one was refused before: that one does not know the user's service."""
    told: list[events.Event] = []
    await connect(store, spotify, user, ttl=-1, app=APP_B, named=False)
    spotify.revoke("alice")
    async with TokenManager(store, apps.own, cache_ttl=0) as wrong:
        with pytest.raises(ReauthorizationRequired):
            await wrong.get_valid_token(user)
    async with TokenManager(store, apps.b, cache_ttl=0, on_event=told.append) as right:
        for _ in range(2):
            with pytest.raises(ReauthorizationRequired):
                await right.get_valid_token(user)
    assert told == [events.ReauthorizationRequired(user_id=user, reason="revoked")]


@pytest.mark.parametrize("named", [True, False])
async def test_a_refused_connection_costs_little_while_its_token_is_good(
    store: ConnectionStore,
    apps: Apps,
    spotify: FakeSpotify,
    user: UUID,
    caplog: pytest.LogCaptureFixture,
    *,
    named: bool,
) -> None:
    """No refresh is tried with each call, and nothing logged with each, whether or not its app is known."""
    stored = await connect(store, spotify, user, ttl=60, named=named)
    spotify.revoke("alice")
    watched = WatchedStore(store.pool._pool)
    async with TokenManager(watched, apps.own) as tokens:
        for _ in range(50):
            assert await tokens.get_valid_token(user) == stored.access_token
            if tasks := tokens._source.refreshes.tasks:
                await asyncio.wait(tasks)
    assert watched.turns <= 2
    assert caplog.text.count("a refresh in the background failed") <= 2
    assert spotify.refresh_calls == 1


async def test_a_refused_app_disturbs_no_other(
    store: ConnectionStore, apps: Apps, spotify: FakeSpotify, users: list[UUID]
) -> None:
    """Three apps in one manager, one with a wrong secret: its users hear of it, all others are served."""
    for user, app in zip(users, (OWN_APP, APP_B, APP_C), strict=True):
        await connect(store, spotify, user, account=app, ttl=-1, app=app)
    async with TokenManager(store, apps.own, other_apps=[apps.wrong_b, apps.c], cache_ttl=0) as tokens:
        with pytest.raises(ConfigurationError, match=r"of the app app-b \(invalid_client"):
            await tokens.get_valid_token(users[1])
        answers = {user: answer async for user, answer in tokens.get_valid_tokens(users)}
        assert isinstance(answers[users[1]], ConfigurationError)
        for user in (users[0], users[2]):
            assert isinstance(answer := answers[user], str)
            assert spotify.accepts(answer)
            assert await tokens.get_valid_token(user) == answer


async def test_an_app_is_replaced(
    store: ConnectionStore, apps: Apps, spotify: FakeSpotify, user: UUID, admin: asyncpg.Connection
) -> None:
    """The former one refreshes until the user has connected anew, with the new one; then it is retired."""
    await connect(store, spotify, user, ttl=-1, app=OWN_APP)
    flow = ConnectFlow(store, apps.b, redirect_uri=REDIRECT_URI, scopes=())
    async with TokenManager(store, apps.b, other_apps=[apps.own], cache_ttl=0) as tokens:
        assert spotify.accepts(await tokens.get_valid_token(user))
        assert (await tokens.status(user)).client_id == OWN_APP
        assert (await flow.finish(user, await agree(await flow.start(user)))).client_id == APP_B
        await admin.execute("update public.spotify_connections set expires_at = now() - interval '1 minute'")
        assert spotify.accepts(await tokens.get_valid_token(user))
        assert (await tokens.status(user)).client_id == APP_B
    assert spotify.refresh_calls_by_app == {OWN_APP: 1, APP_B: 1}


async def test_a_connection_of_a_retired_app_asks_the_user(
    store: ConnectionStore, apps: Apps, spotify: FakeSpotify, user: UUID
) -> None:
    """Once its access token has ended, and without a call of Spotify; the status says so before."""
    stored = await connect(store, spotify, user, ttl=3600, app=APP_B)
    async with TokenManager(store, apps.own, retired_client_ids=[APP_B]) as tokens:
        assert await tokens.get_valid_token(user) == stored.access_token
        assert (await tokens.status(user)).reauthorization == "other_app"
        ended = await connect(store, spotify, user, ttl=-1, app=APP_B)
        with pytest.raises(ReauthorizationRequired) as raised:
            await tokens.get_valid_token(user)
        assert (raised.value.reason, raised.value.since) == ("other_app", ended.expires_at)
        answers = [answer async for _, answer in tokens.get_valid_tokens([user])]
        assert [type(answer) for answer in answers] == [ReauthorizationRequired]
    assert spotify.token_calls == 0


async def test_another_writers_refresh_token_has_no_known_app(
    store: ConnectionStore, apps: Apps, spotify: FakeSpotify, user: UUID, admin: asyncpg.Connection
) -> None:
    """What was known spoke of the one before; the next refresh finds out."""
    await connect(store, spotify, user, ttl=-1, app=APP_B)
    grant = spotify.authorize("alice", client_id=OWN_APP)
    await admin.execute("update public.spotify_connections set refresh_token = $1", grant.refresh_token)
    assert (await store.get(user)).client_id is None
    async with TokenManager(store, apps.own) as tokens:
        assert spotify.accepts(await tokens.get_valid_token(user))
    assert (await store.get(user)).client_id == OWN_APP


async def test_apps_are_checked(store: ConnectionStore, apps: Apps, spotify: FakeSpotify, user: UUID) -> None:
    """One that is named twice, and a client id that is none."""
    with pytest.raises(ValueError, match="other_apps: the app app-b is given twice"):
        TokenManager(store, apps.own, other_apps=[apps.b, apps.wrong_b])
    with pytest.raises(ValueError, match="retired_client_ids: the app demo-client"):
        TokenManager(store, apps.own, retired_client_ids=[OWN_APP])
    with pytest.raises(ValueError, match="retired_client_ids: expected several"):
        TokenManager(store, apps.own, retired_client_ids=APP_B)
    stored = await connect(store, spotify, user)
    with pytest.raises(ValueError, match="client_ids: expected several"):
        await store.begin_refresh(user, seen=stored.fingerprint, client_ids=APP_B)
    for client_id in ("", "a b", "a\nb", "a:b", "\xfc"):
        with pytest.raises(ValueError, match="client_id: expected"):
            await connect(store, FakeSpotify(other_apps={client_id: None}), user, app=client_id)
        with pytest.raises(ConfigurationError, match="client_id is"):
            SpotifyAccounts(client_id)


async def test_an_app_that_is_closed_says_so(
    store: ConnectionStore, apps: Apps, spotify: FakeSpotify, user: UUID
) -> None:
    """Before a lease is taken."""
    await connect(store, spotify, user, ttl=-1, app=OWN_APP)
    async with TokenManager(store, apps.own, other_apps=[apps.b]) as tokens:
        await apps.b.aclose()
        with pytest.raises(RuntimeError, match="SpotifyAccounts"):
            await tokens.get_valid_token(user)
    assert spotify.token_calls == 0
