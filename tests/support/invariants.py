"""What must hold of a user's row after every fault."""

from typing import Any
from uuid import UUID

import asyncpg

from spotconn.testing import FakeSpotify

_ROW = "select * from public.spotify_connections where user_id = $1"
_STATE = """
    select state.*, extract(epoch from state.lease_until - clock_timestamp())::float as lease_left
    from spotconn.refresh_state as state
    join public.spotify_connections as stored
        on stored.user_id = state.user_id and state.fingerprint = sha256(convert_to(stored.refresh_token, 'UTF8'))
    where state.user_id = $1
"""


async def check_row(
    admin: asyncpg.Connection,
    spotify: FakeSpotify,
    user: UUID,
    before: asyncpg.Record,
    *,
    lease: float,
    refreshable: bool = True,
) -> None:
    """The tokens of a row belong together and are still good; a lease ends in its time; nothing else has changed.

    Args:
        admin: a superuser's connection.
        spotify: what gave the tokens.
        user: whose row.
        before: the row before the fault.
        lease: seconds that a lease lasts.
        refreshable: False where the only refresh token that is good went with a process that died.
    """
    row = await stored_row(admin, user)
    changed = {name for name, value in row.items() if value != before[name]}
    assert changed <= {"access_token", "refresh_token", "expires_at"}
    # The end moves with the token and only with it.
    assert ("access_token" in changed) is ("expires_at" in changed)
    assert spotify.accepts(row["access_token"]), "the stored access token is one that Spotify knows"
    assert spotify.accepts_refresh(row["refresh_token"]) is refreshable, (
        "the stored refresh token is the one that is still good"
    )
    await check_lease(admin, user, lease=lease)
    state = await recorded(admin, user)
    # Who takes the lease over finds out that the refresh token is gone.
    assert state is None or state["failure"] in {None, "unavailable", *([] if refreshable else ["revoked", "invalid"])}


async def check_lease(admin: asyncpg.Connection, user: UUID, *, lease: float) -> None:
    """Nobody has a lease that lasts longer than leases last."""
    state = await admin.fetchrow(_STATE, user)
    assert state is None or state["lease_left"] is None or state["lease_left"] <= lease


async def stored_row(admin: asyncpg.Connection, user: UUID) -> asyncpg.Record:
    row = await admin.fetchrow(_ROW, user)
    assert row is not None
    return row


async def recorded(admin: asyncpg.Connection, user: UUID) -> dict[str, Any] | None:
    """What is recorded of the stored refresh token of a user: its lease and its failure."""
    state = await admin.fetchrow(_STATE, user)
    return None if state is None else {"leased": state["lease_id"] is not None, "failure": state["failure"]}
