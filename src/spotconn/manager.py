"""The front of the library: give a valid access token for a user, or one clear reason why not."""

import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping
from typing import Any, Self
from uuid import UUID

from spotconn import events
from spotconn._affinity import Affinity, Closing
from spotconn._tokens.access_token import AccessToken
from spotconn._tokens.apps import Apps
from spotconn._tokens.arguments import Times, check_cache, check_rejected_token, least_ttl, needed_scopes
from spotconn._tokens.batch import Batches
from spotconn._tokens.batch_policy import Policy
from spotconn._tokens.cache import ConnectionCache
from spotconn._tokens.environment import opened
from spotconn._tokens.source import ConnectionSource
from spotconn._tokens.status import ConnectionStatus, TokensProgress
from spotconn._tokens.stored_token import StoredToken
from spotconn._tracebacks import exempt, scrubbed, scrubbed_context, scrubbed_method
from spotconn._user_ids import UserId, parse_user_id
from spotconn.accounts import SpotifyAccounts
from spotconn.auth import SpotifyAuth
from spotconn.errors import NotConnected, SpotconnError
from spotconn.store import ConnectionStore

_NO_SCOPES = ()  # the default of `scopes`: CPython has one empty tuple, and to compare its identity is cheapest


@scrubbed
class TokenManager(Closing):
    """Gives valid access tokens for stored connections.

    One manager serves a whole process. Make it inside the event loop that uses it and `aclose` it there. In another
    event loop, and in a child of fork, its calls raise RuntimeError, which says where to make one; a cached token may
    still be served in another event loop.

    Args:
        store: holds the connections.
        accounts: the app of new connections, which refreshes its own.
        other_apps: further apps; each refreshes its own connections.
        retired_client_ids: of apps that are given up for good: their users must connect again.
        refresh_window: seconds before its end in which a token is refreshed in the background.
        expiry_margin: seconds before its end in which a token is no longer served.
        refresh_timeout: seconds for Spotify's answer to a refresh, all retries included, and seconds to wait for
            another process that refreshes.
        lease: seconds after which another process may take over a refresh; longer than `refresh_timeout` by more than
            the database takes to answer.
        cache_ttl: seconds that a connection is cached while notifications of its changes do not arrive. While they
            do, it is cached until its token is due for a refresh. 0 turns the cache off.
        cache_size: number of connections cached.
        on_event: is called with what happens to connections (`spotconn.events`), in a thread of its own.
            A `ConnectFlow` made afterwards over the same store tells it, too, unless that has a hook of its own.
        clock: gives seconds since the epoch.

    Raises:
        ValueError: a number is out of range, or an app is named twice; the text names it.
        RuntimeError: the store or the accounts are closed, or belong to another process or event loop.
    """

    def __init__(
        self,
        store: ConnectionStore,
        accounts: SpotifyAccounts,
        *,
        other_apps: Iterable[SpotifyAccounts] = (),
        retired_client_ids: Iterable[str] = (),
        refresh_window: float = 300,
        expiry_margin: float = 30,
        refresh_timeout: float = 10,
        lease: float = 15,
        cache_ttl: float = 30,
        cache_size: int = 100_000,
        on_event: events.Hook | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        times = Times(window=refresh_window, margin=expiry_margin, timeout=refresh_timeout, lease=lease).checked()
        check_cache(ttl=cache_ttl, size=cache_size)
        store.pool.affinity.check()
        self._apps = Apps(accounts, other_apps, retired_client_ids)
        self._apps.check()
        self._affinity = affinity = Affinity("TokenManager")
        self._store = store
        self._accounts = accounts
        self._margin = expiry_margin
        self._clock = clock
        self._events = events.Events(on_event)
        if on_event is not None:
            store.events = self._events
        self._cache = ConnectionCache(ttl=cache_ttl, size=cache_size)
        self._entries = self._cache.entries
        self._source = ConnectionSource(store, self._apps, self._cache, self._events, affinity, times, clock=clock)
        self._batches = Batches(store, Policy(self._source, self._apps, times, clock), affinity)
        store.watch(self._source.forget)

    @classmethod
    @scrubbed_context
    async def from_env(cls, *, environ: Mapping[str, str | None] | None = None, **options: Any) -> AsyncGenerator[Self]:
        """Open a manager from the environment, and close everything at the end of the block.

        Args:
            environ: variables to read in place of those of this process, such as those of a .env file.
            options: of the constructor, of `ConnectionStore.open` and of its pool; they go before the variables.

        Raises:
            TypeError: an option does not exist.
            ValueError: an option is out of range, or a value of `environ` is no text; the text names it.
            ConfigurationError: a variable is missing or malformed; the text names it.
            DatabaseUnavailable, SchemaMismatch, RowSecurityError: as `ConnectionStore.open`.
        """
        async with (
            opened(cls.__init__, environ, options) as (store, accounts, arguments),
            cls(store, accounts, **arguments) as manager,
        ):
            yield manager

    @property
    def store(self) -> ConnectionStore:
        """The store. A `ConnectFlow` over the same one shares its pool and keeps the cache right."""
        return self._store

    @property
    def accounts(self) -> SpotifyAccounts:
        """The accounts service that refreshes the connections."""
        return self._accounts

    @exempt
    async def get_valid_token(
        self, user_id: UserId, *, scopes: Iterable[str] = (), min_ttl: float | None = None
    ) -> str:
        """Return an access token that Spotify accepts now.

        Args:
            user_id: whose token.
            scopes: scopes that the user must have granted.
            min_ttl: seconds that the token must still be good for; at most 3000.

        Raises:
            ValueError: an argument is malformed; the text names it.
            NotConnected, ReauthorizationRequired, MissingScope: the user must connect.
            SpotifyUnavailable, RefreshInProgress, DatabaseUnavailable: try later.
            ConfigurationError, OtherApp, SchemaMismatch, RowSecurityError, DecryptionError: call an engineer.
        """
        # The hot path, which must not suspend; benchmarks/ measures it (warm_vs_limit).
        if scopes is _NO_SCOPES and min_ttl is None:
            try:
                found, clock = self._entries[user_id], self._clock  # called as a method, 3.11 asks the class first
            except (KeyError, TypeError):
                pass  # not cached, or a user id that is not hashable, which the checks below name
            else:
                if found.since <= (now := clock()) < found.fresh_until and now < found.trust.until:
                    return found.access_token
                del found
        try:
            return (await self._find_token(user_id, scopes, min_ttl)).access_token
        except BaseException:
            del user_id, scopes
            raise

    async def get_access_token(
        self, user_id: UserId, *, scopes: Iterable[str] = (), min_ttl: float | None = None
    ) -> AccessToken:
        """Return the token of `get_valid_token` with its end and its scopes. Arguments and errors are the same."""
        return AccessToken.of(await self._find_token(user_id, scopes, min_ttl))

    def get_valid_tokens(
        self,
        user_ids: Iterable[UserId] | AsyncIterable[UserId],
        *,
        concurrency: int = 20,
        throttle_timeout: float = 60,
        progress: Callable[[TokensProgress], object] | None = None,
    ) -> AsyncGenerator[tuple[UUID, str | SpotconnError], None]:
        """Yield an access token that Spotify accepts now, or the reason why there is none, for each of many users.

        The pairs (user id as a UUID, token or `SpotconnError`) come in any order; an id that is given twice has two
        answers. Connections are read in batches of 200 and not cached. Tokens in their last 5 minutes
        (`refresh_window`), and those that end while they wait for a slow caller, are refreshed first; where that fails
        and the stored token is still good, it is the answer. Some 600 ids at most are taken ahead of the answers. A
        fault of one user or of one of several apps is the answer for that user, DatabaseUnavailable that of a batch. A
        fault of all ends the job. Leave it early within `contextlib.aclosing`, which ends at once what is under way;
        refreshes that Spotify has been asked for are completed and saved all the same.

        Args:
            user_ids: an iterable, which must not block the event loop, or async iterable, such as a database cursor.
            concurrency: refreshes at once, 1 or more.
            throttle_timeout: seconds to wait for Spotify's Retry-After in all; longer is SpotifyUnavailable at once.
            progress: is called after every 200 answers, when a wait for Spotify begins, and at the end.

        Raises:
            ValueError: an argument is malformed, or an id is no UUID: the text gives its place in the input, and
                all ids before it have been answered.
            ConfigurationError, SchemaMismatch, RowSecurityError: call an engineer.
            RuntimeError: the manager was closed.
        """
        return self._batches.answers(user_ids, concurrency, throttle_timeout, progress)

    async def replace_rejected(self, user_id: UserId, rejected_token: str, *, scopes: Iterable[str] = ()) -> str:
        """Return another access token than the one that the Web API refused with 401.

        It is refreshed only if it is still the stored one, so many callers with one rejected token cost one refresh.

        Args:
            user_id: whose token.
            rejected_token: the one that was refused.
            scopes: scopes that the user must have granted to the other one.

        Raises:
            ValueError: the user id is no UUID, or the token is none.
            SpotconnError: as `get_valid_token`.
        """
        self._affinity.check()
        check_rejected_token(rejected_token)
        user, needed = parse_user_id(user_id), needed_scopes(scopes)
        return (await self._source.replace_rejected(user, rejected_token, needed)).access_token

    def auth(self, user_id: UserId, *, scopes: Iterable[str] = (), allow: Iterable[str] = ()) -> SpotifyAuth:
        """Return a `SpotifyAuth` for `httpx.AsyncClient(auth=...)`, which sends the user's token to the Web API.

        Args:
            user_id: whose token.
            scopes: scopes that the user must have granted; without them a request raises MissingScope and is not sent.
            allow: base URLs of what may see the token beside the Web API of `accounts`.

        Raises:
            ValueError, ConfigurationError: an argument is malformed; the text names it.
        """
        return SpotifyAuth(self, user_id, scopes=scopes, allow=(self._accounts.api_url, *allow))

    async def status(self, user_id: UserId) -> ConnectionStatus:
        """Return what a profile page shows. A user without a connection is no error.

        Raises:
            ValueError, SpotconnError: as `ConnectionStore.get`.
        """
        self._affinity.check()
        try:
            connection = await self._store.get(user_id)
        except NotConnected:
            return ConnectionStatus(connected=False)
        return ConnectionStatus.of(connection, client_ids=self._apps.accounts, retired_client_ids=self._apps.retired)

    async def check(self) -> None:
        """Check for a readiness probe that tokens can be served here: one round trip, and Spotify is not asked.

        The trouble of one user is none here, nor is that of one of several apps. A refused client secret is read again.

        Raises:
            SpotconnError: as `ConnectionStore.verify`.
            DecryptionError: the tokens of most users that were read lately do not decrypt.
            ConfigurationError: Spotify has refused all apps lately.
        """
        self._affinity.check()
        await self._store.verify()
        self._store.tokens.check_decryption()
        await self._apps.check_accepted()

    def report_answer(self, user_id: UserId, status: int, body: bytes | str = b"") -> None:
        """Record an answer of the Web API to a request with a user's token, for `events.AppRefused`; `auth` does so.

        Args:
            user_id: whose token it was.
            status: of the answer.
            body: of the answer; that of a 403 or 429 tells what is refused.
        """
        self._affinity.check()
        self._source.answers.report(parse_user_id(user_id), status, body)

    async def disconnect(self, user_id: UserId) -> bool:
        """Delete the stored connection.

        Spotify keeps the user's consent until they end it at www.spotify.com/account/apps; an access token already
        handed out works until it expires. Returns whether there was a connection.
        """
        user_id = parse_user_id(user_id)
        self._affinity.check()
        if deleted := await self._store.delete(user_id):
            self._events.emit(events.Disconnected(user_id=user_id))
        return deleted

    async def aclose(self) -> None:
        """Refuse new calls, wait for the refreshes under way, and save what is not saved yet.

        Refreshes have the time of the lease. A grant that the database does not take within 10 seconds more is lost,
        and that is logged as critical. In a child of fork this does nothing; in another event loop, RuntimeError.
        """
        if not self._affinity.close():
            return
        self._store.unwatch(self._source.forget)
        try:
            await self._source.aclose(self._batches.cancel())
        finally:
            await self._events.drained(seconds=events.DRAIN_TIMEOUT)

    @scrubbed_method
    async def _find_token(self, user_id: UserId, scopes: Iterable[str], min_ttl: float | None) -> StoredToken:
        """Return what `get_valid_token` does, where the look at the cache did not settle it."""
        self._affinity.check()
        user, needed, least = parse_user_id(user_id), needed_scopes(scopes), least_ttl(min_ttl, margin=self._margin)
        return await self._source.find(user, needed, least)
