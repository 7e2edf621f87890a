"""The doctor: a healthy house has nothing to mend, each fault is found by its line, and nothing is left changed."""

import asyncio
import json
import socket
from uuid import UUID

import asyncpg
import pytest
from typer.testing import CliRunner

from spotconn import AesGcmSivCipher, ConnectionStore, Profile
from spotconn._command.checks import CHECKS, pooler_finding, tls_finding
from spotconn._command.clocks import clock_finding
from spotconn._command.doctor import examine
from spotconn._command.finding import Finding
from spotconn._database.schema import read_sql
from spotconn.cli import app
from spotconn.testing import apply_schema
from support.connections import grant
from support.database import Database
from support.database_clock import database_clock
from support.doctor import HEALTHY, KEY, look


def states(findings: dict[str, Finding], *states: str) -> set[str]:
    return {subject for subject, one in findings.items() if one.state in states}


@pytest.mark.parametrize("locked", [False, True])
async def test_a_healthy_house(
    database: Database,
    admin: asyncpg.Connection,
    user: UUID,
    pytestconfig: pytest.Config,
    locked: bool,  # noqa: FBT001
) -> None:
    """Nothing to mend, and nothing to be minded: no API for browsers is in front, whatever their roles may do."""
    async with ConnectionStore.open(database.dsn, cipher=AesGcmSivCipher([KEY])) as store:
        await store.save(user, grant("a"), Profile(spotify_user_id="alice"), client_id=HEALTHY["SPOTIFY_CLIENT_ID"])
    before = await admin.fetch("select * from public.spotify_connections")
    is_locked = bool(pytestconfig.getoption("--locked-down"))
    if locked:
        await admin.execute(read_sql("lock_down.sql"))
    try:
        found = await look(database.admin_dsn, SPOTCONN_REQUIRE_ENCRYPTED="1")
    finally:
        if locked and not is_locked:
            await admin.execute(read_sql("lock_down_undo.sql"))
    settings = {"Spotify app", "other apps", "redirect URI", "encryption keys", "Spotify"}
    assert set(found) == {*settings, *CHECKS, "decryption", "apps"}
    assert states(found, "warn", "fail") == set()
    assert found["stored tokens"].text == "2 values, none in plain text"
    assert found["decryption"].text == "1 connection looked at, all that is encrypted decrypts with the keys here"
    assert found["apps"].text == "1 connection, all of apps known here"
    assert found["Spotify app"].text == f"{HEALTHY['SPOTIFY_CLIENT_ID']}, confidential client"
    assert await admin.fetch("select * from public.spotify_connections") == before


async def test_a_login_of_the_store_alone(database: Database) -> None:
    """What it may not see is no fault, and the reason is said once."""
    for dsn in (database.dsn, database.bypass_dsn):
        found = await look(dsn)
        assert states(found, "fail") == set()
        assert found["stored tokens"].state == "skip"
        assert found["not examined"].text == "decryption, apps: see stored tokens"
        assert found["isolation"].state == "ok"


async def test_plain_text_is_found(database: Database, store: ConnectionStore, user: UUID) -> None:
    """Tokens in plain text are counted, and the remedy is the rekey."""
    await store.save(user, grant("a"), Profile(spotify_user_id="alice"))
    found = (await look(database.admin_dsn))["stored tokens"]
    assert (found.state, found.text) == ("warn", f"2 of 2 values are in plain text, among them of user {user}")
    assert "spotconn rekey" in str(found.remedy)


BEHIND_THE_SCHEMA = "isolation, catalog, grants, changes, clients, users, stored tokens, clocks, decryption, apps"
POLICY = '"Users can view own connections" on public.spotify_connections'
VERSION = "create or replace function spotconn.schema_version() returns integer language sql immutable return "
FAULTS = [
    (
        "alter table public.spotify_connections disable row level security",
        {"catalog", "isolation"},
        "schema --apply",
    ),
    ("alter table spotconn.refresh_state disable row level security", {"catalog"}, "schema --apply"),
    ("alter role spotconn bypassrls", {"isolation"}, "NOBYPASSRLS"),
    ("create policy wide on public.spotify_connections using (true)", {"isolation"}, "drop the policies"),
    (f"drop policy {POLICY}", {"catalog"}, "schema --apply"),
    (f"alter policy {POLICY} using (auth.uid() = user_id)", {"catalog"}, "schema --apply"),
    ("revoke insert on public.spotify_connections from spotconn", {"grants"}, "schema --apply"),
    ("grant select on public.spotify_connections to anon", {"catalog", "clients"}, "schema --apply"),
    (VERSION + "0", {"schema"}, "schema --apply"),
    (VERSION + "99", {"schema"}, "upgrade spotconn"),
    ("drop function spotconn.act_as", {"isolation"}, "schema --apply"),
]


