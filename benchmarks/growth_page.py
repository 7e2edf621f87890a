"""The tables of docs/how-it-grows.md: `python -m benchmarks.growth_page` writes them, and a test compares them."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.asking import asked
from benchmarks.growth import (
    ASKS,
    AT_REST_SERVER,
    BUSY,
    CACHE_SIZE,
    CACHED,
    CHANGES,
    CHECKPOINTS,
    CORES,
    DELIVERY_CLIENT,
    DELIVERY_SERVER,
    DEPLOY,
    GROWN,
    HALF_QUEUE,
    HEARTBEAT,
    HOT,
    LISTENERS,
    LOGIN,
    MAX_SIZE,
    PERIOD,
    PROCESSES,
    QUEUED,
    READ_SERVER,
    REFRESH_CLIENT,
    ROW,
    SAVE_SERVER,
    SMALL_SIZE,
    USERS,
    WAL,
    WAL_COMPRESSED,
    WAL_WHOLE,
    asking_processes,
    most_users,
    notifications,
    refreshes,
    server_cores,
    statements,
)

PAGE = Path(__file__).parents[1] / "docs" / "how-it-grows.md"


@dataclass(frozen=True)
class Row:
    """A line of a table: what it says, how it is computed, and the figure for a number of users or processes."""

    what: str
    how: str
    shown: Callable[[float], str]


def number(value: float) -> str:
    """Two digits, and none for what is next to nothing."""
    if 0 < value < 0.001:  # noqa: PLR2004
        return "< 0.001"
    if value >= 100:  # noqa: PLR2004
        rounded = float(f"{value:.2g}")
        return f"{rounded:,.0f}"
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"  # noqa: PLR2004


def octets(value: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("B", "kB", "MB", "GB"):
        if float(f"{value:.2g}") < 1000:  # noqa: PLR2004
            return f"{number(value)} {unit}"
        value /= 1000
    return f"{number(value)} TB"


BY_USERS = (
    Row("refreshes per second, calls of Spotify", f"users ÷ {PERIOD:,.0f} s", lambda n: number(refreshes(n))),
    Row("calls of Spotify in its window of 30 s", "the same × 30", lambda n: number(refreshes(n) * 30)),
    Row("commits per second", "two for a refresh", lambda n: number(refreshes(n) * 2)),
    Row("cores of processes", f"× {REFRESH_CLIENT * 1e3:g} ms", lambda n: number(refreshes(n) * REFRESH_CLIENT)),
    Row(
        "cores of Postgres",
        f"× ({SAVE_SERVER * 1e6:,.0f} + {READ_SERVER * 1e6:,.0f} µs)",
        lambda n: number(server_cores(n)),
    ),
    Row("WAL per second, pages not counted", f"× {WAL:,} bytes", lambda n: octets(refreshes(n) * WAL)),
    Row(
        "WAL per second, a checkpoint each 5 min", f"× {WAL_WHOLE[5]:,}", lambda n: octets(refreshes(n) * WAL_WHOLE[5])
    ),
    Row("each 30 min, compressed", f"× {WAL_COMPRESSED[30]:,}", lambda n: octets(refreshes(n) * WAL_COMPRESSED[30])),
    Row("tables with indexes", f"users × {ROW:,} bytes", lambda n: octets(n * ROW)),
    Row("memory of a cache of all", f"users × {CACHED} bytes", lambda n: octets(n * CACHED)),
    Row("notifications per second", f"users × {CHANGES} ÷ 180 days", lambda n: number(notifications(n))),
)

BY_PROCESSES = (
    Row("connections at most", f"{MAX_SIZE} of the pool and 1 that listens", lambda p: number(p * (MAX_SIZE + 1))),
    Row(f"the same with max_size={SMALL_SIZE}", f"{SMALL_SIZE} + 1", lambda p: number(p * (SMALL_SIZE + 1))),
    Row("logins per second", f"1 in {LOGIN:g} s", lambda p: number(p / LOGIN)),
    Row(
        "statements of heartbeats per second",
        f"2 in {HEARTBEAT:g} s, 1 for each login",
        lambda p: number(p * (2 / HEARTBEAT + 1 / LOGIN)),
    ),
    Row("cores of Postgres for both", f"× {AT_REST_SERVER * 1e3:g} ms", lambda p: number(p * AT_REST_SERVER)),
    Row("notifications of heartbeats", "none", lambda _: "0"),
    Row("notifications of a deploy", "1 for each new session", number),
    Row("deliveries of a deploy", "each to all that listen, at most", lambda p: number(p * p)),
    Row(
        f"cores of Postgres while it lasts, {DEPLOY:g} s",
        f"deliveries × {DELIVERY_SERVER * 1e6:g} µs",
        lambda p: number(p * p / DEPLOY * DELIVERY_SERVER),
    ),
)


def _lines(title: str, rows: Iterable[Row], heads: tuple[int, ...]) -> Iterator[str]:
    yield f"| {title} | sum | " + " | ".join(f"{head:,}" for head in heads) + " |"
    yield "|---|---|" + "---|" * len(heads)
    for row in rows:
        yield f"| {row.what} | {row.how} | " + " | ".join(row.shown(head) for head in heads) + " |"


def _matrix(cell: Callable[[int, int], str]) -> Iterator[str]:
    yield "| users \\ processes | " + " | ".join(f"{processes:,}" for processes in PROCESSES) + " |"
    yield "|---|" + "---|" * len(PROCESSES)
    for users in USERS:
        yield f"| {users:,} | " + " | ".join(cell(users, processes) for processes in PROCESSES) + " |"


def _statements(users: int, processes: int) -> str:
    apart = statements(users, asking_processes(processes))
    return f"{number(statements(users))} / {number(apart)}"


def _memory(users: int, processes: int) -> str:
    """The users that one process comes to know, and what they take there."""
    same, any_of_them = users / processes, users * asking_processes(processes) / processes
    shown = [octets(known * CACHED) + (" \\*" if known > CACHE_SIZE else "") for known in (same, any_of_them)]
    return " / ".join(shown)


def _share(users: int, processes: int) -> str:
    share = refreshes(users) * REFRESH_CLIENT / processes
    return f"{number(share * 100)} %" + (" \\*" if share > BUSY else "")


def _deliveries(users: int, processes: int) -> str:
    return number(notifications(users) * processes)


def _simulated() -> Iterator[str]:
    yield "| processes | statements of a user and period, sum | simulated | refreshes, sum | simulated |"
    yield "|---|---|---|---|---|"
    for processes in PROCESSES:
        simulated = asked(processes, asks=ASKS, period=PERIOD)
        most = 2 + asking_processes(processes)
        yield f"| {processes:,} | {most:.2f} | {simulated.statements:.2f} | 1 | {simulated.refreshes:.2f} |"


def _limits() -> Iterator[str]:
    yield "| limit | sum | reached at |"
    yield "|---|---|---|"
    spent = (SAVE_SERVER + READ_SERVER) * 1e6
    yield (
        f"| {CORES} cores of Postgres, {BUSY * 100:g} % busy | {CORES * BUSY:g} s each second ÷ {spent:,.0f} µs |"
        f" {number(refreshes(most_users()))} refreshes per second: {number(most_users())} active users |"
    )
    one = BUSY / REFRESH_CLIENT
    yield (
        f"| a process, {BUSY * 100:g} % busy | {BUSY:g} s ÷ {REFRESH_CLIENT * 1e3:g} ms |"
        f" {number(one)} refreshes per second: {number(one * PERIOD)} active users |"
    )
    yield (
        f"| half of the queue of NOTIFY, while a session that listens sits in a transaction |"
        f" {HALF_QUEUE / 1024**3:g} GiB ÷ {QUEUED} bytes | {number(HALF_QUEUE / QUEUED)} notifications:"
        f" {number(HALF_QUEUE / QUEUED / notifications(USERS[-1]) / 86_400)} days at {USERS[-1]:,} users |"
    )
    fleet, before = PROCESSES[-1], PROCESSES[-1] ** 2 / HEARTBEAT
    yield (
        f"| heartbeats by NOTIFY, which there are none of | {fleet:,} × {fleet:,} ÷ {HEARTBEAT:g} s ="
        f" {before:,.0f} deliveries per second | {number(before * DELIVERY_SERVER)} cores of Postgres |"
    )


def _measured() -> Iterator[str]:
    yield "| figure of `make bench` | what | value |"
    yield "|---|---|---|"
    for key, what, value in MEASURED:
        yield f"| `{key}` | {what} | {value} |"


def _short() -> Iterator[str]:
    million, small, large = USERS[-2], PROCESSES[1], PROCESSES[-1]
    apart = statements(million, asking_processes(small))
    yield (
        f"- **A token** costs nothing from the process that has it, one round trip to Postgres where it has not, and"
        f" three with one call of Spotify each {PERIOD / 60:.0f} minutes, when it is refreshed."
    )
    yield (
        f"- **A million users**, all active, are {number(refreshes(million))} refreshes per second:"
        f" {number(statements(million))} to {number(apart)} statements,"
        f" {number(server_cores(million))} cores of Postgres and"
        f" {number(refreshes(million) * REFRESH_CLIENT)} of processes, {octets(million * ROW)} of tables,"
        f" {octets(refreshes(million) * WAL_WHOLE[5])} of WAL per second and {number(refreshes(million) * 30)}"
        " calls of Spotify in its window of 30 seconds."
    )
    yield (
        f"- **A thousand processes** hold {number(large * (SMALL_SIZE + 1))} to {number(large * (MAX_SIZE + 1))}"
        f" connections, log in {number(large / LOGIN)} times per second, and notify nobody while they run."
    )
    yield (
        "- **One database** ends at about 10 million active users. Then take several, [chosen by the user's"
        " id](#when-one-database-is-not-enough); nothing in the library has to change."
    )


def _listeners() -> Iterator[str]:
    yield "| sessions that listen | the commit, µs | until the last has received it, µs |"
    yield "|---|---|---|"
    for sessions, (committed, delivered) in LISTENERS.items():
        yield f"| {sessions} | {committed:,} | {'' if not sessions else f'{delivered:,}'} |"


MEASURED = (
    ("wal_bytes_per_refresh", "WAL of a refresh, pages not counted", f"{WAL:,} bytes"),
    *(
        (
            f"wal_bytes_{minutes}_minutes, wal_bytes_{minutes}_minutes_compressed",
            f"the same with whole pages, checkpoints {minutes} min apart; and with `wal_compression = on`",
            f"{WAL_WHOLE[minutes]:,} and {WAL_COMPRESSED[minutes]:,} bytes",
        )
        for minutes in CHECKPOINTS
    ),
    (
        "hot_share",
        "share of the updates that touch no index, from the second refresh on",
        f"{HOT:.0%}".replace("%", " %"),
    ),
    ("row_growth", "the tables after three refreshes of everybody / before", f"{GROWN:g}"),
    ("row_bytes", "a user in all three tables, with indexes", f"{ROW:,} bytes"),
    ("save_server_us", "processor of Postgres for the two statements of a refresh", f"{SAVE_SERVER * 1e6:,.0f} µs"),
    ("read_server_us", "processor of Postgres for a read", f"{READ_SERVER * 1e6:,.0f} µs"),
    ("refresh_us", "a process for a refresh, with the call of Spotify, at the most", f"{REFRESH_CLIENT * 1e3:g} ms"),
    ("bytes_per_cached_user, bytes_of_the_token", "a cached user, with the token", f"{CACHED} bytes"),
    ("delivery_server_us", "processor of Postgres to notify one session", f"{DELIVERY_SERVER * 1e6:g} µs"),
    ("delivery_client_us", "processor of a process that is notified", f"{DELIVERY_CLIENT * 1e6:g} µs"),
    ("queue_bytes_per_notification", "of the queue of NOTIFY", f"{QUEUED} bytes"),
    ("fleet_notifications_per_process", "notifications of a process from its start on", "1"),
    (
        "fleet_server_ms_per_second",
        "processor of Postgres for a process that only listens",
        f"{AT_REST_SERVER * 1e3:g} ms each second",
    ),
)
"""What the page shows of the constants: the figure that measures each, what it is, and the value that the sums have."""

TABLES: Mapping[str, Callable[[], Iterable[str]]] = {
    "short": _short,
    "measured": _measured,
    "users": lambda: _lines("active users", BY_USERS, USERS),
    "processes": lambda: _lines("processes", BY_PROCESSES, PROCESSES),
    "statements": lambda: _matrix(_statements),
    "memory": lambda: _matrix(_memory),
    "share": lambda: _matrix(_share),
    "deliveries": lambda: _matrix(_deliveries),
    "listeners": _listeners,
    "simulation": _simulated,
    "limits": _limits,
}
"""Each stands in the page between two marks that have its name."""


def refreshed(page: str) -> str:
    """The page with its tables computed anew.

    Raises:
        ValueError: the marks of a table are not there once.
    """
    for name, lines in TABLES.items():
        begin, end = f"<!-- computed: {name} -->", f"<!-- end: {name} -->"
        if (page.count(begin), page.count(end)) != (1, 1):
            raise ValueError(f"the marks of the table {name} are not there once")
        text = "\n".join([begin, "", *lines(), "", end])
        page = re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: text, page, flags=re.DOTALL)  # noqa: B023
    return page


def main() -> None:
    """Write the tables into the page."""
    PAGE.write_text(refreshed(PAGE.read_text()))


if __name__ == "__main__":
    main()
