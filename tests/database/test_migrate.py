"""`ConnectionAdmin.migrate`: what becomes of the rows of another table, and that what is there stays."""

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from uuid import UUID, uuid4

import asyncpg
import pytest
from cryptography.fernet import Fernet

from spotconn import (
    AesGcmSivCipher,
    ConfigurationError,
    ConnectionAdmin,
    ConnectionStore,
    MigratedRow,
    SpotifyAccounts,
    TokenManager,
    user_id,
)
from spotconn._command.fernet import fernet_decrypt
from spotconn._command.migrate import report_rows
from spotconn._database import source_table
from spotconn._database.migration import read_time
from spotconn._database.schema import schema_sql
from spotconn.testing import FakeSpotify
from support.connections import connect, rows
from support.database import Database
from support.other_shapes import SHAPES, USERS
from support.scratch import scratch_database

ENDS = datetime(2026, 11, 24, 12, tzinfo=UTC)
TABLE = """
create schema old;
create table old."Spotify Tokens" (
    owner text, refresh text, access text, ends bigint, account text, granted jsonb, "since when" date
);
grant usage on schema old to operator; grant select on old."Spotify Tokens" to operator;
grant usage on schema auth, spotconn to operator; grant select on auth.users to operator;
grant execute on function spotconn.user_id(bigint), spotconn.user_id(text) to operator
"""
GONE = """
drop schema old cascade; revoke usage on schema auth, spotconn from operator; revoke select on auth.users from operator;
revoke execute on function spotconn.user_id(bigint), spotconn.user_id(text) from operator
"""
MAP = {"user_id": "owner", "refresh_token": "refresh", "access_token": "access", "expires_at": "ends"} | {
    "spotify_user_id": "account",
    "scope": "granted",
    "connected_at": "since when",
}
SOURCE = 'old."Spotify Tokens"'


@pytest.fixture
async def source(admin: asyncpg.Connection, operator: str) -> AsyncIterator[str]:
    """The name of another table, which is empty."""
    assert operator
    await admin.execute(TABLE)
    yield SOURCE
    await admin.execute(GONE)


@pytest.fixture
async def work(operator: str, source: str) -> AsyncIterator[ConnectionAdmin]:
    """An admin of a login that may read that table."""
    assert source
    async with ConnectionAdmin.open(operator) as opened:
        yield opened


async def add(admin: asyncpg.Connection, user: object, refresh: str | None = "refresh", **values: object) -> None:
    """Insert a row into the other table."""
    row = {"access": "access", "ends": 1795000000, "account": "alice", "granted": '["streaming"]'} | values
    await admin.execute(
        f"insert into {SOURCE} values ($1, $2, $3, $4, $5, $6, $7)",
        None if user is None else str(user),
        refresh,
        *(row.get(name) for name in ("access", "ends", "account", "granted", "since")),
    )


async def outcomes(found: AsyncIterator[MigratedRow]) -> dict[str, str]:
    """What becomes of each user, in words."""
    return {row.key: " ".join([row.state, *row.lacks]) async for row in found}


async def test_a_dry_run_writes_nothing(work: ConnectionAdmin, admin: asyncpg.Connection, users: list[UUID]) -> None:
    """It tells what would be written, what is not known of each row, and what makes a row unusable."""
    nobody = uuid4()
    await add(admin, users[0])
    await add(admin, users[1], access=None, granted=None)
    await add(admin, users[2], None, account=None)
    await add(admin, nobody)
    await add(admin, "user_2abc")
    await add(admin, None)
    found = await outcomes(work.migrate(SOURCE, MAP))
    assert found == {
        str(users[0]): "ready connected_at",
        str(users[1]): "ready access_token expires_at scope connected_at",
        str(users[2]): "unusable refresh_token",
        str(nobody): "unusable user in auth.users",
        "user_2abc": "unusable user_id",
        "None": "unusable user_id",
    }
    assert not await rows(admin)