@pytest.mark.parametrize(("fault", "subjects", "remedy"), FAULTS)
async def test_each_fault_is_found(
    database: Database, admin: asyncpg.Connection, fault: str, subjects: set[str], remedy: str
) -> None:
    """The line that speaks of it fails and says what mends it."""
    await admin.execute(fault)
    try:
        found = await look(database.dsn)
    finally:
        await admin.execute("alter role spotconn nobypassrls; drop policy if exists wide on public.spotify_connections")
        await apply_schema(database.admin_dsn)
    assert states(found, "fail") >= subjects
    assert states(found, "fail") <= subjects | {"isolation", "catalog"}
    for subject in subjects:
        assert remedy in f"{found[subject].text} {found[subject].remedy}"
    assert states(await look(database.dsn), "fail") == set()


async def test_missing_triggers_are_told(database: Database, admin: asyncpg.Connection) -> None:
    """A service may mean to do without them, so it is no fault."""
    await admin.execute("drop trigger spotconn_notify_truncate on public.spotify_connections")
    try:
        found = (await look(database.dsn))["changes"]
    finally:
        await apply_schema(database.admin_dsn)
    assert found.state == "warn"
    assert "others remember for up to cache_ttl" in found.text
    assert (await look(database.dsn))["changes"].state == "ok"


async def test_the_catalog_is_compared_through_the_command(database: Database, admin: asyncpg.Connection) -> None:
    """A permissive policy beside the documented ones is named, whoever logs in; no other line fails for it."""
    await admin.execute("create policy wide on public.spotify_connections for select using (email = 'x')")
    try:
        found = [await look(dsn) for dsn in (database.dsn, database.admin_dsn)]
    finally:
        await admin.execute("drop policy wide on public.spotify_connections")
    assert [states(one, "fail") for one in found] == [{"catalog"}, {"catalog"}]
    assert found[0]["catalog"].text.startswith("policy wide on public.spotify_connections was added: permissive for se")
    assert found[0]["catalog"].remedy == "DROP POLICY wide on public.spotify_connections"


async def test_with_a_schema_of_another_version_nothing_else_is_examined(
    database: Database, admin: asyncpg.Connection
) -> None:
    """Only that version is named; all that differs by it is no news."""
    await admin.execute(VERSION + "0")
    try:
        found = await look(database.dsn)
    finally:
        await apply_schema(database.admin_dsn)
    assert states(found, "warn", "fail") <= {"schema", "encryption keys"}
    assert found["not examined"].text == f"{BEHIND_THE_SCHEMA}: see schema"


async def test_keys_without_the_requirement(database: Database) -> None:
    """While plain text is taken in place of an encrypted token, the line of the keys says so and what ends it."""
    found = (await look(database.dsn))["encryption keys"]
    assert found.state == "warn"
    assert "in plain text in place of an encrypted one is taken" in found.text
    assert "SPOTCONN_REQUIRE_ENCRYPTED=1" in str(found.remedy)
    assert (await look(database.dsn, SPOTCONN_REQUIRE_ENCRYPTED="1"))["encryption keys"].state == "ok"


async def test_a_database_that_is_not_utf8(database: Database, admin: asyncpg.Connection) -> None:
    """Its encoding is named, with the way to one that can hold every name."""
    await admin.execute("create database latin encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0")
    try:
        found = (await look(database.server.dsn("latin")))["encoding"]
    finally:
        await admin.execute("drop database latin with (force)")
    assert (found.state, found.text.partition(",")[0]) == ("fail", "LATIN1")
    assert "ENCODING 'UTF8'" in str(found.remedy)
    assert (await look(database.dsn))["encoding"].text == "UTF8"


async def test_a_database_without_the_schema(database: Database) -> None:
    """One line says so and what to run; another names what cannot be examined without it."""
    found = await look(database.server.dsn())
    assert states(found, "fail") == {"schema"}
    assert found["schema"].text == "this database does not have it"
    assert "schema --apply" in str(found["schema"].remedy)
    assert found["not examined"].text == f"{BEHIND_THE_SCHEMA}: see schema"


async def test_a_login_without_the_grant_is_one_line(database: Database, admin: asyncpg.Connection) -> None:
    """Not one for each thing that the login may not do."""
    await admin.execute("create role ungranted login password 'ungranted'")
    try:
        found = await look(database.login_dsn("ungranted"))
    finally:
        await admin.execute("drop role ungranted")
    assert states(found, "fail") == {"schema"}
    assert "GRANT spotconn TO it" in found["schema"].text


async def test_what_is_wrong_with_the_way_to_the_database(database: Database) -> None:
    """Each cause has a text of its own, which says what mends it; none that does not fit."""
    port = database.server.port
    with socket.create_server(("127.0.0.1", 0)) as silent:
        cases = {
            "": "DATABASE_URL is not set",
            "postgresql://a@127.0.0.1:1/x": "nothing listens at host and port of the database URL",
            f"postgresql://a@127.0.0.1:{silent.getsockname()[1]}/x?connect_timeout=1": "as one that wakes up",
            "postgresql://a@no-such-host.invalid/x": "the name service",
            f"postgresql://app:marked@127.0.0.1:{port}/spotconn": "not know this user with this password",
            f"postgresql://app:app@127.0.0.1:{port}/marked": "there is no database of this name",
        }
        for dsn, text in cases.items():
            found = (await look(dsn))["database"]
            assert (found.state, text in found.text) == ("fail", True), found
            assert (found.remedy, "marked" in found.text) == (
                None if dsn else "set it to postgresql://user:password@host:port/database",
                False,
            )


