"""Stored Spotify connections in one minute: run it with no settings at all.

It then starts a private Postgres and a simulated Spotify on loopback. With DATABASE_URL and SPOTIFY_CLIENT_ID set
(and SPOTIFY_CLIENT_SECRET, for a confidential client) it asks those instead, for the user ids given as arguments.
"""

import asyncio
import os
import sys
from datetime import UTC, datetime, timedelta
from uuid import UUID

from spotconn import ConnectionStore, NotConnected, Profile, SpotconnError, SpotifyAccounts, TokenManager
from spotconn.testing import EmbeddedPostgres, FakeSpotify, add_user, apply_schema


def print_line(text: str) -> None:
    print(text, flush=True)


def shown(token: str) -> str:
    """A token as it may be printed: its end, never the whole."""
    return f"...{token[-4:]}"


async def connect(store: ConnectionStore, spotify: FakeSpotify, user_id: UUID, name: str, *, ttl: int) -> None:
    """Store what a connect through the browser would store, with an access token good for `ttl` seconds."""
    spotify.add_account(name, display_name=name.title())
    grant = spotify.authorize(name, ["user-read-email"])
    grant = grant.model_copy(update={"expires_at": datetime.now(UTC) + timedelta(seconds=ttl)})
    await store.save(user_id, grant, Profile(spotify_user_id=name, display_name=name.title()))


async def show_tokens(store: ConnectionStore, spotify: FakeSpotify, tokens: TokenManager, ann: UUID, ben: UUID) -> None:
    await connect(store, spotify, ann, "ann", ttl=3600)
    await connect(store, spotify, ben, "ben", ttl=-60)
    print_line("\n1. Two users are connected. Ann's token is good for an hour, Ben's ran out a minute ago.")

    token = await tokens.get_valid_token(ann)
    print_line(f"2. Ann's token {shown(token)} is served as stored; Spotify was asked {spotify.token_calls} times.")

    before = await store.get(ben)
    token = await tokens.get_valid_token(ben)
    after = await store.get(ben)
    print_line(f"3. Ben's token {shown(before.access_token)} was refreshed to {shown(token)} and saved:")
    print_line(f"   the row now ends {after.expires_at:%H:%M:%S} UTC; does Spotify accept it? {spotify.accepts(token)}")


async def show_isolation(store: ConnectionStore, tokens: TokenManager, ann: UUID, ben: UUID) -> None:
    async with store.as_user(ann) as sql:
        rows = await sql.fetch("select spotify_user_id from public.spotify_connections")
        changed = await sql.execute("update public.spotify_connections set email = 'x' where user_id = $1", ben)
    print_line(f"4. As Ann, SELECT without any WHERE sees {[row['spotify_user_id'] for row in rows]} only;")
    print_line(f"   an UPDATE of Ben's row by raw SQL answers {changed!r}.")

    await tokens.disconnect(ben)
    try:
        await tokens.get_valid_token(ben)
    except NotConnected as error:
        print_line(f"5. Ben disconnected. Asking for his token now: NotConnected: {error}")


async def simulated() -> None:
    print_line("No DATABASE_URL and SPOTIFY_CLIENT_ID: a private Postgres is started, and Spotify is simulated.")
    spotify = FakeSpotify()
    with EmbeddedPostgres() as postgres:
        dsn = postgres.dsn()
        await apply_schema(dsn)
        ann, ben = await add_user(dsn, email="ann@example.com"), await add_user(dsn, email="ben@example.com")
        async with (
            spotify.serve() as url,
            SpotifyAccounts("demo-client", "demo-secret", accounts_url=url, api_url=url) as accounts,
            ConnectionStore.open(dsn) as store,
            TokenManager(store, accounts) as tokens,
        ):
            await show_tokens(store, spotify, tokens, ann, ben)
            await show_isolation(store, tokens, ann, ben)
    print_line("\nThe private Postgres and its data are gone.")


async def real(user_ids: list[str]) -> int:
    print_line("DATABASE_URL and SPOTIFY_CLIENT_ID are set: asking the real database and the real Spotify.")
    if not user_ids:
        print_line("Give the ids of connected users as arguments.")
    failed = 0
    async with TokenManager.from_env() as tokens:
        for user_id in user_ids:
            try:
                token = await tokens.get_valid_token(int(user_id) if user_id.isdecimal() else user_id)
                print_line(f"{user_id}: valid token {shown(token)}")
            except SpotconnError as error:
                failed = 1
                print_line(f"{user_id}: {type(error).__name__}: {error}")
    return failed


def main() -> int:
    database = os.environ.get("SPOTCONN_DATABASE_URL") or os.environ.get("DATABASE_URL")
    if not (database and os.environ.get("SPOTIFY_CLIENT_ID")):
        asyncio.run(simulated())
        return 0
    try:
        return asyncio.run(real(sys.argv[1:]))
    except (SpotconnError, ValueError) as error:
        print_line(f"{type(error).__name__}: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
