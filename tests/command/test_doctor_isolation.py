"""The doctor on the isolation of users: which logins are right, and remedies that can be carried out and do no harm."""

import asyncpg
import pytest

from spotconn._command.isolation import isolation_remedy
from spotconn.testing import EmbeddedPostgres, apply_schema
from support.database import Database
from support.doctor import look

PLAIN = {"made_by_initdb": False, "superuser": False, "bypasses": False, "owns": False, "other_superuser": True}


async def test_a_login_may_be_more_than_it_must(database: Database, admin: asyncpg.Connection) -> None:
    """The library acts as the role spotconn: a superuser, BYPASSRLS and that role itself are no failure as a login."""
    await admin.execute("alter role spotconn login password 'spotconn'")
    try:
        for dsn in (database.admin_dsn, database.bypass_dsn, database.login_dsn("spotconn")):
            found = await look(dsn)
            assert (found["isolation"].state, found["catalog"].state) == ("ok", "ok")
    finally:
        await admin.execute("alter role spotconn nologin password null")


@pytest.mark.long
async def test_the_only_superuser_is_not_to_be_demoted() -> None:
    """Where the role spotconn is the server's first superuser, the remedy is another one; carried out, it is enough."""
    with EmbeddedPostgres() as server:
        admin = await asyncpg.connect(server.dsn())
        await admin.execute("create role helper superuser login password 'helper'")
        await admin.close()
        helper = await asyncpg.connect(server.dsn(user="helper", password="helper"))
        await apply_schema(server.dsn(user="helper", password="helper"))
        await helper.execute("alter role spotconn rename to unused; alter role postgres rename to spotconn")
        found = (await look(server.dsn(user="spotconn")))["isolation"]
        assert found.state == "fail"
        assert "do not demote it" in str(found.remedy)
        assert "NOSUPERUSER" not in str(found.remedy)
        await helper.execute("alter role spotconn rename to former_spotconn")
        await apply_schema(server.dsn(user="helper", password="helper"))
        await helper.execute("create role service login password 'service'; grant spotconn to service")
        await helper.close()
        found_then = await look(server.dsn(user="service", password="service"))
    assert {subject for subject, one in found_then.items() if one.state == "fail"} == set()


async def test_the_role_of_the_library_must_own_nothing(database: Database, admin: asyncpg.Connection) -> None:
    """No policy binds the owner of a table, nor a member of the owner; the remedy names the table, not a superuser."""
    await admin.execute("create role keeper; grant keeper to spotconn")
    try:
        for owner in ("spotconn", "keeper"):
            await admin.execute(f"alter table public.spotify_connections owner to {owner}")
            found = (await look(database.dsn))["isolation"]
            assert found.state == "fail"
            assert "ALTER TABLE public.spotify_connections OWNER TO" in str(found.remedy)
    finally:
        await admin.execute("alter table public.spotify_connections owner to postgres; drop role keeper")
        await apply_schema(database.admin_dsn)
    assert (await look(database.dsn))["isolation"].state == "ok"


@pytest.mark.parametrize(
    ("changes", "named", "not_named"),
    [
        ({"superuser": True}, "as another superuser: ALTER ROLE spotconn NOSUPERUSER", "RENAME"),
        ({"superuser": True, "other_superuser": False}, "RENAME TO", "NOSUPERUSER"),
        ({"superuser": True, "made_by_initdb": True}, "RENAME TO", "NOSUPERUSER"),
        ({"bypasses": True}, "ALTER ROLE spotconn NOBYPASSRLS", "SUPERUSER"),
        ({"owns": True}, "OWNER TO", "SUPERUSER"),
        ({}, "drop the policies", "ROLE"),
    ],
)
def test_each_cause_has_its_remedy(changes: dict[str, bool], named: str, not_named: str) -> None:
    """A superuser among several, the only one, the one that the server was made with, an owner, and an added policy."""
    remedy = isolation_remedy(**(PLAIN | changes))
    assert named in remedy
    assert not_named not in remedy
