"""Errors of asyncpg, mapped to the library's own.

Their texts name what refused and never repeat message or detail of the server: those may hold a row or an argument.
"""

import re
from collections.abc import Awaitable
from typing import TypeVar

import asyncpg

from spotconn._database.sqlstates import BAD_INPUT, HIDDEN, OTHER_ACCOUNT, UNKNOWN_USER, verdict
from spotconn._database.unreachable import DRIVER_ERRORS, hook_failure, unreachable
from spotconn._printable import shown
from spotconn.errors import (
    ConfigurationError,
    ConnectFailed,
    DatabaseUnavailable,
    RowSecurityError,
    SchemaMismatch,
    SpotconnError,
    StatementRefused,
    UnknownUser,
)

_T = TypeVar("_T")

APPLY_SCHEMA = "apply the schema of this version of spotconn: spotconn schema --apply"
SPARE_THE_LIBRARY = "let it bind browsers alone: ALTER POLICY name ON public.spotify_connections TO authenticated"
"""What to do with a restrictive policy that binds the role `spotconn`."""

_TABLES = {"spotify_connections", "refresh_state", "pending_connect", "reminder"}
_HELD_UP = {"40001", "40P01", "55P03"}
"""SQLSTATEs of a statement that met another transaction, while the database serves others."""
_FUNCTION = re.compile(r'^(?:PL/\S+ (?:\S+ )?([\w.]+)\(|SQL \S+ "([\w.]+)")', re.MULTILINE)
"""In the context of an error, in any language of the server. The innermost function comes first."""
_IDENTIFIER = re.compile(r"\w[\w .$-]{0,126}")
_PARAMETER = re.compile(r'parameter(?: in options)?:? "?([A-Za-z][\w.]{0,62})')
_QUOTED = re.compile(r'"([^"]+)"')
_POOLER_SETTING = re.compile(
    r"no such (?:user|database)|database .* does not exist|authentication failed|wrong password|"
    r"(?:tenant|user)\b.* not found|tenant identifier|endpoint id|external_id|ssl connection is required|allow_list",
    re.IGNORECASE,
)
"""What poolers say at login of what does not pass by itself: PgBouncer, Supavisor, Neon's proxy."""


async def map_errors(call: Awaitable[_T]) -> _T:
    """Await a call of asyncpg, and raise an error of the library in place of one of the driver.

    The original is neither cause nor context: its text and its detail may repeat a row or an argument.
    """
    failure: SpotconnError | ValueError
    try:
        return await call
    # InternalClientError: the last message of a terminated backend arrived as the call began.
    except DRIVER_ERRORS as error:
        failure = library_error(error)
    raise failure


async def map_all_errors(call: Awaitable[_T]) -> _T:
    """Do the same as `map_errors`, also with what a password callable or a hook of the caller's raises."""
    failure: SpotconnError
    try:
        return await map_errors(call)
    except SpotconnError:
        raise
    except Exception as error:  # noqa: BLE001  whatever it is
        failure = hook_failure(error)
    raise failure


def library_error(error: Exception) -> SpotconnError | ValueError:
    """Return the error of the library for one of `DRIVER_ERRORS`."""
    return _error_of_server(error) if isinstance(error, asyncpg.PostgresError) else unreachable(error)


def _error_of_server(error: asyncpg.PostgresError) -> SpotconnError | ValueError:
    """Return the error of the library for one that the server, or a pooler, has answered with."""
    state = error.sqlstate or "?????"
    if state in BAD_INPUT:
        return ValueError(BAD_INPUT[state])
    if state in {OTHER_ACCOUNT, HIDDEN}:
        return _other_account() if state == OTHER_ACCOUNT else _hidden(error)
    # Supavisor, where txn_mode_leak_action is "error". It ends the client, so asyncpg has the text within its own.
    if state in {"XX000", "08003"} and "not allowed in transaction mode" in str(error):
        return ConfigurationError(
            "a transaction pooler in between refuses what outlives a transaction: name the server itself, or a pooler "
            "in session mode; for notifications alone in SPOTCONN_LISTEN_URL (listen_dsn)"
        )
    severity = _field(error, "severity_en") or _field(error, "severity")  # PgBouncer sends only the latter
    if severity in {"FATAL", "PANIC"} and (refused := _login_error(error, state)):
        return refused
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        return DatabaseUnavailable("the schema was changed during the statement; try again", answered=True)
    return _statement_error(error, state)


def _login_error(error: asyncpg.PostgresError, state: str) -> ConfigurationError | None:
    """Return the error of a setting that is wrong, or None where the end of the session, or its refusal, passes."""
    message = str(_field(error, "message") or "")
    known = verdict(state)
    named = _PARAMETER.search(message)
    parameter = f": {named[1]}" if named else ""
    if state == "08P01" and "startup parameter" in message:
        return ConfigurationError(
            f"the pooler in between takes no such parameter of the database URL or of server_settings{parameter}; "
            "leave it out"
        )
    if state in {"08P01", "XX000"}:
        if not _POOLER_SETTING.search(message):
            return None
        return ConfigurationError(
            f"a pooler refuses user, password, database or a setting of the session (SQLSTATE {state}): check those of "
            "the database URL; its log says which"
        )
    if known.kind in {DatabaseUnavailable, ConfigurationError}:
        return None
    return ConfigurationError(
        f"the database refuses the session ({type(error).__name__}, SQLSTATE {state}): correct, or leave out, the "
        f"parameter of the database URL or of server_settings{parameter}; or the login lacks CONNECT on the database"
    )


