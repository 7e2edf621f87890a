"""Callers of several kinds that wait for one user's token when a fault strikes."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import combinations
from uuid import UUID

from callers import PATIENCE, frames
from spotconn import SpotconnError, TokenManager, TryLater
from witness import chain

TRIES = 3
"""Of a caller that insists; each of them suspends, or the event loop would stand still."""

Outcome = str | SpotconnError


class WaitingCrowd:
    """One caller of each kind; all of them ask from the same moment on.

    Args:
        tokens: what they ask.
        user: whose token they want.
        rejected: the token that one of them says was refused.
    """

    def __init__(self, tokens: TokenManager, user: UUID, rejected: str) -> None:
        self._tokens = tokens
        self._user = user
        self._rejected = rejected
        self._tasks: list[asyncio.Task[Outcome]] = []
        self._handled: list[LookupError] = []

    def begin(self) -> None:
        """Let those ask who share one read."""
        self._begin(self._plain, self._within, self._with_min_ttl, self._insisting)

    def reject(self) -> None:
        """Let one ask who reads by itself, and wants another token than the stored one."""
        self._begin(self._replacing)

    async def outcomes(self) -> list[Outcome]:
        """Wait until all have ended, and return what they ended with.

        No error of one may show in that of another.
        """
        async with asyncio.timeout(PATIENCE):
            outcomes = await asyncio.gather(*self._tasks)
        errors = [outcome for outcome in outcomes if isinstance(outcome, SpotconnError)]
        for error in errors:
            links = set(chain(error)) - {error}
            assert links <= set(self._handled)
        for one, other in combinations(errors, 2):
            assert one is not other
            assert not _traced(one) & _traced(other)
        return outcomes

    def _begin(self, *calls: Callable[[], Awaitable[str]]) -> None:
        self._tasks += [asyncio.create_task(_outcome(call)) for call in calls]

    async def _plain(self) -> str:
        return await self._tokens.get_valid_token(self._user)

    async def _within(self) -> str:
        try:
            return _cached()
        except LookupError as error:
            self._handled.append(error)
            return await self._plain()

    async def _with_min_ttl(self) -> str:
        return await self._tokens.get_valid_token(self._user, min_ttl=1800)

    async def _replacing(self) -> str:
        return await self._tokens.replace_rejected(self._user, self._rejected)

    async def _insisting(self) -> str:
        for _ in range(TRIES - 1):
            try:
                return await self._plain()
            except TryLater:
                continue
        return await self._plain()


def _cached() -> str:
    raise LookupError("not in the cache")


async def _outcome(call: Callable[[], Awaitable[str]]) -> Outcome:
    try:
        return await call()
    except SpotconnError as error:
        return error


def _traced(error: SpotconnError) -> set[int]:
    """The frames of the callers in a traceback."""
    return {id(frame) for frame in frames(error) if frame.f_code.co_filename == __file__}
