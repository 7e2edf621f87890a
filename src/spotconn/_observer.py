"""The interface for telemetry: what a manager, its store and its accounts report to an observer."""

from collections.abc import Awaitable, Callable, Sized
from contextlib import AbstractContextManager, nullcontext
from typing import ParamSpec, TypeVar
from uuid import UUID

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Observer:
    """Observer that does nothing; `spotconn.telemetry` has the one that exports.

    No method may raise, and none is given a token or a secret. The user id shows which reports belong together.
    """

    def remembers(self, cache: Sized) -> None:
        """Register the cache of a manager."""

    def counted(self, call: Callable[_P, Awaitable[_T]]) -> Callable[_P, Awaitable[_T]]:
        """Return a call for a token that is counted."""
        return call

    def waiting(self, user_id: UUID) -> AbstractContextManager[None]:  # noqa: ARG002  for subclasses
        """Context manager: a call waits for a user's connection, which is not in the cache."""
        return nullcontext()

    def refreshing(self, user_id: UUID) -> AbstractContextManager[None]:  # noqa: ARG002  as above
        """Context manager: this process refreshes a user's connection."""
        return nullcontext()

    def leased(self, user_id: UUID, seconds: float) -> None:
        """Record the seconds that a call waited because another process was refreshing the connection."""

    def clock(self, offset: float) -> None:
        """Record the seconds by which the clock of the database is ahead of this host's."""

    def refused(self, client_id: str | None, reason: str) -> None:
        """Count a refusal of a refresh token by Spotify.

        Args:
            client_id: the app with which it was refused; None for several, where that of the connection is not known.
            reason: as `ReauthorizationRequired` has it; "expired" after six months, any other before.
        """

    def restored(self, client_id: str | None) -> None:
        """Count a connection that was saved again over an earlier row. Argument as above."""

    def app_refused(self, client_id: str | None, reason: str) -> None:
        """Count an answer of Spotify that refuses an app itself.

        Args:
            client_id: the app; None where that of the connection is not known.
            reason: as `events.AppRefused` has it.
        """

    def app_state(self, client_id: str | None, reason: str, *, refused: bool) -> None:
        """Record that Spotify refuses an app to all of its users, or no more. Arguments as above."""

    def acquiring(self) -> AbstractContextManager[None]:
        """Context manager: a statement waits for a connection of the pool."""
        return nullcontext()

    def asking(self, client_id: str) -> AbstractContextManager[Callable[[int], None]]:  # noqa: ARG002  as above
        """Context manager: an app's request to Spotify; call what it yields with the status of a response."""
        return nullcontext(_ignore_status)


def _ignore_status(_status: int) -> None:
    """Do nothing."""


NOBODY = Observer()
"""The observer of a manager that is not instrumented."""
