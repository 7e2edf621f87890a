"""The tables of a run in docs/performance.md, so that no figure there is copied by hand."""

from collections.abc import Iterator, Mapping

from benchmarks.goals import GOALS, REPORTED
from benchmarks.table import shown

BEGIN, END = "<!-- the figures of the last run -->", "<!-- end of the figures -->"
TIMES = {
    "warm_us": "a cached token",
    "warm_limit_us": "a bare coroutine: a dict lookup and a clock read",
    "warm_tekore_us": "tekore's RefreshingToken.access_token, in a coroutine",
    "warm_google_auth_us": "google-auth's Credentials.valid and .token, in a coroutine",
    "warm_authlib_us": "authlib's AsyncOAuth2Client.ensure_active_token",
    "blocking_us": "a cached token of BlockingTokens, without await",
    "threadsafe_us": "asyncio.run_coroutine_threadsafe of a bare coroutine, from another thread",
    "cold_us": "a token from the database",
    "cold_held_fetchrow_us": "asyncpg's fetchrow on a connection that is held, as the superuser, without RLS",
    "cold_fetchrow_us": "asyncpg's pool.fetchrow, as the superuser, without RLS",
    "cold_transaction_us": "BEGIN, SET LOCAL role, set_config, SELECT, COMMIT by hand",
    "cold_1ms_us": "a token from a database 1 ms away each way",
    "cold_transaction_1ms_us": "the transaction by hand, 1 ms away each way",
    "crowd_100_us": "a token from the database, 100 callers at once",
    "crowd_100_noreset_us": "pool.fetchrow of a pool without reset, 100 callers at once",
    "crowd_100_fetchrow_us": "asyncpg's pool.fetchrow, 100 callers at once",
    "crowd_100_cpu_us": "processor time of a token, 100 callers at once",
    "crowd_100_fetchrow_cpu_us": "processor time of pool.fetchrow, 100 callers at once",
    "refresh_us": "a refresh with httpx, 100 at once",
    "post_us": "a bare POST of httpx, 100 at once",
    "refresh_httpx2_us": "a refresh with httpx2, 100 at once",
    "post_httpx2_us": "a bare POST of httpx2, 100 at once",
}


def refreshed(page: str, figures: Mapping[str, float], python: str) -> str:
    """The page with the tables of these figures in the place of the last.

    Args:
        page: in Markdown; it has the two marks.
        figures: of one run.
        python: its version.
    """
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + "\n".join([BEGIN, "", *_goals(figures), "", *_times(figures, python), "", END]) + after


def _goals(figures: Mapping[str, float]) -> Iterator[str]:
    yield "| key in results.json | what | measured | to reach | |"
    yield "|---|---|---|---|---|"
    for goal in GOALS:
        value = figures[goal.key]
        reached = "reached" if goal.reached(value) else "**missed**"
        yield f"| `{goal.key}` | {goal.what} | {shown(value)} | {goal.bound} {goal.limit:g} | {reached} |"
    for key, what in REPORTED.items():
        yield f"| `{key}` | {what} | {shown(figures[key])} | | |"


def _times(figures: Mapping[str, float], python: str) -> Iterator[str]:
    yield f"| µs for each call, Python {python} | asyncio | uvloop |"
    yield "|---|---|---|"
    for key, what in TIMES.items():
        yield f"| {what} | {shown(figures[key])} | {shown(figures[f'uvloop_{key}'])} |"
