"""The front of the library: a valid access token for a user, or one clear reason why not."""

import asyncio
import logging
import math
import os
import random
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import Any, Self
from uuid import UUID

from spotconn import events
from spotconn._affinity import Affinity
from spotconn._observer import NOBODY, Observer
from spotconn._settings import Settings
from spotconn._tokens.batch import ManyTokens, Serving
from spotconn._tokens.cache import ConnectionCache, Fill, Remembered
from spotconn._tokens.refresh import Refresher, Replacement
from spotconn._tokens.single_flight import SingleFlight, finish
from spotconn._tokens.subscriber import Listener
from spotconn._tracebacks import Failure, exempt, scrubbed, scrubbed_context, scrubbed_method
from spotconn.accounts import SpotifyAccounts
from spotconn.auth import SpotifyAuth
from spotconn.cipher import cipher_for
from spotconn.errors import AskUser, MissingScope, NotConnected, RefreshInProgress, SpotconnError, SpotifyUnavailable
from spotconn.models import Connection, ConnectionStatus, Freshness, freshness, parse_user_id
from spotconn.overview import TokensProgress
from spotconn.store import ConnectionStore

_log = logging.getLogger("spotconn")

FLUSH_TIMEOUT = 10.0
"""Seconds that `aclose` goes on trying to save what the database has not taken before."""
SPREAD_BITS = 16
"""Of a user id, which is random there: enough to spread refreshes."""
EVENTS_TIMEOUT = 2.0
"""Seconds that `aclose` gives the hook for the last events."""
MAX_MIN_TTL = 3000.0
"""Seconds: the most that a caller may ask of a token's remaining life; Spotify's tokens live 3600."""
MOST_REPLACEMENTS = 2
"""Of tokens found wanting in one call: what another process has stored may have to be replaced once more."""

# The default of `scopes`: there is one empty tuple only, and its identity is the cheapest thing to look at.
_NO_SCOPES = ()


