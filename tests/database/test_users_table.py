"""A table of users of the project's own, which auth.users follows: `users` of `schema_sql` and `schema_statements`."""

import asyncio
import re
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID, uuid4

import asyncpg
import pytest

from spotconn import (
    AesGcmSivCipher,
    ConnectionAdmin,
    ConnectionStore,
    DecryptionError,
    Profile,
    TokenGrant,
    integer_id,
    schema_sql,
    schema_statements,
    user_id,
)
from spotconn._command.finding import Finding
from spotconn._command.probe import Probe
from spotconn._command.users import check_users
from spotconn._database.idle_sessions import Session
from spotconn._database.schema import read_sql
from spotconn.testing import apply_schema
from support.database import Dsn
from support.guide import sql_blocks
from support.lock_waits import until_someone_waits

PLAIN = "public.users(id bigint)"
GRANT = TokenGrant(access_token="access", refresh_token="refresh", expires_at=datetime(2099, 11, 24, tzinfo=UTC))
ALICE = Profile(spotify_user_id="alice")
KNOWN = "select array(select id from auth.users order by id)"
INTEGERS = [0, 1, -1, 42, -42, 10**15, 10**18, 2**31, 2**63 - 1, -(2**63)]
TEXTS = ["", "42", "user_2abc", "é", "e\u0301", "🎵", " a", str(user_id(42)), "x" * 5000]


async def apply(connection: asyncpg.Connection, users: str) -> None:
    await connection.execute(schema_sql(plain_postgres=True, users=users, transaction=False))


async def insert_connection(connection: asyncpg.Connection, user: UUID, account: str = "alice") -> None:
    await connection.execute(
        "insert into spotify_connections (user_id, spotify_user_id, access_token, refresh_token, expires_at) "
        "values ($1, $2, 'access', 'refresh', now())",
        user,
        account,
    )


@pytest.fixture
async def tied(scratch: asyncpg.Connection) -> asyncpg.Connection:
    """A database whose users have integers; 1 and 2 are there."""
    await scratch.execute("create table users (id bigint primary key, name text); insert into users values (1), (2)")
    await apply(scratch, PLAIN)
    return scratch


async def test_sql_and_python_name_the_same_user(admin: asyncpg.Connection) -> None:
    """For integers, texts and UUIDs; and the integer comes back, and nothing else does."""
    assert await admin.fetchval("select array_agg(spotconn.user_id(v) order by n) from unnest($1::bigint[]) "
                                "with ordinality as _ (v, n)", INTEGERS) == [user_id(v) for v in INTEGERS]  # fmt: skip
    assert await admin.fetchval("select array_agg(spotconn.user_id(v) order by n) from unnest($1::text[]) "
                                "with ordinality as _ (v, n)", TEXTS) == [user_id(v) for v in TEXTS]  # fmt: skip
    assert await admin.fetchval("select spotconn.user_id($1::uuid)", user_id("a")) == user_id("a")
    others = [user_id("42"), uuid4(), *(UUID(f"73706f74-{rest}") for rest in NO_INTEGERS)]
    backwards = [*map(user_id, INTEGERS), *others]
    assert (
        await admin.fetchval(
            "select array_agg(spotconn.integer_id(v) order by n) from unnest($1::uuid[]) with ordinality as _ (v, n)",
            backwards,
        )
        == [integer_id(one) for one in backwards]
        == [*INTEGERS, *[None] * len(others)]
    )


NO_INTEGERS = [
    "1000-8000-8000-000000000000",  # minus nought
    "0009-8223-8372-036854775808",  # one too large
    "1009-8223-8372-036854775809",
    "0009-8999-8999-999999999999",
    "0000-8000-8000-00000000000a",
    "0000-4000-8000-000000000042",
    "0000-8000-b000-000000000042",
]


