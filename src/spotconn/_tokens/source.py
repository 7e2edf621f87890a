"""A token that serves a call: from the cache, from the database, or by a refresh."""

import asyncio
import random
from collections.abc import Callable
from functools import partial
from uuid import UUID

from spotconn import events
from spotconn._affinity import Affinity
from spotconn._observer import NOBODY, Observer
from spotconn._tokens.apps import Apps
from spotconn._tokens.arguments import Times
from spotconn._tokens.background import BackgroundRefreshes
from spotconn._tokens.cache import ConnectionCache, PendingRead
from spotconn._tokens.freshness import Freshness, freshness_of
from spotconn._tokens.refresh import Refresher
from spotconn._tokens.replacement import Replacement
from spotconn._tokens.single_flight import SingleFlight, finish
from spotconn._tokens.stored_token import StoredToken
from spotconn._tokens.subscriber import Subscriber
from spotconn._tokens.web_answers import WebAnswers
from spotconn._tracebacks import Failure
from spotconn.errors import MissingScope, SpotifyUnavailable
from spotconn.store import ConnectionStore

MOST_REPLACEMENTS = 2
"""Refreshes for which one call waits: the token that another process has stored may have to be replaced once more."""
SAVE_TIMEOUT = 10.0
"""Seconds that closing goes on trying to save what the database has not taken before."""
COMPARE_TIMEOUT = 2.0
"""Seconds that closing goes on comparing what this process has saved with rows that may have gone back in time."""
SPREAD_BITS = 16
"""Bits of a user id, which are random: enough to spread refreshes."""


