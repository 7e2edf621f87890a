"""What a browser, and an edge function with a secret key, may send through PostgREST at each level, and with keys."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from spotconn import AesGcmSivCipher, ConnectionStore, DecryptionError, NotConnected, SpotifyAccounts, TokenManager
from spotconn._database.schema import SqlFile, read_sql
from spotconn.testing import FakeSpotify
from support.connections import connect, rows
from support.database import Database
from support.postgrest import REFUSED, RestClient, outcome

LEVELS: dict[str, SqlFile | None] = {"open": None, "writes closed": "close_writes.sql", "locked down": "lock_down.sql"}
METADATA = ("id", "user_id", "spotify_user_id", "expires_at", "connected_at", "display_name", "email", "scope")


# Of each request, at each level: how many rows it has seen or changed, or the SQLSTATE of its refusal.
OUTCOMES: dict[str, tuple[int | str, ...]] = {
    "read": (1, 1, REFUSED),
    "read named columns": (1, 1, 1),
    "upsert": (1, REFUSED, REFUSED),
    "insert": ("23505", REFUSED, REFUSED),
    "update": (1, REFUSED, REFUSED),
    "update a name": (1, REFUSED, REFUSED),
    "delete and return": (1, 1, REFUSED),
    "delete": (1, 1, 1),
    "insert again": (1, REFUSED, REFUSED),
}


async def listed(row: Awaitable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [await row]


@pytest.mark.parametrize("level", LEVELS)
async def test_what_a_browser_may_send_at_each_level(
    store: ConnectionStore, spotify: FakeSpotify, uncached: TokenManager, browser: RestClient, users: list[UUID],
    admin: asyncpg.Connection, level: str,
) -> None:  # fmt: skip
    """Each kind of request is let through or refused with 42501, and after each the user's token is right."""
    user, other = users[:2]
    stored = await connect(store, spotify, user)
    await connect(store, spotify, other, account="bob")
    row = await browser.read(user)
    if (name := LEVELS[level]) is not None:
        await admin.execute(read_sql(name))
    requests: dict[str, Callable[[], Awaitable[list[dict[str, Any]]]]] = {
        "read": lambda: listed(browser.read(user)),
        "read named columns": lambda: listed(browser.read(user, *METADATA)),
        "upsert": lambda: browser.upsert(row),
        "insert": lambda: browser.insert(row),
        "update": lambda: browser.update(user, row),
        "update a name": lambda: browser.update(user, {"display_name": "Alice"}),
    }
    found: dict[str, int | str] = {}
    for request, send in requests.items():
        found[request] = await outcome(send())
        assert await uncached.get_valid_token(user) == stored.access_token, request
    found["delete and return"] = await outcome(browser.delete(user, select=True))
    await connect(store, spotify, user)
    found["delete"] = await outcome(browser.delete(user))
    with pytest.raises(NotConnected):
        await uncached.get_valid_token(user)
    found["insert again"] = await outcome(browser.insert(row))
    assert found == {request: cells[list(LEVELS).index(level)] for request, cells in OUTCOMES.items()}
    assert [one["user_id"] for one in await rows(admin) if one["user_id"] != user] == [other]


@pytest.mark.parametrize("level", LEVELS)
async def test_an_edge_function_with_a_secret_key_writes_at_each_level(
    store: ConnectionStore, spotify: FakeSpotify, uncached: TokenManager, edge_function: RestClient, user: UUID,
    admin: asyncpg.Connection, level: str,
) -> None:  # fmt: skip
    """No level closes its ways, so the same care is due; what it restores is mended as that of a browser."""
    if (name := LEVELS[level]) is not None:
        await admin.execute(read_sql(name))
    await connect(store, spotify, user, ttl=-1)
    before = await edge_function.read(user)
    token = await uncached.get_valid_token(user)
    await edge_function.upsert(before, select=True)
    assert await uncached.get_valid_token(user) == token
    assert spotify.accepts_refresh((await store.get(user)).refresh_token)


async def test_an_edge_function_that_writes_back_the_rows_of_many(
    store: ConnectionStore, spotify: FakeSpotify, uncached: TokenManager, edge_function: RestClient, users: list[UUID],
) -> None:  # fmt: skip
    """An array of rows that were read before the refreshes: each user has the own token again, and no other's."""
    for user in users:
        await connect(store, spotify, user, account=str(user), ttl=-1)
    before = [await edge_function.read(user) for user in users]
    tokens = {user: await uncached.get_valid_token(user) for user in users}
    assert len(await edge_function.upsert(*before)) == len(users)
    assert {user: answer async for user, answer in uncached.get_valid_tokens(users)} == tokens
    for user in users:
        stored = await store.get(user)
        assert (stored.spotify_user_id, spotify.accepts_refresh(stored.refresh_token)) == (str(user), True)


async def test_with_keys_a_row_read_before_comes_back_as_it_was(
    database: Database, accounts: SpotifyAccounts, spotify: FakeSpotify, browser: RestClient, user: UUID
) -> None:
    """A browser hands ciphertext on as any text: that of before a refresh is mended, too."""
    cipher = AesGcmSivCipher([AesGcmSivCipher.generate_key()], require_encrypted=True)
    async with (
        ConnectionStore.open(database.dsn, max_size=2, cipher=cipher) as store,
        TokenManager(store, accounts, cache_ttl=0) as tokens,
    ):
        await connect(store, spotify, user, ttl=-1)
        before = await browser.read(user)
        assert before["refresh_token"].startswith("spotconn1.")
        token = await tokens.get_valid_token(user)
        await browser.upsert(before)
        assert await tokens.get_valid_token(user) == token
        assert spotify.accepts_refresh((await store.get(user)).refresh_token)


@pytest.mark.parametrize("required", [False, True])
async def test_with_keys_plain_text_of_a_browser(
    database: Database, accounts: SpotifyAccounts, spotify: FakeSpotify, browser: RestClient, user: UUID,
    required: bool,  # noqa: FBT001
) -> None:  # fmt: skip
    """A browser has no key. Its plain text is read and encrypted at the first refresh; once encryption is required, it
    is refused before Spotify is asked, and a connect ends that.
    """
    cipher = AesGcmSivCipher([AesGcmSivCipher.generate_key()], require_encrypted=required)
    spotify.add_account("alice")
    granted = spotify.authorize("alice")
    row = {"user_id": str(user), "spotify_user_id": "alice", "access_token": granted.access_token}
    ended = (datetime.now(UTC) - timedelta(minutes=1)).isoformat()
    await browser.insert(row | {"refresh_token": granted.refresh_token, "expires_at": ended})
    async with (
        ConnectionStore.open(database.dsn, max_size=2, cipher=cipher) as store,
        TokenManager(store, accounts, cache_ttl=0) as tokens,
    ):
        if required:
            with pytest.raises(DecryptionError):
                await tokens.get_valid_token(user)
            assert spotify.token_calls == 0
            await connect(store, spotify, user)
        assert spotify.accepts(await tokens.get_valid_token(user))
    assert (await browser.read(user))["refresh_token"].startswith("spotconn1.")
