"""A session lent to the caller's own SQL for one transaction, and brought back as it was.

Behind a transaction pooler the session at the server is another client's as soon as the transaction ends. So whatever
outlives the caller's transaction is taken off in a second one that is chained to it: in the same message, on the same
session, before the pooler may pass it on.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import asyncpg

from spotconn._database.acquire import Session, terminate_on_error, within
from spotconn._database.errors import map_errors
from spotconn.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from asyncpg.transaction import Transaction

# A commit that fails would leave nothing to chain to: the constraints that could fail it are checked before.
_COMMIT = "set constraints all immediate; commit and chain"
_ROLLBACK = "rollback and chain"
_CLEAN = (
    "set session authorization default; reset all; select pg_catalog.pg_advisory_unlock_all(); close all; unlisten *; "
    "discard temp"
)
# The caller's, and those of asyncpg's cursors, named alike in every process. Those of a pooler itself must stay.
_FORGET_STATEMENTS = """
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
# What PgBouncer keeps for each client. It would take their reset for the client's own wish.
_KEPT = ("application_name", "client_encoding", "DateStyle", "standard_conforming_strings", "TimeZone")


@asynccontextmanager
async def borrow(session: Session, *, seconds: float) -> AsyncGenerator[None]:
    """A transaction after which the session has the role, settings, locks and all that it had before.

    It commits at the end of the block; an exception rolls it back and passes through as it is, as does the database's
    refusal of the commit. A session that cannot be brought back is closed, also when the block itself has ended the
    transaction.

    Raises:
        DatabaseUnavailable: the database did not answer in time; it may still commit.
    """
    cleaning = _cleaning(session)
    transaction = session.transaction()
    with terminate_on_error(session):
        await map_errors(within(transaction.start(), seconds=seconds))
    ending = _ROLLBACK
    passed_over: tuple[type[Exception], ...] = ()
    try:
        yield
        ending = _COMMIT
    except asyncio.CancelledError:
        passed_over = (Exception,)  # or an error of the rollback would end the cancellation
        raise
    finally:
        with suppress(*passed_over):
            await _end(session, transaction, f"{ending}; {cleaning}", seconds=seconds)


async def _end(session: Session, transaction: "Transaction", statements: str, *, seconds: float) -> None:
    try:
        if session.is_closed():
            return
    except asyncpg.InterfaceError:  # it died, and the pool has taken it back already
        return
    if not session.is_in_transaction():  # the block has ended it
        session.terminate()
        return
    late = False
    with terminate_on_error(session):
        try:
            async with asyncio.timeout(seconds):
                await session.execute(statements)
                await transaction.commit()
        except TimeoutError:
            late = True
        if late:
            raise DatabaseUnavailable("the transaction did not end in time; try again later")


def _cleaning(session: Session) -> str:
    """The statements that bring a session back to what it is now."""
    now = {name: getattr(session.get_settings(), name, None) for name in _KEPT}
    kept = [f"set {name} = {_literal(value)}" for name, value in now.items() if value is not None]
    # asyncpg has no public way to ask for it. With a cache its prepared statements are meant to stay.
    caches = getattr(session, "_stmt_cache_enabled", True)
    return "; ".join([_CLEAN, *kept, *([] if caches else [_FORGET_STATEMENTS])])


def _literal(text: str) -> str:
    """As SQL, whatever standard_conforming_strings is."""
    escaped = text.replace("\\", "\\\\").replace("'", "''")
    return f"E'{escaped}'"
