"""The answer to `begin_refresh` is lost, and the lease stands: the process that asked for it takes it up again."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore, DatabaseUnavailable, Outcome, SpotifyAccounts, TokenManager
from spotconn.testing import FakeSpotify
from spotconn.turns import RefreshTurn
from support.connections import connect
from support.database import Database
from support.fault_proxy import FaultProxy

Loss = Callable[[Awaitable[object]], Awaitable[None]]


@pytest.fixture
async def own(database: Database, proxy: FaultProxy) -> AsyncIterator[ConnectionStore]:
    async with ConnectionStore.open(proxy.dsn(database.dsn), timeout=1) as opened:
        yield opened


@pytest.fixture(params=["timeout", "cut", "cancelled"])
def losing(request: pytest.FixtureRequest, proxy: FaultProxy) -> Loss:
    """Let a call lose the answer to its lease, which is granted by then."""

    async def lose(call: Awaitable[object]) -> None:
        with proxy.hold(b"begin_refresh", answer=True) as held:
            asking = asyncio.ensure_future(call)
            await held.reached()
            if request.param == "cut":
                proxy.cut()
            elif request.param == "cancelled":
                asking.cancel()
            with pytest.raises((DatabaseUnavailable, asyncio.CancelledError)):
                await asking

    return lose


async def outcomes(*turns: Awaitable[RefreshTurn]) -> list[str]:
    return sorted(turn.outcome.value for turn in await asyncio.gather(*turns))


async def test_the_next_caller_is_served(
    own: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, losing: Loss, admin: asyncpg.Connection,
    user: UUID,
) -> None:  # fmt: skip
    """At once, with one request, and the lease does not count as one that has lapsed."""
    await connect(own, spotify, user, ttl=-1)
    async with TokenManager(own, accounts, cache_ttl=0, refresh_timeout=2, lease=60) as tokens:
        await tokens.get_valid_token(user)
        await admin.execute("update public.spotify_connections set expires_at = now() - interval '1 second'")
        found = await own.get(user)
        await losing(own.begin_refresh(user, seen=found.fingerprint, lease=60))
        with spotify.hold() as held:
            asking = asyncio.create_task(tokens.get_valid_token(user))
            await held.reached()
            assert not await admin.fetchval("select lapsed from spotconn.refresh_state where user_id = $1", user)
        assert spotify.accepts(await asking)
    assert spotify.token_calls == 2


async def test_nobody_else_has_it(
    own: ConnectionStore, store: ConnectionStore, spotify: FakeSpotify, losing: Loss, user: UUID
) -> None:
    """Neither another process, nor two callers of this one at once, nor a caller of this one after that."""
    await connect(own, spotify, user, ttl=-1)
    seen = (await store.get(user)).fingerprint
    await losing(own.begin_refresh(user, seen=seen))
    assert await outcomes(store.begin_refresh(user, seen=seen)) == ["busy"]
    two = own.begin_refresh(user, seen=seen), own.begin_refresh(user, seen=seen)
    assert await outcomes(*two) == ["busy", "granted"]
    assert await outcomes(own.begin_refresh(user, seen=seen), store.begin_refresh(user, seen=seen)) == ["busy", "busy"]


async def test_a_lease_that_another_has_taken_over_is_left_alone(
    own: ConnectionStore, store: ConnectionStore, spotify: FakeSpotify, losing: Loss, admin: asyncpg.Connection,
    user: UUID,
) -> None:  # fmt: skip
    """It had lapsed meanwhile."""
    await connect(own, spotify, user, ttl=-1)
    seen = (await store.get(user)).fingerprint
    await losing(own.begin_refresh(user, seen=seen))
    await admin.execute("update spotconn.refresh_state set lease_until = now()")
    turn = await store.begin_refresh(user, seen=seen)
    assert turn.outcome is Outcome.GRANTED
    assert (await own.begin_refresh(user, seen=seen)).outcome is Outcome.BUSY
    state = await admin.fetchrow("select lease_id, lapsed from spotconn.refresh_state where user_id = $1", user)
    assert tuple(state or ()) == (turn.lease_id, True)