def _statement_error(error: asyncpg.PostgresError, state: str) -> SpotconnError:
    name = type(error).__name__
    no_role = state == "22023" and _function(error) == "spotconn.act_as"  # as after a restore without roles
    kind, advice = verdict("42704" if no_role else state)
    if _field(error, "server_source_function") == "PreCommit_Notify":
        return DatabaseUnavailable(
            f"the queue of NOTIFY is full (SQLSTATE {state}): a session that listens sits in a transaction, and what "
            "notifies fails until it ends; find it with spotconn doctor, and try again",
            answered=True,
        )
    if kind is DatabaseUnavailable:
        text = f"the database cannot serve now ({name}, SQLSTATE {state}); {advice}"
        lost, locked = state.startswith("08"), state in _HELD_UP
        return DatabaseUnavailable(text, answered=not lost, locked=locked, sqlstate=error.sqlstate)
    if kind is ConfigurationError:
        return ConfigurationError(f"the database refused the login or a setting ({name}, SQLSTATE {state}): {advice}")
    function = _foreign_function(error)
    if kind is StatementRefused or function:
        return _refused(error, state, advice)
    if kind is SchemaMismatch:
        return SchemaMismatch(f"the database lacks what this library needs ({name}): {APPLY_SCHEMA}")
    return RowSecurityError(_denial(error))


def _denial(error: asyncpg.PostgresError) -> str:
    """Return the text of a lack of privilege."""
    if _field(error, "server_source_function") == "ExecWithCheckOptions":
        return (
            f"row level security refuses the row that the library writes for its user{_violated(error)}: "
            f"{SPARE_THE_LIBRARY}, or {APPLY_SCHEMA}"
        )
    return (
        f"the login role may not act under row level security: GRANT spotconn TO it (with INHERIT), or {APPLY_SCHEMA}"
    )


def _other_account() -> ConnectFailed:
    return ConnectFailed(
        "other_account",
        "this is another Spotify account than the connected one, which stays: sign in to that one at Spotify, or "
        "disconnect it first",
    )


def _hidden(error: asyncpg.PostgresError) -> RowSecurityError:
    """Return the error of a connection that policies hide, named as `spotconn.refuse_hidden` does in the fields."""
    restrictive = shown(_field(error, "constraint_name") or "")
    lacking = shown(_field(error, "data_type_name") or "")
    causes = list[str]()
    if restrictive:
        causes.append(f"restrictive policy {restrictive}: {SPARE_THE_LIBRARY}")
    if lacking:
        causes.append(f"no permissive policy for {lacking} binds the role spotconn: {APPLY_SCHEMA}")
    named = "; ".join(causes) or f"a policy was altered, or a trigger keeps it: {APPLY_SCHEMA}"
    return RowSecurityError(
        f"the connection of this user is stored, and kept from the library by row level security: {named}", hidden=True
    )


def _violated(error: asyncpg.PostgresError) -> str:
    """Return the policy that does not let the library write a row. Postgres names a restrictive one, and the table."""
    names = _QUOTED.findall(str(_field(error, "message")))
    return f" (restrictive policy {shown(names[0])})" if len(names) > 1 else ""


def _refused(error: asyncpg.PostgresError, state: str, advice: str) -> StatementRefused | UnknownUser:
    """Return the error of a refusal, whose text says who refused, by name, and what to do."""
    if state == UNKNOWN_USER and _is_of_user(error):
        return UnknownUser("user_id: no such user in auth.users")
    names = {
        "constraint": _field(error, "constraint_name"),
        "column": _field(error, "column_name"),
        "table": _field(error, "table_name"),
        "function": _function(error),
    }
    culprits = [f"{what} {name}" for what, name in names.items() if name and _IDENTIFIER.fullmatch(name)]
    named = f": {', '.join(culprits)}" if culprits else ""
    if not advice:  # a missing table or grant, in a function that is not the library's
        advice = "the function is the project's, and runs as the role spotconn: correct it, or make it SECURITY DEFINER"
    text = f"the database refused the statement ({type(error).__name__}, SQLSTATE {state}{named}); {advice}"
    return StatementRefused(state, text)


def _is_of_user(error: asyncpg.PostgresError) -> bool:
    """Return whether a foreign key is the library's own, of the user."""
    # The detail names the column in every language, but only to whom may read it.
    table, detail = _field(error, "table_name"), _field(error, "detail") or ""
    return table in _TABLES and (_field(error, "constraint_name") == f"{table}_user_id_fkey" or "(user_id)=" in detail)


def _function(error: asyncpg.PostgresError) -> str | None:
    """Return the name of the innermost function."""
    found = _FUNCTION.search(_field(error, "context") or "")
    return found and (found[1] or found[2])


def _foreign_function(error: asyncpg.PostgresError) -> bool:
    """Return whether the innermost function is one that the library does not own."""
    found = _FUNCTION.search(_field(error, "context") or "")
    # The name of a function in SQL stands there without its schema, so nothing is known of it.
    return bool(found and found[1] and not found[1].startswith("spotconn."))


def _field(error: asyncpg.PostgresError, name: str) -> str | None:
    """Return a field of the server's answer."""
    return getattr(error, name, None)
