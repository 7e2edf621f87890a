"""A connection that is moved to another user: readable there, with what is known of it, and no grant is lost."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from spotconn import (
    AesGcmSivCipher,
    Connection,
    ConnectionAdmin,
    ConnectionStore,
    DecryptionError,
    NotConnected,
    Outcome,
    Profile,
    RefreshFailure,
    SpotifyAccounts,
    TokenManager,
    UnknownUser,
)
from spotconn.models import fingerprint
from spotconn.testing import FakeSpotify
from support.connections import OWN_APP, connect, content, grant, stored_state
from support.database import Database

ALICE = Profile(spotify_user_id="alice", display_name="Alice")
KEYS = [AesGcmSivCipher.generate_key() for _ in range(2)]
CIPHER = AesGcmSivCipher(KEYS, require_encrypted=True)
OLD = AesGcmSivCipher(KEYS[1:])
SEEN = fingerprint("")
"""Of no stored token: who has it wants an ended one replaced."""
GIVEN = "update public.spotify_connections set user_id = $2 where user_id = $1"
KNOWN = """
select client_id, refused_by, lapsed, failure, failed_at, paused_at, retry_at, failures, refusals, saved_at, granted_at,
    saves, family
from spotconn.refresh_state where user_id = $1
"""


@pytest.fixture
async def house(operator: str) -> AsyncIterator[ConnectionAdmin]:
    async with ConnectionAdmin.open(operator, cipher=CIPHER) as opened:
        yield opened


@pytest.fixture
async def encrypted(database: Database) -> AsyncIterator[ConnectionStore]:
    async with ConnectionStore.open(database.dsn, cipher=CIPHER, min_size=1, max_size=4) as opened:
        yield opened


def readable(connection: Connection) -> dict[str, object]:
    """What a move leaves as it is."""
    return {name: value for name, value in vars(connection).items() if name not in {"remaining", "texts", "user_id"}}


@pytest.mark.parametrize("stored_with", [None, OLD, CIPHER])
async def test_it_is_readable_for_the_new_user_and_gone_for_the_old(
    database: Database, admin: asyncpg.Connection, operator: str, users: list[UUID], stored_with: AesGcmSivCipher | None
) -> None:
    """Plain text, an old key and the first one: tokens, ends and counts stay, and both values are encrypted anew."""
    cipher = None if stored_with is None else AesGcmSivCipher(KEYS)
    async with ConnectionStore.open(database.dsn, cipher=stored_with) as store:
        before = await store.save(users[0], grant("a"), ALICE, client_id="our-app")
        known = await admin.fetchrow(KNOWN, users[0])
    async with ConnectionAdmin.open(operator, cipher=cipher) as house:
        assert await house.move(users[0], str(users[1])) is True
        assert await house.move(users[0], users[1]) is False
    async with ConnectionStore.open(database.dsn, cipher=cipher) as store:
        after = await store.get(users[1])
        with pytest.raises(NotConnected):
            await store.get(users[0])
    assert readable(after) == readable(before)
    assert await admin.fetchrow(KNOWN, users[1]) == known
    assert await admin.fetchval("select count(*) from spotconn.refresh_state") == 1
    if cipher is not None:
        assert after.texts.refresh_token.startswith(CIPHER.current_prefix)


async def test_what_is_known_of_the_refresh_token_goes_with_it(
    encrypted: ConnectionStore, house: ConnectionAdmin, users: list[UUID], admin: asyncpg.Connection
) -> None:
    """A refusal and its app: Spotify is not asked again for the new user, and what was known of that one is void."""
    await encrypted.save(users[1], grant("earlier"), ALICE, client_id="another")
    await admin.execute("delete from public.spotify_connections where user_id = $1", users[1])
    await encrypted.save(users[0], grant("a", minutes=-1), ALICE, client_id="our-app")
    turn = await encrypted.begin_refresh(users[0], seen=SEEN, client_ids=["our-app"])
    await encrypted.fail_refresh(turn, RefreshFailure(reason="refused"))
    known = await admin.fetchrow(KNOWN, users[0])
    failure = (await encrypted.get(users[0])).failure
    assert failure is not None
    assert await house.move(*users[:2])
    assert await admin.fetchrow(KNOWN, users[1]) == known
    assert (await encrypted.get(users[1])).failure == failure
    assert (await encrypted.begin_refresh(users[1], seen=SEEN, client_ids=["our-app"])).outcome is Outcome.REFUSED


async def test_bad_arguments_are_named(encrypted: ConnectionStore, house: ConnectionAdmin, users: list[UUID]) -> None:
    """No UUID, the same user, an unknown one, and one who has a connection; nothing is changed."""
    before = await encrypted.save(users[0], grant("a"), ALICE)
    other = await encrypted.save(users[1], grant("b"), ALICE)
    for arguments, text in (
        (("marked", users[1]), "^from_user: expected a UUID or an integer id"),
        ((users[0], "marked"), "^to_user: expected a UUID or an integer id"),
        ((users[0], str(users[0])), "^to_user: expected another user"),
        ((users[0], uuid4()), r"^to_user: no such user in auth\.users$"),
        (users[:2], "^to_user: has a connection"),
    ):
        with pytest.raises((UnknownUser, ValueError), match=text) as raised:
            await house.move(*arguments)
        assert raised.value.__context__ is None
        assert isinstance(raised.value, UnknownUser) == ("no such user" in text)
    assert content(await encrypted.get(users[0])) == content(before)
    assert content(await encrypted.get(users[1])) == content(other)


async def test_tokens_of_other_keys_stay_where_they_are(
    encrypted: ConnectionStore, operator: str, users: list[UUID]
) -> None:
    """Without the key nothing is moved; the error names no token."""
    before = await encrypted.save(users[0], grant("a"), ALICE)
    for cipher in (None, AesGcmSivCipher([AesGcmSivCipher.generate_key()])):
        async with ConnectionAdmin.open(operator, cipher=cipher) as house:
            with pytest.raises(DecryptionError):
                await house.move(*users[:2])
    assert content(await encrypted.get(users[0])) == content(before)


@pytest.mark.parametrize("looked_at", [False, True])
async def test_a_row_that_was_moved_by_sql_is_mended(
    encrypted: ConnectionStore, house: ConnectionAdmin, users: list[UUID], admin: asyncpg.Connection, *, looked_at: bool
) -> None:
    """Its tokens are bound to the old user: they are encrypted anew, and what was known goes with them, also where the
    library has looked at the row meanwhile. One that needs no mending is left.
    """
    before = await encrypted.save(users[0], grant("a", minutes=-1), ALICE, client_id="our-app")
    known = await admin.fetchrow(KNOWN, users[0])
    await admin.execute(GIVEN, *users[:2])
    with pytest.raises(DecryptionError):
        await (encrypted.begin_refresh(users[1], seen=SEEN) if looked_at else encrypted.get(users[1]))
    assert await house.move(*users[:2]) is True
    assert readable(await encrypted.get(users[1])) == readable(before)
    assert await admin.fetchrow(KNOWN, users[1]) == known
    assert await house.move(*users[:2]) is False


async def test_processes_that_know_both_users_follow(
    encrypted: ConnectionStore,
    accounts: SpotifyAccounts,
    spotify: FakeSpotify,
    house: ConnectionAdmin,
    users: list[UUID],
    admin: asyncpg.Connection,
) -> None:
    """A process that has the old user's token cached, and its own last grant, gives it for the new user and no more for
    the old one; what it remembers brings nothing back, also where the connection moves back after a refresh.
    """
    old, new, _ = users
    await connect(encrypted, spotify, old, ttl=-1, app=OWN_APP)
    async with TokenManager(encrypted, accounts) as tokens:
        token = await tokens.get_valid_token(old)
        assert await house.move(old, new)
        async with asyncio.timeout(10):
            while True:
                try:
                    await tokens.get_valid_token(old)
                except NotConnected:
                    break
                await asyncio.sleep(0.01)
        assert await tokens.get_valid_token(new) == token
        await compared(tokens)
        other = await tokens.replace_rejected(new, token) if await aged(admin, new) else token
        assert await house.move(new, old)
        await compared(tokens)
    assert (await encrypted.get(old)).access_token == other != token
    assert spotify.accepts_refresh((await encrypted.get(old)).refresh_token)
    assert (await stored_state(admin, old))["saves"] == 3


async def compared(tokens: TokenManager) -> None:
    """Compare all that a process remembers with the rows."""
    saved = tokens._source.refresher.saved
    saved.compare()
    assert saved._comparing is not None
    await asyncio.wait([saved._comparing])


async def aged(admin: asyncpg.Connection, user: UUID) -> bool:
    """Let the stored token be no longer one that was granted just now."""
    ago = timedelta(minutes=2)
    done = await admin.execute(
        "update spotconn.refresh_state set granted_at = granted_at - $2::interval where user_id = $1", user, ago
    )
    return done == "UPDATE 1"
