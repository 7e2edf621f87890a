"""The figures that the project has set itself, and what each means."""

from typing import Literal, NamedTuple


class Goal(NamedTuple):
    """What a figure is to reach.

    Attributes:
        key: of the figure in results.json.
        what: is measured.
        bound: how it compares with `limit`.
        limit: in the figure's own unit; most are ratios.
    """

    key: str
    what: str
    bound: Literal["at most", "at least", "exactly"]
    limit: float

    def reached(self, value: float) -> bool:
        """Whether a figure is good enough."""
        if self.bound == "exactly":
            return value == self.limit
        return value <= self.limit if self.bound == "at most" else value >= self.limit


GOALS = (
    Goal("warm_vs_limit", "cached token / bare coroutine with a dict lookup and a clock read", "at most", 1.4),
    Goal("warm_vs_authlib", "authlib's ensure_active_token / cached token", "at least", 20),
    Goal("cold_vs_fetchrow", "token from the database / pool.fetchrow without RLS", "at most", 1.7),
    Goal("cold_vs_held_fetchrow", "token from the database / fetchrow on a held connection", "at most", 2.2),
    Goal(
        "cold_vs_transaction_1ms",
        "hand-written RLS transaction / token from the database, 1 ms away each way",
        "at least",
        5,
    ),
    Goal("crowd_100_vs_pool_fetchrow", "tokens per second, 100 callers at once / pool.fetchrow's", "at least", 2.5),
    Goal("crowd_10_vs_pool_fetchrow", "the same with 10 callers at once", "at least", 1.3),
    Goal("crowd_100_vs_noreset_fetchrow", "100 callers / the same of a pool without reset", "at least", 1.5),
    Goal("crowd_cpu_vs_fetchrow", "processor time of a token, 100 callers at once / pool.fetchrow's", "at most", 0.3),
    Goal("round_trips_read", "round trips of a read, on the wire", "exactly", 1),
    Goal("round_trips_refresh", "round trips of a refresh of a row not read before, on the wire", "exactly", 3),
    Goal("round_trips_read_pooled", "round trips of a read behind PgBouncer, on the wire", "exactly", 1),
    Goal(
        "first_token_round_trips", "round trips to a first token, less those of a connection and a query", "at most", 2
    ),
    Goal("storm_calls_per_user", "calls of Spotify for each user whom 4 processes ask for at once", "exactly", 1),
    Goal("storm_vs_httpx", "refreshes per second of one process / bare httpx POSTs per second", "at least", 0.85),
    Goal("storm_vs_httpx2", "the same with httpx2 / bare httpx2 POSTs per second", "at least", 0.85),
    Goal(
        "refresh_writes_vs_silent", "saved refreshes per second, commits 5 ms slower / without trigger", "at least", 0.8
    ),
    Goal("starved_read_p99_ms", "ms of a read while 200 refreshes hang on a pool of 2, 99th percentile", "at most", 25),
    Goal("rows_1m_vs_1k", "token from a table of 1,000,000 rows / of 1,000", "at most", 1.15),
    Goal("bytes_per_cached_user", "bytes beside the token itself", "at most", 400),
    Goal("import_overhead", "import spotconn / the packages it stands on, and one model of pydantic", "at most", 1.1),
    *(
        Goal(f"tenant_{name}{level}", f"p99 of 20 others' tokens while one tenant {what}{where} / quiet", "at most", 2)
        for level, where in (("", ""), ("_locked_down", ", under lock_down.sql"))
        for name, what in (
            ("values", "has a big value in the own row"),
            ("infinity", "sets expires_at to infinity"),
            ("lock", "locks the own row and disconnects ten times"),
            ("answers", "has refresh tokens that Spotify blames on the app"),
            ("codes", "exchanges made-up codes"),
        )
    ),
    Goal("decrypt_share", "share of a token from the database that is decrypting", "at most", 0.05),
)

REPORTED = {
    "cold_vs_transaction": "the transaction / the token on the same host; judged with the database 1 ms away",
    "blocking_vs_awaited": "cached token of BlockingTokens / awaited cached token",
    "threadsafe_vs_awaited": "asyncio.run_coroutine_threadsafe of a bare coroutine / awaited cached token",
    "round_trips_refresh_pooled": "round trips of a refresh of a row not read before, behind PgBouncer, on the wire",
    "first_token_round_trips_tls": "round trips to a first token, less those of a connection and a query, over TLS",
    "first_token_round_trips_pooled": "the same behind PgBouncer, without TLS",
    "decrypt_share_crowd": "share of a token that is decrypting, 100 callers at once",
    "decrypt_crowd_vs_alone": "decrypting a token among 100 callers / in a loop that does nothing else",
    "warm_1m_vs_1k": "cached token of one of 1,000,000 cached users / of 1,000",
    "cache_1m_step_ms": "ms of the longest step of a cache of 1,000,000",
    "notified_writes_vs_silent": "saved refreshes per second that notify, commits 5 ms slower / without trigger",
    "wal_bytes_per_refresh": "bytes of WAL for a refresh, without whole pages",
    "hot_share": "share of the updates of a refresh that touch no index",
}
"""Figures without a goal that the page shows."""
