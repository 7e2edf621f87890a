"""What refuses an app itself is found in the answers to both clients, and told once for the app that it is about."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from spotconn import ConfigurationError, ConnectionStore, SpotifyAccounts, SpotifyAuth, TokenManager, events
from spotconn._tokens.web_answers import BATCH
from spotconn.testing import Answer, FakeClock, FakeSpotify
from support.connections import OWN_APP, connect
from support.listening import until
from support.watched_store import LostStore

OTHER_APP = "other-app"
PREMIUM = "Active premium subscription required for the owner of the app. When the subscription status changes, …"
LAPSED = Answer(status=403, body=PREMIUM.encode())
PLAYER = "/v1/me/player"
QUOTA = Answer(status=429, json={"error": {"status": 429, "message": "Too many", "reason": "QUOTA_EXCEEDED"}})
REFUSED = 403, PREMIUM
STRANGER = "User not registered in the Developer Dashboard"


class Service:
    """A manager of two apps, with a clock of its own, and clients of its users."""

    def __init__(self, tokens: TokenManager, clock: FakeClock, http: Any) -> None:
        self.tokens = tokens
        self.clock = clock
        self.http = http

    async def get(self, user: UUID, path: str = PLAYER) -> int:
        status: int = (await self.http.get(path, auth=self.tokens.auth(user))).status_code
        await self.settled()
        return status

    async def settled(self) -> None:
        """Wait until what was answered is recorded."""
        await asyncio.sleep(0)
        await until(lambda: not self.tokens._source.answers.tasks)


class Told:
    """What the hook is told of apps."""

    def __init__(self) -> None:
        self.events: list[events.Event] = []

    async def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.AppRefused | events.AppAccepted):
            self.events.append(event)


@pytest.fixture
def spotify() -> FakeSpotify:
    """One with two apps."""
    return FakeSpotify(other_apps={OTHER_APP: None})


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def service(
    http_library: Any, store: ConnectionStore, spotify: FakeSpotify, told: Told
) -> AsyncIterator[Service]:
    """With each of the two clients."""
    clock = FakeClock(1_800_000_000.0)
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(spotify.serve())
        apps = [
            await stack.enter_async_context(SpotifyAccounts(name, secret, accounts_url=url, api_url=url, clock=clock))
            for name, secret in ((OWN_APP, "demo-secret"), (OTHER_APP, None))
        ]
        tokens = await stack.enter_async_context(
            TokenManager(store, apps[0], other_apps=apps[1:], on_event=told, clock=clock)
        )
        http = await stack.enter_async_context(http_library.AsyncClient(base_url=url, timeout=60))
        yield Service(tokens, clock, http)


def refused(reason: events.AppRefusal, client_id: str | None = OWN_APP, user: UUID | None = None) -> events.AppRefused:
    return events.AppRefused(client_id=client_id, reason=reason, user_id=user)


async def test_a_refusal_of_the_app_is_told_once_and_so_is_its_end(
    service: Service, store: ConnectionStore, spotify: FakeSpotify, users: list[UUID], told: Told
) -> None:
    """Whoever of its users is refused; a success counts from a minute after the last refusal on."""
    for user in users[:2]:
        await connect(store, spotify, user)
    spotify.on("GET", PLAYER, LAPSED)
    assert [await service.get(user) for user in (*users[:2], users[0])] == [403] * 3
    spotify.on("GET", PLAYER, Answer(status=204))
    for seconds in (59, 2, 61):
        service.clock.step(seconds)
        assert await service.get(users[1]) == 204
    await until(lambda: len(told.events) == 2)
    assert told.events == [
        refused("premium_required"),
        events.AppAccepted(client_id=OWN_APP, reason="premium_required"),
    ]


async def test_what_is_not_about_the_app_costs_nothing(
    service: Service, store: ConnectionStore, spotify: FakeSpotify, user: UUID, told: Told
) -> None:
    """No statement of the database, and no event: a scope, the user's own subscription, a wait, another status."""
    await connect(store, spotify, user)
    answers = [
        Answer.web_error(403, "Insufficient client scope"),
        Answer.web_error(403, "Player command failed: Premium required"),
        Answer.too_many_requests("7"),
        Answer.web_error(404, PREMIUM),
        Answer(status=204),
    ]
    spotify.on("GET", PLAYER, *answers)
    for answer in answers:
        response = await service.http.get(PLAYER, auth=service.tokens.auth(user))
        await asyncio.sleep(0)
        assert response.status_code == answer.status
        assert not service.tokens._source.answers.tasks
    assert not told.events


