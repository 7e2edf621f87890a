"""Which lease stands, by the clock of the database as it was set."""

from chaos.history import History, Lease, Request
from chaos.losses import FAILOVER

SET_BACK = 0.9
"""Seconds by which a clock that is set back does not end a lease, less the time that the trigger takes."""


def lease_of(history: History, request: Request) -> Lease | None:
    """Return the lease under which Spotify was asked."""
    leases = [
        lease
        for lease in history.leases
        if lease.owner == request.owner and lease.token == request.token and lease.began <= request.began
    ]
    return leases[-1] if leases else None


def stands(history: History, lease: Lease, request: Request, at: float) -> bool:
    """Return whether the lease of a request keeps others from asking."""
    died = history.kills.get(request.process)
    voided = [
        write
        for write in history.writes_of(lease.user)
        if lease.began <= write.at <= at and (write.refresh != lease.token or write.writer == FAILOVER)
    ]
    # Another may take it over while the clock shows that it is over or void, and the clock may be set once more.
    taken = any(
        other.user == lease.user and lease.began < other.began <= at and not _runs(history, lease, other.began)
        for other in history.leases
    )
    return _runs(history, lease, at) and (died is None or died > at) and not voided and not taken


def voided_unseen(history: History, request: Request, other: Lease) -> bool:
    """Return whether the clock was set and another took over a lease, which its holder cannot know to be void."""
    own = lease_of(history, request)
    if own is None or not own.began <= other.began:
        return False
    return request.began < own.until and not _runs(history, own, other.began)


def _runs(history: History, lease: Lease, at: float) -> bool:
    """Return whether a lease runs by the clock of the database, as spotconn.runs has it."""
    ahead = [offset - lease.offset for offset in history.offsets(at, at)]
    return all(lease.began - SET_BACK <= at + by < lease.until for by in ahead)
