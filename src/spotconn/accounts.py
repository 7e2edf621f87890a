"""`SpotifyAccounts`: requests to accounts.spotify.com, and GET /v1/me of the Web API."""

import time
from collections.abc import Awaitable, Callable, Hashable, Iterable
from datetime import UTC, datetime
from functools import partial
from typing import Literal, TypeVar
from uuid import UUID

from spotconn._affinity import Affinity, Closing
from spotconn._arguments import is_client_id
from spotconn._observer import NOBODY
from spotconn._spotify.admission import Admission, Kind
from spotconn._spotify.answers import read_grant, read_profile
from spotconn._spotify.app_refusals import AppRefusals
from spotconn._spotify.authorization import GrantType, authorization_request_url, base_url
from spotconn._spotify.client_secret import ClientSecret
from spotconn._spotify.http import HttpClient, Response
from spotconn._spotify.http_library import AsyncClient
from spotconn._spotify.marks import Mark, has_mark
from spotconn._spotify.retry import BeginBy, is_not_processed, may_pass, retry
from spotconn._stopwatch import loop_time
from spotconn._tracebacks import scrubbed
from spotconn.errors import ConfigurationError, ReauthorizationRequired
from spotconn.models import LARGEST_TOKEN, Profile, TokenGrant, fingerprint, is_token

T = TypeVar("T")


