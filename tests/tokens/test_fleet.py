"""Many processes over one database: one refresh for all, and a dead connection left alone."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from spotconn.testing import Answer, FakeSpotify
from support.database import Database
from support.fleet import connect_crowd, fleet, valid_digests

UNHURRIED = 100.0
"""Seconds in which a busy machine refreshes a whole crowd: no lease lapses while its holder waits for a turn to run."""


@pytest.mark.long
async def test_a_fleet_refreshes_each_user_once(database: Database, admin: asyncpg.Connection) -> None:
    """Four processes that ask for 500 expired users at once make exactly 500 calls and get 2,000 valid tokens."""
    spotify = FakeSpotify(rotation=True, latency=(0.05, 0.3))
    users = await connect_crowd(admin, spotify, 500)
    async with (
        spotify.serve() as url,
        fleet(database.dsn, url, processes=4, patience=UNHURRIED, lease=UNHURRIED) as started,
    ):
        answers = await started.ask(users)
    assert spotify.token_calls == 500
    assert set(spotify.refreshes.values()) == {1}
    assert answers == [await valid_digests(admin, spotify, users)] * 4
    assert "" not in answers[0]
    left = "select count(*) from spotconn.refresh_state where lease_id is not null or failure is not null"
    assert await admin.fetchval(left) == 0
    assert await admin.fetchval("select count(*) from spotconn.refresh_state where saves = 1") == len(users)


@pytest.mark.long
async def test_a_dead_connection_costs_no_calls(database: Database, admin: asyncpg.Connection) -> None:
    """A revoked connection asked for 10,000 times by four processes costs Spotify two calls at most."""
    spotify = FakeSpotify(rotation=True)
    users = await connect_crowd(admin, spotify, 1)
    spotify.revoke(str(users[0]))
    heard: Counter[str] = Counter()
    async with spotify.serve() as url, fleet(database.dsn, url, processes=4) as started:
        for _ in range(10):
            for answers in await started.ask(users * 250):
                heard.update(answers)
    assert heard == {"ReauthorizationRequired": 10_000}
    assert spotify.token_calls <= 2


@asynccontextmanager
async def faults(admin: asyncpg.Connection, spotify: FakeSpotify) -> AsyncGenerator[None]:
    """For some seconds, Spotify refuses some calls and backends of the fleet are terminated."""

    async def strike() -> None:
        for _ in range(20):
            spotify.script(
                random.choice([Answer.unavailable(), Answer.unavailable(500), Answer.too_many_requests("1")])
            )
            await admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app' order by random() limit 1"
            )
            await asyncio.sleep(random.uniform(0.1, 0.5))

    striking = asyncio.create_task(strike())
    try:
        yield
    finally:
        striking.cancel()
        await asyncio.wait([striking])


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_soak(database: Database, admin: asyncpg.Connection) -> None:
    """Eight processes, ten rounds of 500 expiries, random faults: nobody is lost, and nobody is refreshed twice."""
    spotify = FakeSpotify(rotation=True, latency=(0.05, 0.3))
    users = await connect_crowd(admin, spotify, 500)
    async with spotify.serve() as url, fleet(database.dsn, url, processes=8, patience=60) as started:
        for number in range(1, 11):
            async with faults(admin, spotify):
                answers = await started.ask(users)
            stored = await valid_digests(admin, spotify, users)
            wrong = Counter(got for heard in answers for got, right in zip(heard, stored, strict=True) if got != right)
            assert not wrong
            assert "" not in stored
            assert set(spotify.refreshes.values()) == {number}
            await admin.execute(
                "update public.spotify_connections set expires_at = now() - random() * interval '1 minute'"
            )
            print(f"round {number}: {spotify.token_calls} token calls so far")
