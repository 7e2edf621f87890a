"""Behind a pooler that refuses what belongs to a session, as Supavisor 2.10 can be set to; it is before a PgBouncer."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from uuid import UUID

import asyncpg
import pytest

from spotconn import (
    ConfigurationError,
    ConnectFlow,
    ConnectionAdmin,
    ConnectionStore,
    DatabaseUnavailable,
    SpotifyAccounts,
    TokenManager,
)
from spotconn.testing import FakeSpotify
from support.connections import connect, content
from support.consent import REDIRECT_URI
from support.database import Database
from support.doctor import look
from support.listening import feed_of, until
from support.pgbouncer import PgBouncer, pgbouncer
from support.refusing_pooler import RefusingPooler, leak_of

LEAVES = {
    "select 1; set statement_timeout = 0": "session-level SET statement",
    "select set_config('a.b', 'c', false)": "session-level set_config() call",
    "discard temp": "DISCARD statement",
    "select pg_catalog.pg_advisory_unlock_all()": "session-level advisory lock",
    'LISTEN "spotconn"': "LISTEN statement",
    "unlisten *": "LISTEN statement",
    "declare c cursor with hold for select 1": "WITH HOLD cursor",
    "create temporary table t (a int)": "temporary table creation",
    "set constraints all immediate": "session-level SET CONSTRAINTS statement",
    "begin; set local lock_timeout = '5s'; select set_config('a.b', 'false', true); commit and chain": None,
    "do $$ begin unlisten *; discard temp; end $$; select 'set role x; listen y'": None,
}


@pytest.fixture
def bouncer(database: Database) -> Iterator[PgBouncer]:
    with pgbouncer(database.server.port, size=2) as started:
        yield started


@pytest.fixture
async def pooler(bouncer: PgBouncer) -> AsyncIterator[RefusingPooler]:
    async with RefusingPooler(bouncer.port).serve() as serving:
        yield serving


@pytest.fixture
def pooled(database: Database, bouncer: PgBouncer, pooler: RefusingPooler) -> str:
    """The DSN of the login of the store through both."""
    return pooler.through(bouncer.through(database.dsn))


@pytest.mark.parametrize("sql", LEAVES)
def test_the_stand_in_knows_what_outlives_a_transaction(sql: str) -> None:
    """And what does not, so that a test which it passes says something."""
    assert leak_of(sql) == LEAVES[sql]


async def test_nothing_that_the_library_sends_is_refused(
    pooled: str,
    pooler: RefusingPooler,
    bouncer: PgBouncer,
    chief: str,
    users: list[UUID],
    spotify: FakeSpotify,
) -> None:
    """Connect, refresh, own SQL, the admin's work and the doctor."""
    first, second, _ = users
    async with (
        spotify.serve() as url,
        ConnectionStore.open(pooled) as store,
        SpotifyAccounts("demo-client", "demo-secret", accounts_url=url, api_url=url) as accounts,
        TokenManager(store, accounts) as tokens,
        ConnectionAdmin.open(pooler.through(bouncer.through(chief))) as house,
    ):
        await connect(store, spotify, first, ttl=-1)
        assert spotify.accepts(await tokens.get_valid_token(first))
        await ConnectFlow(store, accounts, redirect_uri=REDIRECT_URI, scopes=[]).start(first)
        assert (await house.stats()).connections == 1
        assert await house.assign_app("demo-client") == 0
        assert await house.move(first, second)
        assert await tokens.disconnect(second)
    assert not [
        finding for finding in (await look(pooler.through(bouncer.through(chief)))).values() if finding.state == "fail"
    ]
    assert pooler.refused == []