async def test_rows_are_written_once(
    work: ConnectionAdmin, admin: asyncpg.Connection, users: list[UUID], store: ConnectionStore, spotify: FakeSpotify
) -> None:
    """Times in seconds and milliseconds and scopes as JSON are read; a connection that is there stays, also later."""
    there = await connect(store, spotify, users[2])
    await add(admin, users[0], since=date(2026, 9, 1))
    await add(admin, users[1], ends=1795000000000, granted="[]")
    await add(admin, users[1], "older", ends=1000)
    await add(admin, users[2])
    known = datetime(2026, 6, 1, tzinfo=UTC)
    found = [row async for row in work.migrate(SOURCE, MAP, write=True, connected_at=known)]
    assert sorted(row.state for row in found) == ["older", "present", "written", "written"]
    first, second, third = [await store.get(user) for user in users]
    assert (first.refresh_token, first.spotify_user_id, first.scope) == ("refresh", "alice", frozenset({"streaming"}))
    assert first.expires_at == second.expires_at == datetime.fromtimestamp(1795000000, UTC)
    assert first.connected_at == datetime(2026, 8, 31, 10, tzinfo=UTC)
    assert (second.refresh_token, second.connected_at) == ("refresh", known)
    assert third.refresh_token == there.refresh_token
    again = [row.state async for row in work.migrate(SOURCE, MAP, write=True)]
    assert sorted(again) == ["older", "present", "present", "present"]


async def test_a_row_that_the_database_refuses_stands_alone(
    work: ConnectionAdmin, admin: asyncpg.Connection, users: list[UUID]
) -> None:
    """What a constraint of the project refuses is told by its name, and the rows beside it are written."""
    for user, account in zip(users, ("alice", "bob", "carla"), strict=True):
        await add(admin, user, account=account)
    await admin.execute("alter table public.spotify_connections add constraint mine check (spotify_user_id <> 'bob')")
    try:
        found = await outcomes(work.migrate(SOURCE, MAP, write=True))
    finally:
        await admin.execute("alter table public.spotify_connections drop constraint mine")
    assert "mine" in found.pop(str(users[1]))
    assert [text.split()[0] for text in found.values()] == ["written", "written"]
    assert len(await rows(admin)) == 2


async def test_tokens_are_encrypted_anew(
    operator: str, source: str, admin: asyncpg.Connection, users: list[UUID], database: Database
) -> None:
    """What Fernet has encrypted is stored under the key of the ring; what it does not decrypt is told."""
    key = Fernet.generate_key().decode()
    assert source
    await add(admin, users[0], Fernet(key).encrypt(b"refresh-marked").decode(), access=None)
    await add(admin, users[1], Fernet(Fernet.generate_key()).encrypt(b"refresh-marked").decode())
    cipher = AesGcmSivCipher([AesGcmSivCipher.generate_key()])
    async with ConnectionAdmin.open(operator, cipher=cipher) as encrypting:
        decrypt = fernet_decrypt({"KEYS": f"{Fernet.generate_key().decode()}, {key}"}, "KEYS")
        found = await outcomes(encrypting.migrate(SOURCE, MAP, write=True, decrypt=decrypt))
    assert found[str(users[1])] == "unusable refresh_token (does not decrypt)"
    (row,) = await rows(admin)
    assert row["refresh_token"].startswith("spotconn1.")
    async with ConnectionStore.open(database.dsn, cipher=cipher, max_size=1) as store:
        assert (await store.get(users[0])).refresh_token == "refresh-marked"


