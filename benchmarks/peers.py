"""How the peers give out a token that is still fresh. Each has one user only; what it holds is made for that one."""

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any, cast

import tekore
from authlib.integrations.httpx_client import AsyncOAuth2Client
from google.auth.transport import Request
from google.oauth2.credentials import Credentials

PACKAGES = ("asyncpg", "authlib", "google-auth", "httpx", "httpx2", "pydantic", "tekore", "tenacity", "uvloop")
HOUR = 3600

Fresh = Callable[[object], Awaitable[object]]
"""Makes sure that the token is fresh; the argument is who asks, and does not matter."""


def versions() -> dict[str, str]:
    """Of the peers and of what the library stands on."""
    return {name: version(name) for name in PACKAGES}


def authlib() -> Fresh:
    """AsyncOAuth2Client.ensure_active_token, which it runs before each of its requests."""
    token = {"access_token": "BQ", "refresh_token": "AQ", "expires_at": int(time.time()) + HOUR}
    client = AsyncOAuth2Client("demo-client", "demo-secret", token=token, token_endpoint="http://127.0.0.1:9")

    async def fresh(_user: object) -> None:
        await client.ensure_active_token(client.token)

    return fresh


def google_auth() -> Fresh:
    """Credentials.valid and then the token; its own refresh is synchronous."""
    expiry = datetime.now(UTC).replace(tzinfo=None) + timedelta(seconds=HOUR)
    # Few of its functions are typed.
    credentials = cast("Any", Credentials)(token="BQ", refresh_token="AQ", expiry=expiry)
    request: Request | None = None

    async def fresh(_user: object) -> object:
        if not credentials.valid:
            credentials.refresh(request)
        return credentials.token

    return fresh


def tekore_token() -> Fresh:
    """RefreshingToken.access_token; its own refresh is synchronous."""
    info = {"access_token": "BQ", "refresh_token": "AQ", "token_type": "Bearer", "expires_in": HOUR}
    credentials = tekore.Credentials("demo-client", "demo-secret")
    token = tekore.RefreshingToken(tekore.Token(info, uses_pkce=False), credentials)

    async def fresh(_user: object) -> object:
        return token.access_token

    return fresh