@pytest.mark.parametrize(
    ("column", "ids", "more"),
    [
        ("smallint", [1, -2], 3),
        ("integer", [1, -2], 3),
        ("bigint", [1, 2**62], 3),
        ("text", ["a", "é"], "42"),
        ("varchar", ["a", "42"], "b"),
        ("uuid", [UUID(int=1), UUID(int=2)], UUID(int=3)),
    ],
)
async def test_users_of_every_type_are_followed(
    scratch: asyncpg.Connection, column: str, ids: list[Any], more: Any
) -> None:
    """Those who are there, those who come and go, those whose id changes, and all of them when the table is emptied."""
    await scratch.execute(f"create table users (id {column} primary key)")
    await scratch.executemany("insert into users values ($1)", [(one,) for one in ids])
    await apply(scratch, f"public.users(id {column})")
    assert await scratch.fetchval(KNOWN) == sorted(map(user_id, ids))
    await scratch.execute("insert into users values ($1)", more)
    assert await scratch.fetchval(KNOWN) == sorted(map(user_id, [*ids, more]))
    await insert_connection(scratch, user_id(ids[0]))
    await scratch.execute("delete from users where id = $1", ids[0])
    assert await scratch.fetchval(KNOWN) == sorted(map(user_id, [ids[1], more]))
    assert await scratch.fetchval("select count(*) from spotify_connections") == 0
    await scratch.execute("update users set id = $1 where id = $2", ids[0], more)
    assert await scratch.fetchval(KNOWN) == sorted(map(user_id, ids))
    await scratch.execute("truncate users")
    assert await scratch.fetchval(KNOWN) == []


async def test_a_transaction_that_deletes_a_user_goes_on_beside_an_application(
    dsn: Dsn, tied: asyncpg.Connection
) -> None:
    """It has the connections first and the users then, and gets both; the application has neither until it has all."""
    applying, deleting = await asyncpg.connect(dsn()), await asyncpg.connect(dsn())
    try:
        async with asyncio.TaskGroup() as group, deleting.transaction():
            await deleting.execute("delete from spotify_connections where user_id = spotconn.user_id(1)")
            task = group.create_task(apply(applying, PLAIN))
            await until_someone_waits(tied, "public.spotify_connections")
            await deleting.execute("set local lock_timeout = '2s'; delete from users where id = 1")
        assert task.done()
        assert await tied.fetchval(KNOWN) == [user_id(2)]
    finally:
        await applying.close()
        await deleting.close()


async def test_a_second_application_changes_nothing(tied: asyncpg.Connection) -> None:
    """Statement by statement, too: rows, triggers and settings of the session are as before."""
    before = await _everything(tied)
    await apply(tied, PLAIN)
    async with tied.transaction():
        for statement in schema_statements(plain_postgres=True, users=PLAIN):
            await (await tied.prepare(statement)).fetch()
    assert await _everything(tied) == before


async def _everything(connection: asyncpg.Connection) -> list[Any]:
    return [
        await connection.fetch(query)
        for query in (
            "select id, xmin from auth.users order by id",
            "select tgname, tgenabled, pg_get_triggerdef(oid) from pg_trigger where tgname ~ 'follow' order by 1",
            "select current_setting('search_path'), current_setting('row_security'), current_setting('lock_timeout')",
        )
    ]


@pytest.mark.parametrize("conforming", ["on", "off"])
@pytest.mark.parametrize(("table", "column"), [('We"ird', "Id"), ("a'; drop table t; --", "$$ :x %s"), ("\\'", "\\")])
async def test_odd_names_are_names(scratch: asyncpg.Connection, table: str, column: str, conforming: str) -> None:
    """Quotes, backslashes, dollars, semicolons and colons in names end nothing and begin nothing."""
    schema, name, identifier = ('"' + name.replace('"', '""') + '"' for name in ("Sché.ma", table, column))
    await scratch.execute(f"""
        create schema {schema}; create table {schema}.{name} ({identifier} bigint unique);
        insert into {schema}.{name} values (7), (null); create table t ();
    """)
    statements = schema_statements(plain_postgres=True, users=f"{schema}.{name}({identifier} bigint)")
    async with scratch.transaction():
        await scratch.execute(f"set local standard_conforming_strings = {conforming}")
        for statement in statements[:4]:
            await (await scratch.prepare(statement)).fetch()
        named = [
            await scratch.fetchval(f"select current_setting('spotconn.users_{part}')") for part in ("table", "column")
        ]
        assert named == [table, column]
        await scratch.execute("set local standard_conforming_strings = on")
        for statement in statements[4:]:
            await (await scratch.prepare(statement)).fetch()
    await scratch.execute(f"insert into {schema}.{name} values (8)")
    assert await scratch.fetchval(KNOWN) == [user_id(7), user_id(8)]


async def test_names_without_quotes_are_folded(scratch: asyncpg.Connection) -> None:
    """As in SQL, and the type has its usual spellings."""
    await scratch.execute("create table users (id bigint primary key); insert into users values (1)")
    await apply(scratch, " Public . USERS ( Id  INT8 ) ")
    assert await scratch.fetchval(KNOWN) == [user_id(1)]


