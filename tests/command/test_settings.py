"""Settings from the environment: a wrong one is named and its value never shown."""

import asyncio
import os
import sys
from typing import Any, cast
from uuid import UUID

import asyncpg
import pytest
from pydantic import SecretStr

from spotconn import (
    AesGcmSivCipher,
    ConfigurationError,
    ConnectFlow,
    ConnectionStore,
    DecryptionError,
    SpotifyAccounts,
    TokenManager,
)
from spotconn._settings import Settings
from spotconn.blocking import BlockingTokens
from spotconn.testing import FakeSpotify
from support.connections import connect
from support.consent import REDIRECT_URI, agree
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
        *[
            ({"SPOTCONN_TIMEOUT": wrong}, "SPOTCONN_TIMEOUT")
            for wrong in ("hush", "0", "0.0", "-1", "inf", "1000", "5s")
        ],
        *[({"SPOTCONN_MIN_SIZE": wrong}, "SPOTCONN_MIN_SIZE is mal") for wrong in ("hush", "-1", "1.5", "10000")],
        ({"SPOTCONN_MAX_SIZE": "0"}, "SPOTCONN_MAX_SIZE is malformed"),
        ({"SPOTCONN_MIN_SIZE": "11"}, r"min_size \(SPOTCONN_MIN_SIZE\) is more than max_size"),
        ({"SPOTIFY_CLIENT_SECRET_FILE": "/hush"}, "SPOTIFY_CLIENT_SECRET_FILE are both set"),
        (
            {"SPOTIFY_CLIENT_SECRET": "", "SPOTIFY_CLIENT_SECRET_FILE": "/hush"},
            "the file of SPOTIFY_CLIENT_SECRET_FILE",
        ),
        ({"SPOTIFY_CLIENT_SECRET": "", "SPOTIFY_CLIENT_SECRET_FILE": "/"}, "FILE cannot be read .IsADirectoryError"),
        ({"SPOTIFY_CLIENT_SECRET": "", "SPOTIFY_CLIENT_SECRET_FILE": __file__}, "the file of .* is malformed"),
        ({"SPOTIFY_CLIENT_SECRET": "", "SPOTIFY_CLIENT_SECRET_FILE": sys.executable}, "read .UnicodeDecodeError"),
        ({"SPOTCONN_OTHER_APPS": "abc:/hush"}, "the file of SPOTCONN_OTHER_APPS cannot be read .FileNotFoundError"),
        ({"SPOTCONN_OTHER_APPS": f"abc:{__file__}"}, "the file of SPOTCONN_OTHER_APPS is malformed"),
        ({"SPOTCONN_OTHER_APPS": "abc:hush/hush"}, "SPOTCONN_OTHER_APPS is malformed"),
        ({"SPOTCONN_SPOTIFY_URL": "hush"}, "SPOTCONN_SPOTIFY_URL"),
        ({"SPOTCONN_SPOTIFY_URL": "http://hush.example:8080"}, "SPOTCONN_SPOTIFY_URL must lead to a simulated"),
        ({"SPOTCONN_SPOTIFY_URL": "http://localhost.hush.example"}, "SPOTCONN_SPOTIFY_URL"),
        ({"SPOTCONN_SPOTIFY_URL": "http://localhost@hush.example"}, "SPOTCONN_SPOTIFY_URL"),
        ({"SPOTCONN_SPOTIFY_URL": "https://127.0.0.1/hush"}, "SPOTCONN_SPOTIFY_URL"),
        ({"SPOTCONN_SPOTIFY_URL": "http://127.0.0.1/?hush"}, "SPOTCONN_SPOTIFY_URL"),
        ({"SPOTCONN_SPOTIFY_URL": "http://127.0.0.1", "SPOTIFY_CLIENT_SECRET": "hush:hush"}, "SPOTIFY_CLIENT_SECRET"),
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


async def test_from_env_reads_a_mapping_in_place_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, database: Database, accounts: SpotifyAccounts
) -> None:
    """`environ` is all that manager and flow read; None in it is a variable that is not set, and a secret text none."""
    for name in GOOD:
        monkeypatch.setenv(name, "hush hush")
    environ = {**GOOD, "DATABASE_URL": database.dsn, "SPOTIFY_REDIRECT_URI": REDIRECT_URI, "SPOTCONN_LISTEN_URL": None}
    async with TokenManager.from_env(environ=environ) as tokens:
        assert tokens.accounts.client_id == GOOD["SPOTIFY_CLIENT_ID"]
        flow = ConnectFlow.from_env(tokens.store, tokens.accounts, scopes=(), environ=environ)
        assert flow.redirect_uri == REDIRECT_URI
    wrong = cast("dict[str, str | None]", {**environ, "SPOTIFY_CLIENT_SECRET": SecretStr("hush")})
    for opened in (
        lambda: TokenManager.from_env(environ=wrong).__aenter__(),
        lambda: asyncio.to_thread(ConnectFlow.from_env, tokens.store, accounts, scopes=(), environ=wrong),
    ):
        with pytest.raises(ValueError, match=r"^environ: expected a str for SPOTIFY_CLIENT_SECRET$"):
            await opened()


