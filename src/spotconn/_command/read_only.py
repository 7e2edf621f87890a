"""The doctor's check that the database can be written to."""

from spotconn._command.finding import Finding
from spotconn._command.probe import Probe

SUBJECT = "writing"
READ_ONLY = "25006"
"""The SQLSTATE of a write in a read-only transaction, also on a replica."""

_SETTING = "default_transaction_read_only"
_STATE = f"""
select pg_catalog.pg_is_in_recovery() as replica,
    pg_catalog.current_setting('transaction_read_only')::boolean as read_only,
    (select source from pg_catalog.pg_settings where name = '{_SETTING}') as source,
    pg_catalog.quote_ident(pg_catalog.current_database()) as database,
    pg_catalog.quote_ident(session_user) as login
"""  # noqa: S608  of a constant
# By where the setting comes from, as pg_settings names it. ALTER DATABASE and ALTER ROLE are writes themselves.
_RESET = {
    "configuration file": f"ALTER SYSTEM RESET {_SETTING} (or take it out of postgresql.conf), then SELECT "
    "pg_reload_conf(); on a managed server, change it in the provider's settings of the server",
    "database": f"SET {_SETTING} = off, then ALTER DATABASE {{database}} RESET {_SETTING}",
    "user": f"SET {_SETTING} = off, then ALTER ROLE {{login}} RESET {_SETTING}",
    "database user": f"SET {_SETTING} = off, then ALTER ROLE {{login}} IN DATABASE {{database}} RESET {_SETTING}",
    "client": f"take {_SETTING} out of DATABASE_URL and PGOPTIONS",
}


async def check_writing(probe: Probe) -> Finding:
    """Check that transactions of this login may write: tokens are saved after each refresh."""
    (state,) = await probe.rows(_STATE)
    if state["replica"]:
        return Finding(
            state="fail",
            subject=SUBJECT,
            text="this server is a replica, or is being restored: it is read-only, so no refreshed token can be saved",
            remedy="name the primary server in DATABASE_URL; a restored server can be written to once it is done",
        )
    if not state["read_only"]:
        return Finding(state="ok", subject=SUBJECT, text="the database can be written to")
    reset = _RESET.get(state["source"], f"turn {_SETTING} off where it was turned on")
    return Finding(
        state="fail",
        subject=SUBJECT,
        text=f"transactions are read-only ({_SETTING}, set by: {state['source']}), so no refreshed token can be saved",
        remedy=f"{reset.format(database=state['database'], login=state['login'])}; on Supabase a nearly full disk "
        "sets it: free or enlarge that first",
    )
