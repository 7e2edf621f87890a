"""A connection whose token serves a call: from the cache, from the database, or by a refresh."""

import asyncio
import logging
import random
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from uuid import UUID

from spotconn._affinity import Affinity
from spotconn._observer import NOBODY, Observer
from spotconn._tokens.arguments import Times
from spotconn._tokens.cache import CacheEntry, ConnectionCache, PendingRead
from spotconn._tokens.freshness import Freshness, freshness
from spotconn._tokens.refresh import Refresher, Replacement
from spotconn._tokens.single_flight import SingleFlight, finish
from spotconn._tokens.subscriber import Subscriber
from spotconn._tracebacks import Failure
from spotconn.errors import AskUser, MissingScope, RefreshInProgress, SpotifyUnavailable
from spotconn.models import Connection

_log = logging.getLogger("spotconn")

MOST_REPLACEMENTS = 2
"""Refreshes for which one call waits: the token that another process has stored may have to be replaced once more."""
SAVE_TIMEOUT = 10.0
"""Seconds that closing goes on trying to save what the database has not taken before."""
SPREAD_BITS = 16
"""Bits of a user id, which are random: enough to spread refreshes."""

Found = CacheEntry | Connection


class ConnectionSource:
    """Finds connections for calls, and refreshes those whose token does not serve.

    Args:
        refresher: reads and refreshes connections.
        cache: holds those that this process has read.
        subscriber: keeps the cache trusted.
        affinity: of the manager.
        times: of the manager.
        clock: gives seconds since the epoch.

    Attributes:
        reads: reads under way, by user and epoch of the cache: one that began before a notification does not serve
            a call that comes after it.
        refreshes: refreshes under way, by user and by the version found wanting.
        refresher: as given.
        subscriber: as given.
        observer: is told who waits.
    """

    def __init__(
        self,
        refresher: Refresher,
        cache: ConnectionCache,
        subscriber: Subscriber,
        affinity: Affinity,
        times: Times,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._cache = cache
        self._affinity = affinity
        self._times = times
        self._clock = clock
        # Each process has another window for each user, so that a fleet does not refresh at the same moment and no
        # process does the work of all.
        self._salt = random.getrandbits(SPREAD_BITS)
        self.reads = SingleFlight[tuple[UUID, int], Connection]("spotconn-read")
        self.refreshes = SingleFlight[tuple[UUID, datetime], Replacement]("spotconn-refresh")
        self.refresher = refresher
        self.subscriber = subscriber
        self.observer: Observer = NOBODY

    async def find(self, user_id: UUID, needed: frozenset[str], least: float) -> Found:
        """Return a connection whose token has the scopes and is good for more than `least` seconds.

        A token that Spotify has only just granted is good enough in any case: there is no better one. One that ends
        soon is refreshed in the background.

        Raises:
            MissingScope: a scope is known not to be granted.
            SpotconnError: as `Refresher.read` and `Refresher.refresh`.
        """
        found: Found | None = self._cache.get(user_id, self._clock())
        if found is None or self._remaining(found) <= least or _missing(found, needed):
            with self.observer.waiting(user_id):
                found = await self._fetch(user_id, found, needed, least)
        if missing := _missing(found, needed):
            raise MissingScope(missing)
        self._refresh_if_stale(user_id, found)
        return found

    async def replace_rejected(self, user_id: UUID, rejected_token: str) -> Connection:
        """Return a connection with another access token than the one that the Web API has refused."""
        self._cache.invalidate(user_id)
        with self.observer.waiting(user_id):
            found = await self._read(user_id, useless=rejected_token)
            if found.access_token == rejected_token:
                return (await self._replacement(user_id, found.expires_at)).connection
            return (
                found
                if self._remaining(found) > self._times.margin
                else await self._replace(user_id, found, self._times.margin)
            )

    async def renew(self, stored: Connection) -> Connection:
        """Return another connection than the stored one."""
        return await self._replace(stored.user_id, stored, self._times.margin)

    def window_of(self, user_id: UUID) -> float:
        """Return the seconds before its end from which this process refreshes a token: the last quarter is spread."""
        spread = (user_id.int & (1 << SPREAD_BITS) - 1 ^ self._salt) / (1 << SPREAD_BITS)
        return max(self._times.window * (1 - spread / 4), self._times.margin)

    def forget(self, user_id: UUID) -> None:
        """Forget a user who has disconnected, with a grant that is not saved yet."""
        self._cache.invalidate(user_id)
        self.refresher.unsaved.drop(user_id)

    def abandon(self) -> None:
        """Leave everything to the parent process, in a child of fork."""
        self._cache.close()
        self.refresher.unsaved.clear()
        self.subscriber.abandon()

    async def aclose(self, others: set[asyncio.Task[None]]) -> None:
        """Wait for what is under way, and for other tasks, as long as a lease; then save what is not saved yet."""
        self._cache.close()
        try:
            await finish(self.reads.tasks | self.refreshes.tasks | others, seconds=self._times.lease)
        finally:  # also after a cancellation
            self.reads.cut_off()
            self.refreshes.cut_off()
            try:
                await self.subscriber.close()
            finally:
                await self.refresher.unsaved.flush(seconds=SAVE_TIMEOUT)

    async def _fetch(self, user_id: UUID, found: Found | None, needed: frozenset[str], least: float) -> Found:
        """Return what serves a call for which the cached connection does not."""
        if found is None or _missing(found, needed):  # the user may have granted it since, through another process
            found = await self.reads.join((user_id, self._cache.epoch(user_id)), partial(self._read, user_id))
        return found if self._remaining(found) > least else await self._replace(user_id, found, least)

    def _refresh_if_stale(self, user_id: UUID, found: Found) -> None:
        """Start a refresh in the background if the token ends soon and nothing speaks against it."""
        if self._remaining(found) > self._times.window:
            return
        ends = found.expires_at
        state = freshness(ends, self._clock(), window=self.window_of(user_id), margin=self._times.margin)
        if state is Freshness.FRESH or found.reauthorization or (user_id, ends) in self.refreshes:
            return
        if self._affinity.closed or self.refresher.paused(user_id):
            return
        flight = self.refreshes.begin((user_id, ends), partial(self._refresh, user_id, ends))
        flight.outcome.add_done_callback(_log_failure)

    async def _replace(self, user_id: UUID, found: Found, least: float) -> Connection:
        """Return another connection than the one found wanting, as good as `find` has it."""
        seen, other = found.expires_at, None
        for _ in range(MOST_REPLACEMENTS):
            other, just_granted = await self._replacement(user_id, seen)
            if self._remaining(other) > (0 if just_granted else least):
                return other
            seen = other.expires_at
        if other is None or self._remaining(other) <= 0:  # this process stood still, or Spotify's token was old
            raise SpotifyUnavailable("Spotify's new access token has run out already; is this host's clock right?")
        return other

    async def _replacement(self, user_id: UUID, seen: datetime) -> Replacement:
        self._affinity.check()  # closed meanwhile
        return await self.refreshes.join((user_id, seen), partial(self._refresh, user_id, seen))

    async def _read(self, user_id: UUID, useless: str | None = None) -> Connection:
        """Return the stored connection, and remember it unless its access token is known to be useless."""
        with self._reading(user_id) as pending:
            connection = await self.refresher.read(user_id)
            if connection.access_token != useless:
                self._remember(connection, pending)
        return connection

    async def _refresh(self, user_id: UUID, seen: datetime) -> Replacement:
        with self._reading(user_id) as pending:
            replacement = await self.refresher.refresh(user_id, seen)
            self._cache.supersede(pending)
            self._remember(replacement.connection, pending)
        return replacement

    @contextmanager
    def _reading(self, user_id: UUID) -> Generator[PendingRead]:
        self.subscriber.start()
        with self._cache.reading(user_id) as pending:
            try:
                yield pending
            except AskUser:  # what is remembered of this user is out of date
                self._cache.invalidate(user_id)
                raise

    def _remember(self, connection: Connection, pending: PendingRead) -> None:
        if self.refresher.unsaved.get(connection.user_id) is not None:
            pending.trusted = False  # not read: a change of the row may have been heard of before
        stale_at = connection.expires_at.timestamp() - self.window_of(connection.user_id)
        self._cache.put(connection, pending, now=self._clock(), stale_at=stale_at)

    def _remaining(self, found: Found) -> float:
        """Return the seconds until an access token ends."""
        return found.expires_at.timestamp() - self._clock()


def _missing(found: Found, needed: frozenset[str]) -> frozenset[str]:
    """Return the needed scopes that are known not to be granted."""
    return frozenset() if found.scope is None else needed - found.scope


def _log_failure(outcome: asyncio.Future[Replacement | Failure]) -> None:
    failure = outcome.result()
    if isinstance(failure, Failure) and not failure.is_a(RefreshInProgress):
        _log.warning("a refresh in the background failed with %s", failure)
