"""The metrics of a manager."""

from collections.abc import Iterable, Sized
from weakref import ref

from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation

# Seconds. The conventions' own for durations of requests, and one more: a lease lasts 15 s, a refresh 10 s.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 15)

# Of all instrumented managers of the process: a meter keeps the first callback of a name and drops all others.
_caches: "list[ref[Sized]]" = []


class Instruments:
    """The instruments of one meter.

    Args:
        meter: makes them.
    """

    def __init__(self, meter: Meter) -> None:
        self.requests = meter.create_counter(
            "spotconn.token.requests", "{request}", "Calls for an access token, by where it came from."
        )
        self.responses = meter.create_counter(
            "spotconn.spotify.responses", "{response}", "Requests to Spotify, by app and status of the answer."
        )
        self.reauthorize = meter.create_counter(
            "spotconn.connections.reauthorize", "{connection}", "Connections that Spotify was found to have ended."
        )
        self.refusals = meter.create_counter(
            "spotconn.spotify.unexpected_refusals",
            "{refusal}",
            "Refresh tokens that Spotify refused before their time; each is tried again.",
        )
        self.restored = meter.create_counter(
            "spotconn.connections.restored",
            "{connection}",
            "Connections that this process saved again, because the database had gone back in time.",
        )
        self.app_refusals = meter.create_counter(
            "spotconn.app.refusals", "{refusal}", "Answers of Spotify that refuse an app itself, by reason."
        )
        # No gauge: older versions of the SDK export its value once after each change, and then no more.
        self.app_refused = meter.create_up_down_counter(
            "spotconn.app.refused", "{app}", "Whether Spotify refuses an app to all of its users: 1, or 0 again."
        )
        self.clock_offset = meter.create_gauge(
            "spotconn.database.clock.offset", "s", "Seconds by which the clock of the database is ahead of this host's."
        )
        self.refresh_duration = _histogram(
            meter, "spotconn.refresh.duration", "Refreshes by this process, from the turn to the saved connection."
        )
        self.lease_wait = _histogram(
            meter, "spotconn.lease.wait.duration", "Waits for another process that was refreshing."
        )
        self.pool_wait = _histogram(
            meter, "spotconn.pool.wait.duration", "Waits for a connection of the pool of the database."
        )
        meter.create_observable_up_down_counter(
            "spotconn.cache.entries", [_entries], "{entry}", "Connections remembered by this process."
        )


def count_entries(cache: Sized) -> None:
    """Count the entries of a cache from now on, as long as it is there."""
    _caches.append(ref(cache, _caches.remove))


def _histogram(meter: Meter, name: str, description: str) -> Histogram:
    return meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=BUCKETS)


def _entries(_options: CallbackOptions) -> Iterable[Observation]:
    """Observe the number of entries; called by the thread of the exporter, too, so it reads a copy."""
    caches = [cache() for cache in tuple(_caches)]
    return [Observation(sum(len(cache) for cache in caches if cache is not None))]