@scrubbed
class TokenManager:
    """Valid access tokens for stored connections.

    One manager serves a whole process; make it inside the event loop that uses it and `aclose` it there. In another
    event loop, and in a child of fork, its calls raise RuntimeError, which says where to make one; a cached token may
    still be served in another event loop.

    Args:
        store: where the connections are.
        accounts: where they are refreshed.
        refresh_window: seconds before its end from which a token is refreshed in the background.
        expiry_margin: seconds before its end from which a token is no longer handed out.
        refresh_timeout: seconds for Spotify's answer to a refresh, all retries included, and seconds to wait for
            another process that is refreshing.
        lease: seconds after which another process may take over a refresh; longer than `refresh_timeout`.
        cache_ttl: seconds that a connection is remembered without asking the database while its changes cannot be
            heard of; while they are, it is remembered until its token is due for a refresh. 0 remembers nothing.
        cache_size: number of connections remembered.
        on_event: is told what happens to connections, see `spotconn.events`; it runs in a thread of its own.
        clock: gives seconds since the epoch.

    Raises:
        ValueError: a number is out of range; the text names it.
        RuntimeError: the store or the accounts are closed, or belong to another process or event loop.
    """

    def __init__(
        self,
        store: ConnectionStore,
        accounts: SpotifyAccounts,
        *,
        refresh_window: float = 300,
        expiry_margin: float = 30,
        refresh_timeout: float = 10,
        lease: float = 15,
        cache_ttl: float = 30,
        cache_size: int = 100_000,
        on_event: events.Hook | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        _check(expiry_margin >= 0, "expiry_margin: expected 0 or more seconds")
        _check(refresh_window >= expiry_margin, "refresh_window: expected no less than expiry_margin")
        _check(refresh_timeout > 0, "refresh_timeout: expected more than 0 seconds")
        _check(lease > refresh_timeout, "lease: expected more than refresh_timeout")
        _check(0 <= cache_ttl < math.inf, "cache_ttl: expected 0 or more seconds, and not without end")
        _check(cache_size >= 0, "cache_size: expected 0 or more")
        store.pool.affinity.check()
        accounts.affinity.check()
        self._affinity = Affinity("TokenManager", after_fork=self._after_fork)
        self._store = store
        self._accounts = accounts
        self._events = events.Events(on_event)
        self._refresher = Refresher(store, accounts, self._events, timeout=refresh_timeout, lease=lease)
        self._window = refresh_window
        # Each process has another window for each user, so that a fleet does not refresh at the same moment and no
        # process does the work of all.
        self._salt = random.getrandbits(SPREAD_BITS)
        self._margin = expiry_margin
        self._patience = lease
        self._cache = ConnectionCache(ttl=cache_ttl, size=cache_size)
        self._remembered = self._cache.entries
        store.watch(self._cache.discard)
        self._clock = clock
        self._listener = Listener(
            store.changes if cache_ttl and cache_size else None, self._cache, ttl=cache_ttl, clock=clock
        )
        self._observer = NOBODY
        # A read that began before something was heard is none for those who come after it.
        self._reads = SingleFlight[tuple[UUID, int], Connection]("spotconn-read")
        # By what is to be replaced: the user, and the version that was found wanting.
        self._refreshes = SingleFlight[tuple[UUID, datetime], Replacement]("spotconn-refresh")
        serving = Serving(self._renewed, window=refresh_window, margin=expiry_margin, clock=clock)
        self._many = ManyTokens(store, serving, self._affinity.check)

    @classmethod
    @scrubbed_context
    async def from_env(cls, **overrides: Any) -> AsyncGenerator[Self]:
        """A manager from DATABASE_URL (or SPOTCONN_DATABASE_URL), SPOTIFY_CLIENT_ID and SPOTIFY_CLIENT_SECRET.

        Without a secret the client is a public one. SPOTCONN_ENCRYPTION_KEYS encrypts the stored tokens.
        SPOTCONN_LISTEN_URL is where to listen for changes, if not where DATABASE_URL leads. Everything is closed at
        the end of the block.

        Args:
            overrides: keyword arguments of the constructor.

        Raises:
            ConfigurationError: a variable is missing or malformed; the text names it.
            DatabaseUnavailable, SchemaMismatch, RowSecurityError: as `ConnectionStore.open`.
        """
        settings = Settings.read(os.environ)
        cipher = cipher_for(settings.encryption_keys, require_encrypted=settings.require_encrypted)
        async with (
            SpotifyAccounts(settings.client_id, settings.client_secret) as accounts,
            ConnectionStore.open(settings.database_url, cipher=cipher, listen_dsn=settings.listen_url) as store,
            cls(store, accounts, **overrides) as manager,
        ):
            yield manager

    async def __aenter__(self) -> Self:
        """Enter a block at whose end the manager is closed."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the manager."""
        await self.aclose()

    @property
    def store(self) -> ConnectionStore:
        """Where the connections are; a `ConnectFlow` over the same one shares its pool and keeps the cache right."""
        return self._store

    @property
    def accounts(self) -> SpotifyAccounts:
        """Where the connections are refreshed."""
        return self._accounts

    @exempt
    async def get_valid_token(
        self, user_id: UUID | str, *, scopes: Iterable[str] = (), min_ttl: float | None = None
    ) -> str:
        """An access token that Spotify accepts now.

        Args:
            user_id: whose token.
            scopes: scopes that the user must have granted.
            min_ttl: seconds that the token must still be good for; at most 3000.

        Raises:
            ValueError: an argument is malformed; the text names it.
            NotConnected, ReauthorizationRequired, MissingScope: the user must connect.
            SpotifyUnavailable, RefreshInProgress, DatabaseUnavailable: try later.
            ConfigurationError, SchemaMismatch, RowSecurityError, DecryptionError: call an engineer.
        """
        # The hot path, which must not suspend: all that it does is measured by warm_vs_limit in benchmarks/.
        if scopes is _NO_SCOPES and min_ttl is None:
            try:
                found = self._remembered[user_id]
            except (KeyError, TypeError):  # not remembered, or no hashable user id: that is named below
                pass
            else:
                if found.since <= (now := self._clock()) < found.fresh_until and now < self._cache.horizon:
                    return found.access_token
                del found
        try:
            return await self._find_token(user_id, scopes, min_ttl)
        except BaseException:
            del user_id, scopes
            raise

    def get_valid_tokens(
        self,
        user_ids: Iterable[UUID | str] | AsyncIterable[UUID | str],
        *,
        concurrency: int = 20,
        progress: Callable[[TokensProgress], object] | None = None,
    ) -> AsyncGenerator[tuple[UUID, str | SpotconnError], None]:
        """For many users, an access token that Spotify accepts now, or why there is none: for nightly jobs.

        An async generator of pairs (user id as a UUID, token or `SpotconnError`), as they come and not in the order
        of the input; an id that is given twice has two answers. The connections are read in batches of 200. Tokens
        in the last 5 minutes (`refresh_window`) are refreshed first, as `get_valid_token` does; where that fails and
        the stored token is still good, it is the answer. What is read is not cached. Memory does not grow with the
        number of users; at most some 400 ids are taken ahead of the answers.

        What is wrong for one user is the answer for that user, DatabaseUnavailable for a whole batch. What is wrong
        for all ends the job. Leave it early within `contextlib.aclosing`, which ends at once what is under way;
        refreshes that Spotify has been asked for are completed and saved all the same.

        Args:
            user_ids: whose tokens, as an iterable or async iterable, such as a cursor of the database. An iterable
                that blocks holds up the event loop.
            concurrency: refreshes at once, 1 or more.
            progress: called after every 200 answers, and at the end.

        Raises:
            ValueError: an argument is malformed, or an id is no UUID: the text gives its place in the input, and
                all ids before it have been answered.
            ConfigurationError, SchemaMismatch, RowSecurityError: call an engineer.
            RuntimeError: the manager was closed.
        """
        return self._many.answers(user_ids, concurrency=concurrency, progress=progress)

    async def replace_rejected(self, user_id: UUID | str, rejected_token: str) -> str:
        """Another access token than the one that the Web API refused with 401.

        It is refreshed only if it is still the stored one, so many callers with one rejected token cost one refresh.

        Args:
            user_id: whose token.
            rejected_token: the token that was refused.

        Raises:
            ValueError: the user id is no UUID.
            NotConnected, ReauthorizationRequired: the user must connect.
            SpotifyUnavailable, RefreshInProgress, DatabaseUnavailable: try later.
            ConfigurationError, SchemaMismatch, RowSecurityError, DecryptionError: call an engineer.
        """
        user_id = parse_user_id(user_id)
        self._affinity.check()
        self._cache.discard(user_id)
        with self._observer.waiting(user_id):
            found: Connection = await self._read(user_id, useless=rejected_token)
            if found.access_token == rejected_token:
                found = (await self._replacement(user_id, found.expires_at)).connection
            elif self._left(found) <= self._margin:
                found = await self._replace(user_id, found, self._margin)
        return found.access_token

    def auth(self, user_id: UUID | str, *, allow: Iterable[str] = ()) -> SpotifyAuth:
        """For `httpx.AsyncClient(auth=...)`: its requests to the Web API bear the user's token; see `SpotifyAuth`.

        Args:
            user_id: whose token.
            allow: base URLs of what may see the token beside the Web API, which is where `accounts` has it.

        Raises:
            ValueError, ConfigurationError: an argument is malformed; the text names it.
        """
        return SpotifyAuth(self, user_id, allow=(self._accounts.api_url, *allow))

    async def status(self, user_id: UUID | str) -> ConnectionStatus:
        """What a profile page shows; a user without a connection is no error.

        Raises:
            ValueError: the user id is no UUID.
            DatabaseUnavailable, SchemaMismatch, RowSecurityError, DecryptionError: it could not be read.
        """
        self._affinity.check()
        try:
            connection = await self._store.get(user_id)
        except NotConnected:
            return ConnectionStatus(connected=False)
        return ConnectionStatus.of(connection)

    async def disconnect(self, user_id: UUID | str) -> bool:
        """Delete the stored connection.

        Spotify keeps the user's consent until they end it at www.spotify.com/account/apps; an access token already
        handed out works until it expires.

        Returns:
            Whether there was a connection.
        """
        user_id = parse_user_id(user_id)
        self._affinity.check()
        try:
            deleted = await self._store.delete(user_id)
        finally:
            self._cache.discard(user_id)
        self._refresher.kept.drop(user_id)
        if deleted:
            self._events.emit(events.Disconnected(user_id=user_id))
        return deleted

    async def aclose(self) -> None:
        """Refuse new calls, wait until running refreshes have ended, and save what is not saved yet; all bounded.

        Running refreshes have the time of the lease. What Spotify has granted and the database does not take within
        10 seconds more is lost; that is logged as critical. In a child of fork nothing is done: it is all the parent's.

        Raises:
            RuntimeError: in another event loop than the manager's.
        """
        if self._affinity.forked:
            return
        self._affinity.check_home()
        self._affinity.close()
        passes = self._many.cancel()
        self._store.unwatch(self._cache.discard)
        self._cache.close()
        await finish(self._reads.tasks | self._refreshes.tasks | passes, seconds=self._patience)
        self._reads.cut_off()
        self._refreshes.cut_off()
        await self._listener.close()
        await self._refresher.kept.flush(seconds=FLUSH_TIMEOUT)
        await self._events.drained(seconds=EVENTS_TIMEOUT)

    def _observe(self, observer: Observer) -> None:
        """From now on tell an observer what this manager, its store and its accounts do."""
        if self._observer is not NOBODY:
            raise RuntimeError("this TokenManager is instrumented already")
        self._observer = self._refresher.observer = observer
        self._store.pool.observer = self._accounts.observer = observer
        observer.remembers(self._cache)
        # On this object, not in the class: a call of a manager that nobody observes has no instruction more.
        for name in ("get_valid_token", "replace_rejected"):
            setattr(self, name, observer.counted(getattr(self, name)))

    @scrubbed_method
    async def _find_token(self, user_id: UUID | str, scopes: Iterable[str], min_ttl: float | None) -> str:
        """What `get_valid_token` gives where the cache alone does not settle it."""
        self._affinity.check()
        user_id = parse_user_id(user_id)
        needed = _scopes(scopes)
        least = self._least_ttl(min_ttl)
        found: Remembered | Connection | None = self._cache.get(user_id, self._clock())
        if found is None or self._left(found) <= least or _missing(found, needed):
            with self._observer.waiting(user_id):
                found = await self._fetch(user_id, found, needed, least)
        if missing := _missing(found, needed):
            raise MissingScope(missing)
        self._refresh_if_stale(user_id, found)
        return found.access_token

    async def _fetch(
        self, user_id: UUID, found: Remembered | Connection | None, needed: frozenset[str], least: float
    ) -> Remembered | Connection:
        """Return what serves a call for which the cached connection does not."""
        if found is None or _missing(found, needed):  # the user may have granted it since, through another process
            found = await self._reads.join((user_id, self._cache.epoch), partial(self._read, user_id))
        return found if self._left(found) > least else await self._replace(user_id, found, least)

    def _after_fork(self) -> None:
        """Leave everything to the parent; the cached path, which looks at nothing else, finds an empty cache."""
        self._cache.close()
        self._refresher.kept.clear()
        self._listener.abandon()

    def _left(self, found: Remembered | Connection) -> float:
        """Seconds until an access token ends."""
        return found.expires_at.timestamp() - self._clock()

    def _least_ttl(self, min_ttl: float | None) -> float:
        if min_ttl is None:
            return self._margin
        if not 0 <= min_ttl <= MAX_MIN_TTL:
            raise ValueError(f"min_ttl: expected 0 to {MAX_MIN_TTL:.0f} seconds")
        return max(min_ttl, self._margin)

    async def _renewed(self, stored: Connection) -> Connection:
        return await self._replace(stored.user_id, stored, self._margin)

    async def _replace(self, user_id: UUID, found: Remembered | Connection, least: float) -> Connection:
        """Return another connection than the one found wanting.

        Its token is good for more than `least` seconds, or as good as Spotify gives them.
        """
        seen, other = found.expires_at, None
        for _ in range(MOST_REPLACEMENTS):
            other, just_granted = await self._replacement(user_id, seen)
            if self._left(other) > (0 if just_granted else least):
                return other
            seen = other.expires_at
        if other is None or self._left(other) <= 0:  # this process stood still, or Spotify's token was old
            raise SpotifyUnavailable("Spotify's new access token has run out already; is this host's clock right?")
        return other

    async def _replacement(self, user_id: UUID, seen: datetime) -> Replacement:
        self._affinity.check()
        return await self._refreshes.join((user_id, seen), partial(self._refresh, user_id, seen))

    async def _read(self, user_id: UUID, useless: str | None = None) -> Connection:
        """Return the stored connection, and remember it unless its access token is known to be useless."""
        with self._filling(user_id) as fill:
            connection = await self._refresher.read(user_id)
            if connection.access_token != useless:
                self._remember(connection, fill)
        return connection

    async def _refresh(self, user_id: UUID, seen: datetime) -> Replacement:
        with self._filling(user_id) as fill:
            replacement = await self._refresher.refresh(user_id, seen)
            self._cache.outdate(fill)
            self._remember(replacement.connection, fill)
        return replacement

    @contextmanager
    def _filling(self, user_id: UUID) -> Generator[Fill]:
        self._listener.start()
        with self._cache.filling(user_id) as fill:
            try:
                yield fill
            except AskUser:
                # What is remembered of this user is out of date.
                self._cache.discard(user_id)
                raise

    def _remember(self, connection: Connection, fill: Fill) -> None:
        if self._refresher.kept.get(connection.user_id) is not None:
            fill.covered = False  # not read: the end of what was stored before may have been heard of already
        stale_at = connection.expires_at.timestamp() - self._window_of(connection.user_id)
        self._cache.put(connection, fill, now=self._clock(), stale_at=stale_at)

    def _refresh_if_stale(self, user_id: UUID, connection: Remembered | Connection) -> None:
        """Start a refresh in the background if the token ends soon and nothing speaks against it."""
        if self._left(connection) > self._window:
            return
        ends = connection.expires_at
        state = freshness(ends, self._clock(), window=self._window_of(user_id), margin=self._margin)
        if state is Freshness.FRESH or connection.reauthorization or (user_id, ends) in self._refreshes:
            return
        if self._affinity.closed or self._refresher.paused(user_id):
            return
        flight = self._refreshes.begin((user_id, ends), partial(self._refresh, user_id, ends))
        flight.outcome.add_done_callback(_log_failure)

    def _window_of(self, user_id: UUID) -> float:
        """Seconds before its end from which this process refreshes a user's token: the last quarter is spread."""
        spread = (user_id.int & (1 << SPREAD_BITS) - 1 ^ self._salt) / (1 << SPREAD_BITS)
        return max(self._window * (1 - spread / 4), self._margin)


def _log_failure(outcome: asyncio.Future[Replacement | Failure]) -> None:
    failure = outcome.result()
    if isinstance(failure, Failure) and not failure.is_a(RefreshInProgress):
        _log.warning("a refresh in the background failed with %s", failure)


def _check(holds: bool, text: str) -> None:  # noqa: FBT001  the condition is the point
    if not holds:
        raise ValueError(text)


def _scopes(scopes: Iterable[str]) -> frozenset[str]:
    if isinstance(scopes, str):
        raise ValueError("scopes: expected several strings, not one")  # noqa: TRY004  bad input is a ValueError here
    return frozenset(scopes)


def _missing(connection: Remembered | Connection, needed: frozenset[str]) -> frozenset[str]:
    """The needed scopes that are known not to be granted."""
    return frozenset() if connection.scope is None else needed - connection.scope
