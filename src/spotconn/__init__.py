"""Stored Spotify connections: a valid access token for a user, or one clear reason why not.

What only operators use is imported when it is first asked for.
"""

import importlib
import logging
import typing

from spotconn._tokens.access_token import AccessToken
from spotconn._tokens.freshness import Freshness, freshness
from spotconn._tokens.status import ConnectionStatus, TokensProgress
from spotconn._user_ids import UserId, integer_id, user_id
from spotconn.accounts import SpotifyAccounts
from spotconn.auth import SpotifyAuth
from spotconn.authorizations import Authorization, Completed
from spotconn.cipher import AesGcmSivCipher, TokenCipher
from spotconn.connect import ConnectFlow
from spotconn.errors import (
    AskUser,
    CallEngineer,
    ConfigurationError,
    ConnectFailed,
    DatabaseUnavailable,
    DecryptionError,
    MissingScope,
    NotConnected,
    OtherApp,
    ReauthorizationRequired,
    RefreshInProgress,
    RowSecurityError,
    SchemaMismatch,
    SpotconnError,
    SpotifyUnavailable,
    StatementRefused,
    TryLater,
    UnknownUser,
)
from spotconn.manager import TokenManager
from spotconn.models import Connection, Profile, RecordedFailure, StoredTexts, TokenGrant, TokenSource
from spotconn.store import ConnectionStore
from spotconn.turns import Outcome, RefreshFailure, RefreshTurn

if typing.TYPE_CHECKING:
    from spotconn._database.schema import schema_sql, schema_statements
    from spotconn.admin import ConnectionAdmin
    from spotconn.importing import import_grant, verify_connection
    from spotconn.overview import ConnectionOverview, ConnectionStats, MigratedRow, PruneProgress, RekeyProgress

__all__ = [
    "AccessToken",
    "AesGcmSivCipher",
    "AskUser",
    "Authorization",
    "CallEngineer",
    "Completed",
    "ConfigurationError",
    "ConnectFailed",
    "ConnectFlow",
    "Connection",
    "ConnectionAdmin",
    "ConnectionOverview",
    "ConnectionStats",
    "ConnectionStatus",
    "ConnectionStore",
    "DatabaseUnavailable",
    "DecryptionError",
    "Freshness",
    "MigratedRow",
    "MissingScope",
    "NotConnected",
    "OtherApp",
    "Outcome",
    "Profile",
    "PruneProgress",
    "ReauthorizationRequired",
    "RecordedFailure",
    "RefreshFailure",
    "RefreshInProgress",
    "RefreshTurn",
    "RekeyProgress",
    "RowSecurityError",
    "SchemaMismatch",
    "SpotconnError",
    "SpotifyAccounts",
    "SpotifyAuth",
    "SpotifyUnavailable",
    "StatementRefused",
    "StoredTexts",
    "TokenCipher",
    "TokenGrant",
    "TokenManager",
    "TokenSource",
    "TokensProgress",
    "TryLater",
    "UnknownUser",
    "UserId",
    "freshness",
    "import_grant",
    "integer_id",
    "schema_sql",
    "schema_statements",
    "user_id",
    "verify_connection",
]

__version__ = "0.1.0"

# Quiet by default: what a library logs is shown where the program asks for it, and nowhere else.
logging.getLogger(__name__).addHandler(logging.NullHandler())

if not typing.TYPE_CHECKING:  # a checker would take any name for one of the package
    _OF_OPERATORS = {
        "ConnectionAdmin": "admin",
        "ConnectionOverview": "overview",
        "ConnectionStats": "overview",
        "MigratedRow": "overview",
        "PruneProgress": "overview",
        "RekeyProgress": "overview",
        "import_grant": "importing",
        "schema_sql": "_database.schema",
        "schema_statements": "_database.schema",
        "verify_connection": "importing",
    }

    def __getattr__(name: str) -> object:
        """Import a name of `_OF_OPERATORS`, or a module that it is of."""
        if name in _OF_OPERATORS.values():
            return importlib.import_module(f"{__name__}.{name}")
        if name not in _OF_OPERATORS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_OF_OPERATORS[name]}"), name)
        return value

    def __dir__() -> list[str]:
        """Return all names, also those that are not imported yet."""
        return sorted({*globals(), *__all__})
