"""Retries of a request to Spotify under one deadline."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_before_delay,
    wait_random_exponential,
)

from spotconn._tracebacks import renewed
from spotconn.errors import SpotifyUnavailable

T = TypeVar("T")

# Full jitter: many processes that fail together must not come back together.
_jitter = wait_random_exponential(multiplier=0.1, max=2)


async def retry(
    attempt: Callable[[float], Awaitable[T]],
    *,
    on: type[SpotifyUnavailable],
    timeout: float,  # noqa: ASYNC109  the deadline is over all attempts
) -> T:
    """Repeat `attempt` until it succeeds.

    Args:
        attempt: called with the time of the loop until which it may begin: half of `timeout` from now.
        on: the errors to repeat it on.
        timeout: seconds in all.

    Raises:
        SpotifyUnavailable: the time is over; the last failure, if there was one.
        SpotconnError: `attempt` has raised it, and it is not to be repeated.
    """
    failures: list[SpotifyUnavailable | None] = []
    retrying = AsyncRetrying(
        retry=retry_if_exception_type(on),
        wait=_wait,
        stop=stop_before_delay(timeout / 2),
        after=lambda state: failures.append(_failure(state)),
        reraise=True,
    )
    begin_by = asyncio.get_running_loop().time() + timeout / 2
    try:
        async with asyncio.timeout(timeout):
            return await retrying(attempt, begin_by)
    except TimeoutError:
        pass
    # The last answer of Spotify says more than a timeout does.
    if failures and (last := failures[-1]):
        raise renewed(last)
    raise SpotifyUnavailable(f"no answer from Spotify within {timeout:g} seconds", answered=False)


def _wait(state: RetryCallState) -> float:
    """Return the seconds until the next attempt: the Retry-After of Spotify, and jitter on top of it."""
    failure = _failure(state)
    return ((failure and failure.retry_after) or 0.0) + _jitter(state)


def _failure(state: RetryCallState) -> SpotifyUnavailable | None:
    error = state.outcome.exception() if state.outcome else None
    return error if isinstance(error, SpotifyUnavailable) else None
