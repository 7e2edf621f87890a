"""Errors of asyncpg, mapped to the library's own."""

from collections.abc import Awaitable
from typing import TypeVar

import asyncpg

from spotconn.errors import ConfigurationError, DatabaseUnavailable, RowSecurityError, SchemaMismatch, SpotconnError

_T = TypeVar("_T")

APPLY_SCHEMA = "apply the schema of this version of spotconn: spotconn schema --apply"

# SQLSTATEs, or their first two characters, by what they mean for the caller (PostgreSQL, appendix A).
_UNAVAILABLE = {"08", "25", "40", "53", "55", "57", "58"}
_NO_SCHEMA = {"3F000", "42883", "42P01", "42703", "42704", "42846", "42804"}
_NO_LOGIN = {"28", "3D"}
_BAD_INPUT = {
    "23503": "user_id: no such user in auth.users",
    "SC001": "connected_at: lies in the future, by the clock of the database",  # from spotconn.save_connection
}

# By SQLSTATE, where more is known than that it may pass.
_ADVICE = {
    # PgBouncer uses one SQLSTATE for all its refusals.
    "08P01": "or a pooler refuses user, password, database or a setting of the session: its log says which",
    "57014": "the statement was cancelled, mostly by a statement_timeout of the login or the database: "
    "try again later, and raise it if that happens again",
}


async def map_errors(call: Awaitable[_T]) -> _T:
    """Await a call of asyncpg, and raise an error of the library in place of one of the driver.

    The original is neither cause nor context: its text and its detail may repeat a row or an argument.
    """
    failure: SpotconnError | ValueError
    try:
        return await call
    except asyncpg.PostgresError as error:
        failure = _library_error(error)
    # InternalClientError: the last message of a terminated backend arrived as the call began.
    except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError) as error:
        failure = DatabaseUnavailable(f"the database cannot be reached ({type(error).__name__}); try again later")
    raise failure


def _library_error(error: asyncpg.PostgresError) -> SpotconnError | ValueError:
    state = error.sqlstate or "?????"
    name = type(error).__name__
    if state == "42501":
        return RowSecurityError(
            "the login role may not act under row level security: GRANT spotconn TO it (with INHERIT), or "
            + APPLY_SCHEMA
        )
    if state in _BAD_INPUT:
        return ValueError(_BAD_INPUT[state])
    if state in _NO_SCHEMA:
        return SchemaMismatch(f"the database lacks what this library needs ({name}): {APPLY_SCHEMA}")
    if state[:2] in _NO_LOGIN:
        return ConfigurationError(f"the database refused the login ({name}): check user, password and database name")
    if state[:2] in _UNAVAILABLE:
        advice = _ADVICE.get(state, "try again later")
        return DatabaseUnavailable(
            f"the database cannot serve now ({name}, SQLSTATE {state}); {advice}", answered=not state.startswith("08")
        )
    return SchemaMismatch(f"the database refused the statement ({name}, SQLSTATE {state}): {APPLY_SCHEMA}")
