"""Stored connections, made and looked at."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg

from spotconn import Connection, ConnectionStore, Profile, TokenGrant
from spotconn.testing import FakeSpotify

OWN_APP = "demo-client"
"""The app of the fixture `accounts`, and the first one of a fake."""


def grant(name: str, minutes: float = 60) -> TokenGrant:
    ends = datetime.now(UTC) + timedelta(minutes=minutes)
    return TokenGrant(access_token=f"access-{name}", refresh_token=f"refresh-{name}", expires_at=ends)


async def connect(
    store: ConnectionStore,
    spotify: FakeSpotify,
    user_id: UUID,
    *,
    account: str = "alice",
    ttl: float = 3600,
    scope: frozenset[str] | None = frozenset({"user-read-email"}),
    app: str = OWN_APP,
    named: bool = True,
) -> Connection:
    """Store a connection to an account of the fake, whose access token ends `ttl` seconds from now.

    It is of one of the apps of the fake, and says so only if `named`. Without `expires_in` the token does not count as
    just granted, so it may be replaced at once.
    """
    spotify.add_account(account)
    grant = spotify.authorize(account, scope or (), client_id=app)
    ends = datetime.now(UTC) + timedelta(seconds=ttl)
    grant = grant.model_copy(update={"expires_at": ends, "expires_in": None, "scope": scope})
    return await store.save(user_id, grant, Profile(spotify_user_id=account), client_id=app if named else None)


async def rows(admin: asyncpg.Connection) -> list[asyncpg.Record]:
    """All stored connections, seen as nobody's user."""
    return await admin.fetch("select * from public.spotify_connections order by user_id")


def content(connection: Connection) -> Connection:
    """A connection without what differs between two reads of the same row: the seconds left."""
    return connection.model_copy(update={"remaining": 0.0})


async def stored_state(admin: asyncpg.Connection, user: UUID) -> asyncpg.Record:
    """What is recorded of a user's refresh token."""
    row = await admin.fetchrow("select * from spotconn.refresh_state where user_id = $1", user)
    assert row is not None
    return row
