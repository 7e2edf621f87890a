"""What is recorded of the app of a refresh token, and of the apps with which Spotify refuses it."""

from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest

from spotconn import (
    AesGcmSivCipher,
    ConnectionAdmin,
    ConnectionStore,
    Outcome,
    Profile,
    RefreshFailure,
    RefreshTurn,
)
from spotconn.testing import apply_schema, step_database_clock
from support.connections import grant, stored_state
from support.database import Database

ALICE = Profile(spotify_user_id="alice")
HOUR = 3600


@pytest.fixture
async def stepped(database: Database) -> AsyncIterator[str]:
    """The DSN of a database whose clock a test steps."""
    yield database.admin_dsn
    await apply_schema(database.admin_dsn)


async def turn_of(store: ConnectionStore, user: UUID, *client_ids: str) -> RefreshTurn:
    stored = await store.get(user)
    return await store.begin_refresh(user, seen=stored.fingerprint, client_ids=client_ids)


async def refuse(store: ConnectionStore, user: UUID, *client_ids: str) -> None:
    """Let a process that has these apps have its turn, in which Spotify refuses all of them."""
    turn = await turn_of(store, user, *client_ids)
    assert turn.outcome is Outcome.GRANTED
    assert await store.fail_refresh(turn, RefreshFailure(reason="refused"))


async def test_a_save_names_the_app(store: ConnectionStore, user: UUID) -> None:
    """Of this very refresh token: saved again without a name, it keeps it; another one has none until it is told."""
    assert (await store.save(user, grant("a"), ALICE)).client_id is None
    assert (await store.save(user, grant("a"), ALICE, client_id="app-a")).client_id == "app-a"
    assert (await store.save(user, grant("a"), ALICE)).client_id == "app-a"
    assert (await store.save(user, grant("b"), ALICE)).client_id is None
    assert (await store.save(user, grant("b"), ALICE, client_id="app-b")).client_id == "app-b"


async def test_a_refresh_names_the_app(store: ConnectionStore, user: UUID) -> None:
    """Where the turn names one app, it is that; the next refresh token is of the same."""
    await store.save(user, grant("a", minutes=-1), ALICE)
    saved = await store.finish_refresh(await turn_of(store, user, "app-a"), grant("b", minutes=-1))
    assert saved is not None
    assert saved.client_id == "app-a"
    saved = await store.finish_refresh(await turn_of(store, user), grant("c"))
    assert saved is not None
    assert saved.client_id == "app-a"


async def test_rekey_carries_the_app(database: Database, operator: str, user: UUID) -> None:
    """And the apps that were refused."""
    old, new = AesGcmSivCipher.generate_key(), AesGcmSivCipher.generate_key()
    async with ConnectionStore.open(database.dsn, cipher=AesGcmSivCipher([old])) as store:
        await store.save(user, grant("a"), ALICE, client_id="app-a")
    cipher = AesGcmSivCipher([new, old])
    async with ConnectionAdmin.open(operator, cipher=cipher) as admin:
        await admin.rekey()
    async with ConnectionStore.open(database.dsn, cipher=cipher) as store:
        assert (await store.get(user)).client_id == "app-a"


async def test_a_refusal_of_another_app_says_nothing_once_the_own_is_known(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection, stepped: str
) -> None:
    """The holder of a lapsed lease saves while the next one, which has another app, asks Spotify in vain."""
    await store.save(user, grant("a", minutes=-1), ALICE)
    late = await turn_of(store, user, "app-a")
    await step_database_clock(stepped, 20)
    wrong = await turn_of(store, user, "app-b")
    assert wrong.outcome is Outcome.GRANTED
    unchanged = grant("a").model_copy(update={"access_token": "access-new"})
    assert await store.finish_refresh(late, unchanged)
    assert (await stored_state(admin, user))["lease_id"] == wrong.lease_id
    assert await store.fail_refresh(wrong, RefreshFailure(reason="refused")) is None
    state = await stored_state(admin, user)
    assert (state["client_id"], state["failure"], state["lease_id"], state["refused_by"]) == ("app-a", None, None, [])


async def test_a_second_opinion_replaces_the_apps_that_refused(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection, stepped: str
) -> None:
    """So the refusal of one, which may have been false, is not made final by another."""
    await store.save(user, grant("a", minutes=-1), ALICE)
    await refuse(store, user, "app-a")
    await refuse(store, user, "app-b")
    assert (await turn_of(store, user, "app-a")).outcome is Outcome.REFUSED
    await step_database_clock(stepped, HOUR + 1)
    await refuse(store, user, "app-b")
    state = await stored_state(admin, user)
    assert (state["refused_by"], state["refusals"]) == (["app-b"], 2)
    assert (await turn_of(store, user, "app-b")).outcome is Outcome.REFUSED
    heard = await turn_of(store, user, "app-a")
    assert (heard.outcome, heard.client_ids) == (Outcome.GRANTED, ("app-a",))


async def test_the_refusal_of_a_wrong_app_keeps_a_lapse_in_mind(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection, stepped: str
) -> None:
    """A holder of the lease may still be saving what replaced the refresh token: the next refusal does not count."""
    await store.save(user, grant("a", minutes=-1), ALICE)
    late = await turn_of(store, user, "app-a")
    await step_database_clock(stepped, 20)
    await refuse(store, user, "app-b")
    assert (await stored_state(admin, user))["lapsed"]
    await refuse(store, user, "app-a")
    state = await stored_state(admin, user)
    assert (state["refusals"], state["lapsed"]) == (0, True)
    assert (state["retry_at"] - state["paused_at"]).total_seconds() == 60
    assert await store.finish_refresh(late, grant("b"))
    assert (await store.get(user)).failure is None


async def test_three_refusals_by_the_same_apps_are_final(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection, stepped: str
) -> None:
    """For processes that have no other; one that has is granted its turn all the same."""
    await store.save(user, grant("a", minutes=-1), ALICE)
    for seconds in (0, HOUR + 1, 24 * HOUR + 1):
        await step_database_clock(stepped, seconds)
        await refuse(store, user, "app-a", "app-b")
    assert (await stored_state(admin, user))["retry_at"] is None
    await step_database_clock(stepped, 1000 * HOUR)
    assert (await turn_of(store, user, "app-b")).outcome is Outcome.REFUSED
    assert (await turn_of(store, user)).outcome is Outcome.REFUSED
    assert (await turn_of(store, user, "app-b", "app-c")).client_ids == ("app-c",)


async def test_a_part_of_the_apps_is_recorded_without_a_failure(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection
) -> None:
    """Where another one got no answer: only that one is tried then."""
    await store.save(user, grant("a", minutes=-1), ALICE)
    turn = await turn_of(store, user, "app-a", "app-b")
    assert turn.client_ids == ("app-a", "app-b")
    assert await store.fail_refresh(turn, RefreshFailure(refused_by=("app-a",))) is None
    state = await stored_state(admin, user)
    assert (state["refused_by"], state["failure"], state["refusals"]) == (["app-a"], None, 0)
    assert (await turn_of(store, user, "app-a", "app-b")).client_ids == ("app-b",)
