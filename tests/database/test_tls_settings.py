"""TLS on the way to Postgres: each wrong setting is told by its own text, and what is right opens."""

import re
from pathlib import Path

import pytest

from spotconn import ConfigurationError, ConnectionStore
from support.database import Database
from support.tls import certificate, tls_front

DIRECT = "sslnegotiation=direct"


@pytest.fixture(autouse=True)
def _without_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("PGSSLMODE", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY", "PGSSLCRL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


WRONG = {
    "sslmode=verify-full&sslrootcert=prod-ca.crt": "sslrootcert names a file that does not exist; its path is relative",
    "sslmode=verify-full&sslrootcert=/nowhere/ca.crt": "sslrootcert names a file that does not exist: write the whole",
    "sslmode=require&sslrootcert=~/ca.crt": "sslrootcert begins with ~",
    "sslmode=verify-full&sslrootcert=system": "system is libpq's",
    "sslmode=verify-full": "sslmode=verify-full needs sslrootcert",
    "sslmode=verify_ca": "sslmode=verify-ca needs sslrootcert",
    "sslmode=verify-ca&sslrootcert=/dev/null": "sslrootcert names a file without a certificate",
    "sslmode=verify-full&sslrootcert=/etc": "sslrootcert names a folder",
    "sslmode=require": "the database server refuses TLS",
    "sslmode=require&sslcert=/nowhere&sslkey=/nowhere": "sslcert names a file that does not exist",
    "sslcert=empty&sslkey=empty": "sslcert and sslkey do not name a certificate and its key",
    "sslmode=marked": "sslmode is none of disable, allow",
}


@pytest.mark.parametrize("parameters", WRONG)
async def test_a_wrong_setting_is_named(database: Database, tmp_path: Path, parameters: str) -> None:
    """Parameter and remedy; nobody is told to try again."""
    (tmp_path / "empty").touch()
    with pytest.raises(ConfigurationError, match=WRONG[parameters]) as raised:
        await ConnectionStore.open(f"{database.dsn}?{parameters}").__aenter__()
    assert not re.search("marked|nowhere|try again", str(raised.value))


async def test_a_variable_in_place_of_a_parameter_is_named(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver reads it, too; with the option `ssl` it reads none."""
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    monkeypatch.setenv("PGSSLROOTCERT", "prod-ca.crt")
    with pytest.raises(ConfigurationError, match="PGSSLROOTCERT names a file that does not exist"):
        await ConnectionStore.open(database.dsn).__aenter__()
    async with ConnectionStore.open(database.dsn, ssl=False):
        pass


@pytest.mark.parametrize(
    ("ssl", "text"), [("verify-full", "sslmode=verify-full needs sslrootcert"), ("marked", "the option ssl is none of")]
)
async def test_the_option_as_a_text_is_the_mode(
    database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ssl: str, text: str
) -> None:
    """asyncpg reads the files with it, so they are looked at, too."""
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigurationError, match=text) as raised:
        await ConnectionStore.open(database.dsn, ssl=ssl).__aenter__()
    assert "marked" not in str(raised.value)
    async with ConnectionStore.open(database.dsn, ssl="prefer"):
        pass


async def test_a_certificate_is_verified(database: Database, tmp_path: Path) -> None:
    """With the right authority it opens; another one, and another host name, are told apart."""
    pem = certificate(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    certificate(other)
    async with tls_front(database.server.port, pem) as port:
        dsn = database.dsn.replace(f":{database.server.port}/", f":{port}/")
        async with ConnectionStore.open(f"{dsn}?{DIRECT}&sslmode=verify-full&sslrootcert=certificate.pem"):
            pass
        wrong = {
            f"{dsn}?{DIRECT}&sslmode=verify-full&sslrootcert=other/certificate.pem": "does not verify",
            f"{dsn.replace('127.0.0.1', 'localhost')}?{DIRECT}&sslmode=verify-full&sslrootcert=certificate.pem": (
                "for another host name"
            ),
        }
        for refused, text in wrong.items():
            with pytest.raises(ConfigurationError, match=text):
                await ConnectionStore.open(refused).__aenter__()
