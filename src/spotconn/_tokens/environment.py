"""What a `TokenManager` is made of, opened from the environment."""

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from spotconn._settings import Settings
from spotconn.accounts import SpotifyAccounts
from spotconn.cipher import cipher_for
from spotconn.store import ConnectionStore


@asynccontextmanager
async def opened(
    environ: Mapping[str, str], *, max_size: int
) -> AsyncGenerator[tuple[ConnectionStore, SpotifyAccounts, dict[str, Any]]]:
    """Context manager: open the arguments of a `TokenManager`, and close them at the end of the block.

    Args:
        environ: the environment.
        max_size: connections of the pool at most.

    Yields:
        The store, the app of new connections, and the arguments about other apps.

    Raises:
        ConfigurationError: a variable is missing or malformed; the text names it.
        DatabaseUnavailable, SchemaMismatch, RowSecurityError: as `ConnectionStore.open`.
    """
    settings = Settings.read(environ)
    cipher = cipher_for(settings.encryption_keys, require_encrypted=settings.require_encrypted)
    async with (
        SpotifyAccounts(settings.client_id, settings.client_secret) as accounts,
        opened_apps(settings.other_apps) as others,
        ConnectionStore.open(
            settings.database_url, cipher=cipher, listen_dsn=settings.listen_url, max_size=max_size
        ) as store,
    ):
        yield store, accounts, {"other_apps": others, "retired_client_ids": settings.retired_client_ids}


@asynccontextmanager
async def opened_apps(apps: Iterable[tuple[str, str | None]]) -> AsyncGenerator[list[SpotifyAccounts]]:
    """Context manager: open accounts for the client ids and secrets of several apps."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(SpotifyAccounts(*app)) for app in apps]
