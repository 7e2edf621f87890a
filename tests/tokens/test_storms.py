"""What no caller may cost, however often it asks: a token that was granted less than a minute ago is not replaced."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from uuid import UUID

import pytest

from spotconn import ConnectionStore, SpotifyAccounts, SpotifyUnavailable, TokenManager
from spotconn.testing import FakeClock, FakeSpotify, apply_schema, step_database_clock
from support.connections import connect
from support.database import Database

CALLERS = 40
AHEAD = (480, 3600)
"""Seconds by which a host's clock is wrong."""


@pytest.fixture
async def fleet(database: Database, accounts: SpotifyAccounts) -> AsyncIterator[list[TokenManager]]:
    """Six managers, each with a pool of its own; the clock of the database is set right afterwards."""
    async with AsyncExitStack() as stack:
        managers: list[TokenManager] = []
        for _ in range(6):
            store = await stack.enter_async_context(ConnectionStore.open(database.dsn, max_size=1))
            managers.append(await stack.enter_async_context(TokenManager(store, accounts)))
        yield managers
    await apply_schema(database.admin_dsn)


@pytest.fixture
def spotify() -> FakeSpotify:
    """Tokens that live for ten minutes."""
    return FakeSpotify(rotation=True, token_ttl=600)


@pytest.mark.parametrize("together", [True, False])
async def test_a_life_that_no_token_has_is_asked_for(
    fleet: list[TokenManager], store: ConnectionStore, spotify: FakeSpotify, user: UUID, database: Database,
    together: bool,  # noqa: FBT001
) -> None:  # fmt: skip
    """`min_ttl` beyond the life of Spotify's tokens: one refresh in a minute for all processes, and all are served."""
    await connect(store, spotify, user, ttl=100)
    for minute in (1, 2):
        if together:
            calls = [fleet[n % 6].get_valid_token(user, min_ttl=3000) for n in range(CALLERS)]
            served = set(await asyncio.gather(*calls))
        else:
            served = {await fleet[n % 6].get_valid_token(user, min_ttl=3000) for n in range(CALLERS)}
        assert served == {(await store.get(user)).access_token}
        assert spotify.token_calls == minute
        await step_database_clock(database.admin_dsn, 61)


async def test_a_token_that_is_always_refused(
    fleet: list[TokenManager], store: ConnectionStore, spotify: FakeSpotify, user: UUID, database: Database
) -> None:
    """One refresh for the whole fleet, then SpotifyUnavailable with the rest of the minute; then one more."""
    rejected = (await connect(store, spotify, user, ttl=500)).access_token
    for minute in (1, 2):
        replaced = set(await asyncio.gather(*[tokens.replace_rejected(user, rejected) for tokens in fleet]))
        assert spotify.token_calls == minute
        assert len(replaced - {rejected}) == len(replaced) == 1
        (rejected,) = replaced
        for _ in range(3):
            for tokens in fleet:
                with pytest.raises(SpotifyUnavailable) as raised:
                    await tokens.replace_rejected(user, rejected)
                assert 0 < (raised.value.retry_after or 0) <= 60
        assert spotify.token_calls == minute
        await step_database_clock(database.admin_dsn, 61)


@pytest.mark.parametrize("ahead", [*AHEAD, *(-seconds for seconds in AHEAD)])
async def test_a_host_whose_clock_is_wrong_gives_nobody_a_dead_token(
    database: Database, store: ConnectionStore, user: UUID, ahead: float
) -> None:
    """What it refreshes ends by the clock of the database, for the hosts with the right clock and for itself."""
    true = FakeClock(1_900_000_000)
    spotify = FakeSpotify(rotation=True, clock=true)

    def wrong() -> float:
        return true() + ahead

    try:
        async with (
            spotify.serve() as url,
            SpotifyAccounts("demo-client", "demo-secret", accounts_url=url, clock=wrong) as wrong_accounts,
            SpotifyAccounts("demo-client", "demo-secret", accounts_url=url, clock=true) as right_accounts,
            TokenManager(store, wrong_accounts, clock=wrong) as one,
            TokenManager(store, right_accounts, clock=true) as other,
        ):
            await connect(store, spotify, user, ttl=-1)
            for _ in range(40):
                assert spotify.accepts(await one.get_valid_token(user))
                assert spotify.accepts(await other.get_valid_token(user))
                for flights in (one._source.refreshes.tasks, other._source.refreshes.tasks):
                    if flights:  # no request is in flight while the clocks are stepped
                        await asyncio.wait(flights)
                true.step(200)
                await step_database_clock(database.admin_dsn, 200)
            assert spotify.refresh_calls <= 4
    finally:
        await apply_schema(database.admin_dsn)
