"""Checks of what a caller gives a `TokenManager`."""

import math
from collections.abc import Iterable
from typing import NamedTuple, Self

from spotconn._arguments import several
from spotconn._spotify.retry import READING_TIME

MAX_MIN_TTL = 3000.0
"""Seconds: the most that a caller may ask of a token's remaining life; Spotify's tokens live 3600."""


class Times(NamedTuple):
    """The times that a `TokenManager` keeps, in seconds.

    Attributes:
        window: before its end in which a token is refreshed in the background.
        margin: before its end in which it is not served.
        timeout: for Spotify's answer, and to wait for another process that refreshes.
        lease: after which another process may take over a refresh.
    """

    window: float
    margin: float
    timeout: float
    lease: float

    def checked(self) -> Self:
        """Return the times.

        Raises:
            ValueError: one is out of range; the text names the argument of the manager.
        """
        _check(self.margin >= 0, "expiry_margin: expected 0 or more seconds")
        _check(self.window >= self.margin, "refresh_window: expected no less than expiry_margin")
        _check(self.timeout > 0, "refresh_timeout: expected more than 0 seconds")
        least = self.timeout + READING_TIME
        _check(self.lease > least, f"lease: expected more than refresh_timeout and {READING_TIME} seconds")
        return self


def check_cache(*, ttl: float, size: int) -> None:
    """Raise ValueError for a cache without an end or of no size."""
    _check(0 <= ttl < math.inf, "cache_ttl: expected 0 or more seconds, and not without end")
    _check(size >= 0, "cache_size: expected 0 or more")


def least_ttl(min_ttl: float | None, *, margin: float) -> float:
    """Return the seconds that a token must still be good for.

    Raises:
        ValueError: `min_ttl` is out of range.
    """
    if min_ttl is None:
        return margin
    _check(0 <= min_ttl <= MAX_MIN_TTL, f"min_ttl: expected 0 to {MAX_MIN_TTL:.0f} seconds")
    return max(min_ttl, margin)


def needed_scopes(scopes: Iterable[str]) -> frozenset[str]:
    """Return the scopes.

    Raises:
        ValueError: it is a single string, which is an iterable of strings, too.
    """
    return frozenset(several(scopes, name="scopes"))


def check_rejected_token(token: object) -> None:
    """Raise ValueError for what is no text, or no access token can hold: the error of `encode` would hold the text."""
    _check(isinstance(token, str) and token.isascii(), "rejected_token: expected the access token that was refused")


def _check(holds: bool, text: str) -> None:  # noqa: FBT001  the condition is the point
    if not holds:
        raise ValueError(text)
