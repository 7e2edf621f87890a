"""Settings from the environment: a wrong one is named and its value never shown."""

import os
from uuid import UUID

import asyncpg
import pytest

from spotconn import AesGcmSivCipher, ConfigurationError, ConnectionStore, DecryptionError, TokenManager
from spotconn._settings import Settings
from spotconn.testing import FakeSpotify
from support.connections import connect
from support.database import Database
from support.fault_proxy import FaultProxy
from support.listening import trusted, until

GOOD = {
    "DATABASE_URL": "postgresql://app:hush@127.0.0.1/db",
    "SPOTIFY_CLIENT_ID": "0123456789abcdef",
    "SPOTIFY_CLIENT_SECRET": "fedcba9876543210",
}
KEY = AesGcmSivCipher.generate_key()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"DATABASE_URL": ""}, "DATABASE_URL"),
        ({"DATABASE_URL": "mysql://hush@host"}, "DATABASE_URL"),
        ({"SPOTCONN_DATABASE_URL": "hush"}, "SPOTCONN_DATABASE_URL"),
        ({"SPOTCONN_LISTEN_URL": "hush"}, "SPOTCONN_LISTEN_URL"),
        ({"SPOTIFY_CLIENT_ID": " "}, "SPOTIFY_CLIENT_ID"),
        ({"SPOTIFY_CLIENT_ID": "hush hush"}, "SPOTIFY_CLIENT_ID"),
        ({"SPOTIFY_CLIENT_SECRET": "hush-hush"}, "SPOTIFY_CLIENT_SECRET"),
        ({"SPOTCONN_OTHER_APPS": "abc,hush"}, "SPOTCONN_OTHER_APPS"),
        ({"SPOTCONN_OTHER_APPS": "abc:hush:hush"}, "SPOTCONN_OTHER_APPS"),
        ({"SPOTCONN_OTHER_APPS": ":hush"}, "SPOTCONN_OTHER_APPS"),
        ({"SPOTCONN_OTHER_APPS": "abc:hush,abc:hush"}, "SPOTCONN_OTHER_APPS names an app twice"),
        ({"SPOTCONN_OTHER_APPS": "0123456789abcdef:hush"}, "SPOTCONN_OTHER_APPS names an app twice"),
        ({"SPOTCONN_RETIRED_CLIENT_IDS": "hush-hush"}, "SPOTCONN_RETIRED_CLIENT_IDS"),
        (
            {"SPOTCONN_RETIRED_CLIENT_IDS": "0123456789abcdef"},
            "SPOTCONN_RETIRED_CLIENT_IDS names an app that is in use",
        ),
        ({"SPOTCONN_ENCRYPTION_KEYS": "hush"}, "SPOTCONN_ENCRYPTION_KEYS"),
        ({"SPOTCONN_ENCRYPTION_KEYS": f"{KEY},hush"}, "SPOTCONN_ENCRYPTION_KEYS"),
        ({"SPOTCONN_REQUIRE_ENCRYPTED": "hush"}, "SPOTCONN_REQUIRE_ENCRYPTED"),
        ({"SPOTCONN_REQUIRE_ENCRYPTED": "1"}, "SPOTCONN_ENCRYPTION_KEYS"),
    ],
)
async def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, change: dict[str, str], named: str) -> None:
    """A missing or malformed variable is a ConfigurationError with its name, without its value."""
    for name in [name for name in os.environ if name.startswith(("SPOT", "DATABASE"))]:
        monkeypatch.delenv(name)
    for name, value in (GOOD | change).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=named) as raised:
        async with TokenManager.from_env():
            pass
    assert "hush" not in str(raised.value)


def test_the_own_database_variable_wins_and_the_secret_is_optional() -> None:
    """SPOTCONN_DATABASE_URL goes before DATABASE_URL; without a secret the client is a public one."""
    environ = GOOD | {"SPOTCONN_DATABASE_URL": "postgres://own/db", "SPOTIFY_CLIENT_SECRET": ""}
    settings = Settings.read(environ)
    assert settings.database_url == "postgres://own/db"
    assert settings.listen_url is None
    assert settings.client_secret is None
    assert "hush" not in repr(Settings.read(GOOD))


def test_several_apps_are_read() -> None:
    """Each with its secret, or as a public client; blank space and empty entries are no part of them."""
    environ = GOOD | {"SPOTCONN_OTHER_APPS": " abc:hush1 , def: ,", "SPOTCONN_RETIRED_CLIENT_IDS": "old1, old2"}
    settings = Settings.read(environ)
    assert settings.other_apps == (("abc", "hush1"), ("def", None))
    assert settings.retired_client_ids == ("old1", "old2")
    assert "hush" not in repr(settings)
    assert Settings.read(GOOD).other_apps == ()


async def test_from_env_serves_a_stored_token(
    monkeypatch: pytest.MonkeyPatch, database: Database, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """With the settings in the environment, three lines give a token."""
    connection = await connect(store, spotify, user)
    for name, value in (GOOD | {"DATABASE_URL": database.bypass_dsn}).items():
        monkeypatch.setenv(name, value)
    async with TokenManager.from_env(cache_ttl=1) as tokens:
        assert await tokens.get_valid_token(user) == connection.access_token
    with pytest.raises(RuntimeError, match="closed"):
        await tokens.status(user)


async def test_from_env_listens_where_it_is_told_to(
    monkeypatch: pytest.MonkeyPatch, database: Database, store: ConnectionStore, spotify: FakeSpotify, user: UUID
) -> None:
    """SPOTCONN_LISTEN_URL is the way past a pooler."""
    await connect(store, spotify, user)
    async with FaultProxy(database.server.port).serve() as proxy:
        for name, value in (GOOD | {"DATABASE_URL": database.dsn}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("SPOTCONN_LISTEN_URL", proxy.dsn(database.dsn))
        async with TokenManager.from_env() as tokens:
            await trusted(tokens, user)
            assert len(proxy._links) == 1
            proxy.cut()
            await until(lambda: not tokens._cache.trusted)


async def test_from_env_encrypts_with_the_first_key(
    monkeypatch: pytest.MonkeyPatch,
    database: Database,
    spotify: FakeSpotify,
    user: UUID,
    admin: asyncpg.Connection,
) -> None:
    """The keys of the environment reach the store; a process without them refuses what they have encrypted."""
    older = AesGcmSivCipher.generate_key()
    ring = AesGcmSivCipher([KEY, older])
    async with ConnectionStore.open(database.dsn, cipher=AesGcmSivCipher([older])) as store:
        connection = await connect(store, spotify, user)
    keys = f"{KEY}, {older}"
    for name, value in (GOOD | {"DATABASE_URL": database.dsn, "SPOTCONN_ENCRYPTION_KEYS": keys}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SPOTCONN_REQUIRE_ENCRYPTED", "1")
    async with TokenManager.from_env() as tokens:
        assert await tokens.get_valid_token(user) == connection.access_token
        assert repr(tokens._store._rows.cipher) == repr(ring)
    monkeypatch.delenv("SPOTCONN_ENCRYPTION_KEYS")
    monkeypatch.delenv("SPOTCONN_REQUIRE_ENCRYPTED")
    async with TokenManager.from_env() as tokens:
        with pytest.raises(DecryptionError, match="SPOTCONN_ENCRYPTION_KEYS"):
            await tokens.get_valid_token(user)
