"""The lock-down: who may do what before and after it, as a whole, and that the library does not notice it."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore, Profile, TokenGrant
from spotconn._database.schema import SqlFile, read_sql
from spotconn.models import fingerprint
from spotconn.testing import apply_schema
from support.database import Database

TESTS = Path(__file__).parents[1]

TABLE = "public.spotify_connections"
METADATA = "id, user_id, spotify_user_id, expires_at, connected_at, display_name, email, scope"
ALICE = Profile(spotify_user_id="alice")
GRANT = TokenGrant(access_token="access", refresh_token="refresh", expires_at=datetime.now(UTC) - timedelta(minutes=1))
OPERATIONS = {
    "select metadata": f"select {METADATA} from {TABLE} where user_id = $1",
    "select access_token": f"select access_token from {TABLE} where user_id = $1",
    "select refresh_token": f"select refresh_token from {TABLE} where user_id = $1",
    "select *": f"select * from {TABLE} where user_id = $1",
    "filter by token": f"select 1 from {TABLE} where user_id = $1 and access_token <> ''",
    "lock the row": f"select 1 from {TABLE} where user_id = $1 for update",
    "insert": f"insert into {TABLE} (user_id, spotify_user_id, access_token, refresh_token, expires_at) "
    "values ($1, 'x', 'x', 'x', now()) returning 1",
    "upsert": f"insert into {TABLE} (user_id, spotify_user_id, access_token, refresh_token, expires_at) "
    "values ($1, 'x', 'x', 'x', now()) on conflict (user_id) do update set access_token = 'x' returning 1",
    "update metadata": f"update {TABLE} set email = 'x' where user_id = $1 returning 1",
    "update expires_at": f"update {TABLE} set expires_at = now() where user_id = $1 returning 1",
    "update tokens": f"update {TABLE} set access_token = 'x', refresh_token = 'x' where user_id = $1 returning 1",
    "give the row away": f"update {TABLE} set user_id = '{{c}}' where user_id = $1 returning 1",
    "delete": f"delete from {TABLE} where user_id = $1 returning 1",
    "truncate": "truncate public.spotify_connections",
    "refresh state": "select 1 from spotconn.refresh_state where user_id = $1",
    "connections": "select 1 from spotconn.connections($1)",
}
ACTORS = {
    "anon": "anon",
    "authenticated a": "authenticated",
    "authenticated b": "authenticated",
    "spotconn as a": "spotconn",
    "service_role": "service_role",
}
# Each cell is the number of rows seen or changed, or "-" where it is refused (42501): of the own row and of the row
# of another user, in the open database and in the locked one.
MATRIX = """
                                             open    locked down
                                       own  other     own  other
