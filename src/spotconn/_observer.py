"""The seam for telemetry: what a manager, its store and its accounts tell an observer."""

from collections.abc import Awaitable, Callable, Sized
from contextlib import AbstractContextManager, nullcontext
from typing import ParamSpec
from uuid import UUID

_P = ParamSpec("_P")


class Observer:
    """Hears what happens and does nothing about it; `spotconn.telemetry` has the one that does.

    No method may raise, and none is told a token or a secret. A user id tells what belongs together.
    """

    def remembers(self, cache: Sized) -> None:
        """A manager remembers connections in this cache."""

    def counted(self, call: Callable[_P, Awaitable[str]]) -> Callable[_P, Awaitable[str]]:
        """A call for a token, made observable."""
        return call

    def waiting(self, user_id: UUID) -> AbstractContextManager[None]:  # noqa: ARG002  for the one that listens
        """Within: a call waits for a user's connection, which is not in the cache."""
        return nullcontext()

    def refreshing(self, user_id: UUID) -> AbstractContextManager[None]:  # noqa: ARG002  as above
        """Within: this process refreshes a user's connection."""
        return nullcontext()

    def leased(self, user_id: UUID, seconds: float) -> None:
        """So long a user's connection was waited for, because another process was refreshing it."""

    def acquiring(self) -> AbstractContextManager[None]:
        """Within: a statement waits for a connection of the pool."""
        return nullcontext()

    def asking(self) -> AbstractContextManager[Callable[[int], None]]:
        """Within: Spotify is asked; what this gives is called with the status of the answer, if one comes."""
        return nullcontext(_heard)


def _heard(_status: int) -> None:
    """Nobody wants to know."""


NOBODY = Observer()
"""The observer of what nobody observes."""
