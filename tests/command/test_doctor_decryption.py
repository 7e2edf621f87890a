"""The doctor finds stored tokens that the keys of the environment do not decrypt, and says what is left to do."""

from uuid import UUID

import asyncpg
import pytest

from spotconn import AesGcmSivCipher, ConnectionStore, Profile
from spotconn._command import decryption
from spotconn._command.decryption import check_decryption
from spotconn._command.probe import Probe
from spotconn._database.acquire import acquire
from spotconn._database.pool import close_pool, open_pool
from support.bulk import add_connections
from support.connections import grant
from support.database import Database
from support.doctor import HEALTHY, KEY, look

ALICE = Profile(spotify_user_id="alice")
OTHER = AesGcmSivCipher.generate_key()
OTHER_ID = AesGcmSivCipher([OTHER]).key_ids[0]
MOVE = "update public.spotify_connections set user_id = $2 where user_id = $1"


async def save(database: Database, key: str, *users: UUID) -> None:
    async with ConnectionStore.open(database.dsn, cipher=AesGcmSivCipher([key])) as store:
        for user in users:
            await store.save(user, grant("marked"), ALICE)


async def test_a_row_that_was_moved_to_another_user(
    database: Database, admin: asyncpg.Connection, users: list[UUID]
) -> None:
    """Its user is named and must connect again; the others are read."""
    await save(database, KEY, *users[:2])
    await admin.execute(MOVE, users[0], users[2])
    await add_connections(admin, 3)  # in plain text, which is another finding's
    found = (await look(database.admin_dsn))["decryption"]
    assert found.state == "warn"
    assert found.text == (
        "5 connections looked at; 1 whose tokens were altered, or moved from another user or column; "
        f"among them user {users[2]}"
    )
    assert "spotconn move FROM TO" in str(found.remedy)
    assert "must connect again" in str(found.remedy)
    assert "SPOTCONN_ENCRYPTION_KEYS" not in str(found.remedy)
    assert "marked" not in repr(found)


async def test_rows_under_an_unknown_key_are_counted_apart(
    database: Database, admin: asyncpg.Connection, users: list[UUID]
) -> None:
    """The ids of the keys are named, to be put back; with the key in the ring nothing is to be mended."""
    await save(database, OTHER, *users)
    await admin.execute(
        "update public.spotify_connections set access_token = 'spotconn9!' where user_id = $1", users[0]
    )
    await admin.execute(
        "update public.spotify_connections set refresh_token = 'spotconn9!' where user_id = $1", users[0]
    )
    found = (await look(database.admin_dsn))["decryption"]
    assert found.state == "fail"
    assert f"2 under keys that SPOTCONN_ENCRYPTION_KEYS lacks: {OTHER_ID} (2); among them user " in found.text
    assert (
        f"1 whose tokens were altered, or moved from another user or column; among them user {users[0]}" in found.text
    )
    assert str(found.remedy).startswith("put the keys of these ids behind the others in SPOTCONN_ENCRYPTION_KEYS")
    found = (await look(database.admin_dsn, SPOTCONN_ENCRYPTION_KEYS=f"{KEY},{OTHER}"))["decryption"]
    assert (found.state, "lacks" in found.text) == ("warn", False)
    found = (await look(database.admin_dsn, SPOTCONN_ENCRYPTION_KEYS=""))["decryption"]
    assert (found.state, f"{OTHER_ID} (2)" in found.text) == ("fail", True)


async def test_three_users_are_named_of_many(database: Database, admin: asyncpg.Connection) -> None:
    """And all are counted, over more than one batch."""
    await add_connections(admin, decryption.BATCH + 5)
    await admin.execute("update public.spotify_connections set access_token = 'spotconn1.' || $1 || '.AAAA'", OTHER_ID)
    found = (await look(database.admin_dsn))["decryption"]
    assert found.text.startswith(f"{decryption.BATCH + 5} connections looked at; {decryption.BATCH + 5} under keys")
    assert found.text.count("00000000-0000-4000-8000-") == decryption.MOST_NAMED


async def test_the_look_ends_in_time_and_says_how_far_it_came(database: Database, admin: asyncpg.Connection) -> None:
    """After the batch in which the time is over."""
    await add_connections(admin, decryption.BATCH + 1)
    pool = await open_pool(database.admin_dsn, {"max_size": 1})
    try:
        async with acquire(pool) as session:
            probe = Probe(session)
            async with probe.rolled_back():
                found = await check_decryption(probe, HEALTHY, seconds=0)
    finally:
        await close_pool(pool)
    text = f"the first {decryption.BATCH} connections looked at, all that is encrypted decrypts with the keys here"
    assert (found.state, found.text) == ("ok", text)


@pytest.mark.parametrize("changes", [{"SPOTCONN_ENCRYPTION_KEYS": "marked"}, {"SPOTCONN_REQUIRE_ENCRYPTED": "maybe"}])
async def test_nothing_is_tried_with_wrong_settings(database: Database, changes: dict[str, str]) -> None:
    """The line of the variable fails; this one says that it was left out."""
    found = (await look(database.admin_dsn, **changes))["decryption"]
    assert found.state == "skip"
    assert found.text.startswith("not tried: SPOTCONN_")
    assert "marked" not in repr(found)
