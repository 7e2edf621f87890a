"""A row with an end that no client can hold is forgotten alone: every other user stays in the cache."""

import asyncio
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore, SpotifyAccounts, TokenManager
from spotconn.testing import FakeSpotify
from support.connections import connect
from support.database import Database
from support.listening import passed, trusted
from support.tenant import signed_in


@pytest.mark.parametrize("end", ["infinity", "-infinity", "20000-01-01Z", "0044-03-15 BC", "1999-12-31Z"])
async def test_no_end_of_one_row_empties_the_cache(
    database: Database,
    store: ConnectionStore,
    accounts: SpotifyAccounts,
    spotify: FakeSpotify,
    users: list[UUID],
    admin: asyncpg.Connection,
    end: str,
) -> None:
    """A tenant is refused such an end; from the owner of the table it costs that user one read, and no other."""
    tenant, *others = users
    for one in users:
        await connect(store, spotify, one, account=str(one))
    change = f"update public.spotify_connections set expires_at = '{end}' where user_id = '{tenant}'"
    async with TokenManager(store, accounts) as tokens, signed_in(database.admin_dsn, tenant) as client:
        await trusted(tokens, tenant)
        await asyncio.gather(*map(tokens.get_valid_token, users))
        assert await client.send(change) in {"23514", "42501"}
        await admin.execute(change)
        await passed(tokens)
        assert set(tokens._cache.entries) == set(others)
        await asyncio.gather(*map(tokens.get_valid_token, users))
