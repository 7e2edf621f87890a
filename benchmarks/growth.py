"""How the library grows with users and processes: the sums of docs/how-it-grows.md.

A constant is measured by `make bench`, which reports the figure that is named with it, or follows from a default, or is
an assumption. `python -m benchmarks.growth_page` writes what follows from them into the page.
"""

USERS = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
PROCESSES = (1, 10, 100, 1_000)

# What follows from the library's defaults.
PERIOD = 3_600 - 300 * 7 / 8
"""Seconds from one refresh of a user to the next: an hour, less the middle of the window for refreshing early."""
HEARTBEAT = 10.0
"""Seconds between two heartbeats of a process: a third of cache_ttl."""
LOGIN = 20.0
"""Seconds between two connections that compare the servers."""
MAX_SIZE, SMALL_SIZE = 10, 2
"""Connections of a pool, by default and where there are many processes."""
CACHE_SIZE = 100_000

# What a run of the benchmarks has measured: the names are those of its figures.
WAL = 1_150
"""wal_bytes_per_refresh: without whole pages."""
CHECKPOINTS = (5, 30)
"""Minutes from one checkpoint to the next: the default of Postgres, and a longer time."""
WAL_WHOLE = {5: 7_100, 30: 2_300}
"""wal_bytes_5_minutes and wal_bytes_30_minutes: with the pages that a first change after a checkpoint writes whole."""
WAL_COMPRESSED = {5: 5_200, 30: 2_000}
"""The same with wal_compression, wal_bytes_5_minutes_compressed and wal_bytes_30_minutes_compressed."""
HOT = 0.99
"""hot_share: of updates that touch no index."""
GROWN = 1.0
"""row_growth: the tables after three refreshes of everybody / before."""
ROW = 950
"""row_bytes: of a user in all three tables with their indexes."""
SAVE_SERVER = 950e-6
"""save_server_us: seconds of the server's processor for the two statements of a refresh."""
READ_SERVER = 100e-6
"""read_server_us: seconds of the server's processor for a read that shares no statement."""
REFRESH_CLIENT = 3e-3
"""refresh_us: seconds of a process for a refresh, most of it for the call of Spotify."""
CACHED = 650
"""bytes_per_cached_user and bytes_of_the_token together."""
DELIVERY_SERVER, DELIVERY_CLIENT = 30e-6, 12e-6
"""delivery_server_us and delivery_client_us: seconds for one notification to one session that listens."""
LISTENERS = {0: (290, 0), 50: (2_200, 2_600), 100: (2_500, 3_100), 200: (5_800, 6_700)}
"""notified_commit_N_listeners_us and last_delivery_N_listeners_us."""
QUEUED = 64
"""queue_bytes_per_notification."""
AT_REST_SERVER = 0.17e-3
"""fleet_server_ms_per_second: seconds of the server's processor for each second of a process that only listens."""

# Assumed.
ASKS = 10
"""Calls for one user's token in a PERIOD, each at any process."""
CHANGES = 2
"""Notifications of one user in the 180 days after which Spotify wants a new authorization: a connect, and one other."""
HALF_A_YEAR = 180 * 86_400
DEPLOY = 60.0
"""Seconds in which all processes are started anew."""
HALF_QUEUE = 4 * 1024**3
"""Bytes from which on the trigger does not notify."""
CORES, BUSY = 16, 0.5
"""Of a server that is large and not special, and the share of them that refreshes may take."""


def refreshes(users: float) -> float:
    """Refreshes per second while every user is active: also the calls of Spotify's accounts service."""
    return users / PERIOD


def asking_processes(processes: float) -> float:
    """Processes that one user's calls reach in a PERIOD, if each goes to any of them."""
    return float(processes * (1 - (1 - 1 / processes) ** ASKS))


def statements(users: float, reached: float = 1) -> float:
    """Statements per second at most, each one round trip and one transaction.

    A refresh of a row not read before takes three; each further process that a user's calls reach reads it once.
    """
    return refreshes(users) * (2 + reached)


def notifications(users: float) -> float:
    """Notifications per second of connects, disconnects and what other programs write."""
    return users * CHANGES / HALF_A_YEAR


def server_cores(users: float, reached: float = 1) -> float:
    """Cores of the server that are busy with refreshes and reads."""
    return refreshes(users) * (SAVE_SERVER + reached * READ_SERVER)


def most_users() -> float:
    """Active users whose refreshes take a share of BUSY of the server's cores, sent to the same process each."""
    return CORES * BUSY / server_cores(1)
