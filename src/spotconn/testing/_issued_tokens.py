"""The codes and tokens that the simulated Spotify has issued, and the consents behind them."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from spotconn.models import REFRESH_TOKEN_MONTHS, add_months


@dataclass(frozen=True)
class FakeAccount:
    """A Spotify account.

    Attributes:
        spotify_user_id: Spotify's id of the account.
        display_name: None if the account has none.
        email: shown to apps with the scope user-read-email only.
        refusal: the plain text of the 403 with which GET /v1/me refuses this account to the app, if it does.
        account_id: Spotify's lasting id of the account; None for one that is made of `spotify_user_id`.
        country: shown with the scope user-read-private only, as is `product`.
        product: the subscription, such as premium or free.
    """

    spotify_user_id: str
    display_name: str | None = None
    email: str | None = None
    refusal: str | None = None
    account_id: str | None = None
    country: str = "SE"
    product: str = "premium"


@dataclass(frozen=True)
class Consent:
    """What one authorization allows.

    Attributes:
        account: of the user who authorized the app.
        client_id: of the app; codes and tokens of this consent are good for no other one.
        scope: the granted scopes.
        authorized_at: seconds since the epoch.
    """

    account: FakeAccount
    client_id: str
    scope: frozenset[str]
    authorized_at: float

    def concerns(self, spotify_user_id: str, client_id: str | None) -> bool:
        """Return whether this is a consent of an account to an app; to any app if `client_id` is None."""
        return self.account.spotify_user_id == spotify_user_id and client_id in {None, self.client_id}


@dataclass(frozen=True)
class Code:
    """What an authorization code is good for.

    Attributes:
        consent: of the user.
        redirect_uri: of the authorization request.
        code_challenge: of the authorization request; None without PKCE.
    """

    consent: Consent
    redirect_uri: str
    code_challenge: str | None


class IssuedTokens:
    """All codes and tokens by their text.

    Args:
        token_ttl: seconds that an access token is good for.
        clock: returns seconds since the epoch.

    Attributes:
        codes: authorization codes that are not used yet.
        access: access tokens, each with the end of its life in seconds since the epoch.
        of_apps: ends of the access tokens that apps have for themselves, likewise.
        refresh: refresh tokens that are not ended.
        revoked: refresh tokens that are ended.
    """

    def __init__(self, *, token_ttl: int, clock: Callable[[], float]) -> None:
        self._token_ttl = token_ttl
        self._clock = clock
        self.codes: dict[str, Code] = {}
        self.access: dict[str, tuple[Consent, float]] = {}
        self.of_apps: dict[str, float] = {}
        self.refresh: dict[str, Consent] = {}
        self.revoked: dict[str, Consent] = {}

    def new_code(self, code: Code) -> str:
        """Issue an authorization code."""
        text = secrets.token_urlsafe(24)
        self.codes[text] = code
        return text

    def new_refresh_token(self, consent: Consent) -> str:
        """Issue a refresh token."""
        refresh_token = f"AQ{secrets.token_urlsafe(48)}"
        self.refresh[refresh_token] = consent
        return refresh_token

    def new_grant(self, consent: Consent, *, refresh_token: str | None = None) -> dict[str, Any]:
        """Issue an access token and return the answer of the token endpoint, with `refresh_token` if there is one."""
        access_token = f"BQ{secrets.token_urlsafe(48)}"
        self.access[access_token] = (consent, self._clock() + self._token_ttl)
        answer = {
            "access_token": access_token,
            "token_type": "Bearer",
            "expires_in": self._token_ttl,
            "scope": " ".join(sorted(consent.scope)),
        }
        return answer if refresh_token is None else answer | {"refresh_token": refresh_token}

    def new_app_grant(self) -> dict[str, Any]:
        """Issue an access token for an app itself, and return the answer of the token endpoint."""
        access_token = f"BQ{secrets.token_urlsafe(48)}"
        self.of_apps[access_token] = self._clock() + self._token_ttl
        return {"access_token": access_token, "token_type": "Bearer", "expires_in": self._token_ttl}

    def end(self, refresh_token: str) -> None:
        """End a refresh token."""
        self.revoked[refresh_token] = self.refresh.pop(refresh_token)

    def end_all(self, spotify_user_id: str, client_id: str | None) -> None:
        """End the refresh tokens of an account for one app; for all apps if `client_id` is None."""
        for refresh_token, consent in list(self.refresh.items()):
            if consent.concerns(spotify_user_id, client_id):
                self.end(refresh_token)

    def expire_access(self, spotify_user_id: str, client_id: str | None) -> None:
        """End the life of the access tokens of an account for one app, or all."""
        for access_token, (consent, _) in list(self.access.items()):
            if consent.concerns(spotify_user_id, client_id):
                self.access[access_token] = (consent, 0.0)

    def expire_refresh(self, spotify_user_id: str, client_id: str | None) -> None:
        """Make the consents of an account to one app, or all, older than their refresh tokens are good for."""
        for refresh_token, consent in list(self.refresh.items()):
            if consent.concerns(spotify_user_id, client_id):
                self.refresh[refresh_token] = replace(consent, authorized_at=0.0)

    def has_lapsed(self, consent: Consent) -> bool:
        """Return whether a consent is older than its refresh tokens are good for."""
        authorized = datetime.fromtimestamp(consent.authorized_at, UTC)
        return self._clock() >= add_months(authorized, REFRESH_TOKEN_MONTHS).timestamp()
