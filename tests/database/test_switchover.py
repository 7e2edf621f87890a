"""A planned switchover behind one address, as of HAProxy or a virtual address: the old primary goes on as a standby."""

import asyncio
from collections.abc import Iterator
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore, DatabaseUnavailable, SpotifyAccounts, TokenManager
from spotconn._database.server_leaving import INTERVAL
from spotconn.testing import FakeSpotify
from support.connections import connect
from support.fault_proxy import FaultProxy
from support.replication import Pair, replicated

SESSIONS = "select count(*) from pg_stat_activity where usename = 'app' and backend_type = 'client backend'"
pytestmark = pytest.mark.long


@pytest.fixture(scope="module", params=[False, True], ids=["asynchronous", "synchronous"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A primary and its standby."""
    with replicated(synchronous=request.param) as servers:
        yield servers


async def made_users(pair: Pair, count: int) -> list[UUID]:
    session = await asyncpg.connect(pair.primary.admin_dsn)
    made = await session.fetch(
        "insert into auth.users (email) select n from generate_series(1, $1) n returning id", count
    )
    await session.close()
    return [row["id"] for row in made]


async def test_a_client_with_one_address_moves_on_with_it(
    pair: Pair, accounts: SpotifyAccounts, spotify: FakeSpotify
) -> None:
    """Before the address is turned its refreshes are for later, and it is not ready; then the first call succeeds."""
    users = await made_users(pair, 8)
    old = pair.primary
    async with (
        FaultProxy(old.port).serve() as proxy,
        ConnectionStore.open(proxy.dsn(old.dsn("app")), min_size=4, max_size=4, timeout=5) as store,
        TokenManager(store, accounts, cache_ttl=0) as tokens,
    ):
        for user in users:
            await connect(store, spotify, user, account=str(user), ttl=-1)
        await asyncio.to_thread(pair.switch)
        assert pair.standby is old
        for call in (tokens.get_valid_token(users[0]), tokens.disconnect(users[1]), tokens.check()):
            with pytest.raises(DatabaseUnavailable):
                await call
        calls = spotify.token_calls
        await asyncio.gather(*(store.get(user) for user in users))  # reads are served, over sessions to the old server
        assert old.execute(SESSIONS)[0][0] >= 2
        await asyncio.sleep(INTERVAL)
        proxy.turn_to(pair.primary.port)
        served = await asyncio.gather(*(tokens.get_valid_token(user) for user in users))
        assert spotify.token_calls == calls + len(users)
        await tokens.check()
        await asyncio.to_thread(old.wait_for, f"({SESSIONS}) = 0")
        stored = [(await store.get(user)).access_token for user in users]
        assert stored == served
