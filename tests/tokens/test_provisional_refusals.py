"""An outage in which Spotify says invalid_grant of everybody: afterwards every user is served without an operator."""

import logging
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore, ReauthorizationRequired, SpotifyAccounts, TokenManager, events
from spotconn.testing import Answer, FakeSpotify, apply_schema, step_database_clock
from support.connections import connect
from support.database import Database

USERS = 30
FALSE_REFUSAL = Answer(status=400, json={"error": "invalid_grant", "error_description": "Refresh token revoked"})


async def test_an_hour_of_false_refusals(
    database: Database, store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify,
    admin: asyncpg.Connection, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Spotify is asked once for each user in the hour, and once after it; each recovery is told, the wave once."""
    told: list[events.Event] = []
    add = "insert into auth.users (email) select n from generate_series(1, $1) n returning id"
    found = await admin.fetch(add, USERS)
    users: list[UUID] = [row["id"] for row in found]
    for user in users:
        await connect(store, spotify, user, account=str(user), ttl=-1)
    spotify.script(*[FALSE_REFUSAL] * 10 * USERS)
    try:
        async with TokenManager(store, accounts, on_event=told.append) as tokens:
            for _ in range(4):  # at 0, 15, 30 and 45 minutes
                for user in users:
                    with pytest.raises(ReauthorizationRequired) as raised:
                        await tokens.get_valid_token(user)
                    assert raised.value.reason == "revoked"
                await step_database_clock(database.admin_dsn, 15 * 60)
            assert spotify.token_calls == USERS
            spotify._script.clear()
            await step_database_clock(database.admin_dsn, 60)
            for user in users:
                assert spotify.accepts(await tokens.get_valid_token(user))
            assert spotify.token_calls == 2 * USERS
    finally:
        await apply_schema(database.admin_dsn)
    assert [event.user_id for event in told if isinstance(event, events.ReauthorizationRequired)] == users
    assert [event.user_id for event in told if isinstance(event, events.Recovered)] == users
    assert len([record for record in caplog.records if record.levelno == logging.CRITICAL]) == 1


async def test_two_more_opinions_then_it_is_final(
    database: Database, store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID
) -> None:
    """A connection that has really ended costs two more calls, after an hour and after a day, and none ever after."""
    await connect(store, spotify, user, ttl=-1)
    spotify.revoke("alice")
    asked: list[int] = []
    try:
        async with TokenManager(store, accounts, cache_ttl=0) as tokens:
            for seconds in (0, 3500, 200, 86_000, 1000, 86_400 * 3, 86_400 * 30):
                await step_database_clock(database.admin_dsn, seconds)
                with pytest.raises(ReauthorizationRequired):
                    await tokens.get_valid_token(user)
                asked.append(spotify.token_calls)
    finally:
        await apply_schema(database.admin_dsn)
    assert asked == [1, 1, 2, 2, 3, 3, 3]
