"""What an operator does with all connections: it is complete, acts as service_role and loses to whoever is live."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest

from conftest import Database
from spotconn import (
    ConnectionAdmin,
    ConnectionStore,
    Outcome,
    Profile,
    RefreshFailure,
    RowSecurityError,
    TokenGrant,
)
from spotconn import admin as admin_room

ALICE = Profile(spotify_user_id="alice")
ENDED = datetime.now(UTC) - timedelta(minutes=1)
OLD = TokenGrant(access_token="access-old", refresh_token="refresh-old", expires_at=ENDED)
AN_HOUR_AGO = datetime.now(UTC) - timedelta(hours=1)


@pytest.fixture
async def operator(database: Database, admin: asyncpg.Connection) -> str:
    """The DSN of a login that may become service_role and nothing else."""
    if not await admin.fetchval("select exists (select from pg_roles where rolname = 'operator')"):
        await admin.execute("create role operator login noinherit password 'operator'; grant service_role to operator")
    return database.login_dsn("operator")


@pytest.fixture
async def house(operator: str) -> AsyncIterator[ConnectionAdmin]:
    """A ConnectionAdmin."""
    async with ConnectionAdmin.open(operator) as opened:
        yield opened


async def refused(store: ConnectionStore, user: UUID, reason: str = "revoked") -> None:
    """Store a connection whose refresh has been refused."""
    stored = await store.save(user, OLD, ALICE)
    turn = await store.begin_refresh(user, seen=stored.expires_at)
    await store.fail_refresh(turn, RefreshFailure.model_validate({"reason": reason}))
    assert (await store.begin_refresh(user, seen=stored.expires_at)).outcome is Outcome.BLOCKED


async def test_a_recheck_lets_refused_connections_be_tried_again(
    store: ConnectionStore, house: ConnectionAdmin, users: list[UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each terminal failure of the time is tried again, in batches; a new refusal is recorded anew and counts."""
    monkeypatch.setattr(admin_room, "BATCH", 2)
    for user, reason in zip(users, ("expired", "revoked", "invalid"), strict=True):
        await refused(store, user, reason)
    assert await house.recheck(since=AN_HOUR_AGO) == 3
    for user in users:
        turn = await store.begin_refresh(user, seen=ENDED)
        assert turn.outcome is Outcome.GRANTED
        await store.fail_refresh(turn, RefreshFailure(reason="revoked"))
        assert (await store.begin_refresh(user, seen=ENDED)).outcome is Outcome.BLOCKED
    assert await house.recheck(since=AN_HOUR_AGO) == 3
    assert await house.recheck(since=AN_HOUR_AGO) == 0


async def test_a_recheck_leaves_the_rest_alone(
    store: ConnectionStore, house: ConnectionAdmin, users: list[UUID], admin: asyncpg.Connection
) -> None:
    """What was refused earlier, what only paused, and what speaks of an older version stay as they are."""
    early, paused, void = users
    await refused(store, early)
    await admin.execute("update spotconn.refresh_state set failed_at = now() - interval '2 hours'")
    await refused(store, paused, "unavailable")
    await refused(store, void)
    await admin.execute("update public.spotify_connections set expires_at = now() where user_id = $1", void)
    before = await admin.fetch("select * from spotconn.refresh_state order by user_id")
    assert await house.recheck(since=AN_HOUR_AGO) == 0
    assert await admin.fetch("select * from spotconn.refresh_state order by user_id") == before


async def test_a_time_without_a_zone_is_refused(house: ConnectionAdmin) -> None:
    """A naive time is a ValueError before any query."""
    with pytest.raises(ValueError, match=r"^since: "):
        await house.recheck(since=datetime(2026, 1, 1))  # noqa: DTZ001  the point


async def test_a_login_without_service_role_is_told_the_grant(database: Database) -> None:
    """A login of the store alone gets no further than the change of role."""
    async with ConnectionAdmin.open(database.dsn) as house:
        with pytest.raises(RowSecurityError, match="GRANT service_role TO"):
            await house.recheck(since=AN_HOUR_AGO)


async def test_nothing_of_the_role_stays(operator: str) -> None:
    """The pooled connection goes back as the login it is."""
    async with ConnectionAdmin.open(operator, max_size=1) as house:
        await house.recheck(since=AN_HOUR_AGO)
        async with house._pool.acquire() as connection:
            assert await connection.fetchval("select current_user || current_setting('role')") == "operatornone"