async def test_it_is_counted_for_the_app_of_the_users_connection(
    service: Service, store: ConnectionStore, spotify: FakeSpotify, users: list[UUID], told: Told
) -> None:
    """Of two apps one is refused, and the other goes on; a connection that names none counts for neither."""
    await connect(store, spotify, users[0])
    await connect(store, spotify, users[1], account="bob", app=OTHER_APP)
    await connect(store, spotify, users[2], account="carol", named=False)
    spotify.on("GET", PLAYER, QUOTA)
    assert [await service.get(user) for user in users[1:]] == [429, 429]
    spotify.on("GET", PLAYER)
    await service.get(users[0])
    await until(lambda: len(told.events) == 2)
    assert told.events == [refused("quota_exceeded", OTHER_APP), refused("quota_exceeded", None)]


async def test_a_user_who_is_not_registered_is_that_users_trouble(
    service: Service, store: ConnectionStore, spotify: FakeSpotify, users: list[UUID], told: Told
) -> None:
    """The event names the user to register, others are served, and the service stays ready."""
    await connect(store, spotify, users[0])
    await connect(store, spotify, users[1], account="bob")
    spotify.add_account("bob", refusal=STRANGER)
    assert [await service.get(user, "/v1/me") for user in (users[0], users[1], users[1])] == [200, 403, 403]
    await service.tokens.check()
    service.tokens.report_answer(users[0], 200)
    assert not service.tokens._source.answers.tasks  # it could tell nothing, and costs no statement
    spotify.add_account("bob")
    service.clock.step(61)
    assert [await service.get(user, "/v1/me") for user in users[:2]] == [200, 200]
    await until(lambda: len(told.events) == 2)
    assert told.events == [
        refused("user_not_registered", user=users[1]),
        events.AppAccepted(client_id=OWN_APP, reason="user_not_registered", user_id=users[1]),
    ]


async def test_a_response_that_is_streamed_is_the_callers_to_read(
    service: Service, store: ConnectionStore, spotify: FakeSpotify, user: UUID, told: Told
) -> None:
    """It comes as it is sent, also raw; it is recognized where the caller reads it as a whole."""
    await connect(store, spotify, user)
    spotify.on("GET", PLAYER, LAPSED)
    auth = service.tokens.auth(user)
    async with service.http.stream("GET", PLAYER, auth=auth) as response:
        assert not response.is_stream_consumed
        assert b"".join([chunk async for chunk in response.aiter_raw()]) == PREMIUM.encode()
    async with service.http.stream("GET", PLAYER, auth=auth) as response:
        assert response.status_code == 403
    await service.settled()
    assert not told.events
    async with service.http.stream("GET", PLAYER, auth=auth) as response:
        assert await response.aread() == PREMIUM.encode()
    await service.settled()
    await until(lambda: told.events == [refused("premium_required")])


async def test_a_body_that_a_hook_has_read_is_looked_at(
    service: Service, store: ConnectionStore, spotify: FakeSpotify, user: UUID, told: Told
) -> None:
    """As hooks that log errors do."""

    async def read(response: Any) -> None:
        await response.aread()

    await connect(store, spotify, user)
    spotify.on("GET", PLAYER, LAPSED)
    service.http.event_hooks = {"response": [read]}
    assert await service.get(user) == 403
    await until(lambda: told.events == [refused("premium_required")])


