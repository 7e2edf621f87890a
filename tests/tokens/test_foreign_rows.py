"""Rows that other programs wrote: each call does what it can for that user, and nothing happens to the others."""

import traceback
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import httpx
import pytest

from spotconn import (
    AesGcmSivCipher,
    Connection,
    ConnectionAdmin,
    ConnectionStore,
    ReauthorizationRequired,
    SpotifyAccounts,
    TokenManager,
)
from spotconn.models import StoredAccessToken
from spotconn.testing import Answer, FakeSpotify
from support.connections import OWN_APP, connect, rows
from support.database import Database

CIPHER = AesGcmSivCipher([AesGcmSivCipher.generate_key()])
NO_TIMES = [
    "to_timestamp(1764265585000)",
    "'infinity'",
    "'-infinity'",
    "'0044-03-15 BC'",
    "'4713-01-01 BC'",
    "'0001-01-01Z'",
    "'9999-12-31 23:59:59.999999Z'",
    "'294276-12-31Z'",
]
NO_TOKENS = {
    "a newline": "{}\n",
    "CR and LF": "{}\r\n",
    "a tab before it": "\t{}",
    "a blank before it": " {}",
    "a blank within": "BQ {}",
    "nothing": "",
    "a blank": " ",
    "null": "null",
    "None": "None",
    "undefined": "undefined",
    "Bearer": "Bearer {}",
    "quotes": '"{}"',
    "single quotes": "'{}'",
    "a control character": "\x01{}",
    "DEL": "{}\x7f",
    "a letter that is not ASCII": "{}é",
    "a byte order mark": "\ufeff{}",
}


@pytest.fixture
async def tokens(store: ConnectionStore, accounts: SpotifyAccounts) -> AsyncIterator[TokenManager]:
    async with TokenManager(store, accounts) as manager:
        yield manager


async def write(admin: asyncpg.Connection, user: UUID, column: str, value: str) -> None:
    """Write a text as another program."""
    await admin.execute(f"update public.spotify_connections set {column} = $1 where user_id = $2", value, user)


async def answers(tokens: TokenManager, users: Iterable[UUID]) -> dict[UUID, object]:
    return {user: answer async for user, answer in tokens.get_valid_tokens(users)}


async def connected(
    admin: asyncpg.Connection, tokens: TokenManager, spotify: FakeSpotify, kinds: Iterable[str], *, ttl: float
) -> dict[str, Connection]:
    """A new user with a connection for each kind of row."""
    users = {kind: await admin.fetchval("insert into auth.users (email) values ('x') returning id") for kind in kinds}
    return {kind: await connect(tokens.store, spotify, user, ttl=ttl, named=False) for kind, user in users.items()}


async def test_an_end_that_means_nothing_is_refreshed_and_mended(
    tokens: TokenManager, spotify: FakeSpotify, admin: asyncpg.Connection, user: UUID
) -> None:
    """The token counts as expired, in a call for one and for many; the refresh is saved, and Spotify asked once."""
    odd = await connected(admin, tokens, spotify, NO_TIMES, ttl=3600)
    good = await connect(tokens.store, spotify, user)
    for moment, row in odd.items():
        await admin.execute(
            f"update public.spotify_connections set expires_at = {moment} where user_id = $1", row.user_id
        )
        assert (await tokens.store.get(row.user_id)).remaining <= 0
        assert '"expires_at":"' in (await tokens.status(row.user_id)).model_dump_json()
    first = next(iter(odd.values())).user_id
    alone = await tokens.get_valid_token(first)
    found = await answers(tokens, [user, *(row.user_id for row in odd.values())])
    assert (found[user], found[first]) == (good.access_token, alone)
    assert all(isinstance(token, str) and spotify.accepts(token) for token in found.values())
    assert spotify.token_calls == len(odd)
    assert {row["user_id"]: row["access_token"] for row in await rows(admin)} == found
    stored = await tokens.store.tokens.get_many(found)
    assert all(isinstance(one, StoredAccessToken) and 3400 < one.remaining <= 3600 for one in stored.values())


