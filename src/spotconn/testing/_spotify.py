"""`FakeSpotify`: the simulated Spotify as its users have it, an ASGI app with methods to set up and observe it."""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import UTC, datetime
from email.utils import formatdate
from types import MappingProxyType
from urllib.parse import parse_qsl, urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spotconn._arguments import several
from spotconn.models import TokenGrant
from spotconn.testing._answers import Answer
from spotconn.testing._hold import Hold
from spotconn.testing._issued_tokens import Consent, FakeAccount
from spotconn.testing._registered_apps import RegisteredApps
from spotconn.testing._server import serve, serve_in_thread
from spotconn.testing._simulation import WRONG_REDIRECT_URI, Simulation
from spotconn.testing._spotify_app import build_app


class FakeSpotify(Simulation):
    """Spotify's accounts service and a small part of its Web API as one ASGI app, for tests without Spotify.

    Use it in-process with `httpx.ASGITransport(app=fake)`, or as a real server with `serve`, in the event loop of the
    test, or `serve_in_thread`, for code of any event loop or none. Its methods can be called from other threads.

    Codes and refresh tokens belong to the app that they were issued to: for another one they are invalid (RFC 6749,
    section 5.2), and stay good.

    Args:
        client_id: of the first registered app.
        client_secret: of that app; None for an app that is only a public client.
        other_apps: client ids of further registered apps with their secrets, None as above.
        rotation: whether refresh tokens are strictly single-use; otherwise the old one stays good after a refresh.
        token_ttl: seconds that an access token is good for.
        latency: least and most seconds before a token answer.
        redirect_uris: those registered for each app; a port may be added to a loopback one.
        clock: returns seconds since the epoch.

    Attributes:
        client_id: that of the first app.
        client_secret: that of the first app.
        redirect_uris: as above.
        token_calls: calls of the token endpoint so far.
        refresh_calls: those of them with grant_type=refresh_token.
        refresh_calls_by_app: the same by the client id that the request names, also of refused ones.
        refreshes: successful refreshes by account.

    Raises:
        ValueError: `other_apps` names `client_id` again.
    """

    def __init__(
        self,
        *,
        client_id: str = "demo-client",
        client_secret: str | None = "demo-secret",  # noqa: S107  of an app that does not exist
        other_apps: Mapping[str, str | None] = MappingProxyType({}),
        rotation: bool = False,
        token_ttl: int = 3600,
        latency: tuple[float, float] = (0.0, 0.0),
        redirect_uris: Iterable[str] = ("http://127.0.0.1/callback",),
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(
            apps=RegisteredApps(client_id, client_secret, other_apps),
            rotation=rotation,
            token_ttl=token_ttl,
            latency=latency,
            redirect_uris=redirect_uris,
            clock=clock,
        )
        self.client_id: str = client_id
        self.client_secret: str | None = client_secret
        self._app = build_app(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as an ASGI app. The Date header is of `clock`."""
        await self._app(scope, receive, _dated(send, self._clock()))

    def serve(self, port: int = 0) -> AbstractAsyncContextManager[str]:
        """Context manager: serve real HTTP on 127.0.0.1 and give the base URL of both services.

        Args:
            port: 0 for a free one.
        """
        return serve(self, port)

    def serve_in_thread(self, port: int = 0) -> AbstractContextManager[str]:
        """Context manager: as `serve`, in an event loop and a thread of its own.

        Synchronous tests, TestClient and unittest classes need it: the event loop of a test runs only while one of its
        coroutines does.

        Args:
            port: 0 for a free one.
        """
        return serve_in_thread(self, port)

    def add_account(
        self,
        spotify_user_id: str,
        *,
        display_name: str | None = None,
        email: str | None = None,
        refusal: str | None = None,
        account_id: str | None = None,
        country: str = "SE",
        product: str = "premium",
    ) -> FakeAccount:
        """Add or change an account; the arguments are those of `FakeAccount`."""
        account = FakeAccount(spotify_user_id, display_name, email, refusal, account_id, country, product)
        self.accounts[spotify_user_id] = account
        return account

    def authorize(self, spotify_user_id: str, scope: Iterable[str] = (), *, client_id: str | None = None) -> TokenGrant:
        """Authorize an app for a user, without a browser.

        Args:
            spotify_user_id: of an account added before.
            scope: to grant.
            client_id: of the app; None for the first one.

        Raises:
            ValueError: no app has this client id, or `scope` is a single string.
        """
        app, granted = self.apps.resolve(client_id), frozenset(several(scope, name="scope"))
        consent = Consent(self.accounts[spotify_user_id], app, granted, self._clock())
        answer = self._tokens.new_grant(consent, refresh_token=self._tokens.new_refresh_token(consent))
        return TokenGrant(
            access_token=answer["access_token"],
            refresh_token=answer["refresh_token"],
            expires_at=datetime.fromtimestamp(self._clock() + self._token_ttl, UTC),
            scope=consent.scope,
        )

    def agree(self, url: str, spotify_user_id: str) -> str:
        """Press Agree on the consent page, without a browser.

        Args:
            url: of the authorization request, as `ConnectFlow.start` returns it. It is checked as /authorize does.
            spotify_user_id: of an account added before.

        Returns:
            The URL that the browser is redirected to, with a code and the state.

        Raises:
            ValueError: there is no such account, or /authorize would show an error page; the text says which.
        """
        if spotify_user_id not in self.accounts:
            raise ValueError(f"spotify_user_id: expected that of an account added before, not {spotify_user_id!r}")
        return self.callback(self._authorization_request(url), spotify_user_id)

    def cancel(self, url: str) -> str:
        """Press Cancel on the consent page, and return the URL that the browser is redirected to.

        Args:
            url: of the authorization request.

        Raises:
            ValueError: /authorize would show an error page; the text says which.
        """
        return self.callback(self._authorization_request(url), None)

    def _authorization_request(self, url: str) -> dict[str, str]:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        problem = self.authorization_fault(query) if parts.path == "/authorize" else "its path is not /authorize"
        if problem == WRONG_REDIRECT_URI:
            raise ValueError(
                f"url: the redirect URI {query.get('redirect_uri')!r} is not registered: name it in the fixture "
                "spotify_redirect_uris, or in FakeSpotify(redirect_uris=…)"
            )
        if problem:
            raise ValueError(f"url: no valid authorization request: {problem}")
        return query

    def revoke(self, spotify_user_id: str, *, client_id: str | None = None) -> None:
        """Remove apps for a user: their refresh tokens end, and their access tokens work until they expire.

        Args:
            spotify_user_id: of the account.
            client_id: of the app; None for all.

        Raises:
            ValueError: no app has this client id.
        """
        super().revoke(spotify_user_id, client_id=client_id)  # here for its place in the reference

    def rotate_secret(self, client_secret: str, *, client_id: str | None = None) -> None:
        """Give an app another secret, as its owner does in Spotify's dashboard: the former one is refused at once.

        Args:
            client_secret: the other one.
            client_id: of the app; None for the first one.

        Raises:
            ValueError: no such app is registered.
        """
        self.apps.set_secret(client_id, client_secret)

    def reject_access_token(self, access_token: str) -> None:
        """Answer 401 to an access token from now on."""
        self._tokens.access.pop(access_token, None)

    def accepts(self, access_token: str) -> bool:
        """Return whether the Web API accepts an access token now."""
        _, ends = self._tokens.access.get(access_token, (None, 0.0))
        return self._clock() < ends

    def accepts_refresh(self, refresh_token: str) -> bool:
        """Return whether the token endpoint accepts a refresh token now, from the app that it was issued to."""
        consent = self._tokens.refresh.get(refresh_token)
        return consent is not None and not self._tokens.has_lapsed(consent)

    def script(self, *answers: Answer) -> None:
        """Give these answers, in order, to the next token calls."""
        self._script.extend(answers)

    def on(self, method: str, path: str, *answers: Answer) -> None:
        """Give these answers to calls of one endpoint of the Web API, in place of the simulated one.

        The access token is checked first, as always: a call without a valid one is a 401.

        Args:
            method: of the calls, such as "GET".
            path: of the calls, such as "/v1/me/player/currently-playing".
            answers: given in order, and the last one from then on; none ends what was given before.

        Raises:
            ValueError: the path does not begin with /v1/.
        """
        if not path.startswith("/v1/"):
            raise ValueError("path: expected one that begins with /v1/")
        self._web_script[method.upper(), path.rstrip("/")] = [*answers]

    def mount(self, app: ASGIApp) -> None:
        """Let an ASGI app of your own be the Web API, behind the check of the access token.

        It answers all calls but those of `on` and GET /v1/me. Of a request, `state.spotify_user_id` and `state.scopes`
        (those of Starlette and FastAPI) say whose token it bears, and what was granted.

        Args:
            app: with the whole paths, such as "/v1/me/player".
        """
        self.web_app: ASGIApp | None = app

    def hold(self, *, before: bool = False, calls: int | None = None) -> Hold:
        """Context manager: hold the answers to token calls until they are released.

        Args:
            before: hold before a request is acted upon, rather than after.
            calls: how many calls to hold, while later ones pass; None holds all.
        """
        outer = self._hold
        self._hold = Hold(before=before, calls=calls, forget=lambda: self._restore(outer))
        return self._hold

    def _restore(self, outer: Hold | None) -> None:
        self._hold = outer


def _dated(send: Send, now: float) -> Send:
    """Return a function that sends answers with a Date header."""

    async def send_dated(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), (b"date", formatdate(now, usegmt=True).encode())]
        await send(message)

    return send_dated