async def test_requests_sent_in_another_way_are_reported(
    service: Service, store: ConnectionStore, spotify: FakeSpotify, user: UUID, told: Told
) -> None:
    """By status and body, as text or bytes; a user who has no connection is of no app."""
    await connect(store, spotify, user)
    for who, body in ((uuid4(), PREMIUM), (user, PREMIUM.encode()), (str(user), PREMIUM)):
        service.tokens.report_answer(who, 403, body)
        await service.settled()
    service.clock.step(61)
    service.tokens.report_answer(user, 200)
    await service.settled()
    await until(lambda: len(told.events) == 2)
    assert told.events[0] == refused("premium_required")
    with pytest.raises(ValueError, match="UUID"):
        service.tokens.report_answer("alice", 200)


async def test_without_the_database_the_answer_is_the_callers_all_the_same(
    service: Service,
    store: ConnectionStore,
    spotify: FakeSpotify,
    users: list[UUID],
    admin: asyncpg.Connection,
    told: Told,
) -> None:
    """Nothing is counted that cannot be attributed; after the manager is closed nothing is, either."""
    for user in users[:2]:
        await connect(store, spotify, user)
    spotify.on("GET", PLAYER, LAPSED)
    auth = service.tokens.auth(users[0])
    await service.tokens.get_valid_token(users[0])
    await admin.execute("alter function spotconn.get_connections(uuid[]) rename to elsewhere")
    try:
        assert await service.get(users[0]) == 403
    finally:
        await admin.execute("alter function spotconn.elsewhere(uuid[]) rename to get_connections")
    request = service.http.build_request("GET", PLAYER)
    flow = auth.async_auth_flow(request)
    sent = await anext(flow)
    await service.tokens.aclose()
    response = await service.http.send(sent)
    with pytest.raises(StopAsyncIteration):
        await flow.asend(response)
    assert not told.events


async def test_a_database_that_does_not_answer_is_asked_once_for_all_that_waits(
    store: ConnectionStore, accounts: SpotifyAccounts
) -> None:
    """Else the end of the manager would wait for one timeout after the other, for what is not counted anyway."""
    lost = LostStore(store.pool._pool)
    async with TokenManager(lost, accounts) as tokens:
        for _ in range(3 * BATCH):
            tokens.report_answer(uuid4(), *REFUSED)
    assert lost.reads == BATCH


async def test_a_cancelled_end_leaves_no_reading_behind(
    store: ConnectionStore, accounts: SpotifyAccounts, user: UUID, admin: asyncpg.Connection
) -> None:
    """What waits for the database then would keep a connection of its pool."""
    tokens = TokenManager(store, accounts)
    async with admin.transaction():
        await admin.execute("lock table public.spotify_connections")
        tokens.report_answer(user, *REFUSED)
        (reading,) = tokens._source.answers.tasks
        closing = asyncio.create_task(tokens.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing, reading])
    assert reading.cancelled()


async def test_a_source_that_takes_no_reports_serves(
    service: Service, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """One of the caller's own, with no more than tokens."""

    class Source:
        get_valid_token = service.tokens.get_valid_token
        replace_rejected = service.tokens.replace_rejected

    await connect(store, spotify, user)
    spotify.on("GET", PLAYER, LAPSED)
    auth = SpotifyAuth(Source(), user, allow=[service.tokens.accounts.api_url])
    assert (await service.http.get(PLAYER, auth=auth)).text == PREMIUM


async def test_the_profile_of_a_new_connection_is_looked_at(service: Service, spotify: FakeSpotify, told: Told) -> None:
    """A connect is refused as the app's trouble, and told."""
    spotify.add_account("alice")
    grant = spotify.authorize("alice")
    spotify.on("GET", "/v1/me", LAPSED)
    with pytest.raises(ConfigurationError, match="Premium"):
        await service.tokens.accounts.profile(grant.access_token)
    await until(lambda: told.events == [refused("premium_required")])
