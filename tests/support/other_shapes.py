"""Tables named `public.spotify_connections` as other applications have them, each with rows of two users."""

from typing import NamedTuple

import asyncpg

from spotconn._database.schema import read_sql

USERS = ("11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222")
FOREIGN_KEY = "references auth.users (id) on delete cascade"
TOKENS = "access_token text not null, refresh_token text not null"
ENDED = "2026-11-24 12:00"


class Shape(NamedTuple):
    """A table of another shape.

    Attributes:
        columns: as in CREATE TABLE.
        values: of both users' rows by column, as SQL; `{n}` stands for the number of the user.
        wrong: what the schema refuses; nothing where it takes the table over.
        options: of `spotconn migrate` from the table after it was renamed.
        more: SQL to run after the rows are there.
    """

    columns: str
    values: dict[str, str]
    wrong: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    more: str = ""

    async def create(self, session: asyncpg.Connection) -> None:
        """Create the table with its rows in a database that has nothing."""
        await session.execute(read_sql("plain_postgres.sql"))
        await session.executemany("insert into auth.users (id) values ($1)", [(user,) for user in USERS])
        await session.execute(f"create table public.spotify_connections ({self.columns})")
        for number, user in enumerate(USERS):
            values = [value.format(n=number, user=user) for value in self.values.values()]
            await session.execute(
                f"insert into public.spotify_connections ({', '.join(self.values)}) values ({', '.join(values)})"
            )
        if self.more:
            await session.execute(self.more)


ROW = {"user_id": "'{user}'", "spotify_user_id": "'account{n}'", "access_token": "'access{n}'"} | {
    "refresh_token": "'refresh{n}'"
}
ENDS = {"expires_at": f"'{ENDED}'"}
MISSING = Shape(
    f"user_id uuid not null, spotify_user_id text not null, {TOKENS}, expires_at timestamptz not null", ROW | ENDS
)
SHAPES = {
    "without connected_at, display_name and email, keyed by user_id": Shape(
        f"user_id uuid primary key {FOREIGN_KEY}, spotify_user_id text not null, {TOKENS}, "
        "expires_at timestamptz not null",
        ROW | ENDS,
    ),
    "without id, keys and scope": MISSING,
    "user_id of type text": Shape(
        f"id uuid primary key default gen_random_uuid(), user_id text not null unique, spotify_user_id text, {TOKENS}, "
        "expires_at timestamptz not null, scope text[] default array[]::text[]",
        ROW | ENDS | {"scope": "array['user-read-email', 'streaming']"},
        more="alter table public.spotify_connections enable row level security; "
        'create policy "Users can view own connections" on public.spotify_connections for select '
        "using (auth.uid()::text = user_id)",
    ),
    "short columns, times without zone": Shape(
        "id uuid primary key default gen_random_uuid(), user_id uuid not null unique references auth.users (id), "
        "spotify_user_id varchar(64) not null, access_token varchar(512) not null, "
        "refresh_token varchar(512) not null, expires_at timestamp not null, connected_at timestamp default now(), "
        "display_name char(40), email varchar",
        ROW | ENDS | {"connected_at": "'2026-10-01 08:00'", "display_name": "'Name'"},
    ),
    "integer times, scopes as an array": Shape(
        f"id bigserial primary key, user_id uuid not null unique {FOREIGN_KEY}, spotify_user_id text not null, "
        f"{TOKENS}, expires_at bigint not null, scopes text[]",
        ROW | {"expires_at": "1795000000000", "scopes": "array['user-read-email']"},
        wrong=(
            "column id: bigint instead of uuid",
            "column expires_at: bigint instead of timestamptz",
            "column scopes: ALTER TABLE public.spotify_connections RENAME COLUMN scopes TO scope",
        ),
        options=("--map", "scope=scopes"),
    ),
    "other names, more that must not be null": Shape(
        f"user_id uuid not null {FOREIGN_KEY}, spotify_id text, {TOKENS}, token_expires_at timestamptz not null, "
        "scope text not null, provider text not null",
        {
            "user_id": "'{user}'",
            "spotify_id": "'account{n}'",
            "access_token": "'access{n}'",
            "refresh_token": "'refresh{n}'",
            "token_expires_at": "now()",
            "scope": "'user-read-email,streaming'",
            "provider": "'spotify'",
        },
        wrong=(
            "column spotify_user_id is missing: rename the one that has it",
            "column expires_at is missing: rename the one that has it",
            "column scope is NOT NULL: ALTER TABLE public.spotify_connections ALTER COLUMN scope DROP NOT NULL",
            "column provider is NOT NULL without a default",
        ),
        options=("--map", "spotify_user_id=spotify_id", "--map", "expires_at=token_expires_at"),
    ),
    "several rows of a user, rows of no user": Shape(
        f"id uuid primary key default gen_random_uuid(), user_id uuid not null, spotify_user_id text not null, "
        f"{TOKENS}, expires_at timestamptz not null",
        ROW | ENDS,
        wrong=(
            "UNIQUE (user_id): 1 users have several rows",
            "FOREIGN KEY (user_id): no user in auth.users for 1 of the rows",
        ),
        more="insert into public.spotify_connections "
        "(user_id, spotify_user_id, access_token, refresh_token, expires_at) "
        f"values ('{USERS[0]}', 'account0', '', '', '{ENDED}'), (gen_random_uuid(), 'x', 'a', 'r', '{ENDED}')",
    ),
}
