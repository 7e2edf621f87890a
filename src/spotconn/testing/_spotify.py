"""What the simulated Spotify knows and decides: accounts, codes and tokens, without any HTTP."""

import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from starlette.types import Receive, Scope, Send

from spotconn.models import REFRESH_TOKEN_MONTHS, TokenGrant, add_months
from spotconn.testing._answers import Answer, Hold
from spotconn.testing._rules import Reply, basic, fault, matches, proves, web_fault
from spotconn.testing._server import serve
from spotconn.testing._spotify_app import build_app

CODE_TTL = 600.0
"""Seconds that an authorization code is good for."""


@dataclass(frozen=True)
class FakeAccount:
    """A Spotify account.

    Attributes:
        spotify_user_id: Spotify's id of the account.
        display_name: None where the account has none.
        email: shown to apps with the scope user-read-email only.
        refusal: the plain text of the 403 with which GET /v1/me refuses this account to the app, if it does.
    """

    spotify_user_id: str
    display_name: str | None = None
    email: str | None = None
    refusal: str | None = None


@dataclass(frozen=True)
class Consent:
    """What one authorization allows.

    Attributes:
        account: whose.
        scope: what was granted.
        authorized_at: when, in seconds since the epoch.
    """

    account: FakeAccount
    scope: frozenset[str]
    authorized_at: float


@dataclass(frozen=True)
class _Code:
    consent: Consent
    redirect_uri: str
    code_challenge: str | None


@dataclass
class _Tokens:
    codes: dict[str, _Code] = field(default_factory=dict[str, _Code], repr=False)
    access: dict[str, tuple[Consent, float]] = field(default_factory=dict[str, tuple[Consent, float]], repr=False)
    refresh: dict[str, Consent] = field(default_factory=dict[str, Consent], repr=False)
    revoked: set[str] = field(default_factory=set[str], repr=False)