anon             select metadata         -      -       -      -
anon             select access_token     -      -       -      -
anon             select refresh_token    -      -       -      -
anon             select *                -      -       -      -
anon             filter by token         -      -       -      -
anon             lock the row            -      -       -      -
anon             insert                  -      -       -      -
anon             upsert                  -      -       -      -
anon             update metadata         -      -       -      -
anon             update expires_at       -      -       -      -
anon             update tokens           -      -       -      -
anon             give the row away       -      -       -      -
anon             delete                  -      -       -      -
anon             truncate                -      -       -      -
anon             refresh state           -      -       -      -
anon             connections             -      -       -      -
authenticated a  select metadata         1      0       1      0
authenticated a  select access_token     1      0       -      -
authenticated a  select refresh_token    1      0       -      -
authenticated a  select *                1      0       -      -
authenticated a  filter by token         1      0       -      -
authenticated a  lock the row            1      0       -      -
authenticated a  insert                  1      -       -      -
authenticated a  upsert                  1      -       -      -
authenticated a  update metadata         1      0       -      -
authenticated a  update expires_at       1      0       -      -
authenticated a  update tokens           1      0       -      -
authenticated a  give the row away       -      0       -      -
authenticated a  delete                  1      0       1      0
authenticated a  truncate                -      -       -      -
authenticated a  refresh state           -      -       -      -
authenticated a  connections             -      -       -      -
authenticated b  select metadata         1      0       1      0
authenticated b  select access_token     1      0       -      -
authenticated b  select refresh_token    1      0       -      -
authenticated b  select *                1      0       -      -
authenticated b  filter by token         1      0       -      -
authenticated b  lock the row            1      0       -      -
authenticated b  insert                  1      -       -      -
authenticated b  upsert                  1      -       -      -
authenticated b  update metadata         1      0       -      -
authenticated b  update expires_at       1      0       -      -
authenticated b  update tokens           1      0       -      -
authenticated b  give the row away       -      0       -      -
authenticated b  delete                  1      0       1      0
authenticated b  truncate                -      -       -      -
authenticated b  refresh state           -      -       -      -
authenticated b  connections             -      -       -      -
spotconn as a    select metadata         1      0       1      0
spotconn as a    select access_token     1      0       1      0
spotconn as a    select refresh_token    1      0       1      0
spotconn as a    select *                1      0       1      0
spotconn as a    filter by token         1      0       1      0
spotconn as a    lock the row            1      0       1      0
spotconn as a    insert                  1      -       1      -
spotconn as a    upsert                  1      -       1      -
spotconn as a    update metadata         1      0       1      0
spotconn as a    update expires_at       1      0       1      0
spotconn as a    update tokens           1      0       1      0
spotconn as a    give the row away       -      0       -      0
spotconn as a    delete                  1      0       1      0
spotconn as a    truncate                -      -       -      -
spotconn as a    refresh state           1      0       1      0
spotconn as a    connections             1      0       1      0
service_role     select metadata         1      1       1      1
service_role     select access_token     1      1       1      1
service_role     select refresh_token    1      1       1      1
service_role     select *                1      1       1      1
service_role     filter by token         1      1       1      1
service_role     lock the row            1      1       1      1
service_role     insert                  1      1       1      1
service_role     upsert                  1      1       1      1
service_role     update metadata         1      1       1      1
service_role     update expires_at       1      1       1      1
service_role     update tokens           1      1       1      1
service_role     give the row away       1      1       1      1
service_role     delete                  1      1       1      1
service_role     truncate                -      -       -      -
service_role     refresh state           1      1       1      1
service_role     connections             -      -       -      -
"""


async def outcome(admin: asyncpg.Connection, role: str, acting: UUID, statement: str, row: UUID) -> str:
    """What one statement does to one row, as a role with the claims of a user; all is rolled back."""
    transaction = admin.transaction()
    await transaction.start()
    try:
        if statement.startswith("insert") and "conflict" not in statement:
            await admin.execute(f"delete from {TABLE}")
        await admin.execute(f"set local role {role}")
        await admin.execute("select set_config('request.jwt.claims', $1, true)", json.dumps({"sub": str(acting)}))
        rows = await admin.fetch(statement, *([row] if "$1" in statement else []))
    except asyncpg.InsufficientPrivilegeError:
        return "-"
    finally:
        await transaction.rollback()
    return str(len(rows))


async def matrix(admin: asyncpg.Connection, users: list[UUID]) -> dict[tuple[str, str], list[str]]:
    """The cells of every actor and operation: own row, other row."""
    a, b, c = users
    cells: dict[tuple[str, str], list[str]] = {}
    for actor, role in ACTORS.items():
        own, other = (b, a) if actor.endswith(" b") else (a, b)
        for name, statement in OPERATIONS.items():
            text = statement.replace("{c}", str(c))
            cells[actor, name] = [await outcome(admin, role, own, text, row) for row in (own, other)]
    return cells


@pytest.fixture
async def pair(store: ConnectionStore, users: list[UUID]) -> list[UUID]:
    """Two connected users, each with a refresh under way, and a third."""
    for user in users[:2]:
        await store.save(user, GRANT, ALICE)
        await store.begin_refresh(user, seen=fingerprint(""))
    return users


@pytest.fixture
async def locked(admin: asyncpg.Connection) -> AsyncIterator[asyncpg.Connection]:
    """The database, locked down until the end of the test."""
    await admin.execute(read_sql("lock_down.sql"))
    yield admin
    await admin.execute(read_sql("lock_down_undo.sql"))


def table(open_: dict[tuple[str, str], list[str]], shut: dict[tuple[str, str], list[str]]) -> str:
    """Both matrices side by side."""
    head = f"{'':38}{'open':>11}{'locked down':>15}\n{'':38}{'own  other':>11}{'own  other':>15}"
    lines = [
        f"{actor:17}{name:21}{before[0]:>4}{before[1]:>7}{shut[actor, name][0]:>8}{shut[actor, name][1]:>7}"
        for (actor, name), before in open_.items()
    ]
    return "\n".join([head, *lines])


async def test_who_may_do_what(admin: asyncpg.Connection, pair: list[UUID]) -> None:
    """Every operation of every role on the own row and another's, before the lock-down, in it and after its undoing."""
    before = await matrix(admin, pair)
    await admin.execute(read_sql("lock_down.sql"))
    try:
        during = await matrix(admin, pair)
    finally:
        await admin.execute(read_sql("lock_down_undo.sql"))
    text = table(before, during)
    print(text)
    assert text.strip() == MATRIX.strip()
    assert await matrix(admin, pair) == before