@pytest.mark.parametrize("fails", [False, True])
async def test_each_block_of_as_user_ends_well(
    pooled: str, pooler: RefusingPooler, user: UUID, spotify: FakeSpotify, *, fails: bool
) -> None:
    """What it wrote is saved, or rolled back; no connection is lost in it, and the next client finds a clean one."""
    async with ConnectionStore.open(pooled, max_size=1) as store:
        saved = await connect(store, spotify, user)
        for number in range(5):
            try:
                async with store.as_user(user) as sql:
                    await sql.execute("update public.spotify_connections set display_name = $1", f"name {number}")
                    assert not sql.is_closed()
                    if fails:
                        await sql.execute("select 1 / 0")
            except asyncpg.DivisionByZeroError:
                assert fails
            expected = saved.display_name if fails else f"name {number}"
            assert (await store.get(user)).display_name == expected
    assert pooler.refused == []


tells_the_refusal = pytest.mark.skipif(
    tuple(map(int, asyncpg.__version__.split(".")[:2])) < (0, 32),
    reason="asyncpg has the text of an error that ends a session from 0.32 on",
)


@tells_the_refusal
async def test_a_refused_statement_of_the_caller_ends_its_block_alone(
    pooled: str, pooler: RefusingPooler, user: UUID, spotify: FakeSpotify
) -> None:
    """Nothing of it is saved, the caller sees what the pooler says, and the store goes on."""
    async with ConnectionStore.open(pooled, max_size=1) as store:
        saved = await connect(store, spotify, user)
        with pytest.raises(
            asyncpg.ConnectionDoesNotExistError, match="LISTEN statement is not allowed in transaction mode"
        ):
            await _listen_in_a_block(store, user)
        assert content(await store.get(user)) == content(saved)
    assert pooler.refused == ["LISTEN statement"]


async def _listen_in_a_block(store: ConnectionStore, user: UUID) -> None:
    async with store.as_user(user) as sql:
        await sql.execute("update public.spotify_connections set display_name = 'lost'")
        await sql.execute("listen own")


@tells_the_refusal
async def test_a_refused_listen_means_no_listener(
    pooled: str, pooler: RefusingPooler, database: Database, user: UUID, spotify: FakeSpotify,
    accounts: SpotifyAccounts, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """It is logged once, with the way out; the pooler is not asked again and again, and tokens are served."""
    caplog.set_level(logging.DEBUG, logger="spotconn")
    async with (
        ConnectionStore.open(database.dsn, listen_dsn=pooled) as store,
        TokenManager(store, accounts) as tokens,
    ):
        await connect(store, spotify, user)
        await tokens.get_valid_token(user)
        await until(lambda: bool(pooler.refused))
        await until(lambda: feed_of(tokens)._backoff.failures == 1)
        for _ in range(100):  # the first pause after another failure is 0.2 s at most
            assert spotify.accepts(await tokens.get_valid_token(user))
            await asyncio.sleep(0.005)
        assert not tokens._cache.trusted
    assert (pooler.logins, pooler.refused) == (1, ["LISTEN statement"])
    told = [record for record in caplog.records if "notifications of changes do not arrive" in record.getMessage()]
    assert [record.levelno for record in told] == [logging.WARNING]
    assert "SPOTCONN_LISTEN_URL" in told[0].getMessage()


@pytest.mark.parametrize(
    ("options", "named"),
    [("-c%20jit%3Dmaybe", "jit"), ("-c%20log_level%3Dloud", "log_level")],
)
async def test_a_refused_parameter_of_the_start_is_named(pooled: str, options: str, named: str) -> None:
    """By its name and not by its value."""
    with pytest.raises(ConfigurationError, match=rf"server_settings: {named};") as raised:
        async with ConnectionStore.open(f"{pooled}?options={options}"):
            pass
    assert "maybe" not in str(raised.value)
    assert "loud" not in str(raised.value)


async def test_an_idle_client_that_was_closed_is_a_lost_connection(
    pooled: str, pooler: RefusingPooler, user: UUID, spotify: FakeSpotify
) -> None:
    """All of the pool at once: a read is answered all the same, a write by the next attempt."""
    async with ConnectionStore.open(pooled, min_size=3, max_size=3) as store:
        saved = await connect(store, spotify, user)
        pooler.close_idle()
        assert content(await store.get(user)) == content(saved)
        pooler.close_idle()
        try:
            await store.delete(user)
        except DatabaseUnavailable:
            await store.delete(user)
        await connect(store, spotify, user)
