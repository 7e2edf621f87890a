"""Backoff that only this process observes, user by user and for the tokens of one row of each."""

from collections.abc import Callable
from typing import NamedTuple
from uuid import UUID

from spotconn._backoff import Backoff
from spotconn._tracebacks import renewed
from spotconn.errors import SpotconnError, TryLater

MOST_BACKOFFS = 10_000
LONGEST_PAUSE = 30.0


class _Held(NamedTuple):
    about: frozenset[str]
    error: SpotconnError
    backoff: Backoff


class LocalBackoffs:
    """Holds back requests for single users, each with the error that is the reason.

    It is about the stored access token that could not be replaced and the refresh token that was sent for that, each
    named by its fingerprint. A row that holds others is not held back. The last `MOST_BACKOFFS` users are remembered.
    Times are seconds of one steady clock.

    Args:
        secret_changes: returns how often another client secret was read: that ends every backoff.
    """

    def __init__(self, secret_changes: Callable[[], int] = lambda: 0) -> None:
        self._backoffs: dict[UUID, _Held] = {}
        self._secret_changes = secret_changes
        self._seen_changes = 0

    def error(self, user_id: UUID, about: str, now: float) -> SpotconnError | None:
        """Return a new error like the one that began the backoff of a user about a token, or None if there is none."""
        if (changes := self._secret_changes()) != self._seen_changes:
            self._seen_changes = changes
            self._backoffs.clear()
        held = self._backoffs.get(user_id)
        if held is None or about not in held.about or not (remaining := held.backoff.remaining(now)):
            return None
        again = renewed(held.error)
        if isinstance(again, TryLater):
            again.retry_after = remaining
        return again

    def begin(
        self,
        user_id: UUID,
        about: str,
        error: SpotconnError,
        now: float,
        *,
        refresh_token: str | None = None,
        longest: float | None = None,
    ) -> bool:
        """Back off: as long as the error says, else longer with each failure in a row, 1 s to `longest`, or 30 s.

        Return whether it is the first one about these tokens.
        """
        tokens = frozenset({about} if refresh_token is None else {about, refresh_token})
        held = self._backoffs.pop(user_id, None)
        first = held is None or held.about.isdisjoint(tokens)
        backoff = Backoff(first=1, longest=LONGEST_PAUSE) if held is None or first else held.backoff
        if isinstance(error, TryLater) and error.retry_after is not None:
            backoff.until = now + error.retry_after
        else:
            backoff.longest = longest or LONGEST_PAUSE
            backoff.failed(now)
        if len(self._backoffs) >= MOST_BACKOFFS:
            del self._backoffs[next(iter(self._backoffs))]
        self._backoffs[user_id] = _Held(tokens, renewed(error), backoff)
        return first

    def end(self, user_id: UUID) -> None:
        """End the backoff of a user, as Spotify has answered."""
        self._backoffs.pop(user_id, None)
