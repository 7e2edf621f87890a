"""A real Postgres for every test that needs one: the wheel's and, where the system has it, version 15."""

import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectFlow, ConnectionStore, SpotifyAccounts
from spotconn.testing import FakeSpotify, postgres_binaries
from support.consent import REDIRECT_URI, SCOPES
from support.crash import CRASH, CRASH_COLUMNS, POINTS
from support.database import SYSTEM_15, Database, serving

pytest_plugins = ["pytester"]
SERVERS = ["packaged", *([pytest.param("system15", marks=pytest.mark.long)] if SYSTEM_15.is_dir() else [])]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not os.environ.get("SPOTCONN_SOAK"):
        items[:] = [item for item in items if item.get_closest_marker("soak") is None]


def pytest_configure() -> None:
    # Children take SIGINT as from a terminal, also where the run itself ignores it, as a job in the background does.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    found = [cells for report in reports for name, cells in report.user_properties if name == CRASH]
    if not found:
        return
    order = [point.name for point in POINTS]
    rows = [CRASH_COLUMNS, *sorted(found, key=lambda cells: (cells[1], order.index(cells[0]), cells))]
    terminalreporter.section("crash matrix: a process is killed with SIGKILL, another one is asked at once")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        terminalreporter.write_line("  ".join(map(str.ljust, row, widths)).rstrip())


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--locked-down` runs the tests against a database to which lock_down.sql was applied."""
    parser.addoption("--locked-down", action="store_true")


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say so."""
    return ["the database is locked down"] if config.getoption("--locked-down") else []


@pytest.fixture(scope="session", autouse=True)
def _base_of_temporary_folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Chosen before any test moves TMPDIR for itself."""
    tmp_path_factory.getbasetemp()


@pytest.fixture(scope="session", params=SERVERS)
def prepared(request: pytest.FixtureRequest) -> Iterator[Database]:
    """One server for the session, of each kind."""
    binaries = SYSTEM_15 if request.param == "system15" else postgres_binaries()
    with serving(binaries, locked_down=bool(request.config.getoption("--locked-down"))) as database:
        yield database


@pytest.fixture
async def admin(prepared: Database) -> AsyncIterator[asyncpg.Connection]:
    """A superuser's connection; every user and connection of the test before is gone."""
    connection = await asyncpg.connect(prepared.admin_dsn)
    await connection.execute("delete from auth.users")
    yield connection
    await connection.close()


@pytest.fixture
def database(prepared: Database, admin: asyncpg.Connection) -> Database:
    """The database, empty."""
    return prepared


@pytest.fixture
async def store(database: Database) -> AsyncIterator[ConnectionStore]:
    """A store of its own pool."""
    async with ConnectionStore.open(database.dsn, min_size=1, max_size=4) as opened:
        yield opened


@pytest.fixture
async def users(admin: asyncpg.Connection) -> list[UUID]:
    """Three users without a connection."""
    rows = await admin.fetch("insert into auth.users (email) values ('a'), ('b'), ('c') returning id")
    return [row["id"] for row in rows]


@pytest.fixture
async def user(users: list[UUID]) -> UUID:
    """One user without a connection."""
    return users[0]


@pytest.fixture
def spotify() -> FakeSpotify:
    """A FakeSpotify with strictly single-use refresh tokens: what works there works with reusable ones."""
    return FakeSpotify(rotation=True)


@pytest.fixture
async def accounts(spotify: FakeSpotify) -> AsyncIterator[SpotifyAccounts]:
    """Accounts that speak to the fake over real HTTP."""
    async with (
        spotify.serve() as url,
        SpotifyAccounts("demo-client", "demo-secret", accounts_url=url, api_url=url) as connected,
    ):
        yield connected


@pytest.fixture
def flow(store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify) -> ConnectFlow:
    """A flow of a confidential client; the fake knows two accounts."""
    spotify.add_account("alice", display_name="Alice", email="alice@example.com")
    spotify.add_account("bob", display_name="Bob")
    return ConnectFlow(store, accounts, redirect_uri=REDIRECT_URI, scopes=SCOPES)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A temporary folder that every account may enter: as root, the server runs as another."""
    made = Path(tempfile.mkdtemp())
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
async def operator(database: Database, admin: asyncpg.Connection) -> str:
    """The DSN of a login that may become service_role and nothing else."""
    if not await admin.fetchval("select exists (select from pg_roles where rolname = 'operator')"):
        await admin.execute("create role operator login noinherit password 'operator'; grant service_role to operator")
    return database.login_dsn("operator")


@pytest.fixture
async def chief(database: Database, admin: asyncpg.Connection) -> str:
    """The DSN of a login of the store that may also become service_role."""
    if not await admin.fetchval("select exists (select from pg_roles where rolname = 'chief')"):
        await admin.execute("create role chief login password 'chief'; grant service_role, spotconn to chief")
    return database.login_dsn("chief")