@pytest.mark.parametrize(
    ("changes", "subject", "state"),
    [
        ({"SPOTIFY_CLIENT_ID": ""}, "Spotify app", "fail"),
        ({"SPOTIFY_CLIENT_SECRET": "marked secret"}, "Spotify app", "fail"),
        ({"SPOTIFY_CLIENT_SECRET": "markedsecret"}, "Spotify app", "warn"),
        ({"SPOTIFY_REDIRECT_URI": "http://localhost:8000/callback"}, "redirect URI", "fail"),
        ({"SPOTIFY_REDIRECT_URI": "http://[::1]:8000/callback"}, "redirect URI", "ok"),
        ({"SPOTIFY_REDIRECT_URI": "http://example.org/callback"}, "redirect URI", "fail"),
        ({"SPOTIFY_REDIRECT_URI": "https://[marked/callback"}, "redirect URI", "fail"),
        ({"SPOTIFY_REDIRECT_URI": ""}, "redirect URI", "skip"),
        ({"SPOTCONN_ENCRYPTION_KEYS": "marked"}, "encryption keys", "fail"),
        ({"SPOTCONN_ENCRYPTION_KEYS": ""}, "encryption keys", "warn"),
        ({"DATABASE_URL": "marked"}, "database", "fail"),
        ({"DATABASE_URL": "postgresql://a:marked@127.0.0.1:1/x"}, "database", "fail"),
    ],
)
async def test_each_wrong_setting_is_found(changes: dict[str, str], subject: str, state: str) -> None:
    """By its line, without its value."""
    found = [one async for one in examine(HEALTHY | {"DATABASE_URL": "postgresql://a@127.0.0.1:1/x"} | changes)]
    assert [one.state for one in found if one.subject == subject] == [state]
    assert "marked" not in repr(found)


def test_clocks() -> None:
    """Up to a second nothing is said, above ten it is to be mended; a slow answer leaves room."""
    assert [clock_finding(skew, unsure=0.1).state for skew in (0, -1, 1.05, -5, 10, 10.5, -3600)] == [
        *["ok", "ok", "ok", "warn", "warn", "fail", "fail"]
    ]
    assert "3.00 s behind this host" in clock_finding(-3, unsure=0).text


@pytest.mark.parametrize(("offset", "state"), [(0.25, "ok"), (5, "warn"), (-3600, "fail")])
async def test_an_altered_clock_function_is_named(
    database: Database, admin: asyncpg.Connection, offset: float, state: str
) -> None:
    """It is named as a difference, however little it is off; the clocks are compared by it."""
    async with database_clock(admin) as clock:
        await clock.step(offset)
        found = await look(database.dsn)
    altered, clocks = found["catalog"], found["clocks"]
    assert (altered.state, altered.text) == ("fail", "function spotconn.now() was altered")
    assert "schema --apply" in str(altered.remedy)
    assert clocks.state == state
    if state != "ok":
        side = "ahead of" if offset > 0 else "behind"
        assert clocks.text.endswith(f"s {side} this host")
        assert float(clocks.text.split()[3]) == pytest.approx(abs(offset), abs=0.9)
    assert states(await look(database.dsn), "fail") == set()


def test_the_way_to_the_server() -> None:
    """Verified, on this host, encrypted but not verified, and open."""
    assert tls_finding(encrypted=True, verified=True, local=False).state == "ok"
    assert tls_finding(encrypted=False, verified=False, local=True).state == "ok"
    unverified = tls_finding(encrypted=True, verified=False, local=False)
    assert (unverified.state, "verify-full" in str(unverified.remedy)) == ("warn", True)
    assert "openly" in tls_finding(encrypted=False, verified=False, local=False).text
    assert pooler_finding(pooled=False).state == "ok"
    assert "statement_cache_size=0" in str(pooler_finding(pooled=True).remedy)


async def test_the_command_shows_marks_and_remedies(database: Database, admin: asyncpg.Connection) -> None:
    """A line each, the remedy under it, and exit code 1 only where there is something to mend."""
    env = HEALTHY | {"DATABASE_URL": database.dsn, "SPOTCONN_DATABASE_URL": ""}
    shown = await asyncio.to_thread(lambda: CliRunner().invoke(app, ["doctor"], env=env))
    assert shown.exit_code == 0
    assert "ok   isolation: tried" in shown.stdout
    assert "warn encryption keys: " in shown.stdout
    assert "\n     -> run `spotconn rekey`, then set" in shown.stdout
    await admin.execute("alter table public.spotify_connections disable row level security")
    try:
        failing = await asyncio.to_thread(lambda: CliRunner().invoke(app, ["doctor", "--json"], env=env))
    finally:
        await admin.execute("alter table public.spotify_connections enable row level security")
    assert failing.exit_code == 1
    assert {"state": "fail", "subject": "catalog"}.items() <= json.loads(
        next(line for line in failing.stdout.splitlines() if '"catalog"' in line)
    ).items()