async def test_a_moment_of_the_authorization_that_means_nothing_is_no_date(
    tokens: TokenManager, spotify: FakeSpotify, admin: asyncpg.Connection, operator: str
) -> None:
    """Status, refresh and refusal work without it; no list, count or rewrite of an operator ends at it."""
    kinds = await connected(admin, tokens, spotify, ["now()", "null", *NO_TIMES], ttl=-1)
    users = {row.user_id: moment for moment, row in kinds.items()}
    good = kinds["now()"].user_id
    for user, moment in users.items():
        await admin.execute(f"update public.spotify_connections set connected_at = {moment} where user_id = $1", user)
        status = await tokens.status(user)
        assert (status.connected_at is None) is (status.reauthorize_by is None) is (user != good), moment
        assert ('"reauthorize_by":null' in status.model_dump_json()) is (user != good)
    assert all(isinstance(answer, str) for answer in (await answers(tokens, users)).values())
    spotify.revoke("alice")
    await admin.execute("update public.spotify_connections set expires_at = now()")
    async with ConnectionAdmin.open(operator, cipher=CIPHER) as house:
        assert [one.user_id async for one in house.expiring(within=timedelta(days=400))] == [good]
        assert [one async for one in house.failing()] == []
        assert all(isinstance(one, ReauthorizationRequired) for one in (await answers(tokens, users)).values())
        failing = [one async for one in house.failing()]
        reasons = {one.user_id: one.failure and one.failure.reason for one in failing}
        assert reasons == {user: "revoked" if user == good else "invalid" for user in users}
        assert sum('"connected_at":null' in one.model_dump_json() for one in failing) == len(users) - 1
        assert await house.recheck(since=datetime.now(UTC) - timedelta(hours=1)) == len(users)
        await house.assign_app(OWN_APP)
        assert (await house.stats()).by_app == {OWN_APP: len(users)}
        assert (await house.rekey()).done == len(users)


async def test_an_access_token_that_cannot_be_sent_counts_as_expired(
    tokens: TokenManager, spotify: FakeSpotify, admin: asyncpg.Connection
) -> None:
    """It is refreshed whatever its end says."""
    kinds = await connected(admin, tokens, spotify, NO_TOKENS, ttl=3600)
    for kind, row in kinds.items():
        await write(admin, row.user_id, "access_token", NO_TOKENS[kind].format(row.access_token))
        assert (await tokens.store.get(row.user_id)).remaining <= 0, kind
    found = await answers(tokens, [row.user_id for row in kinds.values()])
    assert {kind: spotify.accepts(str(found[row.user_id])) for kind, row in kinds.items()} == dict.fromkeys(kinds, True)
    assert spotify.token_calls == len(kinds)
    assert {row["user_id"]: row["access_token"] for row in await rows(admin)} == found


@pytest.mark.parametrize("call", ["token", "request", "rejected"])
@pytest.mark.parametrize("cipher", [None, CIPHER], ids=["plain", "encrypted"])
async def test_no_call_gives_or_sends_a_token_that_cannot_be_sent(
    database: Database,
    accounts: SpotifyAccounts,
    spotify: FakeSpotify,
    admin: asyncpg.Connection,
    user: UUID,
    cipher: AesGcmSivCipher | None,
    call: str,
) -> None:
    """Also where it is what an encrypted text holds; the Web API gets the refreshed one."""
    async with (
        ConnectionStore.open(database.dsn, cipher=cipher, max_size=2) as store,
        TokenManager(store, accounts) as tokens,
        httpx.AsyncClient(base_url=accounts.api_url) as http,
    ):
        odd = (await connect(store, spotify, user)).access_token + "\n"
        stored = odd if cipher is None else cipher.encrypt(odd, user_id=user, column="access_token")
        await write(admin, user, "access_token", stored)
        if call == "request":
            assert (await http.get("/v1/me", auth=tokens.auth(user))).status_code == 200
        given = await (tokens.replace_rejected(user, odd) if call == "rejected" else tokens.get_valid_token(user))
        assert (spotify.accepts(given), spotify.token_calls) == (True, 1)
        assert (await store.get(user)).access_token == given


async def test_one_that_was_granted_just_now_and_damaged_is_refreshed_at_once(
    tokens: TokenManager, spotify: FakeSpotify, admin: asyncpg.Connection, user: UUID
) -> None:
    """The minute in which a new token is not replaced does not count for what another program has put in its place."""
    await connect(tokens.store, spotify, user, ttl=-1)
    granted = await tokens.get_valid_token(user)
    await write(admin, user, "access_token", granted + "\n")
    async with TokenManager(tokens.store, tokens.accounts) as other:
        assert spotify.accepts(await other.get_valid_token(user))
    assert spotify.token_calls == 2


async def test_a_grant_is_saved_over_a_token_that_came_meanwhile_and_cannot_be_sent(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, admin: asyncpg.Connection, user: UUID
) -> None:
    """Such a token is no later one, whatever its end."""
    stored = await connect(store, spotify, user, ttl=-1)
    turn = await store.begin_refresh(user, seen=stored.fingerprint)
    grant = await accounts.refresh(stored.refresh_token)
    await admin.execute(
        "update public.spotify_connections set access_token = 'null', expires_at = now() + interval '20 hours'"
    )
    saved = await store.finish_refresh(turn, grant)
    assert saved is not None
    assert saved.access_token == grant.access_token


