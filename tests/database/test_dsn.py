"""Database URLs: what is wrong in one is named before anything is opened, and no part of a password is shown."""

import re
from pathlib import Path
from typing import Any

import pytest

from spotconn import ConfigurationError, ConnectionAdmin, ConnectionStore
from spotconn._database.dsn import check_dsn, prepare
from spotconn._database.dsn_parameters import FOREIGN, IGNORED, IGNORED_IF
from spotconn._settings import read_database_url
from support.database import Database
from support.pgbouncer import pgbouncer

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "database-url.md"
HOST = "127.0.0.1:1"
WRONG = {
    "postgresql://app:mar@ked@127.0.0.1/x": "unescaped @",
    "postgresql://app:mar/ked@127.0.0.1:5432/x": "unescaped /",
    "postgresql://app:12/ked@127.0.0.1:5432/x": "unescaped /",
    "postgresql://app:mar#ked@127.0.0.1/x": "unescaped #",
    "postgresql://app:mar?ked@127.0.0.1/x": r"unescaped \?",
    "postgresql://app:12?ked@127.0.0.1/x": r"unescaped \?",
    "postgresql://app:mar?k=ed@127.0.0.1/x": r"unescaped \?",
    "postgresql://app:mar[ked@127.0.0.1/x": "unescaped bracket",
    "postgresql+psycopg://app:marked@127.0.0.1/x": "SQLAlchemy's: write postgresql://",
    "postgresql+asyncpg://app:mar@ked@127.0.0.1/x": "unescaped @",
    "postgresql+asyncpg://app:marked@127.0.0.1/x?ssl=marked": "sslmode is none of disable",
    "jdbc:postgresql://127.0.0.1/x?password=marked": "jdbc: is Java's",
    "mysql://app:marked@127.0.0.1/x": "expected postgresql://",
    "psql 'postgresql://app:marked@127.0.0.1/x'": "begins with psql",
    "'postgresql://app:marked@127.0.0.1/x'": "quotation marks",
    "postgresql://app:mar\nked@127.0.0.1/x": "line break",
    "postgresql://app:mar@/ked@127.0.0.1/x": "unescaped /",
    "postgresql://app:marked@127.0.0.1:marked/x": "port is no number",
    "postgresql://app:marked": "port is no number",
    "postgresql://app:marked@127.0.0.1:70000/x": "port is no number",
    "postgresql://app:marked@/x?host=/tmp&port=marked": "port is no number",
    "postgresql://app:marked@:5432/x": "a host in it is empty",
    "postgresql://app:marked@one,,two/x": "a host in it is empty",
    "postgresql://app:marked@::1:5432/x": "in brackets",
    "postgresql://app:marked@[::1/x": "IPv6 address in it is malformed",
    "postgresql://app:marked@127.0.0.1/x?marked": "name=value",
    "postgresql://app:marked@127.0.0.1/x?connect_timeout=marked": "connect_timeout",
    "postgresql://app:marked@127.0.0.1/x?channel_binding=require": "channel_binding has a value that asyncpg cannot",
    "postgresql://app:marked@127.0.0.1/x?sslmode=marked": "sslmode is none of disable",
    "postgresql://app:marked@127.0.0.1/x?sslmode=no-verify": "write require",
    **{f"postgresql://app:marked@127.0.0.1/x?{name}=1": f"the parameter {name} is " for name in FOREIGN},
}


@pytest.fixture(autouse=True)
def _without_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGHOST", "PGSSLMODE", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("dsn", WRONG)
async def test_what_is_wrong_is_named(dsn: str) -> None:
    """By the store, the admin, a listener's URL and the settings: the part and the remedy, and nothing of the URL."""
    failures: list[ConfigurationError] = []
    for opened in (ConnectionStore.open, ConnectionAdmin.open):
        with pytest.raises(ConfigurationError, match=WRONG[dsn]) as raised:
            await opened(dsn).__aenter__()
        failures.append(raised.value)
    with pytest.raises(ConfigurationError, match=f"^DATABASE_URL cannot be used: .*{WRONG[dsn]}") as read:
        read_database_url({"DATABASE_URL": dsn})
    failures.append(read.value)
    for failure in failures:
        assert not re.search("mar(?!ks)|ked|app:", str(failure))


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://app:p%40ss%2F%23%3F%25@db.example.org:5432/x?sslmode=disable",
        "postgres://app:pa:ss@one,two:6432/x",
        "postgresql://app@[::1]:5432/x",
        "postgresql://app:100%@127.0.0.1/x",
        "postgresql:///x",
        "postgresql://app:p@/x",
        "postgresql:///x?port=5433",
        "postgresql:///x?service=name&sslmode=verify-full",
        "postgresql://app@/x?host=/var/run/postgresql",
        "postgresql://app:p@%2Fcloudsql%2Fproject%3Aregion%3Ainstance/x",
        "postgresql://app:p@%2Ftmp:5433/x",
        "postgresql://app:p@/x?host=/cloudsql/project:region:instance",
        "postgresql://app.tenant:p@db.example.org/x?application_name=me%40home&options=-c%20search_path%3Dx",
        "postgresql://127.0.0.1:5432/x?user=me@home",
    ],
)
def test_what_is_right_stays_as_it_is(dsn: str) -> None:
    """Escaped passwords, several hosts, IPv6, sockets, a service and parameters of the server."""
    check_dsn(dsn)
    assert prepare(dsn, {}) == (dsn, {})