@pytest.mark.parametrize(
    ("token", "why"),
    [
        (Fernet(Fernet.generate_key()).encrypt(b"marked").decode(), "looks encrypted with Fernet: --fernet-key-env"),
        ("U2FsdGVkX1+marked", "looks encrypted with OpenSSL or CryptoJS: ConnectionAdmin.migrate takes decrypt="),
        ("vault:v1:marked", "looks encrypted with Vault: ConnectionAdmin.migrate takes decrypt="),
        ("eyJhbGciOiJIUzI1NiJ9.marked", "is JSON in base64, such as a JWT or what Laravel encrypts: "),
        ("spotconn1.01234567.marked", "the stored refresh_token is encrypted: set SPOTCONN_ENCRYPTION_KEYS, or pass a"),
    ],
    ids=["Fernet", "OpenSSL", "Vault", "JWT", "spotconn"],
)
async def test_what_is_no_token_is_not_stored(
    work: ConnectionAdmin, admin: asyncpg.Connection, users: list[UUID], token: str, why: str
) -> None:
    """Ciphertext and what else begins as no token of Spotify's does is unusable, told with its remedy, also when only
    looked at; an access token of that kind is refreshed at the first use.
    """
    await add(admin, users[0], token)
    await add(admin, users[1], access=token)
    for write in (False, True):
        found = await outcomes(work.migrate(SOURCE, MAP, write=write))
        assert found[str(users[0])].startswith(f"unusable refresh_token ({why}")
        assert found[str(users[1])].split()[1:] == ["access_token", "expires_at", "connected_at"]
        assert "marked" not in str(found)
    (row,) = await rows(admin)
    assert (row["user_id"], row["access_token"]) == (users[1], "")


async def test_what_this_library_has_encrypted_is_read(
    operator: str, source: str, admin: asyncpg.Connection, users: list[UUID], database: Database
) -> None:
    """Under a key of the ring, as in a table that was renamed; under another the key is named."""
    assert source
    cipher, other = [AesGcmSivCipher([AesGcmSivCipher.generate_key()]) for _ in range(2)]
    for user, key in zip(users, (cipher, other), strict=False):
        await add(admin, user, key.encrypt("refresh-marked", user_id=user, column="refresh_token"), access=None)
    async with ConnectionAdmin.open(operator, cipher=cipher) as encrypting:
        found = await outcomes(encrypting.migrate(SOURCE, MAP, write=True))
    assert f"is encrypted with key {other.key_ids[0]}, which is not in the ring" in found[str(users[1])]
    async with ConnectionStore.open(database.dsn, cipher=cipher, max_size=1) as store:
        assert (await store.get(users[0])).refresh_token == "refresh-marked"


async def test_who_has_a_connection_is_no_fault(
    work: ConnectionAdmin, admin: asyncpg.Connection, users: list[UUID]
) -> None:
    """After a migration each row of its users is left as it is, also one that could not be written."""
    for user in users:
        await add(admin, user)
    _ = [row async for row in work.migrate(SOURCE, MAP, write=True)]
    await admin.execute(f"update {SOURCE} set refresh = null where owner = $1", str(users[0]))
    await admin.execute(f"update {SOURCE} set account = null where owner = $1", str(users[1]))
    assert set((await outcomes(work.migrate(SOURCE, MAP))).values()) == {"present"}


async def test_of_several_rows_without_an_account_one_is_counted(
    work: ConnectionAdmin, admin: asyncpg.Connection, users: list[UUID]
) -> None:
    """The newest lacks the account and the other is older; one with an account comes before both."""
    for user in users[:2]:
        await add(admin, user, account=None)
        await add(admin, user, account=None, ends=1795000001)
    await add(admin, users[1], ends=1000)
    found = sorted([" ".join([row.state, *row.lacks]) async for row in work.migrate(SOURCE, MAP)])
    assert found == ["older", "older", "older", "ready expires_at connected_at", "unusable spotify_user_id"]


@pytest.mark.parametrize("keys", ["", "AQ-marked"])
def test_a_wrong_key_is_named_by_its_variable(keys: str) -> None:
    """The text has the name of the variable and not its value."""
    with pytest.raises(ConfigurationError, match=r"^OLD_KEY: expected one or more keys of Fernet") as raised:
        fernet_decrypt({"OLD_KEY": keys}, "OLD_KEY")
    assert "marked" not in str(raised.value)