@pytest.mark.parametrize(
    "wrong",
    ["", "users", "users(id bigint)", "public.users", "public.users(id)", "public.users(id bigint); drop table x",
     'public."us"ers"(id bigint)', "public.users(id bigint, b text)", "public.users(id numeric)", "public.1(id text)",
     'public."\0"(id bigint)', 'public."\udcff"(id bigint)', 'public.""(id bigint)'],
)  # fmt: skip
def test_another_form_is_refused(wrong: str) -> None:
    """The argument is named, and nothing of it is shown."""
    for make in (schema_sql, schema_statements):
        with pytest.raises(ValueError, match=r"^users: expected ") as raised:
            make(users=wrong)
        assert "drop" not in str(raised.value)


UNFIT = {
    "public.userz(id bigint)": ("public.userz: there is no such table", "Create it first, or name the table"),
    "public.users(no bigint)": ("public.users: it has no column no", "Name the column that has the ids"),
    "public.users(id integer)": (
        "public.users: its column id has the type bigint",
        "Name that type: spotconn schema --apply --users 'public.users(id bigint)'.",
    ),
    'public.users("No" text)': (
        'public.users: its column "No" has the type character varying(9)',
        """Name that type: spotconn schema --apply --users 'public.users("No" character varying)'.""",
    ),
    "public.users(short varchar)": (
        "public.users: its column short has the type character(3)",
        "Name a column of the type smallint, integer, bigint, text, character varying, uuid.",
    ),
    "public.users(name text)": ("public.users: its column name is neither the primary key nor unique", "Two rows"),
    "public.users(partly text)": ("public.users: its column partly is neither the primary key nor unique", "Two rows"),
    "public.profiles(id uuid)": ("public.profiles: its rows are users of auth.users already", "Leave --users out"),
    "auth.users(id uuid)": ("auth.users: its rows are users of auth.users already", "Leave --users out"),
    "public.people(id bigint)": ("public.people: it is no table", "Name the table that has the users"),
    "public.open(id bigint)": ("public.open: it belongs to the role anon", "A client could make and delete"),
}


async def test_what_does_not_fit_is_named_first(dsn: Dsn, scratch: asyncpg.Connection) -> None:
    """Nothing is changed by a missing table or column, another type, a column that is not unique; the hint mends it."""
    await apply_schema(dsn())
    await scratch.execute("""
        create table users (id bigint primary key, name text, partly text, short char(3) unique,
            "No" varchar(9) unique);
        create unique index on users (partly) where partly <> '';
        create table profiles (id uuid primary key references auth.users (id));
        create view people as select * from users;
        create table open (id bigint primary key); alter table open owner to anon;
        drop schema spotconn cascade;
    """)
    for named, (text, remedy) in UNFIT.items():
        with pytest.raises(asyncpg.PostgresError, match=f"^{re.escape(text)}") as raised:
            await apply(scratch, named)
        assert str(raised.value.hint).startswith(f"Nothing was changed. {remedy}")
        assert await scratch.fetchval("select to_regnamespace('spotconn')") is None


async def test_one_table_and_one_kind_of_ids(tied: asyncpg.Connection) -> None:
    """The user 1 of a second table would be the user 1 of the first; a text 1 would lose its connection."""
    await tied.execute("create table members (id bigint primary key)")
    with pytest.raises(
        asyncpg.PostgresError, match=r"^public.members: auth\.users follows another table: public.users"
    ) as raised:
        await apply(tied, "public.members(id bigint)")
    assert "Drop the triggers spotconn_follow_insert" in str(raised.value.hint)
    await tied.execute("alter table users add handle text unique")
    with pytest.raises(asyncpg.PostgresError, match=r"^public.users: auth\.users follows it by ids of another kind"):
        await apply(tied, "public.users(handle text)")
    with pytest.raises(asyncpg.PostgresError, match="cannot alter type of a column used in a trigger definition"):
        await tied.execute("alter table users alter id type text")


async def test_the_guide_changes_the_type(scratch: asyncpg.Connection) -> None:
    """From integer to bigint, in one transaction with the schema: connections stay, and wider ids are followed."""
    await scratch.execute("create table users (id integer primary key); insert into users values (1)")
    await apply(scratch, "public.users(id integer)")
    await insert_connection(scratch, user_id(1))
    (wider,) = sql_blocks("users-table.md")
    with pytest.raises(asyncpg.FeatureNotSupportedError, match="cannot alter type of a column used in a trigger"):
        await scratch.execute(wider.rpartition("\n")[0].splitlines()[-1])
    async with scratch.transaction():
        await scratch.execute(wider)
        await apply(scratch, PLAIN)
    await scratch.execute("insert into users values (9876543210)")
    assert await scratch.fetchval(KNOWN) == [user_id(1), user_id(9876543210)]
    await scratch.execute("delete from users where id = 1")
    assert await scratch.fetchval("select count(*) from spotify_connections") == 0


