"""What a store needs of its database, looked at in one round trip."""

import json
from collections import defaultdict
from typing import Any

from spotconn._database import statements
from spotconn._database.bound_pool import BoundPool
from spotconn._database.errors import APPLY_SCHEMA
from spotconn._database.idle_sessions import Session
from spotconn._database.pool import is_behind_pooler
from spotconn._database.read_only import check_writable
from spotconn._database.schema_version import check_version
from spotconn._printable import shown
from spotconn.errors import ConfigurationError, RowSecurityError, SchemaMismatch

ENCODING = "UTF8"
"""The encoding of a database that can hold every name."""
MAKE_UTF8 = (
    "make another database with CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0, move the data there with "
    "pg_dump and psql, and name it in DATABASE_URL"
)

UNBOUND = {
    # An administrator's own login, perhaps the only superuser: it must stay what it is.
    "login": "the role spotconn is a login with SUPERUSER or BYPASSRLS. Log in as another role, which is a member of "
    "spotconn: with a login that may alter that role, run ALTER ROLE spotconn RENAME TO another_name, and with the "
    f"renamed login {APPLY_SCHEMA}; it makes a role spotconn that nobody logs in as",
    "exempt": "the role spotconn has BYPASSRLS; with the login that gave it, run ALTER ROLE spotconn NOBYPASSRLS",
    "superuser": "the role spotconn has SUPERUSER; as another superuser, run ALTER ROLE spotconn NOSUPERUSER "
    "NOBYPASSRLS",
    "owner": "the role spotconn owns a table; give each table of spotconn to the login that applies the schema "
    f"(ALTER TABLE public.spotify_connections OWNER TO that login) and {APPLY_SCHEMA}",
    "disabled": f"it is disabled on a table; {APPLY_SCHEMA}",
}
"""By what `spotconn.verify()` returns as `unbound`: the reason and what to do."""

_PROJECTS_TABLE = "public.spotify_connections"
"""Whose policies may be the project's, for its browsers."""


async def verify(pool: BoundPool) -> bool:
    """Raise an error unless the database has this library's schema and row level security binds.

    Returns:
        whether a pooler is in between.

    Raises:
        SchemaMismatch: the schema is missing or of another version, or `auth.uid()` does not return the user.
        ConfigurationError: the encoding of the database is not UTF8.
        RowSecurityError: the policies would not bind, or hide rows from the library, or the login lacks a grant.
        DatabaseUnavailable: no answer in time, or the server or the database is read-only.
    """
    found, pooled = await _read(pool)
    check_version(found["version"])
    if "policies" not in found:
        raise SchemaMismatch(f"the database has an earlier form of this version of the schema: {APPLY_SCHEMA}")
    check_encoding(found["encoding"])
    if not found["claims_read"]:
        raise SchemaMismatch(
            "auth.uid() does not return the user of request.jwt.claims, so the policies show nobody a row; "
            "let it return their sub again, as on Supabase (elsewhere, spotconn schema --plain-postgres prints it)"
        )
    if found["unbound"] is not None:
        raise RowSecurityError(f"row level security would not bind: {UNBOUND[found['unbound']]}")
    if found["policies"]:
        raise RowSecurityError(f"row level security would keep rows from the library: {_causes(found['policies'])}")
    return pooled


def _causes(faults: list[dict[str, str | None]]) -> str:
    """Return the policies that bind or are missing, by name, and what to do.

    Args:
        faults: as `spotconn.policy_faults()` has them.
    """
    commands = defaultdict[tuple[str | None, str | None], list[str]](list)
    for fault in faults:
        commands[fault["relation"], fault["policy"]].append(str(fault["command"]))
    return "; ".join(_cause(str(relation), policy, ", ".join(found)) for (relation, policy), found in commands.items())


def _cause(relation: str, policy: str | None, commands: str) -> str:
    if policy is None:
        return f"no permissive policy on {relation} binds the role spotconn for {commands}: {APPLY_SCHEMA}"
    name = f"{shown(policy)} ON {relation}"
    remedy = f"ALTER POLICY {name} TO authenticated" if relation == _PROJECTS_TABLE else f"DROP POLICY {name}"
    return f"the restrictive policy {shown(policy)} on {relation} binds the role spotconn for {commands}: {remedy}"


async def _read(pool: BoundPool) -> tuple[dict[str, Any], bool]:
    """Return what `spotconn.verify()` has found, and whether a pooler is in between."""
    missing: SchemaMismatch
    pooled = False

    def check(session: Session, answer: str) -> None:
        nonlocal pooled
        _, server, backend = json.loads(answer)
        check_writable(server)
        pooled = is_behind_pooler(session, backend)

    try:
        found: dict[str, Any] = json.loads(await pool.value(statements.VERIFY, check=check))[0]
    except SchemaMismatch as error:
        missing = error.with_traceback(None)
    else:
        return found, pooled
    # An older version lacks the function; where the schema is missing, so is this one.
    check_version(await pool.value(statements.SCHEMA_VERSION))
    raise missing


def check_encoding(encoding: str) -> None:
    """Raise ConfigurationError unless a database of this encoding can hold every name."""
    if encoding != ENCODING:
        raise ConfigurationError(
            f"the encoding of the database is {encoding}, which cannot hold every letter of a name: {MAKE_UTF8}"
        )
