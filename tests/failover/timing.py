"""The timeouts that every client gets, and how long a scenario is observed."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Timing:
    """Seconds.

    Attributes:
        timeout: of the store, of the bare pool and of a new connection.
        refresh_timeout: of the manager, as are `lease` and `cache_ttl`.
        warm: of calls before the scenario.
        settles: from the end of the scenario's step to the disconnects.
        observed: from the disconnects to the end of the calls.
        asleep: that a primary is frozen before it wakes.
        unreplicated: that a failover loses.
        delayed: that commits wait for a standby.
        away: that the database is.
        token_ttl: of access tokens.
        window: of the manager: with these two each user is refreshed every five seconds or so.
    """

    timeout: float
    refresh_timeout: float
    lease: float
    cache_ttl: float
    warm: float
    settles: float
    observed: float
    asleep: float
    unreplicated: float
    delayed: float
    away: float
    token_ttl: int = 10
    window: float = 5

    @property
    def with_longer_tokens(self) -> "Timing":
        return replace(self, token_ttl=LONGER_TTL, window=LONGER_WINDOW)

    @property
    def longest_call(self) -> float:
        """What the timeouts allow: three statements, each after a wait for a session, and a refresh."""
        return self.refresh_timeout + 3 * 2 * self.timeout


FULL = Timing(
    timeout=5, refresh_timeout=10, lease=15, cache_ttl=30, warm=6, settles=3, observed=40, asleep=40, unreplicated=10,
    delayed=30, away=90,
)  # fmt: skip
"""With the library's defaults."""
SHORT = Timing(
    timeout=3,
    refresh_timeout=4,
    lease=6,
    cache_ttl=6,
    warm=2,
    settles=1,
    observed=8,
    asleep=40,
    unreplicated=4,
    delayed=8,
    away=10,
)

MARGIN = 2.0
"""Of the manager, before the end of a token."""
LONGER_TTL, LONGER_WINDOW = 180, 175.0
"""Of tokens that outlive the outage, on a busy machine, too: each user is refreshed every five to twenty seconds."""
LASTING_TTL = 3600
"""Of the users who are disconnected: only a notification, or the end of the cache's trust, ends their tokens."""
PERIOD = 0.5
"""Seconds from one call for a user, write of the bare pool and new connection to the next, however it ends."""
SLOW = 2.0
"""Seconds from which a call counts as one that was not served."""
USERS, VICTIMS = 20, 3
"""Of each client; the victims are disconnected."""
POOL_SIZE = 10
"""Of each client and of each bare pool: the default of the library."""
