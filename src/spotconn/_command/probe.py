"""A session on which the doctor tries statements and rolls them back."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import asyncpg

from spotconn._database.acquire import within
from spotconn._database.errors import map_errors
from spotconn._database.idle_sessions import Session
from spotconn._database.service_role import set_timeouts
from spotconn._database.statements import HIDES_ROWS
from spotconn.errors import DatabaseUnavailable

TIMEOUT = 60.0
"""Seconds for one statement; some of them read every row."""
UNSEEN = "not to be seen: this login cannot become service_role, or that role does not see every row; see grants"
"""What is said where `become_service_role` returns False."""


@dataclass(frozen=True)
class Probe:
    """An open session to examine.

    Attributes:
        session: of the login that DATABASE_URL names.
    """

    session: Session

    async def value(self, query: str, *args: object) -> Any:
        """Return the single value of a query."""
        return await map_errors(self.session.fetchval(query, *args, timeout=TIMEOUT))

    async def rows(self, query: str, *args: object) -> list[asyncpg.Record]:
        """Return the rows of a query."""
        return await map_errors(self.session.fetch(query, *args, timeout=TIMEOUT))

    async def attempt(self, query: str, *args: object) -> str:
        """Run a statement in a savepoint of `rolled_back`. Return its command tag ("UPDATE 0") or its SQLSTATE.

        Raises:
            DatabaseUnavailable: the connection was lost, or there was no answer in time.
        """
        savepoint = self.session.transaction()
        try:
            await within(savepoint.start(), seconds=TIMEOUT)
            try:
                command_tag = await self.session.execute(query, *args, timeout=TIMEOUT)
            except asyncpg.PostgresError:
                await within(savepoint.rollback(), seconds=TIMEOUT)
                raise
            await within(savepoint.commit(), seconds=TIMEOUT)
        except asyncpg.PostgresError as error:
            return error.sqlstate or "?"
        except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError):
            pass
        else:
            return command_tag
        raise DatabaseUnavailable("the database went away; try again later")

    async def become_service_role(self) -> bool:
        """Act as `service_role` until the end of `rolled_back`, and return whether that shows every row."""
        if await self.attempt("set local role service_role") != "SET":
            return False
        return not await self.value(f"select {HIDES_ROWS}")

    @asynccontextmanager
    async def rolled_back(self) -> AsyncGenerator[None]:
        """Context manager: a transaction with time limits of its own, rolled back at the end of the block.

        Where that fails the session is not used again: it may be half-open, or in the middle of an answer.
        """
        transaction = self.session.transaction()
        await map_errors(within(transaction.start(), seconds=TIMEOUT))
        suppressed: tuple[type[Exception], ...] = ()
        try:
            await self.value(set_timeouts(TIMEOUT))
            yield
        except asyncio.CancelledError:
            suppressed = (DatabaseUnavailable,)  # raised here, it would replace the cancellation
            raise
        finally:
            with suppress(*suppressed):
                await map_errors(within(transaction.rollback(), seconds=TIMEOUT))