@pytest.mark.parametrize(
    ("table", "columns", "error"),
    [
        ("old.missing", {}, "from: expected the name of another table"),
        ("public.spotify_connections", {}, "from: expected the name of another table"),
        ("old.x; drop table auth.users", {}, "from: expected the name of another table"),
        (SOURCE, {}, "map: name the column for user_id, such as user_id=its_name"),
        (SOURCE, MAP | {"refresh_token": "x"}, "map: the table has no column 'x' for refresh_token"),
        (SOURCE, MAP | {"token": "x"}, "map: no column 'token' to fill"),
        (SOURCE, MAP | {"user_id": "since when"}, "map: user_id has to be a column of UUIDs, integers or text, and"),
    ],
)
async def test_what_is_not_there_is_named(
    work: ConnectionAdmin, table: str, columns: dict[str, str], error: str
) -> None:
    """A table, a column or a mapping that is wrong is refused before a row is read; a name is never run as SQL."""
    with pytest.raises(ValueError, match=r"^(from|map): ") as raised:
        await outcomes(work.migrate(table, columns))
    assert error in str(raised.value)


async def test_rows_that_policies_hide_are_no_empty_table(work: ConnectionAdmin, admin: asyncpg.Connection) -> None:
    """A login that would see a part of the table is refused, and so is one that may not read it."""
    await admin.execute(f"alter table {SOURCE} enable row level security")
    with pytest.raises(ConfigurationError, match="policies hide rows of old"):
        await outcomes(work.migrate(SOURCE, MAP))
    await admin.execute(f"alter table {SOURCE} disable row level security")
    await admin.execute("alter table auth.users enable row level security")
    try:
        with pytest.raises(ConfigurationError, match=r"policies hide users of auth\.users from this login"):
            await outcomes(work.migrate(SOURCE, MAP))
    finally:
        await admin.execute("alter table auth.users disable row level security")


async def test_the_grants_that_a_login_lacks_are_named(
    work: ConnectionAdmin, admin: asyncpg.Connection, users: list[UUID]
) -> None:
    """Each alone, both together; what the text says, run by the owner, is enough."""
    await add(admin, users[0])
    table, of_users = f"SELECT ON {SOURCE}", "SELECT (id) ON auth.users"
    lacking = [("USAGE ON SCHEMA old",), (table,), (of_users,), ("USAGE ON SCHEMA auth", table, of_users)]
    for rights in lacking:
        for right in rights:
            # Without the column: a right on the table covers it.
            await admin.execute(f"revoke {right.replace(' (id)', '')} from operator")
        with pytest.raises(ConfigurationError, match=r"^this login may not read the rows: ") as raised:
            await outcomes(work.migrate(SOURCE, MAP))
        grants = str(raised.value).partition("as the owner run ")[2]
        assert sorted(grants.split("; ")) == sorted(f"GRANT {right} TO operator" for right in rights)
        await admin.execute(grants)
        assert await outcomes(work.migrate(SOURCE, MAP)) == {str(users[0]): "ready connected_at"}


async def test_the_rights_on_other_columns_are_enough(work: ConnectionAdmin, admin: asyncpg.Connection) -> None:
    """A login that may read the columns which are named needs no right on the table; without one of them it is told."""
    await admin.execute(f"revoke select on {SOURCE} from operator; grant select (owner) on {SOURCE} to operator")
    with pytest.raises(ConfigurationError, match="this login may not read old"):
        await outcomes(work.migrate(SOURCE, MAP))
    await admin.execute(f"grant select (refresh) on {SOURCE} to operator")
    assert await outcomes(work.migrate(SOURCE, {"user_id": "owner", "refresh_token": "refresh"})) == {}


@pytest.mark.parametrize(
    ("kind", "present"), [("bigint", 42), ("text", "user_2abc"), ("varchar(50)", str(UUID(int=1)))]
)
async def test_ids_of_another_kind_are_mapped(
    work: ConnectionAdmin, admin: asyncpg.Connection, kind: str, present: int | str
) -> None:
    """Integers and texts, also a text that is a UUID, are the users that `user_id` makes of them."""
    gone = 43 if kind == "bigint" else "user_gone"
    await admin.execute("insert into auth.users (id) values ($1)", user_id(present))
    await admin.execute(f"alter table {SOURCE} drop owner, add id {kind}")
    for value in (present, gone, None):
        await admin.execute(f"insert into {SOURCE} (id, refresh, account) values ($1, 'refresh', 'alice')", value)
    found = [row async for row in work.migrate(SOURCE, MAP | {"user_id": "id"}, write=True)]
    assert [(row.user_id, row.key, row.state) for row in found] == [
        (user_id(present), str(present), "written"),
        (user_id(gone), str(gone), "unusable"),
        (None, "None", "unusable"),
    ]
    assert [row.lacks for row in found[1:]] == [("user in auth.users",), ("user_id",)]
    assert [row["user_id"] for row in await rows(admin)] == [user_id(present)]


