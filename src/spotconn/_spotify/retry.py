"""Retries of a request to Spotify under one deadline."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_before_delay,
    wait_random_exponential,
)

from spotconn._spotify.marks import Mark, has_mark
from spotconn._stopwatch import Stopwatch
from spotconn._tracebacks import Failure, renewed
from spotconn.errors import SpotifyUnavailable

T = TypeVar("T")

_TOO_LATE = "too late to ask Spotify: this process stood still or is overloaded"

READING_TIME = 0.25
"""Seconds beyond the deadline in which an answer that has arrived is read: this process may have stood still."""
STOP_TIMEOUT = 1.0
"""Seconds that a request has to end once it is cancelled."""

# Full jitter: many processes that fail together must not come back together.
_jitter = wait_random_exponential(multiplier=0.1, max=2)


class BeginBy:
    """The time until which a request may begin: what is left then is enough for its answer.

    Args:
        seconds: from now.
        clock: returns seconds since the epoch.
    """

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._stopwatch = Stopwatch(clock)

    @property
    def remaining(self) -> float:
        """Seconds until then; not over 0 once it has passed."""
        return self._seconds - self._stopwatch.elapsed

    def check(self) -> None:
        """Raise SpotifyUnavailable once the time has passed."""
        if self.remaining <= 0:
            raise SpotifyUnavailable(_TOO_LATE, answered=False)


def may_pass(error: BaseException) -> bool:
    """Return whether a request that can be repeated may succeed later."""
    return isinstance(error, SpotifyUnavailable)


def is_not_processed(error: BaseException) -> bool:
    """Return whether a request that must be processed no more than once may succeed later."""
    return may_pass(error) and has_mark(error, Mark.NOT_PROCESSED)


async def retry(
    attempt: Callable[[BeginBy], Awaitable[T]],
    *,
    on: Callable[[BaseException], bool],
    timeout: float,  # noqa: ASYNC109  the deadline is over all attempts
    begin_within: float,
    clock: Callable[[], float],
) -> T:
    """Repeat `attempt` until it succeeds.

    Args:
        attempt: called with the time until which it may begin.
        on: returns whether to repeat it after an error.
        timeout: seconds in all.
        begin_within: seconds in which an attempt may begin.
        clock: returns seconds since the epoch.

    Raises:
        SpotifyUnavailable: the time is over; the last failure, if there was one.
        SpotconnError: `attempt` has raised it, and it is not to be repeated.
    """
    failures: list[SpotifyUnavailable | None] = []
    retrying = AsyncRetrying(
        retry=retry_if_exception(on),
        wait=_wait,
        stop=stop_before_delay(begin_within),
        after=lambda state: failures.append(_failure(state)),
        reraise=True,
    )
    work: Coroutine[Any, Any, T] = retrying(attempt, BeginBy(begin_within, clock))
    outcome = await _outcome_within(timeout, work)
    if outcome is not None and not isinstance(outcome, Failure):
        return outcome
    # The last answer of Spotify says more than a timeout does, or than an attempt that came too late.
    last = next((failure for failure in reversed(failures) if failure and str(failure) != _TOO_LATE), None)
    if last is not None and (outcome is None or str(outcome.renewed()) == _TOO_LATE):
        raise renewed(last)
    if outcome is not None:
        raise outcome.renewed()
    raise SpotifyUnavailable(f"no answer from Spotify within {round(timeout, 1):g} s", answered=False)


async def _outcome_within(seconds: float, work: Coroutine[Any, Any, T]) -> T | Failure | None:
    """Return what `work` gives, its error as a value, or None if it was too late.

    A timer of the event loop that is due cancels before it lets what has arrived be read: after a process stood still,
    an answer with the only good refresh token may lie in the socket.
    """
    task = asyncio.create_task(_as_value(work))
    try:
        _, late = await asyncio.wait([task], timeout=seconds)
        if late:
            await asyncio.wait(late, timeout=READING_TIME)
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=STOP_TIMEOUT)
    return task.result() if task.done() and not task.cancelled() else None


async def _as_value(work: Coroutine[Any, Any, T]) -> T | Failure:
    try:
        return await work
    except Exception as error:  # noqa: BLE001  raised again by who waits, as an object of its own
        return Failure(error)


def _wait(state: RetryCallState) -> float:
    """Return the seconds until the next attempt: the Retry-After of Spotify, and jitter on top of it."""
    failure = _failure(state)
    return ((failure and failure.retry_after) or 0.0) + _jitter(state)


def _failure(state: RetryCallState) -> SpotifyUnavailable | None:
    error = state.outcome.exception() if state.outcome else None
    return error if isinstance(error, SpotifyUnavailable) else None
