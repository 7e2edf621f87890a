"""How one of many users is served, and what is there to hand out."""

import math
from collections.abc import Callable
from typing import NamedTuple
from uuid import UUID

from spotconn._spotify.marks import Mark, has_mark
from spotconn._tokens.apps import Apps
from spotconn._tokens.arguments import Times
from spotconn._tokens.freshness import Freshness, freshness_of
from spotconn._tokens.source import ConnectionSource
from spotconn._tokens.stored_token import StoredToken
from spotconn._tracebacks import renewed
from spotconn.errors import ConfigurationError, OtherApp, RowSecurityError, SchemaMismatch, SpotconnError

# What concerns all users alike; a DecryptionError may be of one row.
_FOR_ALL = (ConfigurationError, SchemaMismatch, RowSecurityError)


class Answer(NamedTuple):
    """What is there to hand out for a user.

    Attributes:
        user_id: whose.
        found: a token, or why there is none.
        until: when the token serves no more, in seconds since the epoch.
    """

    user_id: UUID
    found: StoredToken | SpotconnError
    until: float = math.inf

    @property
    def value(self) -> str | SpotconnError:
        """What the caller gets."""
        return self.found.access_token if isinstance(self.found, StoredToken) else self.found


class Policy:
    """How one user is served.

    Args:
        source: gets another token than a stored one that is due.
        apps: of the manager: a fault of one of several does not concern all users.
        times: of the manager.
        clock: gives seconds since the epoch.

    Attributes:
        source: as given.
        clock: as given.
    """

    def __init__(self, source: ConnectionSource, apps: Apps, times: Times, clock: Callable[[], float]) -> None:
        self.source = source
        self._apps = apps
        self._times = times
        self.clock = clock

    def from_row(self, user_id: UUID, found: StoredToken | SpotconnError) -> Answer | None:
        """Return the answer from the row alone, or None if a refresh is due."""
        if isinstance(found, SpotconnError):
            return Answer(user_id, found)
        return self._answer(user_id, found) if self._freshness(found) is Freshness.FRESH else None

    async def refreshed(self, user_id: UUID, stored: StoredToken) -> Answer:
        """Return the answer after a refresh; while the stored token is good, a failure is no answer.

        Raises:
            ConfigurationError, SchemaMismatch, RowSecurityError: they would be the answer for every user.
        """
        try:
            newer = await self.source.renew(user_id, stored)
        except SpotconnError as error:
            if isinstance(error, _FOR_ALL) and not self._is_of_some(error):
                raise
            failure = renewed(error)
        else:
            return self._answer(user_id, newer)
        expired = self._freshness(stored) is Freshness.EXPIRED
        return Answer(user_id, failure) if expired else self._answer(user_id, stored)

    def _answer(self, user_id: UUID, token: StoredToken) -> Answer:
        # One that was granted for less than the margin is the best there is until it ends.
        until = token.ends - self._times.margin
        return Answer(user_id, token, until if self.clock() < until else token.ends)

    def _is_of_some(self, error: SpotconnError) -> bool:
        """Return whether an error is that of one user, or of one of several apps."""
        if isinstance(error, OtherApp) or has_mark(error, Mark.OF_ONE_CALL):
            return True
        return len(self._apps.accounts) > 1 and has_mark(error, Mark.OF_ONE_APP)

    def _freshness(self, stored: StoredToken) -> Freshness:
        return freshness_of(stored.ends - self.clock(), window=self._times.window, margin=self._times.margin)
