"""Who writes the tables of the library, without a key, cannot shut a user out for longer than the library does."""

from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore, TokenManager
from spotconn.accounts import SpotifyAccounts
from spotconn.errors import ReauthorizationRequired, SpotifyUnavailable
from spotconn.testing import FakeSpotify
from support.connections import connect

WRITE = """
update spotconn.refresh_state set failure = $2, failed_at = now(), paused_at = now(), refusals = 1,
    retry_at = now() + make_interval(hours => $3)
where user_id = $1
"""


@pytest.mark.parametrize("failure", ["unavailable", "revoked"])
@pytest.mark.parametrize(("hours", "is_served"), [(100 * 365 * 24, True), (300 * 24, True), (26, True), (23, False)])
async def test_a_recorded_pause_is_bounded_on_reading(
    store: ConnectionStore,
    spotify: FakeSpotify,
    accounts: SpotifyAccounts,
    user: UUID,
    admin: asyncpg.Connection,
    failure: str,
    hours: int,
    *,
    is_served: bool,
) -> None:
    """One that ends later than a day from now, the longest that is recorded, counts for nothing."""
    await connect(store, spotify, user, ttl=-60)
    await admin.execute(WRITE, user, failure, hours)
    async with TokenManager(store, accounts) as tokens:
        if is_served:
            assert await tokens.get_valid_token(user)
        else:
            with pytest.raises((SpotifyUnavailable, ReauthorizationRequired)):
                await tokens.get_valid_token(user)


@pytest.mark.parametrize("lease", ["300 days", "100 years"])
async def test_a_false_lease_is_bounded_on_reading(
    store: ConnectionStore,
    spotify: FakeSpotify,
    accounts: SpotifyAccounts,
    user: UUID,
    admin: asyncpg.Connection,
    lease: str,
) -> None:
    """A lease of another process that would run for a year is void."""
    await connect(store, spotify, user, ttl=-60)
    await admin.execute(
        "update spotconn.refresh_state set lease_id = gen_random_uuid(), leased_at = now(), "
        f"lease_until = now() + interval '{lease}'"
    )
    async with TokenManager(store, accounts) as tokens:
        assert await tokens.get_valid_token(user)
