"""Refreshes that nobody waits for: how they pause after failures, and what is logged of those."""

import logging
from uuid import UUID

from spotconn._backoff import Backoff
from spotconn._stopwatch import loop_time
from spotconn._tokens.local_backoff import LocalBackoffs
from spotconn._tracebacks import Failure
from spotconn.errors import AskUser, DatabaseUnavailable, RefreshInProgress, SpotconnError, SpotifyUnavailable

_log = logging.getLogger("spotconn")

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 4.0
"""Seconds in which no refresh is begun in the background because the database fails."""
QUIET = 60.0
"""Seconds from one warning of a kind to the next."""


class _Outage:
    """Failures of one kind since the last success.

    Attributes:
        quiet_until: when it may be warned of again.
        warned: whether that was done since the last success.
        failures: since then.
    """

    def __init__(self) -> None:
        self.quiet_until = 0.0
        self.warned = False
        self.failures = 0


class BackgroundRefreshes:
    """Holds back refreshes in the background after failures: those of one user, and all while the database fails.

    While it does, one refresh at a time shows whether it goes on. Callers whose token has ended are never held back.

    Attributes:
        backoffs: by user.
    """

    def __init__(self) -> None:
        self.backoffs = LocalBackoffs()
        self._database = Backoff(first=FIRST_PAUSE, longest=LONGEST_PAUSE)
        self._probing = False
        self._outages: dict[str, _Outage] = {}

    def begin(self, user_id: UUID, fingerprint: str) -> bool:
        """Return whether to refresh a token, named by its fingerprint, now; then `ended` must follow."""
        now = loop_time()
        if self.backoffs.error(user_id, fingerprint, now) is not None:
            return False
        if self._database.failures:
            if self._probing or self._database.remaining(now):
                return False
            self._probing = True
        return True

    def ended(self, user_id: UUID, fingerprint: str, failure: Failure | None, retry_after: float | None) -> None:
        """Handle the outcome of a refresh in the background.

        Args:
            user_id: whose.
            fingerprint: of the token that was to be replaced.
            failure: what it ended in; None if it was replaced, or is the best.
            retry_after: seconds until there may be a better one.
        """
        self._probing = False
        now = loop_time()
        if failure is not None:
            if not failure.is_a(RefreshInProgress):
                self._failed(user_id, fingerprint, failure, now)
        elif retry_after is not None:
            young = SpotifyUnavailable("the token was granted just now", retry_after=retry_after)
            self.backoffs.begin(user_id, fingerprint, young, now)

    def succeeded(self, user_id: UUID) -> None:
        """Handle that a token was replaced, or is the best, whoever waited for that."""
        self.backoffs.end(user_id)
        self._database.failures, self._database.until = 0, 0.0
        for outage in self._outages.values():
            if outage.warned:
                _log.info("refreshes succeed again, after failures in the background: %d", outage.failures)
            outage.warned, outage.failures = False, 0

    def _failed(self, user_id: UUID, fingerprint: str, failure: Failure, now: float) -> None:
        renewed = failure.renewed()
        error = renewed if isinstance(renewed, SpotconnError) else SpotifyUnavailable(str(failure))
        of_all = isinstance(error, DatabaseUnavailable) and not error.locked
        if of_all and not self._database.remaining(now):  # one pause for all that failed together
            self._database.failed(now)
        first = self.backoffs.begin(user_id, fingerprint, error, now, longest=LONGEST_PAUSE if of_all else None)
        level = logging.WARNING if self._is_news(error, now, first=first) else logging.DEBUG
        _log.log(level, "a refresh in the background failed with %s", failure)

    def _is_news(self, error: SpotconnError, now: float, *, first: bool) -> bool:
        """Return whether a failure is to be warned of: of a kind once per outage, of a user once for their token."""
        if isinstance(error, AskUser):
            return first
        outage = self._outages.setdefault(type(error).__name__, _Outage())
        outage.failures += 1
        if outage.warned or now < outage.quiet_until:
            return False
        outage.warned, outage.quiet_until = True, now + QUIET
        return True
