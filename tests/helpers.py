"""Small steps that several tests share."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from spotconn import Connection, ConnectionStore, Profile
from spotconn.testing import FakeSpotify


async def connect(
    store: ConnectionStore,
    spotify: FakeSpotify,
    user_id: UUID,
    *,
    account: str = "alice",
    ttl: float = 3600,
    scope: frozenset[str] | None = frozenset({"user-read-email"}),
) -> Connection:
    """Store a connection to an account of the fake, whose access token ends `ttl` seconds from now."""
    spotify.add_account(account)
    grant = spotify.authorize(account, scope or ())
    ends = datetime.now(UTC) + timedelta(seconds=ttl)
    grant = grant.model_copy(update={"expires_at": ends, "scope": scope})
    return await store.save(user_id, grant, Profile(spotify_user_id=account))
