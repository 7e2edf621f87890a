"""Everything said to accounts.spotify.com, and the one call to the Web API that tells who has connected."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from datetime import UTC, datetime
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Literal, NamedTuple, Self, TypeVar

import httpx
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_before_delay,
    wait_random_exponential,
)

from spotconn._affinity import Affinity, keep_from_children
from spotconn._observer import NOBODY
from spotconn._spotify.clients import Clients
from spotconn._spotify.oauth import (
    GrantType,
    RequestNotProcessed,
    authorization_request_url,
    base_url,
    read_grant,
    read_profile,
)
from spotconn._spotify.throttle import Gate
from spotconn._tracebacks import renewed, scrubbed
from spotconn.errors import ConfigurationError, ReauthorizationRequired, SpotconnError, SpotifyUnavailable
from spotconn.models import Profile, TokenGrant

LARGEST_BODY = 64 * 1024
"""Bytes of an answer that are read; a grant or a profile has about one thousand."""
MOST_CALLS = 100
"""Calls under way at once; the others wait, and are not made at all once Spotify has asked to wait."""

T = TypeVar("T")

# Uncompressed, so that no small answer can unpack into a large one.
_HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity"}

# Full jitter: many processes that fail together must not come back together.
_backoff = wait_random_exponential(multiplier=0.1, max=2)
_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)


@scrubbed
class SpotifyAccounts:
    """Spotify's accounts service, for one registered app.

    Every call has one deadline in seconds, retries included. It retries only `SpotifyUnavailable`, with growing,
    jittered pauses, never sooner than Spotify's Retry-After. No attempt begins in the second half of the time: one
    that is cut off too early could lose an answer with the only refresh token still good. A Retry-After holds for all
    calls of this object to the same service, whoever they are for; after invalid_client only one call in a growing
    pause is made to see whether it still holds.

    Args:
        client_id: of the app.
        client_secret: of a confidential client, sent as HTTP Basic; None for a public client, which proves
            itself with PKCE alone (RFC 7636).
        http: a client to use instead of an own one; it stays open on `aclose()`.
        accounts_url: base URL of the accounts service.
        api_url: base URL of the Web API.
        clock: seconds since the epoch; tells the end of the access tokens granted.

    Attributes:
        affinity: the process and the event loop that it belongs to, with the connections that it keeps: those in which
            it was made or, outside of an event loop, first used.

    Raises:
        ConfigurationError: an argument is empty or malformed; the text names it and does not show its value.
    """

    def __init__(
        self,
        client_id: str,
        client_secret: str | None = None,
        *,
        http: httpx.AsyncClient | None = None,
        accounts_url: str = "https://accounts.spotify.com",
        api_url: str = "https://api.spotify.com",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.affinity = Affinity("SpotifyAccounts")
        self._client_id = _credential(client_id, name="client_id")
        self._basic = None
        if client_secret is not None:
            self._basic = httpx.BasicAuth(client_id, _credential(client_secret, name="client_secret"))
        self._accounts_url = base_url(accounts_url, name="accounts_url")
        self._api_url = base_url(api_url, name="api_url")
        self._clock = clock
        self._own: Clients | None = None
        self._client: Callable[[], AbstractContextManager[httpx.AsyncClient]]
        if http is None:
            self._own = Clients(_making(self._accounts_url, self._api_url))
            self._client = self._own.lent
        else:
            self._client = lambda: nullcontext(http)
        self._places = asyncio.Semaphore(MOST_CALLS)
        self._token_gate, self._profile_gate = Gate(), Gate()
        self.observer = NOBODY

    def __repr__(self) -> str:
        """The app and the kind of client, without the secret."""
        kind = "confidential" if self._basic else "public"
        return f"<SpotifyAccounts client_id={self._client_id!r} {kind}>"

    @property
    def api_url(self) -> str:
        """Base URL of the Web API."""
        return self._api_url

    def authorize_url(
        self,
        *,
        redirect_uri: str,
        scopes: Iterable[str],
        state: str,
        code_challenge: str,
        show_dialog: bool = False,
    ) -> str:
        """The URL to send the user's browser to (RFC 6749, section 4.1.1, with PKCE S256).

        Args:
            redirect_uri: exactly as registered for the app.
            scopes: what to ask the user for; may be empty.
            state: comes back in the callback, against forgery.
            code_challenge: S256 of the code verifier.
            show_dialog: ask the user again although they have approved before.
        """
        return authorization_request_url(
            self._accounts_url,
            client_id=self._client_id,
            redirect_uri=redirect_uri,
            scopes=scopes,
            state=state,
            code_challenge=code_challenge,
            show_dialog=show_dialog,
        )

    async def exchange_code(
        self,
        code: str,
        *,
        redirect_uri: str,
        code_verifier: str,
        timeout: float = 10,  # noqa: ASYNC109 - one deadline over all attempts is this call's to keep
    ) -> TokenGrant:
        """Exchange an authorization code for tokens (RFC 6749, section 4.1.3; RFC 7636, section 4.5).

        A code can be used once, so this is retried only where Spotify has not used it: on 429, on 5xx, and when
        no connection came about. After a connection cut on the way the user has to start again.

        Args:
            code: from the callback.
            redirect_uri: the one the authorization was started with.
            code_verifier: the one whose challenge the authorization was started with.
            timeout: seconds in all.

        Raises:
            ConnectFailed: Spotify rejects the code ("code_rejected").
            ConfigurationError: Spotify refuses this app or its request.
            SpotifyUnavailable: no usable answer in time.
        """
        form = {"code": code, "redirect_uri": redirect_uri, "code_verifier": code_verifier}
        return await _retried(partial(self._token, "authorization_code", form), on=RequestNotProcessed, timeout=timeout)

    async def refresh(self, refresh_token: str, *, timeout: float = 10) -> TokenGrant:  # noqa: ASYNC109 - as above
        """Get a new access token (RFC 6749, section 6).

        Args:
            refresh_token: as stored.
            timeout: seconds in all.

        Raises:
            ReauthorizationRequired: Spotify no longer accepts the refresh token.
            ConfigurationError: Spotify refuses this app or its request.
            SpotifyUnavailable: no usable answer in time.
        """
        if not refresh_token:  # another client of the table has stored none; Spotify would blame the request
            raise ReauthorizationRequired("invalid", datetime.fromtimestamp(self._clock(), UTC))
        form = {"refresh_token": refresh_token}
        return await _retried(partial(self._token, "refresh_token", form), on=SpotifyUnavailable, timeout=timeout)

    async def profile(self, access_token: str, *, timeout: float = 10) -> Profile:  # noqa: ASYNC109 - as above
        """Whose account an access token is for (GET /v1/me).

        Args:
            access_token: just granted.
            timeout: seconds in all.

        Raises:
            ConnectFailed: Spotify refuses the token ("code_rejected"), or this account to this app
                ("not_allowed").
            SpotifyUnavailable: no usable answer in time.
        """
        return await _retried(partial(self._me, access_token), on=SpotifyUnavailable, timeout=timeout)

    async def aclose(self) -> None:
        """Close the HTTP client, unless it was given to the constructor. In a child of fork do nothing.

        Raises:
            RuntimeError: in another event loop.
        """
        if self.affinity.forked:
            return
        self.affinity.check_home()
        self.affinity.close()
        if self._own is not None:
            await self._own.aclose()

    async def __aenter__(self) -> Self:
        """Itself; nothing is opened before the first call."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close as `aclose()` does."""
        await self.aclose()

    async def _token(self, grant_type: GrantType, form: dict[str, str], begin_by: float) -> TokenGrant:
        data = {"grant_type": grant_type, **form}
        if self._basic is None:
            data["client_id"] = self._client_id
        url = f"{self._accounts_url}/api/token"
        async with self._passing(self._token_gate, begin_by):
            sent = self._clock()
            answer = await self._ask("POST", url, data=data, headers=_HEADERS, auth=self._basic)
            return read_grant(answer.status, answer.headers, answer.body, now=sent, grant_type=grant_type)

    async def _me(self, access_token: str, begin_by: float) -> Profile:
        headers = {**_HEADERS, "Authorization": f"Bearer {access_token}"}
        async with self._passing(self._profile_gate, begin_by):
            answer = await self._ask("GET", f"{self._api_url}/v1/me", headers=headers)
            return read_profile(answer.status, answer.headers, answer.body, now=self._clock())

    @asynccontextmanager
    async def _passing(self, gate: Gate, begin_by: float) -> AsyncGenerator[None]:
        """One call under way: it waits for its place, passes the gate, and tells the gate what came of it."""
        self.affinity.check()
        loop = asyncio.get_running_loop()
        async with _place(self._places, begin_by):
            gate.enter(loop.time())
            try:
                yield
            except SpotconnError as outcome:
                gate.answered(outcome, loop.time())
                raise
            gate.answered(None, loop.time())

    async def _ask(
        self,
        method: Literal["GET", "POST"],
        url: str,
        *,
        headers: dict[str, str],
        data: dict[str, str] | None = None,
        auth: httpx.Auth | None = None,
    ) -> "_Answer":
        self.affinity.check()  # again, right before the first byte
        try:
            with self._client() as http, self.observer.asking() as answered:
                asked = http.stream(
                    method,
                    url,
                    headers=headers,
                    data=data,
                    auth=auth,
                    follow_redirects=False,
                    extensions={"trace": _connected},
                )
                async with asked as response:
                    answered(response.status_code)
                    return _Answer(response.status_code, response.headers, await _bounded_body(response))
        except httpx.RequestError as error:
            failure = _network_failure(error)
        # Raised out here, because an httpx error that stayed on as __context__ would hold the request and with it
        # the tokens.
        raise failure


