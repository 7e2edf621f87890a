"""Preparation of a database for the library, for tests and demos."""

from uuid import UUID

import asyncpg

from spotconn._database.schema import read_sql

TIMEOUT = 30.0
"""Seconds to connect and for each statement."""


async def apply_schema(dsn: str, *, plain_postgres: bool = True) -> None:
    """Apply the library's schema; may be repeated.

    Args:
        dsn: URL of a login that may create roles and schemas.
        plain_postgres: False on Supabase, which already has the schema auth and the client roles.
    """
    connection = await asyncpg.connect(dsn, timeout=TIMEOUT, command_timeout=TIMEOUT)
    try:
        if plain_postgres:
            await connection.execute(read_sql("plain_postgres.sql"))
        await connection.execute(read_sql("schema.sql"))
    finally:
        await connection.close(timeout=TIMEOUT)


async def remove_users(dsn: str) -> None:
    """Remove all users of auth.users, and with them their connections.

    Args:
        dsn: URL of a login that may write auth.users.
    """
    connection = await asyncpg.connect(dsn, timeout=TIMEOUT, command_timeout=TIMEOUT)
    try:
        await connection.execute("delete from auth.users")
    finally:
        await connection.close(timeout=TIMEOUT)


async def add_user(dsn: str, *, email: str | None = None) -> UUID:
    """Add a user to auth.users, as a sign-up would.

    Args:
        dsn: URL of a login that may write auth.users.
        email: email address of the user.

    Returns:
        The id of the new user.
    """
    connection = await asyncpg.connect(dsn, timeout=TIMEOUT, command_timeout=TIMEOUT)
    try:
        user_id: UUID = await connection.fetchval(
            "insert into auth.users (id, email) values (gen_random_uuid(), $1) returning id", email
        )
        return user_id
    finally:
        await connection.close(timeout=TIMEOUT)
