"""`BlockingTokens`: the calls of a `TokenManager` and a `ConnectFlow` for code that does not await."""

import threading
import warnings
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import MappingProxyType
from typing import Any, NoReturn, Self, TypeVar

from spotconn._affinity import Affinity
from spotconn._arguments import checked_scopes
from spotconn._spotify.redirect import UrlObject
from spotconn._tokens.access_token import AccessToken
from spotconn._tokens.environment import check_options
from spotconn._tokens.status import ConnectionStatus
from spotconn._tracebacks import scrubbed, scrubbed_method
from spotconn._user_ids import UserId, parse_user_id
from spotconn.authorizations import Authorization, Completed
from spotconn.blocking._loop_thread import CLOSED, LoopThread, check_caller, check_threads
from spotconn.blocking._requests_auth import BlockingAuth
from spotconn.blocking._services import FlowOptions, Opener, Services, opened_services
from spotconn.events import Hook
from spotconn.manager import TokenManager
from spotconn.models import Connection

T = TypeVar("T")

TIMEOUT = 30.0
"""Seconds that a call waits if it is not told otherwise."""
_NO_SCOPES = ()
# Of the parent of this process. It is not collected here, which would close the event loop that the parent uses, too.
_abandoned: list[object] = []


@scrubbed
class BlockingTokens:
    """The calls of a `TokenManager`, and of a `ConnectFlow`, for synchronous code and for any number of threads.

    The first call starts an event loop in a daemon thread and opens a manager there; all calls of the process share
    it. Nothing is started before: make one object when your module is imported, also where a server forks its workers
    afterwards. A child of fork makes its own event loop and manager at its first call, whatever its parent had open.

    A call waits for `timeout` seconds and raises TryLater then. What it has begun goes on: a refresh is saved, and a
    call that is made again finds its result. A token that is cached costs no hop to the other thread.

    At the end of the interpreter it is closed, which saves what is not saved yet. Where processes end without that, as
    in a worker of Celery, call `close`, or use it as a context manager. In a running event loop the calls raise
    RuntimeError, because they would stop it: await a `TokenManager` there.

    Args:
        opened: opens the manager in the event loop, such as `TokenManager.from_env`; called once for each process.
        redirect_uri: of the flow; None for that of SPOTIFY_REDIRECT_URI.
        scopes: of the flow: what to ask a user for.
        on_event: is told `events.Connected` by the flow, in a thread of its own; None for the hook of the manager.
        environ: variables in place of those of this process.
    """

    def __init__(
        self,
        opened: Opener,
        *,
        redirect_uri: str | None = None,
        scopes: Iterable[str] = (),
        on_event: Hook | None = None,
        environ: Mapping[str, str | None] | None = None,
    ) -> None:
        if isinstance(opened, AbstractAsyncContextManager) or not callable(opened):  # type: ignore[redundant-expr]
            raise TypeError("opened: expected what opens a manager, such as TokenManager.from_env, not a call of it")
        options = FlowOptions(redirect_uri, checked_scopes(scopes), on_event, environ)
        self._opened = partial(opened_services, opened, options)
        self._lock = threading.RLock()  # a signal handler may close it while its own thread is in a call
        self._current: LoopThread[Services] | None = None
        self._closed = False
        self._affinity = Affinity("BlockingTokens", after_fork=self._after_fork)

    @classmethod
    def from_env(
        cls,
        *,
        environ: Mapping[str, str | None] | None = None,
        redirect_uri: str | None = None,
        scopes: Iterable[str] = (),
        on_event: Hook | None = None,
        **options: Any,
    ) -> Self:
        """Make one whose manager is opened from the environment, as `TokenManager.from_env` does.

        The environment is read at the first call, and SPOTIFY_REDIRECT_URI at the first call that connects a user.
        Those raise ConfigurationError for a variable that is missing or malformed.

        Args:
            environ: variables to read in place of those of this process.
            redirect_uri: of the flow, in place of SPOTIFY_REDIRECT_URI.
            scopes: what the flow asks a user for.
            on_event: the hook of the manager and of the flow.
            options: further arguments of `TokenManager.from_env`, such as `max_size`; TypeError if it has none such.
        """
        check_options(TokenManager.__init__, options)
        opened = partial(TokenManager.from_env, environ=environ, on_event=on_event, **options)
        return cls(opened, redirect_uri=redirect_uri, scopes=scopes, environ=environ)

    def __enter__(self) -> Self:
        """Return the object, which the end of the block closes."""
        if self._closed:
            raise RuntimeError(CLOSED)
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled."""
        raise TypeError("a BlockingTokens cannot be pickled: make it in a module that each process imports")

    def __del__(self) -> None:
        """Warn of an object that is dropped open, and end its event loop."""
        thread: LoopThread[Services] | None = vars(self).get("_current")  # None, too, where its arguments were wrong
        if thread is not None and thread.abandon():
            warnings.warn("a BlockingTokens was dropped without close()", ResourceWarning, 2, self)

    @property
    @scrubbed_method
    def api_url(self) -> str:
        """Base URL of the Web API: that of the manager's accounts, so tests reach a simulated Spotify by it."""
        return self._call(Services.api_url, TIMEOUT)

    def get_valid_token(
        self,
        user_id: UserId,
        *,
        scopes: Iterable[str] = _NO_SCOPES,
        min_ttl: float | None = None,
        timeout: float = TIMEOUT,
    ) -> str:
        """Return an access token that Spotify accepts now, as `TokenManager.get_valid_token` does.

        Args:
            user_id: whose token.
            scopes: scopes that the user must have granted.
            min_ttl: seconds that the token must still be good for; at most 3000.
            timeout: seconds to wait.

        Raises:
            ValueError, SpotconnError: as `TokenManager.get_valid_token`, and as `TokenManager.from_env` at first.
            TryLater: no answer in time.
            RuntimeError: it is closed, or this thread runs an event loop.
        """
        thread = self._started(timeout)
        if thread.resource is not None and scopes is _NO_SCOPES and min_ttl is None:
            token = thread.resource.cached_token(user_id)
            if token is not None:
                return token
        return thread.call(lambda on: on.manager.get_valid_token(user_id, scopes=scopes, min_ttl=min_ttl), timeout)

    def get_access_token(
        self,
        user_id: UserId,
        *,
        scopes: Iterable[str] = _NO_SCOPES,
        min_ttl: float | None = None,
        timeout: float = TIMEOUT,
    ) -> AccessToken:
        """Return the token of `get_valid_token` with its end and its scopes. Arguments and errors are the same."""
        return self._call(lambda on: on.manager.get_access_token(user_id, scopes=scopes, min_ttl=min_ttl), timeout)

    def replace_rejected(
        self, user_id: UserId, rejected_token: str, *, scopes: Iterable[str] = (), timeout: float = TIMEOUT
    ) -> str:
        """Return another access token than the one that the Web API refused, as `TokenManager.replace_rejected` does.

        Arguments and errors are the same, and `timeout` with its TryLater as in `get_valid_token`.
        """
        return self._call(lambda on: on.manager.replace_rejected(user_id, rejected_token, scopes=scopes), timeout)

    def status(self, user_id: UserId, *, timeout: float = TIMEOUT) -> ConnectionStatus:
        """Return what a profile page shows, as `TokenManager.status` does. No connection is no error."""
        return self._call(lambda on: on.manager.status(user_id), timeout)

    def check(self, *, timeout: float = TIMEOUT) -> None:
        """Check for a readiness probe that tokens can be served here, as `TokenManager.check` does."""
        self._call(lambda on: on.manager.check(), timeout)

    def report_answer(self, user_id: UserId, status: int, body: bytes | str = b"") -> None:
        """Record what the Web API has answered, as `TokenManager.report_answer` does, without waiting."""
        user_id, thread = parse_user_id(user_id), self._started(TIMEOUT)
        if thread.resource is not None and thread.resource.concern(user_id, status):
            thread.post(lambda on: on.report_answer(user_id, status, body))

    def disconnect(self, user_id: UserId, *, timeout: float = TIMEOUT) -> bool:
        """Delete the stored connection, as `TokenManager.disconnect` does; return whether there was one."""
        return self._call(lambda on: on.manager.disconnect(user_id), timeout)

    def auth(self, user_id: UserId, *, scopes: Iterable[str] = (), allow: Iterable[str] = ()) -> BlockingAuth:
        """Return an authentication for requests, which sends the user's token to the Web API; also for spotipy.

        Args:
            user_id: whose token.
            scopes: scopes that the user must have granted.
            allow: base URLs of what may see the token beside the Web API of the manager's accounts.

        Raises:
            ValueError, ConfigurationError: an argument is malformed; the text names it.
        """
        return BlockingAuth(self, user_id, scopes=scopes, allow=allow)

    def start(
        self,
        user_id: UserId,
        *,
        scopes: Iterable[str] | None = None,
        show_dialog: bool = False,
        timeout: float = TIMEOUT,
    ) -> str:
        """Return the URL to send the browser to, as `ConnectFlow.start` does."""
        return self._call(lambda on: on.flow.start(user_id, scopes=scopes, show_dialog=show_dialog), timeout)

    def finish(
        self, user_id: UserId, callback_url: str | UrlObject, *, same_account: bool = False, timeout: float = TIMEOUT
    ) -> Connection:
        """Save the connection with which the browser comes back, as `ConnectFlow.finish` does."""
        return self._call(lambda on: on.flow.finish(user_id, callback_url, same_account=same_account), timeout)

    def begin(
        self,
        user_id: UserId | None,
        *,
        scopes: Iterable[str] | None = None,
        data: Mapping[str, str] = MappingProxyType({}),
        show_dialog: bool = False,
        timeout: float = TIMEOUT,
    ) -> Authorization:
        """Return the URL to send the browser to and the cookie for it, as `ConnectFlow.begin` does."""
        return self._call(lambda on: on.flow.begin(user_id, scopes=scopes, data=data, show_dialog=show_dialog), timeout)

    def complete(
        self,
        callback_url: str | UrlObject,
        cookie: str | None,
        *,
        user_id: UserId | None = None,
        same_account: bool = False,
        timeout: float = TIMEOUT,
    ) -> Completed:
        """Complete an authorization in the browser that began it, as `ConnectFlow.complete` does."""
        return self._call(
            lambda on: on.flow.complete(callback_url, cookie, user_id=user_id, same_account=same_account), timeout
        )

    def complete_unbound(
        self, callback_url: str | UrlObject, *, same_account: bool = False, timeout: float = TIMEOUT
    ) -> Completed:
        """Complete an authorization of `start` in any browser, as `ConnectFlow.complete_unbound` warns."""
        return self._call(lambda on: on.flow.complete_unbound(callback_url, same_account=same_account), timeout)

    def save(
        self, user_id: UserId, completed: Completed, *, same_account: bool = False, timeout: float = TIMEOUT
    ) -> Connection:
        """Save what a sign-in has brought, as `ConnectFlow.save` does."""
        return self._call(lambda on: on.flow.save(user_id, completed, same_account=same_account), timeout)

    def close(self) -> None:
        """Refuse new calls, wait for the refreshes under way, and save what is not saved yet; 40 seconds at most.

        In a child of fork it leaves alone what the parent has open. It may be called again, and in any thread.
        """
        with self._lock:
            self._closed, thread = True, self._current
        if thread is not None:
            thread.close()

    def _call(self, work: Callable[[Services], Awaitable[T]], timeout: float) -> T:
        return self._started(timeout).call(work, timeout)

    def _started(self, timeout: float) -> LoopThread[Services]:
        """Return the thread of this process, and start it if need be."""
        check_caller()
        if not isinstance(timeout, int | float) or not 0 < timeout <= threading.TIMEOUT_MAX:  # type: ignore[redundant-expr]  # pyright: ignore[reportUnnecessaryIsInstance]  callers err
            raise ValueError("timeout: expected seconds, more than 0")
        thread = self._current
        return thread if thread is not None and thread.usable else self._start()

    def _start(self) -> LoopThread[Services]:
        check_threads()
        with self._lock:
            if self._closed:
                raise RuntimeError(CLOSED)
            thread = self._current
            if thread is None or not thread.usable:
                thread = self._current = LoopThread(self._opened)
            return thread

    def _after_fork(self) -> None:
        """Leave the thread to the parent. Another thread of the parent may have held the lock."""
        _abandoned.append(self._current)
        self._current = None
        self._lock = threading.RLock()
