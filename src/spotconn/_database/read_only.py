"""Whether a database takes writes, why not, and what mends it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from spotconn._database.sqlstates import READ_ONLY
from spotconn.errors import DatabaseUnavailable

_SETTING = "default_transaction_read_only"
# pg_settings has some hundred rows: it is read only where that matters.
STATE = f"""
select pg_catalog.pg_is_in_recovery() as standby,
    pg_catalog.current_setting('transaction_read_only')::pg_catalog.bool as read_only,
    case when pg_catalog.current_setting('transaction_read_only')::pg_catalog.bool
        then (select source from pg_catalog.pg_settings where name = '{_SETTING}') end as source,
    pg_catalog.quote_ident(pg_catalog.current_database()) as database,
    pg_catalog.quote_ident(session_user) as login
"""  # noqa: S608  of a constant
"""What `fault` looks at, in one row."""
# By where the setting comes from, as pg_settings names it. ALTER DATABASE and ALTER ROLE are writes themselves.
_RESET = {
    "configuration file": f"ALTER SYSTEM RESET {_SETTING} (or take it out of postgresql.conf), then SELECT "
    "pg_reload_conf(); on a managed server, change it in the provider's settings of the server",
    "database": f"SET {_SETTING} = off, then ALTER DATABASE {{database}} RESET {_SETTING}",
    "user": f"SET {_SETTING} = off, then ALTER ROLE {{login}} RESET {_SETTING}",
    "database user": f"SET {_SETTING} = off, then ALTER ROLE {{login}} IN DATABASE {{database}} RESET {_SETTING}",
    "client": f"take {_SETTING} out of DATABASE_URL and PGOPTIONS",
}


class Fault(NamedTuple):
    """Why a database takes no writes, and what mends it."""

    text: str
    remedy: str


def fault(state: Mapping[str, Any]) -> Fault | None:
    """Return why the database takes no writes; None if it does.

    Args:
        state: a row of `STATE`.
    """
    if state["standby"]:
        return Fault(
            "this server is a standby (a replica), or is being restored: it is read-only, so no refreshed token can "
            "be saved",
            "name the primary server in DATABASE_URL, or all servers of the cluster, of which the primary is taken; a "
            "failover passes by itself, and a restored server can be written to once it is done",
        )
    if not state["read_only"]:
        return None
    reset = _RESET.get(state["source"], f"turn {_SETTING} off where it was turned on, as by a pooler in between")
    return Fault(
        f"transactions are read-only ({_SETTING}, set by: {state['source']}), so no refreshed token can be saved",
        f"{reset.format(database=state['database'], login=state['login'])}; on Supabase a nearly full disk "
        "sets it: free or enlarge that first",
    )


def check_writable(state: Mapping[str, Any]) -> None:
    """Raise DatabaseUnavailable if the database takes no writes.

    Args:
        state: a row of `STATE`.
    """
    if found := fault(state):
        raise DatabaseUnavailable(
            f"the database cannot be written to: {found.text}; {found.remedy}", answered=True, sqlstate=READ_ONLY
        )
