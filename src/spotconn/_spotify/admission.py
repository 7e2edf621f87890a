"""Which calls of one app may be made now."""

import asyncio
from collections.abc import AsyncGenerator, Hashable
from contextlib import asynccontextmanager
from enum import Enum, auto

from spotconn._spotify.app_refusals import AppRefusals
from spotconn._spotify.circuit_breaker import CircuitBreaker
from spotconn._spotify.retry import BeginBy
from spotconn._spotify.throttle import Throttle
from spotconn.errors import SpotconnError, SpotifyUnavailable

MOST_CALLS = 100
"""Calls under way at once; the others wait, and are not sent if Spotify asks this app to wait meanwhile."""


SHORT_WAIT = 5.0
"""Seconds that Spotify may have asked to wait, and a user can connect all the same: it is waited for meanwhile."""


class Kind(Enum):
    """The kinds of calls, each with a throttle of its own.

    Codes are made up more easily than refresh tokens: a 429 that they bring must not stop refreshes.
    """

    REFRESH = auto()
    EXCHANGE = auto()
    PROFILE = auto()


class Admission:
    """Admits the calls of one app: so many at once, as Spotify's Retry-After and its refusals of the app let them.

    Args:
        refusals: records when the credentials of the app are refused, and accepted again.
    """

    def __init__(self, refusals: AppRefusals) -> None:
        self._refusals = refusals
        self._slots = asyncio.Semaphore(MOST_CALLS)
        self._throttles = {kind: Throttle() for kind in Kind}
        self._circuit_breaker = CircuitBreaker()

    @property
    def is_refused(self) -> bool:
        """Whether Spotify has refused the credentials of the app, and not accepted them since."""
        return self._circuit_breaker.has_refusal

    def forget_refusals(self) -> None:
        """Let calls be made again at once: the credentials are others now."""
        self._circuit_breaker = CircuitBreaker()
        self._refusals.doubt("invalid_client")

    def check_connect(self, user: Hashable = None) -> None:
        """Check whether the exchange of a code and the call for its profile would be admitted now, and make none.

        Raises:
            SpotifyUnavailable: not within `SHORT_WAIT`.
            ConfigurationError: Spotify refuses this app, and it is not yet time to try again.
        """
        now = asyncio.get_running_loop().time()
        wait = max(self._throttles[kind].remaining(now) for kind in (Kind.EXCHANGE, Kind.PROFILE))
        if wait > SHORT_WAIT:
            text = "Spotify asked this app to wait, so no user can connect now; nothing was sent or spent"
            raise SpotifyUnavailable(text, retry_after=wait, answered=False)
        self._circuit_breaker.look(now, user)

    @asynccontextmanager
    async def admitted(self, kind: Kind, begin_by: BeginBy, user: Hashable = None) -> AsyncGenerator[None]:
        """Context manager: wait until the call in the block may be made, and record its outcome.

        Args:
            kind: of the call.
            begin_by: the time until which the call may begin.
            user: for whom it is, as far as is known.

        Raises:
            SpotifyUnavailable: not now.
            ConfigurationError: Spotify refuses this app, and it is not yet time to try again.
        """
        loop = asyncio.get_running_loop()
        async with self._slot(begin_by):
            self._check(kind, user, loop.time())
            try:
                yield
            except SpotconnError as outcome:
                self._record(kind, user, outcome, loop.time())
                raise
            self._record(kind, user, None, loop.time())

    def _check(self, kind: Kind, user: Hashable, now: float) -> None:
        self._throttles[kind].check(now)
        if kind is not Kind.PROFILE:  # which proves a token and not the app
            self._circuit_breaker.check(now, user)

    def _record(self, kind: Kind, user: Hashable, outcome: SpotconnError | None, now: float) -> None:
        self._throttles[kind].record(outcome, now)
        if kind is not Kind.PROFILE:
            self._record_judgement(self._circuit_breaker.record(outcome, now, user))

    def _record_judgement(self, accepted: bool | None) -> None:  # noqa: FBT001  of the circuit breaker
        if accepted:
            self._refusals.end("invalid_client")
        elif accepted is not None and self._circuit_breaker.is_open:
            self._refusals.refused("invalid_client")
        elif accepted is not None:
            self._refusals.count("invalid_client")

    @asynccontextmanager
    async def _slot(self, begin_by: BeginBy) -> AsyncGenerator[None]:
        begin_by.check()
        try:
            async with asyncio.timeout(begin_by.remaining):
                await self._slots.acquire()
        except TimeoutError:
            raise SpotifyUnavailable("too many calls to Spotify are under way here", answered=False) from None
        try:
            begin_by.check()
            yield
        finally:
            self._slots.release()