async def test_a_refresh_token_that_cannot_be_one_is_refused_without_spotify(
    tokens: TokenManager,
    spotify: FakeSpotify,
    admin: asyncpg.Connection,
    user: UUID,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The user must connect again, which no text shows the token in; a write of a good token is served at once."""
    kinds = await connected(admin, tokens, spotify, NO_TOKENS, ttl=-1)
    await connect(tokens.store, spotify, user, ttl=-1)
    for kind, row in kinds.items():
        await write(admin, row.user_id, "refresh_token", NO_TOKENS[kind].format(row.refresh_token))
        with pytest.raises(ReauthorizationRequired) as raised:
            await tokens.get_valid_token(row.user_id)
        assert (raised.value.reason, spotify.token_calls) == ("invalid", 0), kind
        assert row.refresh_token not in "".join(traceback.format_exception(raised.value)) + caplog.text
        assert (await tokens.status(row.user_id)).reauthorization == "invalid"
    odd = [row.user_id for row in kinds.values()]
    found = await answers(tokens, [user, *odd])
    assert spotify.accepts(str(found.pop(user)))
    assert all(isinstance(answer, ReauthorizationRequired) for answer in found.values())
    assert spotify.token_calls == 1
    for row in kinds.values():
        await write(admin, row.user_id, "refresh_token", row.refresh_token)
        assert (await tokens.status(row.user_id)).reauthorization is None
    assert all(spotify.accepts(str(answer)) for answer in (await answers(tokens, odd)).values())


async def test_a_connect_ends_the_refusal_of_a_refresh_token_that_cannot_be_one(
    tokens: TokenManager, spotify: FakeSpotify, admin: asyncpg.Connection, user: UUID
) -> None:
    """The row is good again, with nothing recorded against it."""
    await connect(tokens.store, spotify, user, ttl=-1)
    await write(admin, user, "refresh_token", "")
    with pytest.raises(ReauthorizationRequired):
        await tokens.get_valid_token(user)
    again = await connect(tokens.store, spotify, user)
    assert await tokens.get_valid_token(user) == again.access_token
    assert (await tokens.store.get(user)).failure is None


@pytest.mark.parametrize("scope", ["", "  ", None, [], 7], ids=repr)
async def test_a_refresh_without_scopes_leaves_the_stored_ones(
    tokens: TokenManager, spotify: FakeSpotify, admin: asyncpg.Connection, user: UUID, scope: object
) -> None:
    """Spotify has not said that any were withdrawn."""
    await connect(tokens.store, spotify, user, ttl=-1)
    answer = {"access_token": "BQ-new", "token_type": "Bearer", "expires_in": 3600, "scope": scope}
    spotify.script(Answer(json=answer))
    assert await tokens.get_valid_token(user, scopes=["user-read-email"]) == "BQ-new"
    assert (await rows(admin))[0]["scope"] == "user-read-email"


@pytest.mark.parametrize(
    "text", ["", " ", "a\nb\x1b[31m", "💥" * 10_000, "'; drop table x; --", "null", '"}'], ids=repr
)
async def test_any_text_of_an_account_is_shown_as_it_is(
    tokens: TokenManager, spotify: FakeSpotify, admin: asyncpg.Connection, operator: str, user: UUID, text: str
) -> None:
    """What a program has stored as the account, its name or address ends no call, and is read back from JSON."""
    await connect(tokens.store, spotify, user, ttl=-1)
    for column in ("spotify_user_id", "display_name", "email"):
        await write(admin, user, column, text if column != "spotify_user_id" else text[:100])
    assert spotify.accepts(await tokens.get_valid_token(user))
    status = await tokens.status(user)
    assert (status.display_name, status.email, status.spotify_user_id) == (text, text, text[:100])
    assert type(status).model_validate_json(status.model_dump_json()) == status
    async with ConnectionAdmin.open(operator) as house:
        (listed,) = [one async for one in house.expiring(within=timedelta(days=400))]
    assert type(listed).model_validate_json(listed.model_dump_json()) == listed


async def test_tokens_that_are_not_sent_are_no_wave(
    admin: asyncpg.Connection, tokens: TokenManager, spotify: FakeSpotify, caplog: pytest.LogCaptureFixture
) -> None:
    """Many users whose refresh tokens another program has spoilt are no outage of Spotify, which was not asked."""
    kinds = await connected(admin, tokens, spotify, NO_TOKENS, ttl=-1)
    for kind, row in kinds.items():
        await write(admin, row.user_id, "refresh_token", NO_TOKENS[kind].format(row.refresh_token))
    found = await answers(tokens, [row.user_id for row in kinds.values()])
    assert {type(error) for error in found.values()} == {ReauthorizationRequired}
    assert spotify.token_calls == 0
    assert "many users" not in caplog.text