async def test_a_renamed_column_is_named(tied: asyncpg.Connection) -> None:
    """No user is lost in silence, a column that takes the old name is not read, and applying again mends it."""
    await tied.execute("alter table users rename id to no; alter table users add id text default 'x'")
    with pytest.raises(asyncpg.UndefinedColumnError, match="was renamed, or has another type"):
        await tied.execute("insert into users (no) values (3)")
    await apply(tied, "public.users(no bigint)")
    await tied.execute("insert into users (no) values (3)")
    assert await tied.fetchval(KNOWN) == [user_id(number) for number in (1, 2, 3)]


async def test_a_changed_id_takes_the_connection_along(dsn: Dsn, tied: asyncpg.Connection) -> None:
    """With what the library knows of it, for the documented foreign key too, which does not follow by itself."""
    async with ConnectionStore.open(dsn(), max_size=1) as store:
        await store.save(1, GRANT, ALICE, client_id="app")
        await tied.execute("update users set id = 11 where id = 1")
        moved = await store.get(11)
        assert (moved.user_id, moved.access_token, moved.client_id) == (user_id(11), "access", "app")
    assert await tied.fetchval(KNOWN) == [user_id(2), user_id(11)]


async def test_an_encrypted_connection_is_moved_after_a_changed_id(dsn: Dsn, tied: asyncpg.Connection) -> None:
    """A value is bound to its user: it does not decrypt until the operator has moved it from the former id."""
    cipher = AesGcmSivCipher([AesGcmSivCipher.generate_key()])
    async with ConnectionStore.open(dsn(), max_size=1, cipher=cipher) as store:
        await store.save(1, GRANT, ALICE)
        await tied.execute("update users set id = 11 where id = 1")
        with pytest.raises(DecryptionError):
            await store.get(11)
        async with ConnectionAdmin.open(dsn(), max_size=1, cipher=cipher) as admin:
            assert await admin.move(1, 11)
        assert (await store.get(11)).access_token == "access"


CLIENT = """
    alter table users enable row level security;
    create policy own on users to authenticated using (name = 'mallory') with check (name = 'mallory');
    grant select, insert, update, delete on users to authenticated;
"""


async def test_a_client_that_writes_users_reaches_nobody_else(scratch: asyncpg.Connection) -> None:
    """By an id that another user of auth.users has it neither becomes that user nor deletes the connection."""
    await scratch.execute("create table users (id uuid primary key, name text)")
    await apply(scratch, "public.users(id uuid)")
    await scratch.execute(CLIENT)
    victim, own = uuid4(), uuid4()
    await scratch.execute("insert into auth.users (id) values ($1)", victim)
    await insert_connection(scratch, victim)
    await scratch.execute("set role authenticated")
    await scratch.execute("insert into users values ($1, 'mallory')", own)
    for attack in ("insert into users values ($1, 'mallory')", "update users set id = $1"):
        with pytest.raises(asyncpg.UniqueViolationError, match=r"auth\.users has the user of this new id already"):
            await scratch.execute(attack, victim)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await scratch.execute("truncate users")
    await scratch.execute("delete from users")
    await scratch.execute("reset role")
    assert await scratch.fetchval(KNOWN) == [victim]
    assert await scratch.fetchval("select user_id from spotify_connections") == victim


@pytest.mark.parametrize("login", ["app", "authenticated"])
async def test_nobody_else_uses_the_function_of_the_triggers(dsn: Dsn, tied: asyncpg.Connection, login: str) -> None:
    """It acts as the owner of the schema: the service's login cannot put it on a table of its own, nor call it."""
    await tied.execute(
        "grant usage on schema spotconn to authenticated; grant create on schema public to app, authenticated"
    )
    await tied.execute(f"set role {login}; create table mine (id bigint primary key)")
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="follow_user"):
        await tied.execute(
            "create trigger t after delete on mine for each row execute function spotconn.follow_user('id', 'integer')"
        )


