"""How much is measured: in full, and in a short form that shows only that everything runs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        rounds: interleaved ones, of each comparison.
        warm_calls: cached tokens in one round.
        cold_calls: reads of the database in one round.
        crowd_calls: the same by many callers at once, each of another user.
        rows: in the small, the middle and the large table.
        storm_users: users whose tokens have run out.
        storm_rounds: interleaved ones, also of saving.
        saves: refreshes saved in one round.
        starved_refreshes: that hang at once.
        starved_rounds: bursts of them.
        cached_users: in one process's cache.
        large_cache: users in one of very many, put there without the database.
        tenant_rounds: interleaved ones of a tenant's attacks.
        tenant_calls: for each of the other users in one round.
        tenant_octets: of a big value.
        imports: fresh interpreters of each kind.
        upkeep_users: whose tokens are refreshed in a round of what that leaves in the database.
        listeners: sessions that listen beside a commit, the fewest first.
        notified: commits beside each number of them.
        fleet: processes that only listen.
        fleet_seconds: for which they are observed: one period of their logins, at least 5.
    """

    rounds: int
    warm_calls: int
    cold_calls: int
    crowd_calls: int
    rows: tuple[int, int, int]
    storm_users: int
    storm_rounds: int
    saves: int
    starved_refreshes: int
    starved_rounds: int
    cached_users: int
    large_cache: int
    tenant_rounds: int
    tenant_calls: int
    tenant_octets: int
    imports: int
    upkeep_users: int
    listeners: tuple[int, ...]
    notified: int
    fleet: int
    fleet_seconds: float


FULL = Size(
    rounds=41,
    warm_calls=20_000,
    cold_calls=200,
    crowd_calls=1_000,
    rows=(1_000, 100_000, 1_000_000),
    storm_users=1_000,
    storm_rounds=7,
    saves=200,
    starved_refreshes=200,
    starved_rounds=10,
    cached_users=100_000,
    large_cache=1_000_000,
    tenant_rounds=5,
    tenant_calls=25,
    tenant_octets=8_000_000,
    imports=31,
    upkeep_users=5_000,
    listeners=(0, 50, 100, 200),
    notified=100,
    fleet=100,
    fleet_seconds=20,
)
QUICK = Size(
    rounds=2,
    warm_calls=200,
    cold_calls=5,
    crowd_calls=100,
    rows=(10, 20, 40),
    storm_users=12,
    storm_rounds=1,
    saves=8,
    starved_refreshes=8,
    starved_rounds=1,
    cached_users=50,
    large_cache=100,
    tenant_rounds=1,
    tenant_calls=2,
    tenant_octets=80_000,
    imports=1,
    upkeep_users=20,
    listeners=(0, 2),
    notified=3,
    fleet=3,
    fleet_seconds=6,
)