class FakeSpotify:
    """Spotify's accounts service and a small part of its Web API as one ASGI app, for tests without Spotify.

    Use it in-process through `httpx.ASGITransport(app=fake)`, or as a real server through `serve`.

    Args:
        client_id: of the one registered app.
        client_secret: of that app; None for an app that is only a public client.
        rotation: whether refresh tokens are strictly single-use; otherwise a refresh keeps the old one.
        token_ttl: seconds that an access token is good for.
        latency: least and most seconds before a token answer.
        redirect_uris: registered ones; a port may be added to a loopback one.
        clock: gives seconds since the epoch.

    Attributes:
        token_calls: calls of the token endpoint so far.
        refresh_calls: those that asked for a refresh.
        refreshes: successful refreshes by account.
    """

    def __init__(
        self,
        *,
        client_id: str = "demo-client",
        client_secret: str | None = "demo-secret",  # noqa: S107  of an app that does not exist
        rotation: bool = False,
        token_ttl: int = 3600,
        latency: tuple[float, float] = (0.0, 0.0),
        redirect_uris: Iterable[str] = ("http://127.0.0.1/callback",),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.client_id = client_id
        self._client_secret = client_secret
        self._rotation = rotation
        self._token_ttl = token_ttl
        self._latency = latency
        self._redirect_uris = tuple(redirect_uris)
        self._clock = clock
        self._tokens = _Tokens()
        self._script: list[Answer] = []
        self._hold: Hold | None = None
        self._app = build_app(self)
        self.accounts: dict[str, FakeAccount] = {}
        self.token_calls: int = 0
        self.refresh_calls: int = 0
        self.refreshes: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as an ASGI app."""
        await self._app(scope, receive, send)

    def serve(self, port: int = 0) -> AbstractAsyncContextManager[str]:
        """Serve real HTTP on 127.0.0.1 while the block lasts; gives the base URL of both services.

        Args:
            port: 0 for a free one.
        """
        return serve(self, port)

    def add_account(
        self,
        spotify_user_id: str,
        *,
        display_name: str | None = None,
        email: str | None = None,
        refusal: str | None = None,
    ) -> FakeAccount:
        """Add or change an account; the arguments are those of `FakeAccount`."""
        account = FakeAccount(spotify_user_id, display_name, email, refusal)
        self.accounts[spotify_user_id] = account
        return account

    def authorize(self, spotify_user_id: str, scope: Iterable[str] = ()) -> TokenGrant:
        """Let a user authorize the app without a browser.

        Args:
            spotify_user_id: of an account added before.
            scope: to grant.
        """
        consent = Consent(self.accounts[spotify_user_id], frozenset(scope), self._clock())
        answer = self._granted(consent, refresh_token=self._new_refresh_token(consent))
        return TokenGrant(
            access_token=answer["access_token"],
            refresh_token=answer["refresh_token"],
            expires_at=datetime.fromtimestamp(self._clock() + self._token_ttl, UTC),
            scope=consent.scope,
        )

    def revoke(self, spotify_user_id: str) -> None:
        """Let a user remove the app: refresh tokens end; access tokens handed out work until they expire."""
        for refresh_token, consent in list(self._tokens.refresh.items()):
            if consent.account.spotify_user_id == spotify_user_id:
                self._end(refresh_token)

    def reject_access_token(self, access_token: str) -> None:
        """Answer 401 to an access token from now on."""
        self._tokens.access.pop(access_token, None)

    def accepts(self, access_token: str) -> bool:
        """Whether the Web API accepts an access token now."""
        _, ends = self._tokens.access.get(access_token, (None, 0.0))
        return self._clock() < ends

    def accepts_refresh(self, refresh_token: str) -> bool:
        """Whether the token endpoint accepts a refresh token now."""
        consent = self._tokens.refresh.get(refresh_token)
        return consent is not None and not self._six_months_passed(consent)

    def script(self, *answers: Answer) -> None:
        """Give these answers, in order, to the next token calls."""
        self._script.extend(answers)

    def hold(self, *, before: bool = False, calls: int | None = None) -> Hold:
        """Hold the answers to token calls until released.

        Args:
            before: hold before a request is acted upon, rather than after.
            calls: hold this many calls and let later ones pass; None holds all.
        """
        outer = self._hold
        self._hold = Hold(before=before, calls=calls, forget=lambda: self._hold_again(outer))
        return self._hold

    def _hold_again(self, outer: Hold | None) -> None:
        self._hold = outer

    async def token_answer(self, form: Mapping[str, str], authorization: str | None) -> Reply | Answer:
        """Answer a call of the token endpoint: by the script, or as Spotify would."""
        self.token_calls += 1
        self.refresh_calls += form.get("grant_type") == "refresh_token"
        hold = self._hold if self._hold and self._hold.takes() else None
        scripted = self._script.pop(0) if self._script else None
        if hold and hold.before:
            await hold.wait()
        reply: Reply = self.decide(form, authorization) if scripted is None or scripted.lost else (200, {})
        if hold and not hold.before:
            await hold.wait()
        return scripted or reply

    def latency(self) -> float:
        """Seconds to wait before the next token answer."""
        return random.uniform(*self._latency)  # noqa: S311  no secret hangs on it

    def decide(self, form: Mapping[str, str], authorization: str | None) -> Reply:
        """What Spotify does with a token request."""
        if refused := self._client_fault(form, authorization):
            return fault("invalid_client", refused)
        match form.get("grant_type"):
            case "authorization_code":
                return self._exchange(form, public=authorization is None)
            case "refresh_token":
                return self._refresh(form)
            case _:
                return fault("unsupported_grant_type", "grant_type must be authorization_code or refresh_token")

    def bearer(self, authorization: str | None) -> Consent | Reply | str:
        """Whose access token a call of the Web API bears; else its 401, or the plain text of its 403."""
        scheme, _, access_token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return web_fault("No token provided")
        if access_token not in self._tokens.access:
            return web_fault("Invalid access token")
        consent, ends = self._tokens.access[access_token]
        if self._clock() >= ends:
            return web_fault("The access token expired")
        account = self.accounts[consent.account.spotify_user_id]
        return account.refusal if account.refusal is not None else replace(consent, account=account)

    def consents(self, spotify_user_id: str) -> bool:
        """Whether the app has an account's consent: some refresh token of it still works."""
        return any(
            consent.account.spotify_user_id == spotify_user_id and not self._six_months_passed(consent)
            for consent in self._tokens.refresh.values()
        )

    def authorization_fault(self, query: Mapping[str, str]) -> str | None:
        """Why a request to /authorize is answered with an error page and never redirected."""
        if query.get("client_id") != self.client_id:
            return "INVALID_CLIENT: Invalid client"
        if not any(matches(query.get("redirect_uri", ""), registered) for registered in self._redirect_uris):
            return "INVALID_CLIENT: Invalid redirect URI"
        if query.get("response_type") != "code":
            return "response_type must be code"
        if "code_challenge" in query and query.get("code_challenge_method") != "S256":
            return "code_challenge_method must be S256"
        return None

    def new_code(self, query: Mapping[str, str], spotify_user_id: str) -> str:
        """The authorization code for a user who agreed."""
        code = secrets.token_urlsafe(24)
        scope = frozenset(query.get("scope", "").split())
        consent = Consent(self.accounts[spotify_user_id], scope, self._clock())
        self._tokens.codes[code] = _Code(consent, query["redirect_uri"], query.get("code_challenge"))
        return code

    def _client_fault(self, form: Mapping[str, str], authorization: str | None) -> str | None:
        if authorization is None:
            return None if form.get("client_id") == self.client_id else "Invalid client"
        client_id, client_secret = basic(authorization)
        if client_id != self.client_id:
            return "Invalid client"
        return None if client_secret and client_secret == self._client_secret else "Invalid client secret"

    def _exchange(self, form: Mapping[str, str], *, public: bool) -> Reply:
        code = self._tokens.codes.pop(form.get("code", ""), None)
        if code is None:
            return fault("invalid_grant", "Invalid authorization code")
        if self._clock() - code.consent.authorized_at > CODE_TTL:
            return fault("invalid_grant", "Authorization code expired")
        if form.get("redirect_uri") != code.redirect_uri:
            return fault("invalid_grant", "Invalid redirect URI")
        if public and not code.code_challenge:
            return fault("invalid_request", "code_verifier required")
        if code.code_challenge and not proves(form.get("code_verifier", ""), code.code_challenge):
            return fault("invalid_grant", "code_verifier was incorrect")
        return 200, self._granted(code.consent, refresh_token=self._new_refresh_token(code.consent))

    def _refresh(self, form: Mapping[str, str]) -> Reply:
        refresh_token = form.get("refresh_token")
        if not refresh_token:
            return fault("invalid_request", "refresh_token must be supplied")
        consent = self._tokens.refresh.get(refresh_token)
        if consent is None:
            once_good = refresh_token in self._tokens.revoked
            return fault("invalid_grant", "Refresh token revoked" if once_good else "Invalid refresh token")
        if self._six_months_passed(consent):
            return fault("invalid_grant", "Refresh token expired")
        self.refreshes[consent.account.spotify_user_id] += 1
        if not self._rotation:
            return 200, self._granted(consent)
        self._end(refresh_token)
        return 200, self._granted(consent, refresh_token=self._new_refresh_token(consent))

    def _end(self, refresh_token: str) -> None:
        del self._tokens.refresh[refresh_token]
        self._tokens.revoked.add(refresh_token)

    def _six_months_passed(self, consent: Consent) -> bool:
        authorized = datetime.fromtimestamp(consent.authorized_at, UTC)
        return self._clock() >= add_months(authorized, REFRESH_TOKEN_MONTHS).timestamp()

    def _new_refresh_token(self, consent: Consent) -> str:
        refresh_token = f"AQ{secrets.token_urlsafe(48)}"
        self._tokens.refresh[refresh_token] = consent
        return refresh_token

    def _granted(self, consent: Consent, *, refresh_token: str | None = None) -> dict[str, Any]:
        access_token = f"BQ{secrets.token_urlsafe(48)}"
        self._tokens.access[access_token] = (consent, self._clock() + self._token_ttl)
        answer = {
            "access_token": access_token,
            "token_type": "Bearer",
            "expires_in": self._token_ttl,
            "scope": " ".join(sorted(consent.scope)),
        }
        return answer if refresh_token is None else answer | {"refresh_token": refresh_token}
