"""Connections from tokens that were obtained elsewhere.

    python examples/import_tokens.py USER_ID CACHE_FILE AUTHORIZED_ON [SPOTIFY_USER_ID]

stores the tokens of a cache file of spotipy for a user. AUTHORIZED_ON (YYYY-MM-DD) is when the user agreed on Spotify's
page, in whatever time zone, or the earliest day on which they may have: the six months of the refresh token began then,
and no import begins them again. SPOTIFY_USER_ID names the account that the tokens must be of.

The tokens must be of the app of SPOTIFY_CLIENT_ID, which is recorded with them: no other app can refresh them. An
access token that has ended, or whose end is not known, is refreshed before anything is stored. That also shows the app.
What can be refused is refused before that: the refresh may spend the only refresh token.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from demo_services import SCOPES, has_settings, print_line, run, simulated
from spotconn import Connection, TokenGrant, TokenManager, import_grant

CLOCKS = 60
"""Seconds by which the clocks of two hosts may differ."""
FIRST_ZONE = timezone(timedelta(hours=14))
"""Where each day begins first."""


class SpotipyCache(BaseModel):
    """What spotipy keeps in its cache file; `expires_at` is in seconds since 1970."""

    model_config = ConfigDict(strict=True, hide_input_in_errors=True)

    access_token: str = Field(repr=False)
    refresh_token: str = Field(repr=False)
    token_type: Literal["Bearer"]
    expires_in: int = Field(gt=0)
    expires_at: int = Field(gt=0)
    scope: str | None = None

    def grant(self, now: float) -> TokenGrant:
        """As Spotify granted it.

        Raises:
            ValueError: `expires_at` lies further ahead than a token lives.
        """
        if self.expires_at > now + self.expires_in + CLOCKS:
            raise ValueError("expires_at: later than expires_in from now")
        return TokenGrant(
            access_token=self.access_token,
            refresh_token=self.refresh_token,
            expires_at=datetime.fromtimestamp(self.expires_at, UTC),
            scope=None if self.scope is None else frozenset(self.scope.split()),
        )


class SupabaseSession(BaseModel):
    """The part of Supabase's session that is Spotify's; there at the sign-in only, and without expiry and scope."""

    model_config = ConfigDict(strict=True, hide_input_in_errors=True)

    provider_token: str = Field(repr=False)
    provider_refresh_token: str = Field(repr=False)

    def grant(self, now: float) -> TokenGrant:
        """As a grant that ends now, since nobody knows when it does."""
        return TokenGrant(
            access_token=self.provider_token,
            refresh_token=self.provider_refresh_token,
            expires_at=datetime.fromtimestamp(now, UTC),
        )


def read_cache(text: str, now: float) -> TokenGrant:
    """Read a cache file of spotipy.

    Raises:
        ValueError: it is inconsistent; names the field.
    """
    return _read("spotipy's cache", lambda: SpotipyCache.model_validate_json(text).grant(now))


def read_session(session: Mapping[str, Any], now: float) -> TokenGrant:
    """Read a session of Supabase.

    Raises:
        ValueError: it is inconsistent; names the field.
    """
    return _read("Supabase's session", lambda: SupabaseSession.model_validate(session).grant(now))


def start_of(day: str) -> datetime:
    """The earliest moment that a day (YYYY-MM-DD) has anywhere, which is past wherever that day has begun.

    Raises:
        ValueError: it is no day.
    """
    return datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=FIRST_ZONE)


async def import_cache(
    tokens: TokenManager, user_id: UUID, text: str, authorized_at: datetime, spotify_user_id: str | None = None
) -> Connection:
    """Store the tokens of a cache file of spotipy for a user who is not connected yet; else as `import_grant`."""
    if (await tokens.status(user_id)).connected:
        raise ValueError("user_id: connected already, with tokens that may be newer")
    found = read_cache(text, time.time())
    return await import_grant(tokens, user_id, found, authorized_at=authorized_at, spotify_user_id=spotify_user_id)


def _read(source: str, read: Callable[[], TokenGrant]) -> TokenGrant:
    try:
        return read()
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False, include_context=False)
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}".removeprefix(": ") for fault in found)
    except ValueError as error:
        faults = str(error)
    # Not raised from the error itself, which holds the tokens.
    raise ValueError(f"{source}: {faults}")


async def demonstrate() -> None:
    async with simulated() as simulation:
        spotify, tokens, now = simulation.spotify, simulation.tokens, time.time()
        spotify.add_account("ann", display_name="Ann")
        grant = spotify.authorize("ann", SCOPES)
        session = {"provider_token": grant.access_token, "provider_refresh_token": grant.refresh_token}
        user_id = await simulation.sign_up("ann")
        stored = await import_grant(tokens, user_id, read_session(session, now), spotify_user_id="ann")
        print_line(
            f"1. Signed in through Supabase: {stored.display_name}, to authorize again by {stored.reauthorize_by:%F}."
        )

        grant = spotify.authorize("ann", SCOPES)
        cache = {"access_token": grant.access_token, "token_type": "Bearer", "expires_in": 3600, "scope": None}
        cache |= {"refresh_token": grant.refresh_token, "expires_at": int(now) - 86400}
        user_id, hundred_days_ago = await simulation.sign_up("ann2"), datetime.now(UTC) - timedelta(days=100)
        stored = await import_cache(tokens, user_id, json.dumps(cache), hundred_days_ago)
        print_line(
            f"2. From a cache file of spotipy: {stored.display_name}, to authorize again by {stored.reauthorize_by:%F};"
        )
        print_line(f"   the token in the file had ended, the stored one is good until {stored.expires_at:%H:%M} UTC.")
        try:
            read_cache(json.dumps(cache | {"refresh_token": None}), now)
        except ValueError as error:
            print_line(f"3. Refused: {error}")


async def main(arguments: list[str]) -> int:
    if not has_settings():
        await demonstrate()
        return 0
    if len(arguments) not in {3, 4}:
        raise ValueError("expected USER_ID CACHE_FILE AUTHORIZED_ON [SPOTIFY_USER_ID]")
    user_id, path, day, *account = arguments
    authorized_at = start_of(day)
    text = await asyncio.to_thread(Path(path).read_text, encoding="utf-8")
    async with TokenManager.from_env() as tokens:
        stored = await import_cache(tokens, UUID(user_id), text, authorized_at, *account)
    print_line(f"stored: {stored.spotify_user_id}, to authorize again by {stored.reauthorize_by:%F}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
