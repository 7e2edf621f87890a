"""Many connections at once, made by the server itself."""

import hashlib

import asyncpg

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


async def add_connections(admin: asyncpg.Connection, number: int) -> None:
    """Store that many connections, in plain text, connected 5 months and 20 days ago."""
    await admin.execute(_ADD, number, timeout=600)


def access_token_of(user_id: object) -> str:
    """What `add_connections` has stored for a user."""
    return "BQ" + hashlib.md5(f"{user_id}a".encode()).hexdigest() * 6


def refresh_token_of(user_id: object) -> str:
    """What `add_connections` has stored for a user."""
    return "AQ" + hashlib.md5(f"{user_id}r".encode()).hexdigest() * 4
