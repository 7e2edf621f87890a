"""Stored Spotify connections: a valid access token for a user, or one clear reason why not."""

import logging

from spotconn._database.schema import schema_sql, schema_statements
from spotconn._tokens.access_token import AccessToken
from spotconn._tokens.freshness import Freshness, freshness
from spotconn._user_ids import UserId, integer_id, user_id
from spotconn.accounts import SpotifyAccounts
from spotconn.admin import ConnectionAdmin
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
from spotconn.importing import import_grant, verify_connection
from spotconn.manager import TokenManager
from spotconn.models import Connection, Profile, RecordedFailure, StoredTexts, TokenGrant, TokenSource
from spotconn.overview import (
    ConnectionOverview,
    ConnectionStats,
    ConnectionStatus,
    MigratedRow,
    PruneProgress,
    RekeyProgress,
    TokensProgress,
)
from spotconn.store import ConnectionStore
from spotconn.turns import Outcome, RefreshFailure, RefreshTurn

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