async def client_grants(admin: asyncpg.Connection) -> set[tuple[str, str, str]]:
    """What the client roles and PUBLIC hold on the table: role, privilege, and the column or `*`."""
    rows = await admin.fetch(
        "select coalesce(rolname::text, 'public'), privilege_type, place from ("
        "select relacl as acl, '*' as place from pg_class where oid = $1::text::regclass "
        "union all select attacl, attname::text from pg_attribute where attrelid = $1::text::regclass"
        ") as held, aclexplode(acl) left join pg_roles on pg_roles.oid = grantee "
        "where coalesce(rolname, 'public') in ('public', 'anon', 'authenticated')",
        TABLE,
    )
    return {(row[0], row[1], row[2]) for row in rows}


async def test_all_columns_but_the_tokens_stay_readable(locked: asyncpg.Connection) -> None:
    """A column that is added to the table must be decided on here, too."""
    columns = await locked.fetch(
        "select attname::text from pg_attribute where attrelid = $1::text::regclass and attnum > 0", TABLE
    )
    metadata = {row[0] for row in columns} - {"access_token", "refresh_token"}
    expected = {("authenticated", "SELECT", column) for column in metadata} | {("authenticated", "DELETE", "*")}
    assert await client_grants(locked) == expected


async def test_a_lock_down_outlasts_the_schema(database: Database, locked: asyncpg.Connection) -> None:
    """Applying schema.sql again neither opens the tokens nor takes what is left; so does a second lock-down."""
    before = await client_grants(locked)
    await apply_schema(database.admin_dsn)
    assert await client_grants(locked) == before
    await locked.execute(read_sql("lock_down.sql"))
    assert await client_grants(locked) == before


async def test_grants_of_an_older_project_go(admin: asyncpg.Connection) -> None:
    """Whatever clients were granted, on the table or on a token column, is gone after it; the undo gives what
    schema.sql gives, and may be applied again.
    """
    before = await client_grants(admin)
    await admin.execute(
        f"grant all on {TABLE} to anon, authenticated, public; grant select (access_token), "
        f"update (refresh_token) on {TABLE} to anon, authenticated, public"
    )
    try:
        await admin.execute(read_sql("lock_down.sql"))
        assert {role for role, _, _ in await client_grants(admin)} == {"authenticated"}
        assert not [held for held in await client_grants(admin) if held[2] in {"access_token", "refresh_token"}]
    finally:
        for _ in range(2):
            await admin.execute(read_sql("lock_down_undo.sql"))
    assert await client_grants(admin) == before


async def test_without_the_schema_it_is_refused(prepared: Database) -> None:
    """The file fails as a whole and says what to apply first."""
    connection = await asyncpg.connect(prepared.server.dsn())
    try:
        with pytest.raises(asyncpg.RaiseError, match="schema spotconn is missing") as raised:
            await connection.execute(read_sql("lock_down.sql"))
        assert "schema.sql first" in str(raised.value.hint)
    finally:
        await connection.close()


async def test_a_user_disconnects_through_the_api(locked: asyncpg.Connection, pair: list[UUID]) -> None:
    """The request that a client library sends for a disconnect works in a locked database and touches one row."""
    async with locked.transaction():
        await locked.execute("set local role authenticated")
        await locked.execute("select set_config('request.jwt.claims', $1, true)", json.dumps({"sub": str(pair[0])}))
        assert await locked.execute(f"delete from {TABLE} where user_id = $1", pair[0]) == "DELETE 1"
    assert await locked.fetchval(f"select array_agg(user_id) from {TABLE}") == [pair[1]]


@pytest.mark.parametrize("name", ["lock_down.sql", "close_writes.sql"])
@pytest.mark.parametrize(
    "membership", ["", "create role between; grant between to authenticated; grant spotconn to between"]
)
async def test_a_client_that_may_act_as_the_library_is_refused(
    admin: asyncpg.Connection, name: SqlFile, membership: str
) -> None:
    """A client role that is a member of spotconn, directly or not, would keep the tokens: the file says so."""
    transaction = admin.transaction()
    await transaction.start()
    try:
        await admin.execute(read_sql("lock_down_undo.sql"))
        await admin.execute(membership or "grant spotconn to anon")
        with pytest.raises(asyncpg.RaiseError, match="a client role may act as the role spotconn") as raised:
            await admin.execute(read_sql(name))
        assert "REVOKE spotconn FROM" in str(raised.value.hint)
    finally:
        await transaction.rollback()


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_library_does_not_notice() -> None:
    """The tests of the store, the manager and the admin pass against a database that is locked down."""
    named = ("database/test_store.py", "tokens/test_manager.py", "tokens/test_refresh.py", "database/test_admin.py")
    files = [str(TESTS / name) for name in named]
    options = ["-p", "no:cacheprovider", "--locked-down"]
    command = [sys.executable, "-m", "pytest", *options, *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=TESTS.parent)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "the database is locked down" in done.stdout
