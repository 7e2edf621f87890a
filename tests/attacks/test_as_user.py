"""What a block of `as_user` leaves to the next user of the pool: nothing. What it does not confine is documented."""

import asyncio
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore, Profile
from support.connections import grant
from support.database import Database

ALICE = Profile(spotify_user_id="alice")
LEAVE = [
    "prepare own as select 'left'",
    "create temporary sequence counted; select nextval('pg_temp.counted')",
    "create temporary table own (value text)",
    "select setseed(0.5)",
    "set my.own = 'left'; select pg_advisory_lock(7); listen spotconn",
]
FOUND = """
select pg_backend_pid() as pid,
    (select count(*) from pg_prepared_statements where from_sql) as prepared,
    (select count(*) from pg_class where relpersistence = 't' and pg_table_is_visible(oid)) as temporary,
    (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()) as locks,
    current_setting('my.own', true) as own
"""


@pytest.mark.parametrize("end", ["normal", "exception"])
async def test_the_next_user_of_the_pool_meets_nothing(database: Database, user: UUID, end: str) -> None:
    """Neither of the server's session nor of the driver's connection, also where the block itself has hidden it."""
    async with ConnectionStore.open(database.dsn, min_size=1, max_size=1) as store:
        logged: list[object] = []
        heard: list[object] = []

        def hear(*values: object) -> None:
            heard.append(values)

        first = None
        try:
            async with store.as_user(user) as sql:
                first = await sql.fetchval("select pg_backend_pid()")
                await sql.execute("reset role")
                for statement in LEAVE:
                    await sql.execute(statement)
                await sql.set_type_codec("text", encoder=str, decoder=lambda _: "forged", schema="pg_catalog")
                sql.add_query_logger(logged.append)
                await sql.add_listener("spotconn", hear)
                {"normal": None}[end]
        except KeyError:
            assert end == "exception"
        await asyncio.sleep(0)  # in which the end of the block itself is logged
        logged.clear()
        connection = await store.save(user, grant("a"), ALICE)
        assert (connection.access_token, connection.spotify_user_id) == ("access-a", "alice")
        async with store.as_user(user) as sql:
            row = await sql.fetchrow(FOUND)
            assert row is not None
            assert row["pid"] != first
            assert (row["prepared"], row["temporary"], row["locks"], row["own"]) == (0, 0, 0, None)
            with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):  # lastval is not yet defined
                async with sql.transaction():
                    await sql.fetchval("select lastval()")
        assert not logged
        assert not heard


async def test_it_does_not_confine_sql_of_others(store: ConnectionStore, users: list[UUID]) -> None:
    """One SELECT reaches another user, which no second role could prevent; so the documentation says."""
    mallory, victim, _ = users
    await store.save(victim, grant("victim"), ALICE)
    async with store.as_user(mallory) as sql:
        reached = await sql.fetchval("select refresh_token from spotconn.get_connection($1)", victim)
    assert reached == "refresh-victim"
    assert "does not confine SQL that others wrote" in str(ConnectionStore.as_user.__doc__)