class ConnectionSource:
    """Finds tokens for calls, and refreshes those that do not serve.

    Args:
        store: holds the connections.
        apps: refresh them.
        cache: holds the tokens that this process has read.
        emitter: emits what happens to connections.
        affinity: of the manager.
        times: of the manager.
        clock: gives seconds since the epoch.

    Attributes:
        refreshes: refreshes under way, by user and by the access token found wanting.
        refresher: reads and refreshes connections.
        subscriber: keeps the cache trusted.
        answers: records what the Web API refuses the apps.
        observer: is told who waits.
    """

    def __init__(  # noqa: PLR0917  the parts that it puts together
        self,
        store: ConnectionStore,
        apps: Apps,
        cache: ConnectionCache,
        emitter: events.Events,
        affinity: Affinity,
        times: Times,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._cache = cache
        self._affinity = affinity
        self._times = times
        self._clock = clock
        # Each process has another window for each user, so that a fleet does not refresh at the same moment and no
        # process does the work of all.
        self._salt = random.getrandbits(SPREAD_BITS)
        self._background = BackgroundRefreshes()
        self.refreshes = SingleFlight[tuple[UUID, str], Replacement]("spotconn-refresh", "TokenManager")
        self.refresher = Refresher(store, apps, cache, emitter, affinity, times, clock=clock)
        changes = store.changes if cache.size else None
        saved, watch = self.refresher.saved, self.refresher.watch
        backoffs = self.refresher.backoffs, self._background.backoffs
        self.subscriber = Subscriber(changes, cache, saved, watch, backoffs, ttl=cache.ttl, clock=clock)
        self.answers = WebAnswers(store, apps, emitter, clock=clock)
        self.observer: Observer = NOBODY
        affinity.call_after_fork(self.abandon)

    def observe(self, observer: Observer, manager: object) -> None:
        """Report to an observer what a manager, its refreshes, its store and its cache do.

        Raises:
            RuntimeError: there is an observer already.
        """
        if self.observer is not NOBODY:
            raise RuntimeError("this TokenManager is instrumented already")
        self.observer = self.answers.observer = self._store.pool.observer = observer
        self.refresher.observe(observer)
        observer.remembers(self._cache)
        for name in ("get_valid_token", "get_access_token", "replace_rejected"):
            setattr(manager, name, observer.counted(getattr(manager, name)))  # of this object: others pay nothing

    async def find(self, user_id: UUID, needed: frozenset[str], least: float) -> StoredToken:
        """Return a token that has the scopes and is good for more than `least` seconds.

        A token that Spotify has only just granted is good enough in any case: there is no better one. One that ends
        soon is refreshed in the background.

        Raises:
            MissingScope: a scope is known not to be granted.
            SpotconnError: as `Refresher.read` and `Refresher.refresh`.
        """
        found: StoredToken | None = self._cache.get(user_id, self._clock())
        if found is None or self._remaining(found) <= least or _missing(found, needed):
            with self.observer.waiting(user_id):
                found = await self._fetch(user_id, found, needed, least)
        _check_scopes(found, needed)
        self._refresh_if_stale(user_id, found)
        return found

    async def replace_rejected(self, user_id: UUID, rejected_token: str, needed: frozenset[str]) -> StoredToken:
        """Return another access token than the one that the Web API has refused.

        Raises:
            MissingScope: a scope is known not to be granted to the other one.
            SpotifyUnavailable: it was granted less than a minute ago: another one would be refused, too.
            SpotconnError: as `Refresher.read` and `Refresher.refresh`.
        """
        self._cache.invalidate(user_id)
        self._background.backoffs.end(user_id)
        with self.observer.waiting(user_id), self.refresher.rejecting(user_id, rejected_token):
            found = await self._read(user_id, useless=rejected_token)
            if found.access_token == rejected_token or self._remaining(found) <= self._times.margin:
                found = await self._replace(user_id, found, self._times.margin, useless=rejected_token)
        _check_scopes(found, needed)
        return found

    async def renew(self, user_id: UUID, stored: StoredToken) -> StoredToken:
        """Return another token than the stored one, unless that was just granted."""
        return await self._replace(user_id, stored, self._times.margin)

    def window_of(self, user_id: UUID) -> float:
        """Return the seconds before its end from which this process refreshes a token: the last quarter is spread."""
        spread = (user_id.int & (1 << SPREAD_BITS) - 1 ^ self._salt) / (1 << SPREAD_BITS)
        return max(self._times.window * (1 - spread / 4), self._times.margin)

    def forget(self, user_id: UUID) -> None:
        """Forget a user who has connected or disconnected through this process, or may have."""
        self._cache.invalidate(user_id)
        self._background.backoffs.end(user_id)
        self.refresher.on_write(user_id)

    def abandon(self) -> None:
        """Leave everything to the parent process, in a child of fork: the hot path looks at the cache alone."""
        self._cache.close()
        self.refresher.unsaved.clear()
        self.refresher.saved.clear()
        self.subscriber.abandon()

    async def aclose(self, others: set[asyncio.Task[None]]) -> None:
        """Wait for what is under way, and for other tasks, as long as a lease; then save what is not saved yet."""
        self._cache.close()
        try:
            running = self.refreshes.tasks | self.answers.tasks | others
            await finish(running, seconds=self._times.lease, what="refreshes")
        finally:  # also after a cancellation
            self.refreshes.cut_off()
            self.answers.close()
            try:
                await self.subscriber.close()
            finally:
                try:
                    await self.refresher.watch.aclose()
                    await self.refresher.unsaved.flush(seconds=SAVE_TIMEOUT)
                finally:
                    await self.refresher.saved.aclose(seconds=COMPARE_TIMEOUT)

    async def _fetch(
        self, user_id: UUID, found: StoredToken | None, needed: frozenset[str], least: float
    ) -> StoredToken:
        """Return what serves a call for which the cached token does not."""
        if found is None or _missing(found, needed):  # the user may have granted it since, through another process
            found = await self._read(user_id)
        return found if self._remaining(found) > least else await self._replace(user_id, found, least)

    def _refresh_if_stale(self, user_id: UUID, found: StoredToken) -> None:
        """Start a refresh in the background if the token ends soon and nothing speaks against it."""
        remaining = self._remaining(found)
        if remaining > self._times.window:
            return
        state = freshness_of(remaining, window=self.window_of(user_id), margin=self._times.margin)
        key = user_id, found.access_token
        if state is Freshness.FRESH or key in self.refreshes or self._affinity.closed:
            return
        if self.refresher.paused(user_id, found) or not self._background.begin(user_id, found.fingerprint):
            return
        flight = self.refreshes.begin(key, partial(self._refresh, user_id, found))
        flight.outcome.add_done_callback(partial(self._refreshed_in_background, user_id, found))

    def _refreshed_in_background(
        self, user_id: UUID, found: StoredToken, outcome: "asyncio.Future[Replacement | Failure]"
    ) -> None:
        result = outcome.result()
        failure, retry_after = (result, None) if isinstance(result, Failure) else (None, result.retry_after)
        self._background.ended(user_id, found.fingerprint, failure, retry_after)

    async def _replace(
        self, user_id: UUID, found: StoredToken, least: float, *, useless: str | None = None
    ) -> StoredToken:
        """Return another token than the one found wanting, as good as `find` has it, and not the useless one."""
        for _ in range(MOST_REPLACEMENTS):
            replacement = await self._replacement(user_id, found)
            found = replacement.token
            if found.access_token == useless:
                if replacement.retry_after is not None:
                    text = "the Web API refuses an access token that was granted less than a minute ago"
                    raise SpotifyUnavailable(text, retry_after=replacement.retry_after)
            elif self._remaining(found) > (0 if replacement.best else least):
                return found
        if found.access_token == useless or self._remaining(found) <= 0:  # this process stood still, or it was old
            raise SpotifyUnavailable("Spotify's new access token has run out already; is this host's clock right?")
        return found

    async def _replacement(self, user_id: UUID, wanting: StoredToken) -> Replacement:
        self._affinity.check()  # closed meanwhile
        key = user_id, wanting.access_token
        return await self.refreshes.join(key, partial(self._refresh, user_id, wanting))

    async def _read(self, user_id: UUID, useless: str | None = None) -> StoredToken:
        """Return the stored token, and remember it unless it is known to be useless."""
        self.subscriber.start()
        with self._cache.reading(user_id) as pending:
            token = await self.refresher.read(user_id)
            if token.access_token != useless:
                self._remember(token, pending)
        return token

    async def _refresh(self, user_id: UUID, wanting: StoredToken) -> Replacement:
        self.subscriber.start()
        with self._cache.reading(user_id) as pending:
            replacement = await self.refresher.refresh(user_id, wanting)
            self._background.succeeded(user_id)
            self._cache.supersede(pending)
            self._remember(replacement.token, pending)
        return replacement

    def _remember(self, token: StoredToken, pending: PendingRead) -> None:
        if self.refresher.unsaved.get(pending.user_id) is not None:
            pending.trusted = False  # not read: a change of the row may have been heard of before
        self._cache.put(token, pending, now=self._clock(), stale_at=token.ends - self.window_of(pending.user_id))

    def _remaining(self, found: StoredToken) -> float:
        """Return the seconds until an access token ends."""
        return found.ends - self._clock()


def _missing(found: StoredToken, needed: frozenset[str]) -> frozenset[str]:
    """Return the needed scopes that are known not to be granted."""
    return frozenset() if found.scope is None else needed - found.scope


def _check_scopes(found: StoredToken, needed: frozenset[str]) -> None:
    """Raise MissingScope where a needed scope is known not to be granted."""
    if missing := _missing(found, needed):
        raise MissingScope(missing, found.scope or ())
