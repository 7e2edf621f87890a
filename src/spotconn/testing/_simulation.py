"""What the simulated Spotify knows and decides: accounts, codes, tokens and scripted answers; no HTTP."""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

from starlette.types import ASGIApp

from spotconn._arguments import several
from spotconn.testing._answers import Answer
from spotconn.testing._hold import Hold
from spotconn.testing._issued_tokens import Code, Consent, FakeAccount, IssuedTokens
from spotconn.testing._registered_apps import Client, RegisteredApps
from spotconn.testing._rules import Reply, fault, matches, proves, web_fault

WRONG_REDIRECT_URI = "INVALID_CLIENT: Invalid redirect URI"
CODE_TTL = 600.0
"""Seconds that an authorization code is good for."""


class Simulation:
    """The state of the simulated Spotify, and its decisions.

    The arguments and attributes are those of `FakeSpotify`; `apps` are the registered ones.
    """

    def __init__(
        self,
        *,
        apps: RegisteredApps,
        rotation: bool,
        token_ttl: int,
        latency: tuple[float, float],
        redirect_uris: Iterable[str],
        clock: Callable[[], float],
    ) -> None:
        self.apps = apps
        self._rotation = rotation
        self._token_ttl = token_ttl
        self._latency = latency
        self.redirect_uris: tuple[str, ...] = several(redirect_uris, name="redirect_uris")
        self._clock = clock
        self._tokens = IssuedTokens(token_ttl=token_ttl, clock=clock)
        self._script: list[Answer] = []
        self._hold: Hold | None = None
        self._web_script: dict[tuple[str, str], list[Answer]] = {}
        self._web_next: list[Answer] = []
        self.web_app: ASGIApp | None = None
        self.accounts: dict[str, FakeAccount] = {}
        self.token_calls: int = 0
        self.refresh_calls: int = 0
        self.refresh_calls_by_app: Counter[str] = Counter()
        self.refreshes: Counter[str] = Counter()

    async def token_answer(self, form: Mapping[str, str], authorization: str | None) -> Reply | Answer:
        """Return the answer to a call of the token endpoint: the scripted one, or that of Spotify."""
        self.token_calls += 1
        if form.get("grant_type") == "refresh_token":
            self.refresh_calls += 1
            self.refresh_calls_by_app[Client.of_request(form, authorization).client_id] += 1
        hold = self._hold if self._hold and self._hold.takes() else None
        scripted = self._script.pop(0) if self._script else None
        if hold and hold.before:
            await hold.wait()
        reply: Reply = self.decide(form, authorization) if scripted is None or scripted.lost else (200, {})
        if hold and not hold.before:
            await hold.wait()
        return scripted or reply

    def latency(self) -> float:
        """Return the seconds to wait before the next token answer."""
        return random.uniform(*self._latency)  # noqa: S311  no secret depends on it

    def decide(self, form: Mapping[str, str], authorization: str | None) -> Reply:
        """Return the answer of Spotify to a token request, and act on the request."""
        client = Client.of_request(form, authorization)
        if refused := self.apps.fault(client):
            return fault("invalid_client", refused)
        match form.get("grant_type"):
            case "authorization_code":
                return self._exchange(form, client)
            case "refresh_token":
                return self._refresh(form, client)
            case "client_credentials" if client.client_secret is not None:
                return 200, self._tokens.new_app_grant()
            case "client_credentials":
                return fault("invalid_client", "Invalid client secret")
            case _:
                known = "authorization_code, refresh_token or client_credentials"
                return fault("unsupported_grant_type", f"grant_type must be {known}")

    def is_of_app(self, authorization: str | None) -> bool:
        """Return whether a call of the Web API has a valid token of an app itself, which stands for no user."""
        scheme, _, access_token = (authorization or "").partition(" ")
        return scheme.lower() == "bearer" and self._clock() < self._tokens.of_apps.get(access_token, 0.0)

    def bearer(self, authorization: str | None) -> Consent | Reply | str:
        """Return the consent behind the token of a call of the Web API, its 401, or the plain text of its 403."""
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

    def consents(self, spotify_user_id: str, *, client_id: str | None = None) -> bool:
        """Return whether an app, or any if None, has the consent of an account: a refresh token of it still works."""
        return any(
            consent.concerns(spotify_user_id, client_id) and not self._tokens.has_lapsed(consent)
            for consent in list(self._tokens.refresh.values())  # at once: another thread may add one
        )

    def revoke(self, spotify_user_id: str, *, client_id: str | None = None) -> None:
        """End the refresh tokens of an account, for one app or all."""
        self._tokens.end_all(spotify_user_id, None if client_id is None else self.apps.resolve(client_id))

    def expire(self, spotify_user_id: str, *, client_id: str | None, refresh_tokens: bool) -> None:
        """End the access tokens of an account, for one app or all, by their age; or instead the refresh tokens."""
        end = self._tokens.expire_refresh if refresh_tokens else self._tokens.expire_access
        end(spotify_user_id, client_id)

    def fail_next(self, answers: Iterable[Answer], *, web: bool) -> None:
        """Give these answers to the next calls of the token endpoint, or instead to any of the Web API."""
        (self._web_next if web else self._script).extend(answers)

    def pending_answers(self) -> tuple[int, int]:
        """Return how many answers are scripted for calls of the token endpoint, and for any of the Web API."""
        return len(self._script), len(self._web_next)

    def forget_answers(self) -> None:
        """Answer the next calls as usual."""
        self._script.clear()
        self._web_next.clear()

    def consents_by_app(self) -> list[tuple[FakeAccount, str]]:
        """Return the accounts with the client ids of the apps that have their consent."""
        return [
            (account, client_id)
            for account in list(self.accounts.values())  # at once: another thread may add one
            for client_id in self.apps
            if self.consents(account.spotify_user_id, client_id=client_id)
        ]

    def authorization_fault(self, query: Mapping[str, str]) -> str | None:
        """Return why a request to /authorize gets an error page and no redirect; None if it is valid."""
        if query.get("client_id") not in self.apps:
            return "INVALID_CLIENT: Invalid client"
        if not any(matches(query.get("redirect_uri", ""), registered) for registered in self.redirect_uris):
            return WRONG_REDIRECT_URI
        if query.get("response_type") != "code":
            return "response_type must be code"
        if "code_challenge" in query and query.get("code_challenge_method") != "S256":
            return "code_challenge_method must be S256"
        return None

    def new_code(self, query: Mapping[str, str], spotify_user_id: str) -> str:
        """Issue the authorization code for a user who has agreed."""
        scope = frozenset(query.get("scope", "").split())
        client_id = self.apps.resolve(query.get("client_id"))
        consent = Consent(self.accounts[spotify_user_id], client_id, scope, self._clock())
        return self._tokens.new_code(Code(consent, query["redirect_uri"], query.get("code_challenge")))

    def callback(self, query: Mapping[str, str], spotify_user_id: str | None) -> str:
        """Return where a valid authorization request leads: of a user who has agreed, or cancelled if None."""
        denied = {"error": "access_denied"}
        answer = denied if spotify_user_id is None else {"code": self.new_code(query, spotify_user_id)}
        if "state" in query:
            answer["state"] = query["state"]
        joint = "&" if "?" in query["redirect_uri"] else "?"
        return f"{query['redirect_uri']}{joint}{urlencode(answer)}"

    def web_answer(self, method: str, path: str) -> Answer | None:
        """Return the scripted answer to a call of the Web API, if there is one."""
        if self._web_next:
            return self._web_next.pop(0)
        answers = self._web_script.get((method, path), [])
        return answers.pop(0) if len(answers) > 1 else next(iter(answers), None)

    def _exchange(self, form: Mapping[str, str], client: Client) -> Reply:
        code = self._tokens.codes.get(form.get("code", ""))
        if code is None or code.consent.client_id != client.client_id:
            return fault("invalid_grant", "Invalid authorization code")
        # Spent only now: another app cannot use up the code of this one.
        del self._tokens.codes[form["code"]]
        if self._clock() - code.consent.authorized_at > CODE_TTL:
            return fault("invalid_grant", "Authorization code expired")
        if form.get("redirect_uri") != code.redirect_uri:
            return fault("invalid_grant", "Invalid redirect URI")
        if client.client_secret is None and not code.code_challenge:
            return fault("invalid_request", "code_verifier required")
        if code.code_challenge and not proves(form.get("code_verifier", ""), code.code_challenge):
            return fault("invalid_grant", "code_verifier was incorrect")
        return 200, self._new_grant(code.consent)

    def _refresh(self, form: Mapping[str, str], client: Client) -> Reply:
        refresh_token = form.get("refresh_token")
        if not refresh_token:
            return fault("invalid_request", "refresh_token must be supplied")
        consent = self._tokens.refresh.get(refresh_token) or self._tokens.revoked.get(refresh_token)
        if consent is None or consent.client_id != client.client_id:
            return fault("invalid_grant", "Invalid refresh token")
        if refresh_token in self._tokens.revoked:
            return fault("invalid_grant", "Refresh token revoked")
        if self._tokens.has_lapsed(consent):
            return fault("invalid_grant", "Refresh token expired")
        self.refreshes[consent.account.spotify_user_id] += 1
        if not self._rotation:
            return 200, self._tokens.new_grant(consent)
        self._tokens.end(refresh_token)
        return 200, self._new_grant(consent)

    def _new_grant(self, consent: Consent) -> dict[str, Any]:
        """Issue an access token and a refresh token."""
        return self._tokens.new_grant(consent, refresh_token=self._tokens.new_refresh_token(consent))