async def test_no_cast_of_the_tables_owner_runs(dsn: Dsn, tied: asyncpg.Connection) -> None:
    """Who owns the table puts a type with a cast of its own in place of the column: nothing of it is executed."""
    await tied.execute("""
        grant create on schema public to app; alter table users owner to app; set role app;
        create type evil as (n int);
        create function steal(evil) returns bigint language plpgsql as $$ begin raise 'stolen'; end $$;
        create cast (evil as bigint) with function steal(evil) as implicit;
        alter table users rename id to was; alter table users add id evil;
    """)
    for statement in ("insert into users values (5, 'x', row(1))", "truncate users", "delete from users"):
        with pytest.raises(asyncpg.UndefinedColumnError, match="was renamed"):
            await tied.execute(statement)


async def test_a_login_that_sees_some_users_is_refused(dsn: Dsn, scratch: asyncpg.Connection) -> None:
    """Rows that a policy hides from the login would be left out in silence."""
    await scratch.execute("""
        create role chief_of_some createrole login password 'chief_of_some';
        create table users (id bigint primary key); insert into users values (1);
        alter table users enable row level security; grant select, trigger, update on users to chief_of_some;
    """)
    try:
        await apply_schema(dsn())
        await scratch.execute("""
            grant spotconn to chief_of_some with admin option;
            grant select, insert on auth.users to chief_of_some; grant usage on schema auth to chief_of_some;
        """)
        async with scratch.transaction():
            await scratch.execute(schema_sql(users=PLAIN, transaction=False))
            await scratch.execute(
                "grant execute on function spotconn.follow_user() to chief_of_some; delete from auth.users"
            )
            await scratch.execute("set local role chief_of_some")
            with pytest.raises(asyncpg.PostgresError, match="row-level security"):
                await scratch.execute(read_sql("users.sql"))
    finally:
        await scratch.execute("drop owned by chief_of_some; drop role chief_of_some")


async def test_a_partitioned_table_is_followed(scratch: asyncpg.Connection) -> None:
    """In each of its partitions, also in one that comes later."""
    await scratch.execute("""
        create table users (id bigint primary key) partition by range (id);
        create table low partition of users for values from (0) to (10); insert into users values (1);
    """)
    await apply(scratch, PLAIN)
    await scratch.execute("create table high partition of users for values from (10) to (20)")
    await scratch.execute("insert into users values (11); delete from users where id = 1")
    assert await scratch.fetchval(KNOWN) == [user_id(11)]


async def test_texts_that_a_collation_takes_for_equal_differ(scratch: asyncpg.Connection) -> None:
    """A change that only the octets show is followed, where the server has such collations; a null id is nobody."""
    collation = ""
    if await scratch.fetchval("select exists (select from pg_collation where collname = 'und-x-icu')"):
        await scratch.execute("create collation ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
        collation = "collate ci"
    await scratch.execute(f"create table users (no int primary key, handle text {collation} unique)")
    await scratch.execute("insert into users values (1, 'a')")
    await apply(scratch, "public.users(handle text)")
    for handle in ("A", None, "b"):
        await scratch.execute("update users set handle = $1 where no = 1", handle)
        assert await scratch.fetchval(KNOWN) == ([user_id(handle)] if handle else [])


@pytest.mark.long
async def test_many_users_in_one_statement(scratch: asyncpg.Connection) -> None:
    """Those who are there become users soon, and a second application inserts none."""
    await scratch.execute(
        "create table users (id bigint primary key); insert into users select generate_series(1, 200000)"
    )
    for _ in range(2):
        await scratch.execute(schema_sql(plain_postgres=True, users=PLAIN), timeout=60)
    assert await scratch.fetchval("select count(*) from auth.users") == 200_000


async def test_the_doctor_looks_at_the_triggers(dsn: Dsn, tied: asyncpg.Connection) -> None:
    """It names the table; a trigger that is missing or disabled, a renamed column and a second table are faults."""
    probe = Probe(cast("Session", tied))
    assert await check_users(probe) == Finding(state="ok", subject="users", text="auth.users follows public.users")
    for fault in (
        "alter table users disable trigger spotconn_follow_delete",
        "drop trigger spotconn_follow_truncate on users",
        "alter table users rename id to no",
    ):
        async with probe.rolled_back():
            await tied.execute(fault)
            found = await check_users(probe)
        assert (found.state, found.remedy) == ("fail", "spotconn schema --apply --users"), fault
    await tied.execute("""
        create table members (id bigint);
        create trigger t after insert on members for each row execute function spotconn.follow_user('id', 'integer')
    """)
    found = await check_users(probe)
    assert (found.state, found.text.partition(":")[0]) == ("fail", "auth.users follows public.members, public.users")
    await tied.execute("drop table users, members")
    assert (await check_users(probe)).state == "ok"
