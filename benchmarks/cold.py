"""A token from the database, against bare reads of the same row and against the transaction that people write."""

import json
from uuid import UUID

import asyncpg

from benchmarks.children import child
from benchmarks.place import Database, drawing, managing, new_database, stored_users
from benchmarks.rounds import Figure, Rounds, each, interleaved
from benchmarks.sizes import Size
from spotconn.testing import EmbeddedPostgres

USERS = 1000
DISTANCE = 0.001
"""Seconds each way to a database that is not on the same host."""

SELECT = """
select id, user_id, spotify_user_id, access_token, refresh_token, expires_at, connected_at, display_name, email, scope
from public.spotify_connections where user_id = $1
"""


async def measure(server: EmbeddedPostgres, size: Size) -> list[Figure]:
    """Ratios to the bare reads and to the transaction, near and far, and what each takes."""
    database = await new_database(server, "cold", rows=USERS)
    users = await stored_users(database)
    near = await _near(database, users, size)
    async with child("delay", server.port, DISTANCE) as proxy:
        far = await _far(database, users, size, await proxy.read())
    return [
        Figure("cold_vs_fetchrow", near.ratio("cold", "cold_fetchrow")),
        Figure("cold_vs_held_fetchrow", near.ratio("cold", "cold_held_fetchrow")),
        Figure("cold_vs_transaction", near.ratio("cold_transaction", "cold")),
        Figure("cold_vs_transaction_1ms", far.ratio("cold_transaction_1ms", "cold_1ms")),
        *near.figures(),
        *far.figures(),
    ]


async def _near(database: Database, users: list[UUID], size: Size) -> Rounds:
    draw = drawing(users, size.cold_calls)
    async with (
        managing(database.dsn(), cache_ttl=0) as tokens,
        asyncpg.create_pool(database.admin_dsn, min_size=1) as bare,
        asyncpg.create_pool(database.dsn("handmade"), min_size=1) as handmade,
        bare.acquire() as held,
    ):
        return await interleaved(
            {
                "cold": each(tokens.get_valid_token, draw),
                "cold_fetchrow": each(lambda user: bare.fetchrow(SELECT, user), draw),
                "cold_held_fetchrow": each(lambda user: held.fetchrow(SELECT, user), draw),
                "cold_transaction": each(lambda user: transaction(handmade, user), draw),
            },
            size.rounds,
        )


async def _far(database: Database, users: list[UUID], size: Size, port: int) -> Rounds:
    draw = drawing(users, max(size.cold_calls // 10, 5))
    async with (
        managing(database.dsn(port=port), cache_ttl=0) as tokens,
        asyncpg.create_pool(database.dsn("handmade", port=port), min_size=1) as handmade,
    ):
        return await interleaved(
            {
                "cold_1ms": each(tokens.get_valid_token, draw),
                "cold_transaction_1ms": each(lambda user: transaction(handmade, user), draw),
            },
            size.rounds,
        )


async def transaction(pool: asyncpg.Pool, user: UUID) -> asyncpg.Record | None:
    """The read under row level security as it is mostly written by hand."""
    claims = json.dumps({"sub": str(user), "role": "authenticated"})
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("set local role authenticated")
        await connection.execute("select set_config('request.jwt.claims', $1, true)", claims)
        return await connection.fetchrow(SELECT, user)