async def _connected(event: str, info: Mapping[str, Any]) -> None:
    """Keep each new connection from the children of this process; called by httpcore (its extension "trace")."""
    if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
        keep_from_children(info["return_value"])


@asynccontextmanager
async def _place(places: asyncio.Semaphore, begin_by: float) -> AsyncGenerator[None]:
    try:
        async with asyncio.timeout_at(begin_by):
            await places.acquire()
    except TimeoutError:
        raise SpotifyUnavailable("too many calls to Spotify are under way here", answered=False) from None
    try:
        yield
    finally:
        places.release()


class _Answer(NamedTuple):
    status: int
    headers: httpx.Headers
    body: bytes


def _making(*urls: str) -> Callable[[], httpx.AsyncClient]:
    """What makes a client for these base URLs."""
    # One client speaks for many users: a cookie set for one must not be sent for the next.
    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
    # Plain http is for this host only: a proxy of the environment would read it.
    direct = {url: None for url in urls if httpx.URL(url).scheme == "http"}
    return partial(
        httpx.AsyncClient,
        timeout=httpx.Timeout(10, connect=5),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        cookies=no_cookies,
        mounts=direct,
        verify=httpx.create_ssl_context(),  # it takes longer than all the rest, and serves them all
    )


def _credential(value: str, *, name: str) -> str:
    # Blank space comes along when a value is copied; Spotify's answer would not say that it is the cause.
    if not value or value != value.strip():
        raise ConfigurationError(f"{name} is empty or has blank space around it")
    return value


