"""A fleet in which one process has another app than the rest: nobody is marked for it, and no token is lost."""

from collections import Counter
from collections.abc import Sequence
from uuid import UUID

import asyncpg
import pytest

from spotconn.testing import FakeSpotify
from support.database import Database
from support.fleet import APP, connect_crowd, fleet, valid_digests

USERS = 500
LEASE, PATIENCE = 60.0, 200.0
"""Seconds: no lease lapses while its holder waits for a turn to run, and one that is left behind is waited for.

So is a database that does not answer a crowd in time on a machine with other work.
"""
WRONG = "app-b:secret-b"
RIGHT = [APP] * 3


@pytest.fixture
def spotify() -> FakeSpotify:
    """It knows the app of the connections and that of the wrong process."""
    return FakeSpotify(rotation=True, latency=(0.02, 0.1), other_apps={"app-b": "secret-b"})


async def expire(admin: asyncpg.Connection) -> None:
    """Let every stored access token end."""
    await admin.execute("update public.spotify_connections set expires_at = now() - interval '1 minute'")


async def refusals(admin: asyncpg.Connection, users: Sequence[UUID]) -> int:
    """How many connections are marked as refused."""
    query = "select count(*) from spotconn.refresh_state where user_id = any($1) and failure <> 'unavailable'"
    number: int = await admin.fetchval(query, users)
    return number


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_a_wrong_app_marks_nobody(database: Database, admin: asyncpg.Connection, spotify: FakeSpotify) -> None:
    """Its process hears of each user which app is missing; corrected, it serves every user without an operator."""
    users = await connect_crowd(admin, spotify, USERS)
    async with spotify.serve() as url:
        async with fleet(database.dsn, url, apps=RIGHT, patience=PATIENCE, lease=LEASE) as right:
            await right.ask(users)  # which finds out their app
        await expire(admin)
        calls = spotify.token_calls
        async with fleet(database.dsn, url, apps=[WRONG], patience=PATIENCE, lease=LEASE) as wrong:
            (heard,) = await wrong.ask(users)
            assert spotify.token_calls == calls
            assert Counter(heard).total() == USERS
            for answer in set(heard):
                assert answer.startswith("OtherApp: the connection belongs to the app demo-client")
                assert "this process has app-b" in answer
            assert await refusals(admin, users) == 0
        async with fleet(database.dsn, url, apps=[WRONG, *RIGHT], patience=PATIENCE, lease=LEASE) as mixed:
            _, *answers = await mixed.ask(users)
            assert answers == [stored := await valid_digests(admin, spotify, users)] * len(RIGHT)
        assert "" not in stored
        assert spotify.refresh_calls_by_app == {"demo-client": 2 * USERS}
        await expire(admin)
        async with fleet(database.dsn, url, apps=[APP, *RIGHT], patience=PATIENCE, lease=LEASE) as corrected:
            answers = await corrected.ask(users)
            assert answers == [stored := await valid_digests(admin, spotify, users)] * 4
    assert "" not in stored
    assert spotify.refresh_calls_by_app == {"demo-client": 3 * USERS}
    assert await refusals(admin, users) == 0


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_a_wrong_app_over_connections_that_name_none(
    database: Database, admin: asyncpg.Connection, spotify: FakeSpotify
) -> None:
    """Refusals of it count for itself alone: the right processes serve every user, at the same time and after it."""
    users = await connect_crowd(admin, spotify, USERS)
    alone, together = users[: USERS // 2], users[USERS // 2 :]
    async with spotify.serve() as url:
        async with fleet(database.dsn, url, apps=[WRONG], patience=PATIENCE, lease=LEASE) as wrong:
            assert await wrong.ask(alone) == [["ReauthorizationRequired"] * len(alone)]
        assert await refusals(admin, alone) == len(alone)
        provisional = "select count(*) from spotconn.refresh_state where failure is not null and retry_at is not null"
        assert await admin.fetchval(provisional) == len(alone)
        async with fleet(database.dsn, url, apps=[WRONG, *RIGHT], patience=PATIENCE, lease=LEASE) as mixed:
            _, *answers = await mixed.ask(users)
            assert answers == [stored := await valid_digests(admin, spotify, users)] * len(RIGHT)
    assert "" not in stored
    assert spotify.refresh_calls_by_app["demo-client"] == USERS
    assert len(alone) <= spotify.refresh_calls_by_app["app-b"] <= len(alone) + len(together)
    assert await refusals(admin, users) == 0
    assert await admin.fetchval("select array_agg(distinct client_id) from spotconn.refresh_state") == ["demo-client"]