async def test_the_url_of_sqlalchemy_for_asyncpg_is_taken_as_what_it_means(database: Database) -> None:
    """Its `ssl` is sslmode, and the options of SQLAlchemy's own statement cache go; the scheme is of any case."""
    own = "prepared_statement_cache_size=0&async_fallback=true&prepared_statement_name_func=f"
    url = f"postgresql+asyncpg://app:p%40ss@{HOST}/x"
    assert prepare(f"{url}?ssl=require&{own}&timezone=UTC", {}) == (
        f"postgresql://app:p%40ss@{HOST}/x?sslmode=require&timezone=UTC",
        {},
    )
    assert prepare(f"{url}?{own}", {}) == prepare(url, {}) == (f"postgresql://app:p%40ss@{HOST}/x", {})
    async with ConnectionStore.open(database.dsn.replace("postgresql://", " PostgreSQL+asyncpg://")) as store:
        assert await store.pool.value("select 1") == 1


def test_harmless_parameters_are_left_out_and_the_time_is_honoured() -> None:
    """`connect_timeout` becomes asyncpg's timeout, unless the caller gives one; what changes nothing is not sent."""
    plain = f"postgresql://app:p%26q@{HOST}/x"
    dsn = f"{plain}?keepalives=1&connect_timeout=7&supa=base-pooler.x&gssencmode=disable"
    assert prepare(dsn, {}) == (plain, {"timeout": 7})
    assert prepare(f"{dsn}&timezone=UTC", {"timeout": 3}) == (f"{plain}?timezone=UTC", {"timeout": 3})
    assert prepare(f"{plain}?connect_timeout=0", {}) == (plain, {})
    assert prepare(f" {plain}?connect_timeout=\n", {}) == (plain, {})


def test_every_parameter_is_described() -> None:
    """The page of the URL lists each parameter of other clients with its remedy, and those that are left out."""
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGE.read_text(), re.MULTILINE))
    expected = dict(FOREIGN)
    expected |= dict.fromkeys(IGNORED, "left out")
    for name, condition in IGNORED_IF.items():
        values = ", ".join(f"`{value}`" for value in sorted(condition.harmless))
        expected[name] = f"left out if it is {values}; any other value {condition.otherwise}"
    assert {name: text for name, text in rows.items() if name != "connect_timeout"} == expected


@pytest.mark.parametrize(
    ("parameter", "named"),
    [
        ("marked_x=1", ": marked_x"),
        ("timezone=Nowhere", ": TimeZone"),
        ("options=-c%20marked_y%3D1", ": marked_y"),
        ("options=marked", ";"),
        ("role=nobody_at_all", ";"),
    ],
)
async def test_a_parameter_that_the_server_refuses_is_named(database: Database, parameter: str, named: str) -> None:
    """It is no part of the schema, so nobody is told to apply that; values are not shown."""
    with pytest.raises(ConfigurationError, match=f"parameter of the database URL.*{named}") as raised:
        await ConnectionStore.open(f"{database.dsn}?{parameter}").__aenter__()
    assert not re.search("Nowhere|nobody|apply", str(raised.value))


async def test_a_parameter_that_a_pooler_refuses_is_named(database: Database) -> None:
    """PgBouncer takes few parameters, and the one that it refuses is named."""
    with pgbouncer(database.server.port) as bouncer:
        refused: dict[str, Any] = {"search_path=x": "search_path", "statement_timeout=5": "statement_timeout"}
        for parameter, name in refused.items():
            with pytest.raises(ConfigurationError, match=f"pooler in between takes no such parameter.*: {name};"):
                await ConnectionStore.open(f"{bouncer.through(database.dsn)}?{parameter}").__aenter__()


async def test_foreign_parameters_that_do_no_harm_open(database: Database) -> None:
    """A URL of a dashboard opens as it is, also with the line end of the file that held it."""
    dsn = (
        f"{database.dsn}?supa=base-pooler.x&keepalives=1&connect_timeout=9&channel_binding=prefer&application_name=x\n"
    )
    async with ConnectionStore.open(dsn) as store:
        assert await store.pool.value("select current_setting('application_name')") == "x"
