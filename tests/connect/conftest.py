"""Users who have connected before."""

from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore
from spotconn.testing import FakeSpotify
from support.connections import connect, rows


@pytest.fixture
async def before(
    store: ConnectionStore, spotify: FakeSpotify, users: list[UUID], admin: asyncpg.Connection
) -> list[asyncpg.Record]:
    """The rows of the first two users, both connected before."""
    for user in users[:2]:
        await connect(store, spotify, user, account="bob")
    return await rows(admin)
