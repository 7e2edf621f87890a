"""A real Postgres for every test that needs one: the wheel's, or the version that `--postgres` names."""

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
from support.database import VERSIONS, Database, serving
from support.open_transports import OpenTransports
from support.printed_tables import print_tables

pytest_plugins = ["pytester", "support.http_libraries", "support.profile_site"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not os.environ.get("SPOTCONN_SOAK"):
        items[:] = [item for item in items if item.get_closest_marker("soak") is None]


def pytest_configure(config: pytest.Config) -> None:
    # Children take SIGINT as from a terminal, also where the run itself ignores it, as a job in the background does.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.pluginmanager.register(OpenTransports())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    print_tables(terminalreporter)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--locked-down`: against a database to which lock_down.sql was applied; `--postgres 15`: on that version."""
    parser.addoption("--locked-down", action="store_true")
    parser.addoption("--postgres", choices=[*VERSIONS])


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say so."""
    return [
        *(["the database is locked down"] if config.getoption("--locked-down") else []),
        f"PostgreSQL in {_binaries(config)}",
    ]


def _binaries(config: pytest.Config) -> Path:
    version = config.getoption("--postgres")
    folder = VERSIONS[version] if version else postgres_binaries()
    if not folder.is_dir():
        raise pytest.UsageError(f"there is no PostgreSQL {version} in {folder}")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _base_of_temporary_folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Chosen before any test moves TMPDIR for itself."""
    tmp_path_factory.getbasetemp()


@pytest.fixture(scope="session")
def prepared(request: pytest.FixtureRequest) -> Iterator[Database]:
    """One server for the session."""
    locked_down = bool(request.config.getoption("--locked-down"))
    with serving(_binaries(request.config), locked_down=locked_down) as database:
        yield database


@pytest.fixture
async def admin(prepared: Database) -> AsyncIterator[asyncpg.Connection]:
    """A superuser's connection; every user and connection of the test before is gone."""
    connection = await asyncpg.connect(prepared.admin_dsn)
    await connection.execute("delete from auth.users; delete from spotconn.pending_connect")
    yield connection
    await connection.close()


@pytest.fixture
def database(prepared: Database, admin: asyncpg.Connection) -> Database:
    """The database, empty."""
    return prepared


@pytest.fixture
async def store(database: Database) -> AsyncIterator[ConnectionStore]:
    """A store of its own pool. With a size of the statement cache no connection is opened to look for a pooler."""
    async with ConnectionStore.open(database.dsn, min_size=1, max_size=4, statement_cache_size=100) as opened:
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
