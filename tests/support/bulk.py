"""Many connections at once, made by the server itself."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg

from spotconn.testing import FakeSpotify

_ADD = """
with added as (
    insert into auth.users (id) select ('00000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid
    from generate_series(1, $1::int) as n returning id
)
insert into public.spotify_connections (
    user_id, spotify_user_id, access_token, refresh_token, expires_at, connected_at
)
select id, 'account', 'BQ' || repeat(md5(id::text || 'a'), 6), 'AQ' || repeat(md5(id::text || 'r'), 4),
    now() + interval '1 hour', now() - interval '5 months 20 days'
from added
"""

_CONNECT = """
with added as (insert into auth.users (id) select unnest($1::uuid[]))
insert into public.spotify_connections (user_id, spotify_user_id, access_token, refresh_token, expires_at)
select * from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::timestamptz[])
"""


async def connect_many(
    admin: asyncpg.Connection, spotify: FakeSpotify, ttls: Sequence[float], *, first: int = 0
) -> list[UUID]:
    """New users, each connected to the account "account-N" of the fake; the access tokens end `ttls` seconds from now.

    N is the place in the list, which begins with `first`.
    """
    users = [uuid4() for _ in ttls]
    names = [f"account-{first + n}" for n in range(len(ttls))]
    grants = [spotify.authorize(spotify.add_account(name).spotify_user_id) for name in names]
    ends = [datetime.now(UTC) + timedelta(seconds=ttl) for ttl in ttls]
    tokens = ([grant.access_token for grant in grants], [grant.refresh_token for grant in grants])
    await admin.execute(_CONNECT, users, names, *tokens, ends)
    return users


def bulk_user(number: int) -> UUID:
    """The user that `add_connections` has stored as one of the first; the numbers begin with 1."""
    return UUID(f"00000000-0000-4000-8000-{number:012x}")


async def add_connections(admin: asyncpg.Connection, number: int) -> None:
    """Store that many connections, in plain text, connected 5 months and 20 days ago."""
    await admin.execute(_ADD, number, timeout=600)


def access_token_of(user_id: object) -> str:
    """What `add_connections` has stored for a user."""
    return "BQ" + hashlib.md5(f"{user_id}a".encode()).hexdigest() * 6


def refresh_token_of(user_id: object) -> str:
    """What `add_connections` has stored for a user."""
    return "AQ" + hashlib.md5(f"{user_id}r".encode()).hexdigest() * 4
