"""The blocks of SQL on the pages for Supabase run as their readers run them, and nothing of them stays."""

from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore, Profile
from spotconn._database.schema import read_sql
from support.connections import grant
from support.guide import sql_blocks
from support.tenant import Tenant


@pytest.fixture
async def rolled_back(admin: asyncpg.Connection) -> AsyncIterator[asyncpg.Connection]:
    """A superuser's session in a transaction that is rolled back, in an open database."""
    transaction = admin.transaction()
    await transaction.start()
    await admin.execute(read_sql("lock_down_undo.sql"))
    yield admin
    await transaction.rollback()


async def test_an_administrators_blocks(rolled_back: asyncpg.Connection) -> None:
    """Those of the guide run in their order, where Realtime publishes the table."""
    await rolled_back.execute("create publication supabase_realtime for table public.spotify_connections")
    found = [*sql_blocks("supabase.md")]
    assert found
    for block in found:
        await rolled_back.execute(block)
    assert await rolled_back.fetchval("select count(*) from pg_publication_tables") == 0


async def test_an_account_of_several_users_is_found_and_can_be_forbidden(
    store: ConnectionStore, users: list[UUID], rolled_back: asyncpg.Connection
) -> None:
    """By either id, whichever is known; the index is refused while there is such an account."""
    profiles = [
        Profile(spotify_user_id="alice", account_id="A1"),
        Profile(spotify_user_id="renamed", account_id="A1"),
        Profile(spotify_user_id="alice"),
    ]
    find, forbid = sql_blocks("connect.md")
    await store.save(users[0], grant("0"), Profile(spotify_user_id="bob"))
    assert await rolled_back.fetch(find) == []
    for user, profile in zip(users, profiles, strict=False):
        await store.save(user, grant(str(user)), profile)
    found = {row["account_id"] or row["spotify_user_id"]: row["users"] for row in await rolled_back.fetch(find)}
    assert {name: set(several) for name, several in found.items()} == {
        "A1": {users[0], users[1]},
        "alice": {users[0], users[2]},
    }
    with pytest.raises(asyncpg.UniqueViolationError):
        await rolled_back.execute(forbid)


async def test_a_signed_in_users_blocks(store: ConnectionStore, user: UUID, rolled_back: asyncpg.Connection) -> None:
    """Each changes the one row of the user."""
    await store.save(user, grant("a"), Profile(spotify_user_id="alice"))
    found = [*sql_blocks("writing-the-table.md")]
    assert found
    for block in found:
        assert await Tenant(rolled_back, user).send(block) == "UPDATE 1"
