"""What each SQLSTATE of PostgreSQL means for the caller: the error of the library, and what to do next."""

from typing import NamedTuple

from spotconn.errors import (
    ConfigurationError,
    ConnectFailed,
    DatabaseUnavailable,
    RowSecurityError,
    SchemaMismatch,
    SpotconnError,
    StatementRefused,
)


class Verdict(NamedTuple):
    """The meaning of a SQLSTATE.

    Attributes:
        kind: the error to raise.
        advice: what to do next.
    """

    kind: type[SpotconnError]
    advice: str


def _passes(advice: str = "try again later") -> Verdict:
    return Verdict(DatabaseUnavailable, advice)


def _setting(advice: str) -> Verdict:
    return Verdict(ConfigurationError, advice)


def _refused(advice: str) -> Verdict:
    return Verdict(StatementRefused, advice)


_NO_SCHEMA = Verdict(SchemaMismatch, "")  # the remedy is APPLY_SCHEMA
_ROW_SECURITY = Verdict(RowSecurityError, "")  # the text names what is missing, or binds
_LOGIN = _setting(
    "the server does not let this user in from here: check user and sslmode of the database URL, that the role has "
    "LOGIN, and pg_hba.conf of the server"
)
_PASSWORD = _setting(
    "the server does not know this user with this password: correct them in the database URL, or ALTER ROLE ... "
    "PASSWORD; after a restore the role may be without one"
)
_NO_DATABASE = _setting(
    "there is no database of this name on the server: correct it in the database URL, or CREATE DATABASE"
)
_NO_STATEMENT = _setting("a transaction pooler is in between: make the pool with statement_cache_size=0")
_TAKES_NO_WRITES = _passes(
    "the server is a standby, or the database is read-only by default_transaction_read_only: try again later; if it "
    "goes on, name the primary or all servers in the database URL, or turn that off, which spotconn doctor explains"
)
_ENCODING = _refused(
    "a text holds NUL or a character that the encoding of the database lacks; the database must be UTF8"
)

READ_ONLY = "25006"
"""A write in a read-only transaction, also on a standby."""
OTHER_ACCOUNT = "SC003"
"""Another Spotify account is stored: from spotconn.save_connection."""
HIDDEN = "SC002"
"""A policy hides the connection of the user acted for: from spotconn.refuse_hidden."""

# By SQLSTATE, or by its first two characters (PostgreSQL, appendix A).
TABLE: dict[str, Verdict] = {
    "08": _passes(),
    "08P01": _passes("or a pooler refuses user, password, database or a setting of the session: its log says which"),
    "21": _refused("a function, view or policy of the project gives more than one row: correct it"),
    "22": _refused("a column, trigger or function of the project does not take the value: correct it"),
    "22001": _refused("a column of the project is too short: make it text"),
    "22021": _ENCODING,
    "22P05": _ENCODING,
    "23": _refused("a constraint or column of the project refuses the row: change it"),
    "23505": _refused(
        "a unique index of the project refuses the row: drop it, or, if it is one of spotify_user_id, another user has "
        "connected this Spotify account and has to disconnect it first"
    ),
    "25": _passes(),
    READ_ONLY: _TAKES_NO_WRITES,
    "26000": _NO_STATEMENT,
    "28": _LOGIN,
    "28P01": _PASSWORD,
    "3D": _NO_DATABASE,
    "3F000": _NO_SCHEMA,
    "40": _passes("another transaction came in between: try again"),
    "42501": _ROW_SECURITY,
    "42703": _NO_SCHEMA,
    "42704": _NO_SCHEMA,
    "42804": _NO_SCHEMA,
    "42846": _NO_SCHEMA,
    "42883": _NO_SCHEMA,
    "42P01": _NO_SCHEMA,
    "42P05": _NO_STATEMENT,
    "44": _refused("a view of the project refuses the row by its check option: change it"),
    "53": _passes("the server is short of a resource (memory, disk, connections): try again later"),
    "53300": _passes("the server has no connection free: try again later, lower max_size, or raise max_connections"),
    "54": _refused("a limit of PostgreSQL is exceeded: a row, an index entry or a statement is too large"),
    "55": _passes(),
    "55000": _refused(
        "something that a view, trigger or function of the project uses is not in the state for it: correct it"
    ),
    "55P02": _setting("a parameter of the database URL cannot be set there: leave it out"),
    "55P03": _passes("another transaction holds the row, or another lock that is needed: try again later"),
    "57": _passes(),
    "57014": _passes(
        "the statement was cancelled, by statement_timeout of the login or by an operator: if it goes on, "
        "raise it with ALTER ROLE ... SET statement_timeout"
    ),
    "58": _passes(),
    "72": _passes(),
    HIDDEN: _ROW_SECURITY,
    OTHER_ACCOUNT: Verdict(ConnectFailed, ""),  # the text says what the user can do
    "P0": _refused("a trigger or function of the project raises it: correct it"),
    "XX": _refused("the server says that its data or an index is damaged: see its log"),
    "XX000": _passes("the server, or a pooler in between, failed inside: try again later; its log says why"),
}
OTHER = _refused("see this SQLSTATE in appendix A of PostgreSQL's manual and the log of the server")
"""Of a SQLSTATE that stands in no line."""
UNKNOWN_USER = "23503"
"""The foreign key of the user refuses an id; of any other key it is a refusal like others."""
BAD_INPUT = {
    "SC001": "connected_at: lies in the future, by the clock of the database",  # from spotconn.save_connection
}
"""Refusals of what the caller has passed."""


def verdict(sqlstate: str) -> Verdict:
    """Return the meaning of a SQLSTATE, by itself or by its class."""
    return TABLE.get(sqlstate) or TABLE.get(sqlstate[:2]) or OTHER
