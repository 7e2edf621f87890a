"""The account behind a connect: the same one where that is demanded, and what a connect does without the profile."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Protocol
from uuid import UUID

import asyncpg
import httpx
import pytest

from spotconn import (
    ConnectFailed,
    ConnectFlow,
    Connection,
    ConnectionStore,
    SpotifyAccounts,
    SpotifyUnavailable,
    events,
)
from spotconn.testing import Answer, FakeSpotify
from support.connections import rows
from support.consent import REDIRECT_URI, SCOPES, agree, pending, sent

WAITS = httpx.Response(429, headers={"retry-after": "7200"}, text="Too many requests")


class Deputy(httpx.AsyncHTTPTransport):
    """Real HTTP to the fake, except for the answers of GET /v1/me while there is another."""

    instead: httpx.Response | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.instead is not None and request.url.path == "/v1/me":
            return httpx.Response(self.instead.status_code, headers=self.instead.headers, content=self.instead.content)
        return await super().handle_async_request(request)


class Process:
    """A flow with accounts of its own, as another process has them; `deputy` may answer GET /v1/me."""

    def __init__(self, store: ConnectionStore, url: str, stack: AsyncExitStack) -> None:
        self._parts = store, url, stack
        self.deputy = Deputy()
        self.told: list[events.Event] = []

    async def __call__(self) -> ConnectFlow:
        store, url, stack = self._parts
        http = await stack.enter_async_context(httpx.AsyncClient(transport=self.deputy))
        accounts = SpotifyAccounts("demo-client", "demo-secret", http=http, accounts_url=url, api_url=url)
        await stack.enter_async_context(accounts)
        flow = ConnectFlow(store, accounts, redirect_uri=REDIRECT_URI, scopes=SCOPES, on_event=self.told.append)
        return await stack.enter_async_context(flow)


@pytest.fixture
async def process(store: ConnectionStore, spotify: FakeSpotify) -> AsyncIterator[Process]:
    """Flows over real HTTP, as of several processes."""
    for name in ("alice", "roommate"):
        spotify.add_account(name, display_name=name.title())
    async with spotify.serve() as url, AsyncExitStack() as stack:
        yield Process(store, url, stack)


async def _finish(flow: ConnectFlow, user: UUID, account: str, *, same_account: bool) -> Connection | None:
    callback = await agree(await flow.start(user), account)
    return await flow.finish(user, callback, same_account=same_account)


async def _complete(flow: ConnectFlow, user: UUID, account: str, *, same_account: bool) -> Connection | None:
    begun = await flow.begin(user)
    callback = await agree(begun.url, account)
    return (await flow.complete(callback, sent(begun), same_account=same_account)).connection


async def _complete_unbound(flow: ConnectFlow, user: UUID, account: str, *, same_account: bool) -> Connection | None:
    callback = await agree(await flow.start(user), account)
    return (await flow.complete_unbound(callback, same_account=same_account)).connection


async def _sign_in(flow: ConnectFlow, user: UUID, account: str, *, same_account: bool) -> Connection | None:
    begun = await flow.begin(None)
    completed = await flow.complete(await agree(begun.url, account), sent(begun))
    return await flow.save(user, completed, same_account=same_account)


class Connect(Protocol):
    """A way to connect a user to an account."""

    async def __call__(
        self, flow: ConnectFlow, user: UUID, account: str, *, same_account: bool
    ) -> Connection | None: ...


@pytest.mark.parametrize("connect", [_finish, _complete, _complete_unbound, _sign_in])
async def test_another_account_is_refused_where_the_same_is_demanded(
    process: Process, admin: asyncpg.Connection, user: UUID, connect: Connect
) -> None:
    """On each way; the old row stays, and each connect that is saved says which account was there before."""
    flow = await process()
    await connect(flow, user, "alice", same_account=True)
    before = await rows(admin)
    with pytest.raises(ConnectFailed) as refused:
        await connect(flow, user, "roommate", same_account=True)
    assert refused.value.reason == "other_account"
    assert await rows(admin) == before
    await connect(flow, user, "alice", same_account=True)
    await connect(flow, user, "roommate", same_account=False)
    await flow.aclose()
    told = [event for event in process.told if isinstance(event, events.Connected)]
    assert [(event.previous_spotify_user_id, event.spotify_user_id) for event in told] == [
        (None, "alice"),
        ("alice", "alice"),
        ("alice", "roommate"),
    ]


async def test_two_calls_of_which_one_demands_the_same_account_share_nothing(process: Process, user: UUID) -> None:
    """Who demands it never gets the connection of another account, not from a call under way either."""
    flow = await process()
    await _finish(flow, user, "alice", same_account=False)
    callback = await agree(await flow.start(user), "roommate")
    calls = (flow.finish(user, callback, same_account=demanded) for demanded in (False, True))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    demanding = outcomes[1]
    assert isinstance(demanding, ConnectFailed)
    assert demanding.reason in {"state_used", "other_account"}


async def test_while_the_profile_is_throttled_one_grant_is_lost_and_nobody_is_sent_off(
    process: Process, spotify: FakeSpotify, admin: asyncpg.Connection, users: list[UUID]
) -> None:
    """Who agreed before it was known keeps the callback: nothing of it is spent, as another process shows."""
    flow = await process()
    early = await agree(await flow.start(users[0]))
    begun = await flow.begin(users[1])
    late = await agree(begun.url)
    cancelled = await agree(await flow.start(users[2]), decision="cancel")
    process.deputy.instead = WAITS
    with pytest.raises(SpotifyUnavailable, match=r"dropped.*start again in 7200 s$") as lost:
        await flow.finish(users[0], early)
    granted = spotify.token_calls
    for call in (flow.start(users[2]), flow.begin(users[2]), flow.begin(None)):
        with pytest.raises(SpotifyUnavailable, match="no user can connect now") as refused:
            await call
        assert 7000 < (refused.value.retry_after or 0) <= (lost.value.retry_after or 0) == 7200
    with pytest.raises(SpotifyUnavailable, match="nothing was sent or spent"):
        await flow.complete(late, sent(begun))
    assert (spotify.token_calls, await pending(admin)) == (granted, 2)
    with pytest.raises(ConnectFailed) as denied:  # which needs nothing of Spotify
        await flow.finish(users[2], cancelled)
    assert denied.value.reason == "denied"
    process.deputy.instead = None
    other = await process()
    assert (await other.complete(late, sent(begun))).profile.spotify_user_id == "alice"


async def test_a_reconnect_with_the_stored_refresh_token_needs_no_profile(
    process: Process, store: ConnectionStore, spotify: FakeSpotify, user: UUID, admin: asyncpg.Connection
) -> None:
    """Spotify grants a refresh token to one account: where it is the stored one, so is the account.

    Another writer may have stored an empty name or address.
    """
    flow = await process()
    await _finish(flow, user, "alice", same_account=True)
    await admin.execute("update public.spotify_connections set email = ''")
    first = await store.get(user)
    callback = await agree(await flow.start(user))
    granted = {"access_token": "fresh", "token_type": "Bearer", "expires_in": 3600, "scope": "user-top-read"}
    spotify.script(Answer(json=granted | {"refresh_token": first.refresh_token}))
    process.deputy.instead = WAITS
    saved = await flow.finish(user, callback, same_account=True)
    assert saved == await store.get(user)
    assert (saved.access_token, saved.scope, saved.email) == ("fresh", frozenset({"user-top-read"}), None)
    kept = ("spotify_user_id", "display_name", "account_id", "refresh_token")
    assert [getattr(saved, name) for name in kept] == [getattr(first, name) for name in kept]
    assert saved.account_id
