"""What happens to connections and apps, told to the `on_event` hook as frozen values without any secret.

The hook is called in a thread of its own, one event after the other in their order, so one that is slow, hangs or
raises disturbs nothing. A coroutine function is awaited on the event loop instead.
"""

import asyncio
import inspect
import logging
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Any, ClassVar, Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict

from spotconn._affinity import Affinity
from spotconn.errors import ReauthorizationReason

_log = logging.getLogger("spotconn")

LARGEST_BACKLOG = 10_000
"""Events that wait for a slow hook; later ones are dropped, and that is logged."""
DRAIN_TIMEOUT = 2.0
"""Seconds that the hook has for the last events when a manager is closed."""
HOOK_TIMEOUT = 10.0
"""Seconds that a coroutine of the hook may take before it is cancelled."""


AppRefusal = Literal["invalid_client", "premium_required", "quota_exceeded", "user_not_registered"]
"""What Spotify refuses an app."""


class _Event(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")


class _UserEvent(_Event):
    user_id: UUID


class Refreshed(_UserEvent):
    """This process refreshed a connection.

    Attributes:
        user_id: whose connection.
        client_id: the app with which.
        expires_at: end of the new access token.
        duration: seconds from the turn to Spotify's answer.
    """

    client_id: str
    expires_at: AwareDatetime
    duration: float


class RefreshFailed(_UserEvent):
    """This process could not refresh a connection now; a later attempt may succeed.

    Attributes:
        user_id: whose connection.
        client_id: the app of the connection; None where it is not known.
        error: the name of the error's class.
        message: the error's text.
        retry_after: seconds until the next attempt is due, where known.
    """

    client_id: str | None = None
    error: str
    message: str
    retry_after: float | None = None


class ReauthorizationRequired(_UserEvent):
    """Spotify has ended a connection; one event for the whole fleet each time that this is found out.

    Attributes:
        user_id: who must connect again.
        client_id: the app of the connection; None where it is not known.
        reason: "expired", "revoked" or "invalid".
    """

    client_id: str | None = None
    reason: ReauthorizationReason


class Recovered(_UserEvent):
    """A connection with a recorded failure was refreshed after all.

    Attributes:
        user_id: whose connection.
        client_id: the app of the connection.
        failure: what had been recorded.
    """

    client_id: str | None = None
    failure: ReauthorizationReason | Literal["unavailable"]


class ConnectionRestored(_UserEvent):
    """The database had lost a refresh of this process, or another client had undone it: it was saved again.

    The stored row was an earlier one. A failover that loses commits, a restored backup and a client that writes a whole
    old row do that.

    Attributes:
        user_id: whose connection.
        client_id: the app of the connection; None where it is not known.
    """

    client_id: str | None = None


class Connected(_UserEvent):
    """A user connected, or connected again.

    Attributes:
        user_id: who.
        client_id: the app that they connected.
        spotify_user_id: Spotify's id of the account.
        previous_spotify_user_id: that of the connection which this one replaces; None if there was none.
    """

    client_id: str
    spotify_user_id: str
    previous_spotify_user_id: str | None = None


class Disconnected(_UserEvent):
    """A user's connection was deleted through this process.

    Attributes:
        user_id: whose.
    """


class AppRefused(_Event):
    """Spotify refuses the app itself, which neither a refresh nor the user can mend; one event until `AppAccepted`.

    Each process finds it out by itself, so a fleet has one for each of them.

    Attributes:
        client_id: the app; None where that of the user's connection is not known.
        reason: "invalid_client" (its id or secret is wrong), "premium_required" (its owner has no active Premium
            subscription), "quota_exceeded" (its requests are used up) or "user_not_registered" (in its dashboard, as
            an app in development mode demands).
        user_id: the one user that it is about ("user_not_registered"); None where it is about all of the app's.
    """

    client_id: str | None
    reason: AppRefusal
    user_id: UUID | None = None


class AppAccepted(_Event):
    """Spotify accepts again what it had refused, as an `AppRefused` has told.

    Attributes:
        client_id: as there.
        reason: as there.
        user_id: as there.
    """

    client_id: str | None
    reason: AppRefusal
    user_id: UUID | None = None


Event = (
    Refreshed
    | RefreshFailed
    | ReauthorizationRequired
    | Recovered
    | ConnectionRestored
    | Connected
    | Disconnected
    | AppRefused
    | AppAccepted
)
Hook = Callable[[Event], object]


class Events:
    """Hands events to a hook, in order, in a daemon thread that lives while there is something to hand over.

    Make and use it inside the event loop.

    Args:
        hook: is told; None for nobody.
    """

    def __init__(self, hook: Hook | None) -> None:
        self._hook = hook
        self._affinity = Affinity("hook")
        self._waiting: deque[Event] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._on_idle: list[Callable[[], object]] = []

    def emit(self, event: Event) -> None:
        """Hand over an event; never blocks and never raises."""
        if self._hook is None or self._affinity.forked:  # a child of fork has no such thread
            return
        with self._lock:
            if len(self._waiting) >= LARGEST_BACKLOG:
                _log.error("on_event is too slow: %s was dropped", type(event).__name__)
                return
            self._waiting.append(event)
            if self._thread is None:
                loop = asyncio.get_running_loop()
                # In a context of its own: a free-threaded Python gives it that of the first event otherwise.
                run = Context().run
                self._thread = threading.Thread(target=run, args=(self._drain, self._hook, loop), daemon=True)
                with suppress(RuntimeError):  # no thread to be had now: the next event tries again
                    self._thread.start()
                    return
                self._thread = None

    async def drained(self, *, seconds: float) -> None:
        """Wait, for no longer than that, until every event has been handed over."""
        idle = asyncio.Event()
        with self._lock:
            if self._thread is None:
                return
            # Not `thread.join` in an executor: those threads may all wait for something else.
            self._on_idle.append(partial(asyncio.get_running_loop().call_soon_threadsafe, idle.set))
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await idle.wait()

    def _drain(self, hook: Hook, loop: asyncio.AbstractEventLoop) -> None:
        while (event := self._next()) is not None:
            _call(hook, event, loop)

    def _next(self) -> Event | None:
        """Return the next event; None ends the thread."""
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._thread = None
            on_idle, self._on_idle = self._on_idle, []
        for notify in on_idle:
            with suppress(RuntimeError):  # that event loop is closed
                notify()
        return None


def _call(hook: Hook, event: Event, loop: asyncio.AbstractEventLoop) -> None:
    failure: BaseException | None = None
    try:
        outcome = hook(event)
        if inspect.iscoroutine(outcome):
            waiting = asyncio.run_coroutine_threadsafe(_failure_of(outcome), loop)
            try:
                failure = waiting.result(HOOK_TIMEOUT)
            finally:
                waiting.cancel()
    except BaseException as error:  # noqa: BLE001  also SystemExit and the outcomes of pytest: later events come all the same
        failure = error
    if failure is not None:
        # Its text may hold whatever the hook has put there.
        _log.error("on_event raised %s for %s", type(failure).__name__, type(event).__name__)


async def _failure_of(hook: Coroutine[Any, Any, object]) -> BaseException | None:
    """Return what a hook raises: SystemExit and KeyboardInterrupt, raised in a task, would stop the event loop."""
    try:
        await hook
    except (asyncio.CancelledError, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001  as above
        return error
    return None
