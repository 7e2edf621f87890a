"""A tenant writes a refresh token to which Spotify answers as if the app or its request were at fault."""

from uuid import UUID

import asyncpg
import pytest

from spotconn import ConfigurationError, ConnectionStore, SpotconnError, SpotifyAccounts, SpotifyUnavailable
from spotconn import TokenManager as Manager
from spotconn._tokens.request_budget import BURST, EVERY, RequestBudget
from spotconn.testing import Answer, FakeSpotify
from support.connections import connect


def answers(code: str) -> Answer:
    return Answer(status=400, json={"error": code})


async def write(admin: asyncpg.Connection, user: UUID, **values: str) -> None:
    """As the tenant may where the table is not locked down, and another program where it is."""
    for name, value in values.items():
        await admin.execute(
            f"update public.spotify_connections set {name} = $1, expires_at = now() where user_id = $2",
            value,
            user,
        )


def lengthen_pause(tokens: Manager, user: UUID) -> None:
    """Let the pause of a user last an hour longer, so that it is not over before a slow machine has asked again."""
    tokens._source.refresher.backoffs._backoffs[user].backoff.until += 3600


@pytest.mark.parametrize("code", ["invalid_request", "invalid_client", "unauthorized_client"])
async def test_the_token_of_one_user_stops_nobody_else(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, users: list[UUID], code: str
) -> None:
    """The job and single calls serve all others; the one who wrote it has the error, and Spotify is asked once."""
    for user in users:
        await connect(store, spotify, user, account=str(user), ttl=-1)
    mallory, *others = users
    spotify.script(answers(code))
    async with Manager(store, accounts) as tokens:
        found: dict[UUID, str | SpotconnError] = {
            user: answer async for user, answer in tokens.get_valid_tokens(users, concurrency=1)
        }
        assert isinstance(found[mallory], ConfigurationError)
        assert all(isinstance(found[user], str) for user in others)
        lengthen_pause(tokens, mallory)
        for _ in range(5):
            with pytest.raises(ConfigurationError, match=code):
                await tokens.get_valid_token(mallory)
    assert spotify.token_calls == 3
    assert (await store.get(mallory)).failure is None


async def test_another_access_token_does_not_have_a_refused_refresh_token_sent_again(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID, admin: asyncpg.Connection
) -> None:
    """The pause is about the refresh token: a row with it and a new access token has nothing sent."""
    await connect(store, spotify, user, ttl=-1)
    spotify.script(answers("invalid_request"))
    async with Manager(store, accounts, cache_ttl=0) as tokens:
        for n in range(5):
            with pytest.raises(ConfigurationError, match="connects again"):
                await tokens.get_valid_token(user)
            if n == 0:
                lengthen_pause(tokens, user)
            await write(admin, user, access_token=f"other-{n}")
    assert spotify.token_calls == 1


async def test_what_one_tenant_can_have_sent_to_spotify_is_bounded(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID, admin: asyncpg.Connection
) -> None:
    """With new tokens before each of 30 calls, ten requests are sent, and one more every six seconds."""
    await connect(store, spotify, user, ttl=-1)
    last: SpotconnError | None = None
    async with Manager(store, accounts, cache_ttl=0) as tokens:
        for n in range(3 * BURST):
            await write(admin, user, access_token=f"access-{n}", refresh_token=f"refresh-{n}")
            try:
                await tokens.get_valid_token(user)
            except SpotconnError as error:
                last = error
    assert BURST <= spotify.token_calls < 2 * BURST
    assert isinstance(last, SpotifyUnavailable)
    assert 0 < (last.retry_after or 0) <= EVERY


def test_a_budget_is_of_one_user_and_comes_back() -> None:
    """In an hour a user has the burst and one request every six seconds, and another user's budget is untouched."""
    budget, mallory, other = RequestBudget(), UUID(int=1), UUID(int=2)
    sent = sum(budget.spend(mallory, second) is None for second in range(3600))
    assert sent == pytest.approx(3600 / EVERY + BURST, abs=2)
    assert budget.spend(other, 3600) is None
