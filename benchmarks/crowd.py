"""Users connected to a simulated Spotify of another process, whose tokens run out when told to."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

from benchmarks.children import Child, child
from benchmarks.place import Database, connected, new_database
from spotconn.testing import EmbeddedPostgres

_CONNECT = """
with added as (insert into auth.users (id) select gen_random_uuid() from unnest($1::text[]) returning id),
numbered as (select id, row_number() over () as number from added)
insert into public.spotify_connections (user_id, spotify_user_id, access_token, refresh_token, expires_at)
select id, number::text, ($1::text[])[number], ($2::text[])[number], now() + interval '1 hour' from numbered
returning user_id
"""
_EXPIRE = """
update public.spotify_connections set expires_at = now() - random() * interval '1 minute' where user_id = any($1)
"""


@dataclass(frozen=True)
class Crowd:
    """Connected users.

    Attributes:
        database: where they are.
        process: of their Spotify.
        url: of their Spotify.
        users: all of them.
        refresh_tokens: all of theirs, in another order.
    """

    database: Database
    process: Child
    url: str
    users: Sequence[UUID]
    refresh_tokens: Sequence[str]

    async def expire(self, users: Sequence[UUID]) -> None:
        """Let the access tokens of some run out."""
        async with connected(self.database.admin_dsn) as admin:
            await admin.execute(_EXPIRE, users)


@asynccontextmanager
async def gathered(server: EmbeddedPostgres, name: str, number: int, *, latency: float = 0) -> AsyncGenerator[Crowd]:
    """That many users in a database of their own.

    Args:
        server: to make the database on.
        name: of the database.
        number: of users.
        latency: seconds before each token answer of their Spotify.
    """
    database = await new_database(server, name)
    async with child("spotify", number, latency) as process:
        started = await process.read()
        access, refresh = zip(*started["grants"], strict=True)
        async with connected(database.admin_dsn) as admin:
            rows = await admin.fetch(_CONNECT, access, refresh)
            await admin.execute("vacuum analyze")
        yield Crowd(database, process, started["url"], [UUID(int=row["user_id"].int) for row in rows], refresh)
