"""Transactions as `service_role`, which sees every row: it has BYPASSRLS, or policies of its own."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

import asyncpg

from spotconn._database.acquire import TIMEOUT as ANSWER_TIMEOUT
from spotconn._database.acquire import within
from spotconn._database.bound_pool import BoundPool
from spotconn._database.errors import APPLY_SCHEMA, map_errors
from spotconn._database.idle_sessions import Session
from spotconn._database.repetition import retried
from spotconn._database.row_owners import check_users
from spotconn._database.statements import HIDES_ROWS
from spotconn.errors import DatabaseUnavailable, RowSecurityError, SchemaMismatch, SpotconnError, StatementRefused

if TYPE_CHECKING:
    from asyncpg.transaction import Transaction

_T = TypeVar("_T")

BATCH = 1000
"""Rows read or changed in one statement."""
TIMEOUT = 300.0
"""Seconds for one statement; some read every row."""


def set_timeouts(seconds: float) -> str:
    """Return a SELECT that replaces the time limits of the login and the database until the transaction ends.

    Those are meant for the requests of a service, and would end a long statement of an operator at each attempt.

    Args:
        seconds: for one statement, with its waits for locks, and for the time between two.
    """
    milliseconds = round(seconds * 1000)
    return (
        f"select pg_catalog.set_config('statement_timeout', '{milliseconds}', true), "
        "pg_catalog.set_config('lock_timeout', '0', true), "
        f"pg_catalog.set_config('idle_in_transaction_session_timeout', '{milliseconds}', true), "
        # PostgreSQL 17 and later have it.
        "case when pg_catalog.current_setting('transaction_timeout', true) is not null "
        "then pg_catalog.set_config('transaction_timeout', '0', true) end"
    )


_BECOME_SERVICE_ROLE = (
    f"{set_timeouts(TIMEOUT)}, pg_catalog.set_config('role', 'service_role', true), "
    "pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true), "
    f"{HIDES_ROWS} as hides"
)


class ServiceRole:
    """Runs each statement in a short transaction of its own.

    Args:
        pool: of the admin.
    """

    def __init__(self, pool: BoundPool) -> None:
        self._pool = pool

    async def fetch(self, query: str, *args: object) -> list[asyncpg.Record]:
        """Return the rows of a statement.

        Raises:
            RowSecurityError: the login may not become service_role, or a policy hides rows from that role.
            DatabaseUnavailable, SchemaMismatch: it failed.
        """
        return await self.run(lambda session: map_errors(session.fetch(query, *args, timeout=TIMEOUT)))

    async def confirm(self) -> None:
        """Wait until the synchronous standby, if there is one, has all that was committed before.

        A write that was given up in that wait stands on the primary alone, and what runs again finds it done. As
        `spotconn.write_wal`, which service_role may not call.

        Raises:
            The same as `fetch`.
        """
        await self.fetch("select pg_catalog.pg_logical_emit_message(true, 'spotconn', '')")

    async def run(self, work: Callable[[Session], Awaitable[_T]]) -> _T:
        """Return the result of `work` in a transaction, which is begun anew where it was the victim of a deadlock.

        Also, once, where it meets a server that takes no writes.

        Raises:
            The same as `fetch`, and what `work` raises.
        """

        async def attempt() -> _T:
            async with self.transaction() as session:
                return await work(session)

        return await retried(lambda: self._pool.leaving.repeated(attempt), _is_held_up, seconds=ANSWER_TIMEOUT)

    async def batches(self, query: str, *args: object) -> AsyncIterator[list[asyncpg.Record]]:
        """Yield the rows of a list in batches, each read by a statement of its own.

        Args:
            query: takes the first user id as $1 and the size of a batch as $2, and orders by user id.
            args: from $3 on.

        Raises:
            The same as `fetch`.
        """
        start = UUID(int=0)
        while rows := await self._batch(query, start, *args):
            yield rows
            last: UUID = rows[-1]["user_id"]
            if len(rows) < BATCH or last == UUID(int=2**128 - 1):
                return
            start = UUID(int=last.int + 1)

    async def _batch(self, query: str, start: UUID, *args: object) -> list[asyncpg.Record]:
        async def read(session: Session) -> list[asyncpg.Record]:
            rows = await map_errors(session.fetch(query, start, BATCH, *args, timeout=TIMEOUT))
            users = [row["user_id"] for row in rows]
            check_users(session, users == sorted(users) and all(start <= user for user in users))
            return rows

        return await self.run(read)

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Session]:
        """Context manager: a transaction as `service_role`, rolled back if the block fails.

        It is READ COMMITTED, whichever level is the default: a statement that follows a lock has to see what the
        lock was waited for.

        Raises:
            The same as `fetch`.
        """
        async with self._pool.acquire() as session:
            transaction = session.transaction(isolation="read_committed")
            await map_errors(within(transaction.start(), seconds=ANSWER_TIMEOUT))
            try:
                await _become_service_role(session)
                yield session
            except BaseException:
                await _roll_back(transaction)
                raise
            await map_errors(within(transaction.commit(), seconds=TIMEOUT))


def _is_held_up(error: Exception) -> bool:
    return isinstance(error, DatabaseUnavailable) and error.locked


async def _roll_back(transaction: "Transaction") -> None:
    """Roll back a failed transaction. A session that is still inside one does not return to the pool."""
    failures = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
    with suppress(*failures):
        await within(transaction.rollback(), seconds=ANSWER_TIMEOUT)


async def _become_service_role(session: Session) -> None:
    failure: SpotconnError | None = None
    try:
        row = await map_errors(session.fetchrow(_BECOME_SERVICE_ROLE, timeout=TIMEOUT))
    except RowSecurityError:
        failure = RowSecurityError(
            "the login may not become service_role: use one of an operator, to which service_role was granted (GRANT "
            "service_role TO my_operator), and not that of the service"
        )
    except StatementRefused as error:
        if error.sqlstate != "22023":  # of a value for the parameter "role"
            raise
        failure = SchemaMismatch(f"the database has no role service_role: {APPLY_SCHEMA}")
    else:
        if row is not None and row["hides"]:  # it would find nothing to do, or less than there is
            failure = RowSecurityError(f"service_role must see the rows of all users, but {'; '.join(row['hides'])}")
    if failure is not None:
        raise failure
