"""What Spotify refuses an app at present, as far as its answers to this process tell."""

import math
from collections.abc import Callable, Iterable
from typing import Protocol
from uuid import UUID

from spotconn._spotify.app_answers import SERVES_NOBODY, app_refusal
from spotconn.events import AppRefusal

SETTLED_AFTER = 60.0
"""Seconds without a refusal before a success ends it: near the end of a quota both alternate."""
RECENT = 300.0
"""Seconds for which a refusal counts in a check of readiness.

A process without traffic gets no answers: if it stayed unready, it would never learn that the refusal is over.
"""
ENOUGH_USERS = 2
"""Users without whose refusals, with none served in between, an app is not believed to serve nobody.

Where browsers may write, a user can store a token of another app, which has no Premium.
"""
MOST_USERS = 1_000
"""Users remembered as not registered; beyond, the oldest goes."""
SUCCESSES = range(200, 300)
"""Statuses of answers that show that the app is served."""


class Listener(Protocol):
    """What is told of the refusals of apps; it must neither block nor raise."""

    def refused(self, client_id: str | None, reason: AppRefusal) -> None:
        """Handle one answer that refuses an app."""
        ...

    def changed(self, client_id: str | None, reason: AppRefusal, user_id: UUID | None, *, refused: bool) -> None:
        """Handle that a refusal has begun or ended."""
        ...


class AppRefusals:
    """The refusals of one app.

    A user who is not registered is that user's refusal; each other one is that of the app.

    Args:
        client_id: of the app; None for connections whose app is not known.
        clock: returns seconds since the epoch.

    Attributes:
        client_id: as given.
        listeners: are told.
    """

    def __init__(self, client_id: str | None, clock: Callable[[], float]) -> None:
        self.client_id = client_id
        self.listeners: list[Listener] = []
        self._clock = clock
        self._last: dict[AppRefusal, float] = {}
        self._users: dict[UUID, float] = {}
        self._without_premium: set[UUID | None] = set()

    def may_end(self, user_id: UUID) -> bool:
        """Return whether a user whom the Web API serves may end a refusal."""
        return user_id in self._users or not self._last.keys() <= {"invalid_client"}

    def record(self, status: int, body: bytes) -> None:
        """Record an answer of the Web API about a user who is not known."""
        if reason := app_refusal(status, body):
            self.refused(reason)
        elif status in SUCCESSES:
            self.accepted()

    def refused(self, reason: AppRefusal, user_id: UUID | None = None) -> None:
        """Record a refusal of Spotify.

        Args:
            reason: why.
            user_id: to whose request; None if that is not known.
        """
        self.count(reason)
        if reason != "user_not_registered":
            new = reason not in self._last
            self._last[reason] = self._clock()
            if reason == "premium_required" and len(self._without_premium) < ENOUGH_USERS:
                self._without_premium.add(user_id)
            user_id = None
        elif user_id is None:
            return
        else:
            new = self._users.pop(user_id, None) is None
            if len(self._users) >= MOST_USERS:
                del self._users[next(iter(self._users))]
            self._users[user_id] = self._clock()
        if new:
            self._notify(reason, user_id, refused=True)

    def count(self, reason: AppRefusal) -> None:
        """Record a refusal that may be that of one user alone."""
        for listener in self.listeners:
            listener.refused(self.client_id, reason)

    def accepted(self, user_id: UUID | None = None) -> None:
        """Record that the Web API has served a user of the app."""
        self._without_premium.clear()
        for reason, last in tuple(self._last.items()):
            if reason != "invalid_client" and self._settled(last):
                self.end(reason)
        if user_id is not None and user_id in self._users and self._settled(self._users[user_id]):
            del self._users[user_id]
            self._notify("user_not_registered", user_id, refused=False)

    def end(self, reason: AppRefusal) -> None:
        """Record that a refusal of the app is over, if there was one."""
        if self._last.pop(reason, None) is not None:
            self._notify(reason, None, refused=False)

    def doubt(self, reason: AppRefusal) -> None:
        """Let a refusal no longer count in a check of readiness; only Spotify ends it."""
        if reason in self._last:
            self._last[reason] = -math.inf

    def recent(self) -> AppRefusal | None:
        """Return why the app can serve nobody; None if Spotify has not said so lately.

        A quota is no such reason: it comes back by itself, and one user may use it up.
        """
        now = self._clock()
        believed: Iterable[AppRefusal] = SERVES_NOBODY
        if len(self._without_premium) < ENOUGH_USERS:
            believed = ("invalid_client",)
        return next((reason for reason in believed if now - self._last.get(reason, -math.inf) < RECENT), None)

    def _settled(self, last: float) -> bool:
        return not 0 <= self._clock() - last < SETTLED_AFTER  # a clock that was set back does not hold it

    def _notify(self, reason: AppRefusal, user_id: UUID | None, *, refused: bool) -> None:
        for listener in self.listeners:
            listener.changed(self.client_id, reason, user_id, refused=refused)
