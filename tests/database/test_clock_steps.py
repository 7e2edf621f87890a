"""The clock of the database is set back, by ten minutes or by half a second: what then still runs."""

from datetime import timedelta
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectFailed, ConnectionStore, Outcome, Profile, RefreshFailure
from spotconn._database.pending_connects import Claim, PendingConnect
from spotconn.models import fingerprint
from support.connections import grant
from support.database_clock import database_clock

ALICE = Profile(spotify_user_id="alice")
SEEN = fingerprint("access-old")
BACK, LITTLE = -600, -0.5

STEPS = pytest.mark.parametrize(("step", "runs"), [(BACK, False), (LITTLE, True), (0, True)])


@STEPS
async def test_a_lease(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection, step: float, *, runs: bool
) -> None:
    """A lease with more left than its length is void at once; a small correction of the clock voids none."""
    await store.save(user, grant("old", minutes=-60), ALICE)
    first = await store.begin_refresh(user, seen=SEEN, lease=1)
    assert first.outcome is Outcome.GRANTED
    async with database_clock(admin) as clock:
        await clock.step(step)
        second = await store.begin_refresh(user, seen=SEEN, lease=1)
    assert second.outcome is (Outcome.BUSY if runs else Outcome.GRANTED)
    if runs:
        assert 0 < (second.retry_after or 0) <= 1 - step


@STEPS
async def test_a_pause(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection, step: float, *, runs: bool
) -> None:
    """A pause is over, and the failure still shows."""
    await store.save(user, grant("old", minutes=-60), ALICE)
    turn = await store.begin_refresh(user, seen=SEEN)
    await store.fail_refresh(turn, RefreshFailure(reason="unavailable", retry_after=30))
    async with database_clock(admin) as clock:
        await clock.step(step)
        assert (await store.begin_refresh(user, seen=SEEN)).outcome is (Outcome.PAUSED if runs else Outcome.GRANTED)
        assert (await store.get(user)).failure is not None


@STEPS
async def test_a_refusal_that_is_not_final(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection, step: float, *, runs: bool
) -> None:
    """Spotify may be asked again; one that is final stays."""
    await store.save(user, grant("old", minutes=-60), ALICE)
    turn = await store.begin_refresh(user, seen=SEEN)
    await store.fail_refresh(turn, RefreshFailure(reason="refused"))
    async with database_clock(admin) as clock:
        await clock.step(step)
        turn = await store.begin_refresh(user, seen=SEEN)
        assert turn.outcome is (Outcome.REFUSED if runs else Outcome.GRANTED)
        await admin.execute("update spotconn.refresh_state set retry_at = null")
        assert (await store.begin_refresh(user, seen=SEEN)).outcome is Outcome.REFUSED


@STEPS
async def test_a_pending_connect(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection, step: float, *, runs: bool
) -> None:
    """An authorization has its ten minutes, and no more of them after a step back."""
    await store.pending.put(PendingConnect(user, "v" * 43), "state", life=600)
    async with database_clock(admin) as clock:
        await clock.step(step)
        if runs:
            assert await store.pending.take(Claim("state", "user", user)) is not None
            return
        with pytest.raises(ConnectFailed, match="longer than ten minutes"):
            await store.pending.take(Claim("state", "user", user))


@STEPS
async def test_a_token_just_saved(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection, step: float, *, runs: bool
) -> None:
    """A grant that lies ahead says nothing of how young it is."""
    saved = await store.save(user, grant("new").model_copy(update={"expires_in": 3600.0}), ALICE)
    async with database_clock(admin) as clock:
        await clock.step(step)
        turn = await store.begin_refresh(user, seen=saved.fingerprint)
    assert turn.outcome is (Outcome.JUST_SAVED if runs else Outcome.GRANTED)


async def test_seconds_are_left_by_the_clock_of_the_database(
    store: ConnectionStore, user: UUID, admin: asyncpg.Connection
) -> None:
    """A read counts them from the clock as it is then, whatever the host's."""
    saved = await store.save(user, grant("new").model_copy(update={"expires_in": 3600.0}), ALICE)
    async with database_clock(admin) as clock:
        for offset in (-600.0, 0.0, 600.0, 3599.0, 4000.0):
            await clock.set_offset(offset)
            left = (await store.get(user)).remaining
            assert left == pytest.approx(3600 - offset, abs=5)
        await clock.restore()
    assert (await store.get(user)).expires_at == saved.expires_at
    assert timedelta(seconds=saved.remaining) > timedelta(seconds=3595)
