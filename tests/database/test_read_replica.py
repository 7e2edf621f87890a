"""What a standby that follows its primary is good for: what an operator reads, and no service."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

import asyncpg
import pytest

from spotconn import ConnectionAdmin, ConnectionStore, DatabaseUnavailable
from support.bulk import access_token_of, add_connections, bulk_user
from support.postgres_server import Server
from support.replication import replicated

pytestmark = pytest.mark.long

USER = bulk_user(1)


@pytest.fixture(scope="module")
def replica() -> Iterator[Server]:
    """A standby that shows the connections of two users, which are ten days from their end."""
    with replicated() as pair:
        asyncio.run(_connect(pair.primary))
        pair.wait_until_replayed()
        yield pair.standby


async def _connect(server: Server) -> None:
    session = await asyncpg.connect(server.admin_dsn)
    await add_connections(session, 2)
    await session.close()


@pytest.fixture
async def session(replica: Server) -> AsyncIterator[asyncpg.Connection]:
    """Of the login of the service."""
    opened = await asyncpg.connect(replica.dsn())
    yield opened
    await opened.close()


async def test_an_operator_lists_and_counts_at_a_replica(replica: Server) -> None:
    """Whatever only reads works there, and what writes says that it cannot."""
    async with ConnectionAdmin.open(replica.admin_dsn) as admin:
        assert (await admin.stats()).connections == 2
        assert len([found async for found in admin.expiring(within=timedelta(days=15))]) == 2
        assert [found async for found in admin.failing()] == []
        with pytest.raises(DatabaseUnavailable, match="standby"):
            await admin.mark_asked([USER])
    reporter = await asyncpg.connect(replica.admin_dsn)
    assert await reporter.fetchval("select count(*) from spotconn.connection_overview") == 2
    await reporter.close()


async def test_a_replica_reads_tokens_and_refreshes_none(session: asyncpg.Connection) -> None:
    """The functions that read work under the policies; those that write, and LISTEN, are refused."""
    rows = await session.fetch("select * from spotconn.get_access_tokens($1)", [USER])
    assert [row["access_token"] for row in rows] == [access_token_of(USER)]
    assert await session.fetchval("select spotconn.server_life()") is None
    for statement in (
        f"select * from spotconn.begin_refresh('{USER}', spotconn.fingerprint('{access_token_of(USER)}'), '15 s')",
        f"select spotconn.delete_connection('{USER}')",
    ):
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await session.execute(statement)
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await session.execute("listen spotconn")


async def test_no_store_opens_at_a_replica(replica: Server) -> None:
    """It could save no refreshed token there."""
    with pytest.raises(DatabaseUnavailable, match="standby"):
        async with ConnectionStore.open(replica.dsn(), max_size=1):
            pytest.fail("it is open")
