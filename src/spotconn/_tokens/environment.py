"""What a `TokenManager` is made of, opened from the environment and the keyword arguments of `from_env`."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from spotconn._database.pool import keywords, pool_keywords
from spotconn._settings import Settings, variables
from spotconn.accounts import SpotifyAccounts
from spotconn.cipher import cipher_for
from spotconn.errors import ConfigurationError
from spotconn.store import ConnectionStore


def check_options(constructor: Callable[..., object], options: Mapping[str, object]) -> None:
    """Raise TypeError for a keyword that neither the constructor nor the store nor its pool takes."""
    known = keywords(constructor) | keywords(ConnectionStore.open) | pool_keywords()
    for name in options:
        if name not in known:
            raise TypeError(f"from_env() got an unexpected keyword argument {name!r}")


@asynccontextmanager
async def opened(
    constructor: Callable[..., object], environ: Mapping[str, str | None] | None, options: Mapping[str, Any]
) -> AsyncGenerator[tuple[ConnectionStore, SpotifyAccounts, dict[str, Any]]]:
    """Context manager: open the arguments of a `TokenManager`, and close them at the end of the block.

    Args:
        constructor: of the manager.
        environ: the variables; None for the environment of this process.
        options: keyword arguments of the constructor, of `ConnectionStore.open` and of `asyncpg.create_pool`, which go
            before the variables.

    Yields:
        The store, the app of new connections, and the keyword arguments of the constructor.

    Raises:
        TypeError: there is no such keyword argument.
        ValueError: a value of `environ` is no text.
        ConfigurationError: a variable is missing or malformed; the text names it.
        DatabaseUnavailable, SchemaMismatch, RowSecurityError: as `ConnectionStore.open`.
    """
    check_options(constructor, options)
    settings = Settings.read(variables(environ))
    own = {name: options[name] for name in keywords(constructor) & options.keys()}
    of_store = _store_options(settings) | {name: options[name] for name in options.keys() - own.keys()}
    if of_store["min_size"] > of_store["max_size"]:
        raise ConfigurationError("min_size (SPOTCONN_MIN_SIZE) is more than max_size (SPOTCONN_MAX_SIZE)")
    async with (
        _opened_apps(settings) as (accounts, *others),
        ConnectionStore.open(settings.database_url, **of_store) as store,
    ):
        yield store, accounts, {"other_apps": others, "retired_client_ids": settings.retired_client_ids} | own


@asynccontextmanager
async def _opened_apps(settings: Settings) -> AsyncGenerator[list[SpotifyAccounts]]:
    """Context manager: open accounts for the app of new connections and for the others."""
    url = settings.spotify_url
    urls: dict[str, Any] = {} if url is None else {"accounts_url": url, "api_url": url}
    async with AsyncExitStack() as stack:
        apps = [(settings.client_id, settings.client_secret), *settings.other_apps]
        yield [await stack.enter_async_context(SpotifyAccounts(*app, **urls)) for app in apps]


def _store_options(settings: Settings) -> dict[str, Any]:
    cipher = cipher_for(settings.encryption_keys, require_encrypted=settings.require_encrypted)
    limits = settings.model_dump(include={"timeout", "min_size", "max_size"})
    return {"cipher": cipher, "listen_dsn": settings.listen_url, **limits}
