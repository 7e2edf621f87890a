"""Whether an access token is fresh, stale or expired."""

from datetime import datetime
from enum import Enum


class Freshness(Enum):
    """What may be done with an access token now."""

    FRESH = "fresh"
    """Serve it."""
    STALE = "stale"
    """Serve it, and refresh in the background."""
    EXPIRED = "expired"
    """Refresh before serving."""


def freshness(expires_at: datetime, now: float, *, window: float, margin: float) -> Freshness:
    """Return how fresh an access token is.

    Args:
        expires_at: the end of the token.
        now: seconds since the epoch.
        window: seconds before the end in which the token is STALE.
        margin: seconds before the end from which it counts as EXPIRED.
    """
    return freshness_of(expires_at.timestamp() - now, window=window, margin=margin)


def freshness_of(remaining: float, *, window: float, margin: float) -> Freshness:
    """Return how fresh an access token is that ends in `remaining` seconds."""
    if remaining <= margin:
        return Freshness.EXPIRED
    return Freshness.STALE if remaining <= window else Freshness.FRESH
