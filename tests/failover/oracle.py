"""The goals: what every scenario must keep, for each way of connecting. Each returns what breaks it, as texts."""

from collections.abc import Callable, Iterator

from failover.history import History
from failover.timing import POOL_SIZE, Timing

BESIDE = 1.0
"""Seconds that a client may need more than a new connection with a write does."""
LATE = 1.0
"""Seconds that a machine may take which is busy, beside those that it is known to have taken: `History.late`."""
MOST_LINES = 40
"""Warnings of one client in one scenario: two for each of its users."""
SESSIONS = POOL_SIZE + 2
"""Of one client: the pool, the one that listens, and the short new connection that shows where it should."""


def is_served_as_soon_as_a_new_connection(history: History, timing: Timing) -> Iterator[str]:
    """Where a server hangs, a statement on a session that stands has to time out first."""
    mine, fresh = history.without_service, history.outage(history.fresh)
    allowed = timing.timeout if history.hangs else 0.0
    if mine > fresh + BESIDE + history.late + allowed:
        yield f"{mine:.1f} s without service, a new connection {fresh:.1f} s"


def calls_end_in_time(history: History, timing: Timing) -> Iterator[str]:
    if history.hung:
        yield f"{history.hung} calls never ended"
    if history.slowest > timing.longest_call + LATE + history.late:
        yield f"a call took {history.slowest:.1f} s, the timeouts allow {timing.longest_call:.1f} s"


def only_try_later(history: History, _timing: Timing) -> Iterator[str]:
    wrong = {call.error: call for call in history.bad if not call.passing and not history.explained(call)}
    for error, call in wrong.items():
        yield f"{history.failed[error]} calls failed with {error}: {call.text}"


def nobody_is_lost(history: History, _timing: Timing) -> Iterator[str]:
    for user, text in history.lost.items():
        yield f"user {user} is lost: {text}"


def a_disconnect_is_heard(history: History, timing: Timing) -> Iterator[str]:
    if history.served_after_disconnect > timing.cache_ttl + LATE + history.late:
        yield f"a token was served for {history.served_after_disconnect:.1f} s after a disconnect"


def a_disconnect_lasts(history: History, _timing: Timing) -> Iterator[str]:
    for user in history.connected_again:
        yield f"user {user} was disconnected and is connected again"


def sessions_are_those_of_the_pool(history: History, _timing: Timing) -> Iterator[str]:
    allowed = history.clients * SESSIONS
    if history.sessions > allowed:
        yield f"{history.sessions} sessions on one server, the pool and the listener have {allowed}"


def the_log_is_quiet(history: History, _timing: Timing) -> Iterator[str]:
    if len(history.logged) > history.clients * MOST_LINES:
        yield f"{len(history.logged)} warnings, such as: {history.logged[len(history.logged) // 2]}"


def the_run_is_sound(history: History, _timing: Timing) -> Iterator[str]:
    yield from history.problems
    if not history.served:
        yield "no call was served"
    if not history.pool or not history.fresh:
        yield "nothing was written beside the client"
    if not history.disconnected:
        yield "nobody was disconnected"


GOALS: tuple[Callable[[History, Timing], Iterator[str]], ...] = (
    the_run_is_sound,
    is_served_as_soon_as_a_new_connection,
    calls_end_in_time,
    only_try_later,
    nobody_is_lost,
    a_disconnect_is_heard,
    a_disconnect_lasts,
    sessions_are_those_of_the_pool,
    the_log_is_quiet,
)


def violations(history: History, timing: Timing) -> list[str]:
    """Return every goal that was missed, with the figure."""
    return [
        f"{history.scenario}, {history.way}: {goal.__name__}: {text}"
        for goal in GOALS
        for text in goal(history, timing)
    ]