async def test_every_limit_can_be_set_by_a_variable_or_a_keyword(database: Database) -> None:
    """Time and sizes of the pool; a keyword goes before its variable, whoever of the store and its pool takes it."""
    environ = {"SPOTCONN_TIMEOUT": "2.5", "SPOTCONN_MIN_SIZE": "2", "SPOTCONN_MAX_SIZE": "3"}
    environ |= GOOD | {"DATABASE_URL": database.dsn}
    async with TokenManager.from_env(environ=environ) as tokens:
        pool = tokens.store.pool
        assert (pool.timeout, pool._pool.get_min_size(), pool._pool.get_max_size()) == (2.5, 2, 3)
    options: dict[str, Any] = {
        "timeout": 7,
        "max_size": 4,
        "cache_size": 5,
        "cipher": AesGcmSivCipher([KEY]),
        "command_timeout": 9,
    }
    async with TokenManager.from_env(environ=environ, **options) as tokens:
        pool = tokens.store.pool
        assert (pool.timeout, pool._pool.get_min_size(), pool._pool.get_max_size()) == (7, 2, 4)
        assert tokens._cache.size == 5
        assert repr(tokens.store._rows.cipher) == repr(options["cipher"])


async def test_an_unknown_keyword_is_refused_before_the_database_is_asked() -> None:
    """By `TokenManager.from_env` where the block is entered, by `BlockingTokens.from_env` where it is called."""
    nowhere = GOOD | {"DATABASE_URL": "postgresql://app@127.0.0.1:1/app"}
    for name in ("max_sise", "store", "dsn", "loop", "connect_kwargs"):
        with pytest.raises(TypeError, match=rf"^from_env\(\) got an unexpected keyword argument '{name}'$"):
            await TokenManager.from_env(environ=nowhere, **{name: 1}).__aenter__()
        with pytest.raises(TypeError, match=rf"^from_env\(\) got an unexpected keyword argument '{name}'$"):
            BlockingTokens.from_env(environ=nowhere, **cast("dict[str, Any]", {name: 1}))


async def test_one_hook_is_told_by_manager_and_flow(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID
) -> None:
    """A flow tells the hook of the manager over its store, in order, unless it has one of its own."""
    spotify.add_account("alice")
    told: list[object] = []
    own: list[object] = []
    options: dict[str, Any] = {"redirect_uri": REDIRECT_URI, "scopes": ()}
    async with TokenManager(store, accounts, on_event=told.append) as tokens, TokenManager(store, accounts):
        for flow in (
            ConnectFlow(store, accounts, **options),
            ConnectFlow(store, accounts, **options, on_event=own.append),
        ):
            async with flow:
                await flow.finish(user, await agree(await flow.start(user)))
        await tokens.disconnect(user)
    assert [type(event).__name__ for event in told] == ["Connected", "Disconnected"]
    assert [type(event).__name__ for event in own] == ["Connected"]


@pytest.mark.parametrize("given", ["http://localhost:{}", "HTTP://LOCALHOST:{}/", "http://127.0.0.1:{}"])
async def test_from_env_leads_to_a_simulated_spotify(
    monkeypatch: pytest.MonkeyPatch,
    database: Database,
    store: ConnectionStore,
    user: UUID,
    given: str,
) -> None:
    """SPOTCONN_SPOTIFY_URL takes the place of Spotify, for all apps; what they are called there is accepted."""
    spotify = FakeSpotify(other_apps={"other-client": "other-secret"})
    connection = await connect(store, spotify, user, ttl=1)
    async with spotify.serve() as url:
        environ = {
            "DATABASE_URL": database.dsn,
            "SPOTIFY_CLIENT_ID": "other-client",
            "SPOTIFY_CLIENT_SECRET": "other-secret",
            "SPOTCONN_OTHER_APPS": "demo-client:demo-secret",
            "SPOTCONN_SPOTIFY_URL": given.format(url.rpartition(":")[2]),
        }
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        async with TokenManager.from_env() as tokens:
            assert await tokens.get_valid_token(user) != connection.access_token
            assert tokens.accounts.api_url == url
    assert spotify.refresh_calls_by_app == {"demo-client": 1}


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
