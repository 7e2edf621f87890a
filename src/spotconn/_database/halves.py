"""Reads of several users, repeated in halves where Postgres refuses them: what one row causes is one user's error."""

from collections import deque
from collections.abc import Awaitable, Callable
from uuid import UUID

import asyncpg

from spotconn._tracebacks import renewed
from spotconn.errors import DatabaseUnavailable, RowSecurityError, SpotconnError, StatementRefused

MOST_REFUSED = 50
"""Refused statements after which a refusal concerns the whole: one row causes nine among 200 users."""
MOST_UNAVAILABLE = 3
"""Statements in sequence for which Postgres lacks something, memory or time, after which that concerns the whole."""


async def read_in_halves(
    read: Callable[[list[UUID]], Awaitable[list[asyncpg.Record]]], user_ids: list[UUID]
) -> tuple[list[asyncpg.Record], dict[UUID, SpotconnError]]:
    """Return the rows of users, and the errors of those whose rows cannot be read.

    Args:
        read: reads some of them in one statement.
        user_ids: of all.

    Raises:
        SpotconnError: of `read`, where it concerns all of them.
    """
    rows, errors = list[asyncpg.Record](), dict[UUID, SpotconnError]()
    due = deque([user_ids])
    refused = unavailable = 0
    while due:
        some = due.popleft()
        try:
            rows += await read(some)
            unavailable = 0
        except (StatementRefused, RowSecurityError) as error:
            refused += 1
            if refused > MOST_REFUSED or (isinstance(error, RowSecurityError) and not error.hidden):
                raise
            failure: SpotconnError = renewed(error)
        except DatabaseUnavailable as error:
            unavailable += 1
            if not error.answered or unavailable >= min(MOST_UNAVAILABLE, len(user_ids)):
                raise
            failure = renewed(error)
        else:
            continue
        if len(some) == 1:
            errors[some[0]] = failure
        else:
            due += some[: len(some) // 2], some[len(some) // 2 :]
    return rows, errors
