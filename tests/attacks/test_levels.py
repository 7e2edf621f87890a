"""A tenant has somebody's leaked refresh token refreshed by the service, and reads the fresh one."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest

from spotconn import (
    AesGcmSivCipher,
    ConnectionStore,
    DecryptionError,
    Profile,
    SpotifyAccounts,
    TokenGrant,
    TokenManager,
)
from spotconn._database.schema import SqlFile, read_sql
from spotconn.testing import FakeSpotify
from support.database import Database
from support.tenant import Tenant, signed_in

GRANT = TokenGrant(access_token="a", refresh_token="r", expires_at=datetime.now(UTC) - timedelta(hours=1))
READ = "select access_token, refresh_token from public.spotify_connections"
INSERT = (
    "insert into public.spotify_connections (user_id, spotify_user_id, access_token, refresh_token, expires_at) "
    "values ($1, 'x', 'a', 'leaked', now())"
)


@pytest.fixture
async def tenant(
    database: Database, admin: asyncpg.Connection, store: ConnectionStore, user: UUID
) -> AsyncIterator[Tenant]:
    """A connected user; at the end the database is as open, or as closed, as it was."""
    locked = await admin.fetchval("select to_regprocedure('spotconn.locked_down()') is not null")
    await admin.execute(read_sql("lock_down_undo.sql"))
    await store.save(user, GRANT, Profile(spotify_user_id="alice"))
    async with signed_in(database.admin_dsn, user) as opened:
        yield opened
    await admin.execute(read_sql("lock_down.sql" if locked else "lock_down_undo.sql"))


async def test_an_open_table_takes_it(tenant: Tenant) -> None:
    """Where neither level is applied a tenant writes any refresh token, which is said in SECURITY.md."""
    assert await tenant.patch(refresh_token="leaked") == "UPDATE 1"
    assert await tenant.send(READ) == "SELECT 1"


@pytest.mark.parametrize(("name", "reads"), [("close_writes.sql", "SELECT 1"), ("lock_down.sql", "42501")])
async def test_a_level_closes_the_writes(
    admin: asyncpg.Connection, tenant: Tenant, store: ConnectionStore, name: SqlFile, reads: str
) -> None:
    """No column is updated and no row inserted, also after the schema is applied again; reading depends on the level,
    and deleting the own row stays. The library works on.
    """
    await admin.execute(read_sql(name))
    await admin.execute(read_sql("schema.sql"))
    assert await tenant.patch(refresh_token="leaked") == "42501"
    assert await tenant.patch(scope="x") == "42501"
    assert await tenant.send(READ) == reads
    await store.save(tenant.user_id, GRANT, Profile(spotify_user_id="alice"))
    assert await tenant.send("delete from public.spotify_connections") == "DELETE 1"
    assert await tenant.send(INSERT, tenant.user_id) == "42501"
    await admin.execute(read_sql("lock_down_undo.sql"))
    assert await tenant.send(INSERT, tenant.user_id) == "INSERT 0 1"


async def test_with_keys_planted_plain_text_is_not_refreshed(
    tenant: Tenant, database: Database, accounts: SpotifyAccounts, spotify: FakeSpotify
) -> None:
    """Once encryption is required, what a tenant planted is refused before Spotify is asked."""
    spotify.add_account("bob")
    leaked = spotify.authorize("bob")
    assert await tenant.patch(refresh_token=leaked.refresh_token) == "UPDATE 1"
    cipher = AesGcmSivCipher([AesGcmSivCipher.generate_key()], require_encrypted=True)
    async with (
        ConnectionStore.open(database.dsn, max_size=2, cipher=cipher) as store,
        TokenManager(store, accounts) as tokens,
    ):
        with pytest.raises(DecryptionError):
            await tokens.get_valid_token(tenant.user_id)
    assert spotify.token_calls == 0


async def test_older_grants_go(admin: asyncpg.Connection, tenant: Tenant) -> None:
    """Rights that a project gave on columns or the table go with the level."""
    await admin.execute(
        "grant all on public.spotify_connections to anon, authenticated, public; "
        "grant update (refresh_token) on public.spotify_connections to anon, authenticated, public"
    )
    await admin.execute(read_sql("close_writes.sql"))
    assert await tenant.patch(refresh_token="leaked") == "42501"
    assert await tenant.send("truncate public.spotify_connections") == "42501"


async def test_a_lock_down_is_not_weakened(admin: asyncpg.Connection, tenant: Tenant) -> None:
    """The weaker level is refused over the stronger one; over the weaker one the stronger is applied."""
    await admin.execute(read_sql("close_writes.sql"))
    await admin.execute(read_sql("lock_down.sql"))
    with pytest.raises(asyncpg.RaiseError, match="is locked down") as raised:
        await admin.execute(read_sql("close_writes.sql"))
    assert "--undo-lock-down" in str(raised.value.hint)
    assert await tenant.send(READ) == "42501"
