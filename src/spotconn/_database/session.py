"""A session for the caller's own SQL in one transaction, which leaves nothing to the next user of the pool.

The store ends the connection. Nothing less is certain: type codecs, query loggers, the state of procedural
languages and of the random generator cannot be looked up, or not be restored.

Behind a transaction pooler the session of the server belongs to another client as soon as the transaction ends. So the
state that outlives the transaction is reset in a second one that is chained to it: in the same message, on the same
session, before the pooler may give it to another client.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import asyncpg

from spotconn._database.acquire import within
from spotconn._database.errors import map_errors
from spotconn._database.idle_sessions import Session
from spotconn.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from asyncpg.transaction import Transaction

# No transaction can be chained to a commit that fails, so deferred constraints are checked before it. All that speaks
# of a session is within DO: Supavisor can be set to refuse the message, and to end the client, where it sees such
# statements (txn_mode_leak_action).
_COMMIT = "do $$ begin set constraints all immediate; end $$; commit and chain"
_ROLLBACK = "rollback and chain"
_FATAL = {"FATAL", "PANIC"}
_NOT_SAVED = (
    "the session was lost before the end of the block (a restart, pg_terminate_backend or "
    "idle_in_transaction_session_timeout): nothing of the block was saved; run the block again"
)
# Last the prepared statements of the caller and of asyncpg's cursors, whose names are the same in every process. Those
# of the pooler itself must stay.
_RESTORE = """
do $$
declare
    statement text;
begin
    set session authorization default;
    reset all;
    perform pg_catalog.pg_advisory_unlock_all();
    execute 'close all';
    unlisten *;
    discard temp;
    discard sequences;
    {settings}
    for statement in
        select name from pg_catalog.pg_prepared_statements where from_sql or pg_catalog.starts_with(name, '__asyncpg_')
    loop
        execute pg_catalog.format('deallocate %I', statement);
    end loop;
end
$$
"""
# PgBouncer tracks these settings for each client, and would take their reset as made by the client.
_TRACKED_SETTINGS = ("application_name", "client_encoding", "DateStyle", "standard_conforming_strings", "TimeZone")


@asynccontextmanager
async def borrow(session: Session, *, seconds: float) -> AsyncGenerator[None]:
    """Context manager: a transaction after which the session is restored, for a pooler. The caller ends its connection.

    It commits at the end of the block. An exception rolls it back and passes through unchanged, as does an error of
    the commit.

    Raises:
        DatabaseUnavailable: nothing of the block was saved, or the commit was not answered and may have happened; the
            text says which.
    """
    restoring = _restoring(session)
    # The pool takes a lost connection out of its proxy. asyncpg has no public API for it.
    connection: asyncpg.Connection = getattr(session, "_con")  # noqa: B009  strict types know no "_con"
    transaction = session.transaction()
    await map_errors(within(transaction.start(), seconds=seconds))
    try:
        yield
    except BaseException:
        with suppress(Exception):  # an error of the rollback would replace that of the block
            await _end(session, transaction, f"{_ROLLBACK}; {restoring}", seconds=seconds)
        raise
    if connection.is_closed():
        if _was_in_transaction(connection):
            raise DatabaseUnavailable(_NOT_SAVED)
    else:
        await _commit(session, transaction, f"{_COMMIT}; {restoring}", seconds=seconds)


async def _commit(session: Session, transaction: "Transaction", statements: str, *, seconds: float) -> None:
    reason = ""
    try:
        await _end(session, transaction, statements, seconds=seconds)
    except TimeoutError:
        reason = "the transaction did not end in time"
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
        if not _ends_session(error):
            raise
        reason = "the session was lost during the commit"
    if reason:
        raise DatabaseUnavailable(f"{reason}: what the block wrote may be saved or not; look before you write it again")


async def _end(session: Session, transaction: "Transaction", statements: str, *, seconds: float) -> None:
    if not session.is_in_transaction():  # the block has ended it
        session.terminate()
        return
    async with asyncio.timeout(seconds):
        await session.execute(statements)
        await transaction.commit()


def _was_in_transaction(connection: asyncpg.Connection) -> bool:
    """Return whether a transaction was open when a session was lost: the block had not ended it before."""
    try:
        return connection.is_in_transaction()
    except AttributeError:  # terminated by the block: asyncpg no longer knows
        return True


def _ends_session(error: Exception) -> bool:
    """Return whether an error of the commit comes with the loss of the session."""
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "").startswith("08") or getattr(error, "severity_en", None) in _FATAL
    return not isinstance(error, asyncpg.InterfaceError) or "closed" in str(error)


def _restoring(session: Session) -> str:
    """Return the statement that restores the present state of a session."""
    current = {name: getattr(session.get_settings(), name, None) for name in _TRACKED_SETTINGS}
    restored = [f"set {name} = {_literal(value)};" for name, value in current.items() if value is not None]
    return _RESTORE.format(settings=" ".join(restored))


def _literal(text: str) -> str:
    """Return a literal that does not depend on standard_conforming_strings, and does not end a dollar quote."""
    escaped = text.replace("\\", "\\\\").replace("'", "''").replace("$", r"\x24")
    return f"E'{escaped}'"
