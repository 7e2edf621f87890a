"""A standby that is promoted while the old primary stays: `spotconn.server_life`, and who listens where."""

import asyncio
from collections.abc import Iterator

import asyncpg
import pytest

from spotconn import ConnectionStore, NotConnected, SpotifyAccounts, TokenManager
from spotconn.testing import FakeSpotify
from support.connections import connect
from support.database import Database
from support.fault_proxy import FaultProxy
from support.listening import feed_of, passed, served_for, trusted, until
from support.postgres_server import Server
from support.replication import Pair, replicated

LIFE = "select spotconn.server_life()"


@pytest.fixture
def pair() -> Iterator[Pair]:
    with replicated() as made:
        yield made


async def asked(server: Server, query: str) -> str | None:
    session = await asyncpg.connect(server.dsn())
    answer: str | None = await session.fetchval(query)
    await session.close()
    return answer


@pytest.mark.long
async def test_a_promotion_shows_at_once(pair: Pair) -> None:
    """A standby has no life of its own; a promoted one has a later one than all before, in its old sessions, too."""
    old, new = pair.primary, pair.standby
    first = await asked(old, LIFE)
    session = await asyncpg.connect(new.dsn())
    for _ in range(3):
        assert await session.fetchval(LIFE) is None
    # No checkpoint follows on its own for a while, so that pg_control has the former timeline.
    await asyncio.to_thread(new.execute, "select pg_promote(wait => false)")
    async with asyncio.timeout(20):
        while (second := await session.fetchval(LIFE)) is None:
            await asyncio.sleep(0.01)
    await session.close()
    assert first is not None
    assert second > first
    assert second.startswith("00000002 ")
    assert await asked(new, LIFE) == second
    assert await asked(old, LIFE) == first
    await asyncio.to_thread(old.restart)
    restarted = await asked(old, LIFE)
    assert restarted is not None
    assert first < restarted < second


async def test_the_life_of_a_server_does_not_depend_on_the_session(database: Database) -> None:
    """Its text is the same in every time zone and format, and for every login of the library."""
    lives = set[str]()
    for settings in ({}, {"timezone": "Asia/Kolkata", "datestyle": "German", "extra_float_digits": "-10"}):
        for dsn in (database.dsn, database.bypass_dsn, database.admin_dsn):
            session = await asyncpg.connect(dsn, server_settings=settings)
            lives.update([await session.fetchval(LIFE) for _ in range(8)])  # the last ones by a plan that is kept
            await session.close()
    assert len(lives) == 1


@pytest.mark.parametrize("role", ["anon", "authenticated", "service_role"])
@pytest.mark.parametrize("function", ["server_life()", "count_skipped()", "heartbeat('')"])
async def test_client_roles_may_not_ask(admin: asyncpg.Connection, role: str, function: str) -> None:
    """They learn nothing of the server by these functions."""
    async with admin.transaction():
        await admin.execute(f"set local role {role}")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await admin.fetchval(f"select spotconn.{function}")


async def test_without_the_functions_of_wal_the_start_alone_counts(admin: asyncpg.Connection) -> None:
    """Some providers refuse them; the rest still tells two servers apart."""
    life = await admin.fetchval(LIFE)
    transaction = admin.transaction()
    await transaction.start()
    await admin.execute(
        "revoke execute on function pg_catalog.pg_current_wal_lsn() from public; set local role spotconn"
    )
    kept_back = await admin.fetchval(LIFE)
    await transaction.rollback()
    assert kept_back.split() == ["00000000", life.split()[1]]


@pytest.mark.long
@pytest.mark.parametrize("cut", ["the pool's", "none"])
async def test_a_disconnect_at_the_promoted_server_is_known_within_the_ttl(
    pair: Pair, accounts: SpotifyAccounts, spotify: FakeSpotify, cut: str
) -> None:
    """The old primary is alive, and so are the sessions there that were not cut."""
    (user,) = (row[0] for row in await asyncio.to_thread(inserted, pair.primary))
    async with (
        FaultProxy(pair.primary.port).serve() as way,
        FaultProxy(pair.primary.port).serve() as listening,
        ConnectionStore.open(way.dsn(pair.primary.dsn()), listen_dsn=listening.dsn(pair.primary.dsn())) as store,
        TokenManager(store, accounts, cache_ttl=9) as tokens,
    ):
        await connect(store, spotify, user)
        await trusted(tokens, user)
        await asyncio.to_thread(pair.wait_until_replayed)
        await asyncio.to_thread(pair.promote)
        for proxy in (way, listening):
            proxy.turn_to(pair.primary.port)
        if cut == "the pool's":
            way.cut()
        async with ConnectionStore.open(pair.primary.dsn()) as elsewhere:
            assert await elsewhere.delete(user)
        assert await served_for(tokens, user) < 9 + 1
        with pytest.raises(NotConnected):
            await store.get(user)
        await until(lambda: feed_of(tokens)._subscription is not None and tokens._cache.trusted)
        await passed(tokens)


def inserted(server: Server) -> list[asyncpg.Record]:
    async def insert() -> list[asyncpg.Record]:
        admin = await asyncpg.connect(server.admin_dsn)
        rows = await admin.fetch("insert into auth.users (email) values ('a') returning id")
        await admin.close()
        return rows

    return asyncio.run(insert())


@pytest.mark.long
async def test_of_several_hosts_the_one_promoted_last_is_found(
    pair: Pair, accounts: SpotifyAccounts, spotify: FakeSpotify
) -> None:
    """The old primary stands first in the URL, takes writes and answered last; pool and listener leave it."""
    (user,) = (row[0] for row in await asyncio.to_thread(inserted, pair.primary))
    async with (
        ConnectionStore.open(pair.dsn()) as store,
        TokenManager(store, accounts, cache_ttl=9) as tokens,
    ):
        await connect(store, spotify, user)
        await trusted(tokens, user)
        await asyncio.to_thread(pair.wait_until_replayed)
        await asyncio.to_thread(pair.promote)
        async with ConnectionStore.open(pair.primary.dsn()) as elsewhere:
            assert await elsewhere.delete(user)
        assert await served_for(tokens, user) < 9 + 1
        assert await store.pool.value(LIFE) == await asked(pair.primary, LIFE)
        await until(lambda: feed_of(tokens)._subscription is not None and tokens._cache.trusted)
        await passed(tokens)
