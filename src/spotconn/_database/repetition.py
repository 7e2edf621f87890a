"""Statements that stand alone, awaited again where that is safe, and connections that turn out to be lost."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

import asyncpg

from spotconn._backoff import Backoff
from spotconn._database.errors import map_errors
from spotconn._database.idle_sessions import Session
from spotconn._database.statement_cache import execute

_T = TypeVar("_T")

FIRST_PAUSE, LONGEST_PAUSE = 0.004, 0.2
"""Seconds before another attempt of what conflicts with another transaction."""
LEAST = 0.001
"""Seconds of an attempt that comes when the time is over."""
_CONFLICTS = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
_LOST = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.InternalClientError, ConnectionError)


async def answer(session: Session, query: str, call: Callable[[float], Awaitable[_T]], *, seconds: float) -> _T:
    """Return the answer to one statement outside of any transaction, which Postgres may have rolled back before.

    A conflict with another transaction rolls the statement back whole, so it is safe to repeat, also a write. A
    connection that turns out to be lost is closed.

    Args:
        session: on which it runs.
        query: the statement.
        call: begins it, with the seconds that it has.
        seconds: for all attempts together.

    Raises:
        SpotconnError, ValueError: as `map_errors`.
    """
    return await map_errors(_repeated(session, query, call, seconds))


async def _repeated(session: Session, query: str, call: Callable[[float], Awaitable[_T]], seconds: float) -> _T:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds

    def remaining() -> float:
        return max(end - loop.time(), LEAST)

    def attempt() -> Awaitable[_T]:
        return _closed_if_lost(session, execute(session, query, call, remaining))

    return await retried(attempt, lambda error: isinstance(error, _CONFLICTS), seconds=seconds)


async def retried(
    attempt: Callable[[], Awaitable[_T]], is_conflict: Callable[[Exception], bool], *, seconds: float
) -> _T:
    """Return the result of a transaction, begun anew after each conflict with another one until the time is over.

    In repeatable read and serializable each attempt sees what the one before conflicted with.

    Args:
        attempt: begins the transaction.
        is_conflict: whether Postgres has rolled it back whole, and it may succeed the next time.
        seconds: for all attempts together.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    backoff = Backoff(first=FIRST_PAUSE, longest=LONGEST_PAUSE)
    while True:
        try:
            return await attempt()
        except Exception as error:
            delay = backoff.next_pause()
            if not is_conflict(error) or loop.time() + delay >= end:
                raise
        await asyncio.sleep(delay)


async def _closed_if_lost(session: Session, call: Awaitable[_T]) -> _T:
    try:
        return await call
    except (*_LOST, asyncpg.PostgresError) as error:
        if is_lost(error):  # asyncpg may not know yet that it has ended
            with suppress(asyncpg.InterfaceError):
                session.terminate()
        raise


def is_lost(error: Exception) -> bool:
    """Return whether an error of asyncpg comes with the end of the session, whose last words are FATAL."""
    return isinstance(error, _LOST) or getattr(error, "severity_en", None) == "FATAL"
