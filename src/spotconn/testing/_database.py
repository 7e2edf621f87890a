"""Preparation of a database for the library, for tests and demos."""

from uuid import UUID, uuid4

import asyncpg

from spotconn._database.schema import schema_sql
from spotconn._user_ids import UserId, parse_user_id

TIMEOUT = 30.0
"""Seconds to connect and for each statement."""

_CLOCK = (
    "create or replace function spotconn.now() returns timestamptz language sql stable "
    "set search_path = pg_catalog, pg_temp return pg_catalog.clock_timestamp()"
)
_AHEAD = "select round(extract(epoch from spotconn.now() - clock_timestamp())::numeric, 3)::float8"


async def apply_schema(dsn: str, *, plain_postgres: bool = True, users: str | None = None) -> None:
    """Apply the library's schema; may be repeated.

    Args:
        dsn: URL of a login that may create roles and schemas.
        plain_postgres: False on Supabase, which already has the schema auth and the client roles.
        users: ties your table of users to `auth.users`, as in `spotconn.schema_sql`.
    """
    connection = await asyncpg.connect(dsn, timeout=TIMEOUT, command_timeout=TIMEOUT)
    try:
        await connection.execute(schema_sql(plain_postgres=plain_postgres, users=users))
    finally:
        await connection.close(timeout=TIMEOUT)


async def step_database_clock(dsn: str, seconds: float) -> None:
    """Set the database's clock forward, by which access tokens end, leases last and refusals are counted.

    It replaces the function `spotconn.now()`, for all who use the database; its own clock goes on. The steps add up,
    and `apply_schema` ends them. Step a `FakeClock` by as much, so that a manager and a simulated Spotify agree.

    Args:
        dsn: URL of a login that owns the schema spotconn.
        seconds: how far; back if negative.
    """
    connection = await asyncpg.connect(dsn, timeout=TIMEOUT, command_timeout=TIMEOUT)
    try:
        ahead: float = await connection.fetchval(_AHEAD)
        await connection.execute(_CLOCK + f" + interval '{ahead + seconds:f} seconds'")
    finally:
        await connection.close(timeout=TIMEOUT)


async def reset(dsn: str) -> None:
    """Remove all users of auth.users, and with them their connections, and end the steps of the clock.

    Args:
        dsn: URL of a login that may write auth.users and owns the schema spotconn.
    """
    connection = await asyncpg.connect(dsn, timeout=TIMEOUT, command_timeout=TIMEOUT)
    try:
        await connection.execute("delete from auth.users where true")
        await connection.execute(_CLOCK)
    finally:
        await connection.close(timeout=TIMEOUT)


async def add_user(dsn: str, *, email: str | None = None, user_id: UserId | None = None) -> UUID:
    """Add a user to auth.users, as a sign-up would.

    Args:
        dsn: URL of a login that may write auth.users.
        email: email address of the user.
        user_id: a UUID or an integer; None for a random UUID.

    Returns:
        The id of the new user.
    """
    chosen = uuid4() if user_id is None else parse_user_id(user_id)
    connection = await asyncpg.connect(dsn, timeout=TIMEOUT, command_timeout=TIMEOUT)
    try:
        await connection.execute("insert into auth.users (id, email) values ($1, $2)", chosen, email)
    finally:
        await connection.close(timeout=TIMEOUT)
    return chosen