async def test_a_text_is_not_taken_for_two_users(
    work: ConnectionAdmin, admin: asyncpg.Connection, users: list[UUID]
) -> None:
    """Where a text is the UUID of one user, and the column holds text ids of others, nothing is read or written."""
    await admin.execute("insert into auth.users (id) values ($1)", user_id("user_2abc"))
    await add(admin, users[0])
    await add(admin, "user_2abc")
    with pytest.raises(ValueError, match=r"^map: user_id holds UUIDs of auth.users and text ids") as raised:
        await outcomes(work.migrate(SOURCE, MAP, write=True))
    assert str(users[0]) not in str(raised.value)
    assert not await rows(admin)


async def test_batches_are_complete(
    work: ConnectionAdmin, admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more rows than a batch holds each comes once, and those of one user come together."""
    monkeypatch.setattr(source_table, "BATCH", 10)
    await admin.execute("insert into auth.users (id) select gen_random_uuid() from generate_series(1, 45)")
    await admin.execute(
        f"insert into {SOURCE} select id, 'refresh', 'access', ends, 'a' from auth.users, (values (1), (2)) as e (ends)"
    )
    found = [row async for row in work.migrate(SOURCE, MAP, write=True)]
    assert len(found) == 90
    assert len([row for row in found if row.state == "written"]) == 45 == len(await rows(admin))


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("1795000000", datetime.fromtimestamp(1795000000, UTC)),
        ("1795000000.5", datetime.fromtimestamp(1795000000.5, UTC)),
        ("1795000000500", datetime.fromtimestamp(1795000000.5, UTC)),
        ("2026-11-24T12:00:00Z", ENDS),
        ("2026-11-24 13:00:00+01:00", ENDS),
        ("2026-11-24 12:00:00", ENDS),
        ("Infinity", None),
        ("9" * 30, None),
        ("soon", None),
        (None, None),
    ],
)
def test_forms_of_a_time(text: str | None, moment: datetime | None) -> None:
    """Seconds, milliseconds and ISO 8601 are told apart; anything else is not known."""
    assert read_time(text) == moment


@pytest.mark.parametrize("name", SHAPES)
async def test_each_shape_ends_with_tokens_that_work(
    prepared: Database, spotify: FakeSpotify, accounts: SpotifyAccounts, name: str
) -> None:
    """A table of another shape is taken over, or renamed and migrated; then Spotify accepts the token of each user."""
    shape = SHAPES[name]
    async with scratch_database(prepared) as dsn:
        scratch = await asyncpg.connect(dsn())
        await shape.create(scratch)
        for number in range(len(USERS)):
            spotify.add_account(f"account{number}")
            grant = spotify.authorize(f"account{number}")
            await scratch.execute(
                "update public.spotify_connections set access_token = $1, refresh_token = $2 where refresh_token = $3",
                *(grant.access_token, grant.refresh_token, f"refresh{number}"),
            )
        if shape.wrong:
            await scratch.execute("alter table public.spotify_connections rename to spotify_connections_old")
        await scratch.execute(schema_sql(plain_postgres=True, transaction=False))
        await scratch.close()
        if shape.wrong:
            columns = dict(option.split("=") for option in shape.options[1::2])
            async with ConnectionAdmin.open(dsn()) as migrating:
                found = migrating.migrate("public.spotify_connections_old", columns, write=True)
                assert (await report_rows(found, None, as_json=False))["written"] == len(USERS)
        async with ConnectionStore.open(dsn("app"), max_size=2) as store, TokenManager(store, accounts) as tokens:
            for user in USERS:
                assert spotify.accepts(await tokens.get_valid_token(user))