@scrubbed
class SpotifyAccounts(Closing):
    """Spotify's accounts service, for one registered app.

    Every call has one deadline in seconds, retries included. It retries only `SpotifyUnavailable`, with growing,
    jittered pauses, never sooner than Spotify's Retry-After. No attempt begins in the second half of the time: one
    that is cut off too early could lose an answer with the only refresh token still good. A Retry-After holds for all
    calls of one kind (refreshes, code exchanges, profiles), for any user. After invalid_client for one user, that user
    waits for growing pauses; after it for a second user all do, and one call per pause is made to see whether it holds.

    Args:
        client_id: of the app.
        client_secret: of a confidential client, sent as HTTP Basic; None for a public client, which authenticates
            with PKCE alone (RFC 7636). A function is called in a thread at the first use, and again when Spotify
            refuses what it returned: another secret is used at once. It must return within seconds.
        http: an `AsyncClient` of httpx or httpx2 to use instead of an own one; it stays open on `aclose()`. Its hooks
            are called. What a response hook raises, as with `raise_for_status`, does not count: the answer of Spotify
            has been read before.
        accounts_url: base URL of the accounts service.
        api_url: base URL of the Web API.
        clock: returns seconds since the epoch; the expiry of granted access tokens is computed from it.

    Attributes:
        affinity: the process and the event loop to which this object and its connections belong: those in which it
            was made or, outside of an event loop, first used.
        secret: read again while Spotify refuses it, for `TokenManager` and `ConnectFlow`.
        refusals: what Spotify refuses the app, for `TokenManager`.

    Raises:
        ConfigurationError: an argument, or a variable of the environment for TLS or a proxy (SSL_CERT_FILE,
            SSL_CERT_DIR, SSLKEYLOGFILE, HTTPS_PROXY, ALL_PROXY), is empty or malformed; the text names it and does not
            show its value.
    """

    def __init__(
        self,
        client_id: str,
        client_secret: str | Callable[[], str] | None = None,
        *,
        http: AsyncClient | None = None,
        accounts_url: str = "https://accounts.spotify.com",
        api_url: str = "https://api.spotify.com",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.affinity: Affinity = Affinity("SpotifyAccounts")
        self._client_id = client_id
        if not is_client_id(client_id):
            raise ConfigurationError("client_id is malformed: expected it as Spotify's dashboard shows it")
        self._accounts_url = base_url(accounts_url, name="accounts_url")
        self._api_url = base_url(api_url, name="api_url")
        self._clock = clock
        self._http = HttpClient(http, self.affinity, self._accounts_url, self._api_url)
        self.refusals: AppRefusals = AppRefusals(client_id, clock)
        self._admission = Admission(self.refusals)
        self.secret: ClientSecret = ClientSecret(client_id, client_secret, self._admission)
        self.observer = NOBODY

    def __repr__(self) -> str:
        """Return the app and the kind of client, without the secret."""
        kind = "confidential" if self.secret.is_confidential else "public"
        return f"<SpotifyAccounts client_id={self._client_id!r} {kind}>"

    @property
    def client_id(self) -> str:
        """The app's id."""
        return self._client_id

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
        """Return the URL to send the user's browser to (RFC 6749, section 4.1.1, with PKCE S256).

        Args:
            redirect_uri: exactly as registered for the app.
            scopes: to ask the user for; may be empty.
            state: comes back in the callback, against forgery.
            code_challenge: S256 of the code verifier.
            show_dialog: ask the user again even if they have approved before.
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
        user_id: UUID | None = None,
        timeout: float = 10,  # noqa: ASYNC109  the deadline is over all attempts
    ) -> TokenGrant:
        """Exchange an authorization code for tokens (RFC 6749, section 4.1.3; RFC 7636, section 4.5).

        A code can be used once, so this is retried only if Spotify has not used it: on 429, on 5xx, and if no
        connection was made. After a connection that breaks during the request the user has to start again.

        Args:
            code: from the callback.
            redirect_uri: as in the authorization URL.
            code_verifier: the one whose challenge was in the authorization URL.
            user_id: who connects: what Spotify refuses for this user alone stops no other.
            timeout: seconds in all.

        Raises:
            ConnectFailed: Spotify rejects the code ("code_rejected").
            ConfigurationError: Spotify refuses this app or its request.
            SpotifyUnavailable: no usable answer in time.
        """
        form = {"code": code, "redirect_uri": redirect_uri, "code_verifier": code_verifier}
        attempt = partial(self._request_grant, "authorization_code", form, user_id)
        return await self._retry(attempt, on=is_not_processed, timeout=timeout)

    async def refresh(
        self,
        refresh_token: str,
        *,
        user_id: UUID | None = None,
        timeout: float = 10,  # noqa: ASYNC109  as above
        begin_within: float | None = None,
    ) -> TokenGrant:
        """Get a new access token (RFC 6749, section 6).

        Args:
            refresh_token: as stored.
            user_id: whose it is, if known; what Spotify refuses for this user alone stops no other.
            timeout: seconds in all.
            begin_within: seconds in which an attempt may begin; None for half of `timeout`.

        Raises:
            ReauthorizationRequired: Spotify no longer accepts the refresh token, or it cannot be one.
            ConfigurationError: Spotify refuses this app, or finds the request malformed.
            SpotifyUnavailable: no usable answer in time.
        """
        # Another client of the table may have stored what Spotify could not know.
        if not is_token(refresh_token) or len(refresh_token) > LARGEST_TOKEN:
            raise ReauthorizationRequired("invalid", datetime.fromtimestamp(self._clock(), UTC))
        form = {"refresh_token": refresh_token}
        attempt = partial(self._request_grant, "refresh_token", form, user_id or fingerprint(refresh_token))
        return await self._retry(attempt, on=may_pass, timeout=timeout, begin_within=begin_within)

    async def profile(self, access_token: str, *, timeout: float = 10) -> Profile:  # noqa: ASYNC109  as above
        """Return the profile of the account that an access token is for (GET /v1/me).

        Args:
            access_token: just granted.
            timeout: seconds in all.

        Raises:
            ConnectFailed: Spotify refuses the token ("code_rejected"), or does not let this app use the account
                ("not_allowed").
            ConfigurationError: Spotify serves nobody with this app, as its owner has no Premium subscription.
            SpotifyUnavailable: no usable answer in time.
        """
        attempt = partial(self._request_profile, access_token)
        return await self._retry(attempt, on=may_pass, timeout=timeout)

    def check_connect(self, user_id: UUID | None = None) -> None:
        """Check, as far as this process knows, that Spotify would answer now to a code and for its profile.

        Nothing is sent. A wait that Spotify has asked for and that is over in 5 seconds is none.

        Args:
            user_id: who is to connect.

        Raises:
            SpotifyUnavailable: Spotify has asked this app to wait; `retry_after` says how long.
            ConfigurationError: Spotify refuses this app.
        """
        self.affinity.check()
        self._admission.check_connect(user_id)

    async def aclose(self) -> None:
        """Close the HTTP client, unless it was given to the constructor. In a child of fork do nothing.

        Raises:
            RuntimeError: in another event loop.
        """
        if self.affinity.close():
            self.secret.close()
            await self._http.aclose()

    async def _retry(
        self,
        attempt: Callable[[BeginBy], Awaitable[T]],
        *,
        on: Callable[[BaseException], bool],
        timeout: float,  # noqa: ASYNC109  as above
        begin_within: float | None = None,
    ) -> T:
        begin_within = timeout / 2 if begin_within is None else begin_within
        return await retry(attempt, on=on, timeout=timeout, begin_within=begin_within, clock=self._clock)

    async def _request_grant(
        self, grant_type: GrantType, form: dict[str, str], user: Hashable, begin_by: BeginBy
    ) -> TokenGrant:
        kind = Kind.REFRESH if grant_type == "refresh_token" else Kind.EXCHANGE
        self.affinity.check()
        await self.secret.reread()
        async with self._admission.admitted(kind, begin_by, user):
            auth, sent = await self.secret.auth(), loop_time()
            try:
                return await self._send_grant_request(grant_type, form, begin_by, auth)
            except ConfigurationError as refused:
                if not has_mark(refused, Mark.OF_ONE_APP) or not await self.secret.replace(auth, since=sent):
                    raise
            begin_by.check()
            return await self._send_grant_request(grant_type, form, begin_by, await self.secret.auth())

    async def _send_grant_request(
        self, grant_type: GrantType, form: dict[str, str], begin_by: BeginBy, auth: str | None
    ) -> TokenGrant:
        data = {"grant_type": grant_type, **form}
        if auth is None:
            data["client_id"] = self._client_id
        now = self._clock()
        status, headers, body = await self._send(
            "POST", f"{self._accounts_url}/api/token", begin_by, authorization=auth, data=data
        )
        return read_grant(status, headers, body, now=now, grant_type=grant_type, client_id=self._client_id)

    async def _request_profile(self, access_token: str, begin_by: BeginBy) -> Profile:
        authorization = f"Bearer {access_token}"
        self.affinity.check()
        async with self._admission.admitted(Kind.PROFILE, begin_by):
            status, headers, body = await self._send(
                "GET", f"{self._api_url}/v1/me", begin_by, authorization=authorization
            )
            self.refusals.record(status, body)
            return read_profile(status, headers, body, now=self._clock())

    async def _send(
        self,
        method: Literal["GET", "POST"],
        url: str,
        begin_by: BeginBy,
        *,
        authorization: str | None,
        data: dict[str, str] | None = None,
    ) -> Response:
        observed = self.observer.asking(self._client_id)
        headers = {} if authorization is None else {"Authorization": authorization}
        return await self._http.send(method, url, begin_by=begin_by, observed=observed, headers=headers, data=data)
