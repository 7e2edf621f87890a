"""A session for the caller's own SQL in one transaction, with its state restored afterwards.

Behind a transaction pooler the session of the server belongs to another client as soon as the transaction ends. So the
state that outlives the transaction is reset in a second one that is chained to it: in the same message, on the same
session, before the pooler may give it to another client.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import asyncpg

from spotconn._database.acquire import terminate_on_error, within
from spotconn._database.errors import map_errors
from spotconn._database.idle_sessions import Session
from spotconn.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from asyncpg.transaction import Transaction

# No transaction can be chained to a commit that fails, so deferred constraints are checked before it.
_COMMIT = "set constraints all immediate; commit and chain"
_ROLLBACK = "rollback and chain"
_RESET = (
    "set session authorization default; reset all; select pg_catalog.pg_advisory_unlock_all(); close all; unlisten *; "
    "discard temp"
)
# Prepared statements of the caller and of asyncpg's cursors, whose names are the same in every process. Those of the
# pooler itself must stay.
_DEALLOCATE_STATEMENTS = """
do $$
declare
    statement text;
begin
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
    """Context manager: a transaction after which role, settings, locks and other state of the session are restored.

    It commits at the end of the block. An exception rolls it back and passes through unchanged, as does an error of
    the commit. A session that cannot be restored is closed, also when the block itself has ended the transaction.

    Raises:
        DatabaseUnavailable: the database did not answer in time; it may still commit.
    """
    restoring = _restoring(session)
    transaction = session.transaction()
    with terminate_on_error(session):
        await map_errors(within(transaction.start(), seconds=seconds))
    ending = _ROLLBACK
    suppressed: tuple[type[Exception], ...] = ()
    try:
        yield
        ending = _COMMIT
    except asyncio.CancelledError:
        suppressed = (Exception,)  # raised here, an error of the rollback would replace the cancellation
        raise
    finally:
        with suppress(*suppressed):
            await _end(session, transaction, f"{ending}; {restoring}", seconds=seconds)


async def _end(session: Session, transaction: "Transaction", statements: str, *, seconds: float) -> None:
    try:
        if session.is_closed():
            return
    except asyncpg.InterfaceError:  # it was lost, and the pool has released it already
        return
    if not session.is_in_transaction():  # the block has ended it
        session.terminate()
        return
    timed_out = False
    with terminate_on_error(session):
        try:
            async with asyncio.timeout(seconds):
                await session.execute(statements)
                await transaction.commit()
        except TimeoutError:
            timed_out = True
        if timed_out:
            raise DatabaseUnavailable("the transaction did not end in time; try again later")


def _restoring(session: Session) -> str:
    """Return the statements that restore the present state of a session."""
    current = {name: getattr(session.get_settings(), name, None) for name in _TRACKED_SETTINGS}
    restored = [f"set {name} = {_literal(value)}" for name, value in current.items() if value is not None]
    # asyncpg has no public API for this. With a cache its prepared statements are meant to stay.
    caches = getattr(session, "_stmt_cache_enabled", True)
    return "; ".join([_RESET, *restored, *([] if caches else [_DEALLOCATE_STATEMENTS])])


def _literal(text: str) -> str:
    """Return a literal that does not depend on standard_conforming_strings."""
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return f"E'{escaped}'"
