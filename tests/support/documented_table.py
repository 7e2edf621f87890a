"""The database of a project that has the documented table and nothing of the library."""

import asyncpg

from spotconn._database.schema import read_sql

DOCUMENTED = """
CREATE TABLE spotify_connections (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id UUID NOT NULL REFERENCES auth.users(id) ON DELETE CASCADE,
    spotify_user_id TEXT NOT NULL,
    access_token TEXT NOT NULL,
    refresh_token TEXT NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL,
    connected_at TIMESTAMPTZ DEFAULT NOW(),
    display_name TEXT,
    email TEXT,
    UNIQUE(user_id)
);
CREATE INDEX idx_spotify_connections_user ON spotify_connections(user_id);
CREATE INDEX idx_spotify_connections_spotify_user ON spotify_connections(spotify_user_id);
ALTER TABLE spotify_connections ENABLE ROW LEVEL SECURITY;
CREATE POLICY "Users can view own connections" ON spotify_connections FOR SELECT USING (auth.uid() = user_id);
CREATE POLICY "Users can create own connections" ON spotify_connections FOR INSERT WITH CHECK (auth.uid() = user_id);
CREATE POLICY "Users can update own connections" ON spotify_connections FOR UPDATE
    USING (auth.uid() = user_id) WITH CHECK (auth.uid() = user_id);
CREATE POLICY "Users can delete own connections" ON spotify_connections FOR DELETE USING (auth.uid() = user_id);
"""
DEFAULT_GRANTS = """
alter default privileges in schema public grant all on tables to anon, authenticated, service_role;
alter default privileges grant execute on functions to anon, authenticated, service_role;
"""


async def create_documented_table(connection: asyncpg.Connection, users: int = 3) -> None:
    """Create what a project has before spotconn: the documented table, all granted by default, and rows."""
    await connection.execute(read_sql("plain_postgres.sql") + DEFAULT_GRANTS + DOCUMENTED)
    await connection.execute(
        "with added as (insert into auth.users (id) select gen_random_uuid() from generate_series(1, $1::int) "
        "returning id) insert into spotify_connections (user_id, spotify_user_id, access_token, refresh_token, "
        "expires_at) select id, 'account', 'access', 'refresh', now() - interval '1 hour' from added",
        users,
    )