async def _bounded_body(response: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > LARGEST_BODY:
            raise SpotifyUnavailable(f"Spotify gave an unreadable answer: over {LARGEST_BODY} bytes")
    return bytes(body)


def _network_failure(error: httpx.RequestError) -> SpotifyUnavailable:
    """What `error` means, by its kind alone: its text may quote what was sent or received."""
    if isinstance(error, httpx.DecodingError):
        return SpotifyUnavailable("Spotify gave an unreadable answer: its encoding is broken")
    kind = RequestNotProcessed if isinstance(error, _UNSENT) else SpotifyUnavailable
    return kind(f"no answer from {error.request.url.host}: {type(error).__name__}", answered=False)


async def _retried(
    attempt: Callable[[float], Awaitable[T]],
    *,
    on: type[SpotifyUnavailable],
    timeout: float,  # noqa: ASYNC109 - as above
) -> T:
    """Repeat `attempt` on errors of the kind `on`, for `timeout` seconds in all; it is told until when it may begin."""
    failures: list[SpotifyUnavailable | None] = []
    retrying = AsyncRetrying(
        retry=retry_if_exception_type(on),
        wait=_pause,
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
    # What Spotify answered before the time ran out tells more than that it ran out.
    if failures and (last := failures[-1]):
        raise renewed(last)
    raise SpotifyUnavailable(f"no answer from Spotify within {timeout:g} seconds", answered=False)


def _pause(state: RetryCallState) -> float:
    """Seconds to wait before the next attempt: the jitter comes on top of what Spotify asked for."""
    failure = _failure(state)
    return ((failure and failure.retry_after) or 0.0) + _backoff(state)


def _failure(state: RetryCallState) -> SpotifyUnavailable | None:
    error = state.outcome.exception() if state.outcome else None
    return error if isinstance(error, SpotifyUnavailable) else None
