"""Answers of the Web API that are about the app: of which app they are, and what is made known of them."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import Context
from uuid import UUID

from spotconn import events
from spotconn._observer import NOBODY, Observer
from spotconn._printable import shown
from spotconn._spotify.app_answers import FORBIDDEN, REMEDIES, TOO_MANY_REQUESTS, app_refusal
from spotconn._spotify.app_refusals import SUCCESSES, AppRefusals
from spotconn._tokens.apps import Apps
from spotconn._tracebacks import Failure
from spotconn.events import AppRefusal
from spotconn.models import Connection
from spotconn.store import ConnectionStore

_log = logging.getLogger("spotconn")

KNOWN_FOR = 60.0
"""Seconds for which the app of a user is remembered."""
MOST_KNOWN = 10_000
"""Users whose app is remembered; beyond, the oldest goes."""
MOST_WAITING = 1_000
"""Answers that wait until the apps of their users are read; beyond, the oldest is dropped."""
BATCH = 100
"""Answers whose apps are read in one statement."""


class WebAnswers:
    """Records what the Web API refuses the apps of users, and reports changes.

    The app of a user is read from the database, in a task of its own, where there is something to record.

    Args:
        store: holds the connections, with their apps.
        apps: of the manager.
        emitter: emits what changes.
        clock: gives seconds since the epoch.

    Attributes:
        observer: counts refusals.
    """

    def __init__(
        self, store: ConnectionStore, apps: Apps, emitter: events.Events, *, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._events = emitter
        self._clock = clock
        self._refusals: dict[str | None, AppRefusals] = {
            client_id: accounts.refusals for client_id, accounts in apps.accounts.items()
        }
        self._known: dict[UUID, tuple[str | None, float]] = {}
        self._waiting: deque[tuple[UUID, AppRefusal | None]] = deque(maxlen=MOST_WAITING)
        self._task: asyncio.Task[None] | None = None
        self.observer: Observer = NOBODY
        for refusals in self._refusals.values():
            refusals.listeners.append(self)

    def concern(self, user_id: UUID, status: int) -> bool:
        """Return whether an answer of this status to a user may tell something new. May be called in any thread."""
        if status in SUCCESSES:
            return any(refusals.may_end(user_id) for refusals in tuple(self._refusals.values()))
        return status in {FORBIDDEN, TOO_MANY_REQUESTS}

    def report(self, user_id: UUID, status: int, body: bytes | str) -> None:
        """Record an answer of the Web API, now or once the app of the user is read."""
        if not self.concern(user_id, status):
            return
        reason = app_refusal(status, body)
        if reason is None and status not in SUCCESSES:
            return
        client_id, since = self._known.get(user_id, (None, None))
        if since is not None and 0 <= self._clock() - since < KNOWN_FOR:
            self._record(client_id, user_id, reason)
            return
        self._waiting.append((user_id, reason))
        if not self.tasks:
            # Not in the context of this caller, as it serves others.
            make_task = asyncio.get_running_loop().create_task
            self._task = make_task(self._attribute(), name="spotconn-web-answers", context=Context())

    def refused(self, client_id: str | None, reason: AppRefusal) -> None:
        """Count a refusal."""
        self.observer.app_refused(client_id, reason)

    def changed(self, client_id: str | None, reason: AppRefusal, user_id: UUID | None, *, refused: bool) -> None:
        """Report that a refusal has begun or ended."""
        app = "of connections that name none" if client_id is None else shown(client_id)
        if not refused:
            _log.warning("Spotify accepts the app %s again (%s)", app, reason)
            self._events.emit(events.AppAccepted(client_id=client_id, reason=reason, user_id=user_id))
        else:
            level = logging.CRITICAL if user_id is None else logging.WARNING
            _log.log(level, "Spotify refuses the app %s: %s", app, REMEDIES[reason])
            self._events.emit(events.AppRefused(client_id=client_id, reason=reason, user_id=user_id))
        if user_id is None:
            self.observer.app_state(client_id, reason, refused=refused)

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        """The task that reads the apps of users, while there is one."""
        return set() if self._task is None or self._task.done() else {self._task}

    def close(self) -> None:
        """Report nothing any more. May be repeated."""
        for task in self.tasks:
            task.cancel()
        for refusals in self._refusals.values():
            if self in refusals.listeners:
                refusals.listeners.remove(self)

    async def _attribute(self) -> None:
        """Read the apps of those whose answers wait, and record them."""
        while self._waiting:
            answers = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            await self._read_apps({user_id for user_id, _ in answers})
            for user_id, reason in answers:
                if user_id in self._known:
                    self._record(self._known[user_id][0], user_id, reason)

    async def _read_apps(self, user_ids: Iterable[UUID]) -> None:
        """Remember the apps of users. Where the database does not answer, what waits is dropped."""
        try:
            found = await self._store.get_many(user_ids)
        except Exception as error:  # noqa: BLE001  also of a cipher of the caller's; the answers were for the caller
            _log.debug("answers of the Web API are not counted: %s", Failure(error))
            self._waiting.clear()
            found = {}
        now = self._clock()
        for user_id in user_ids:
            self._known.pop(user_id, None)
        for user_id, connection in found.items():
            client_id = connection.client_id if isinstance(connection, Connection) else None
            if len(self._known) >= MOST_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[user_id] = client_id, now

    def _record(self, client_id: str | None, user_id: UUID, reason: AppRefusal | None) -> None:
        if client_id not in self._refusals:
            self._refusals[client_id] = AppRefusals(client_id, self._clock)
            self._refusals[client_id].listeners.append(self)
        if reason is None:
            self._refusals[client_id].accepted(user_id)
        else:
            self._refusals[client_id].refused(reason, user_id)
