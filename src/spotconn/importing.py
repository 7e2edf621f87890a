"""Connections from tokens that were obtained elsewhere: stored one by one, or verified after a migration."""

import time
from datetime import datetime
from uuid import UUID

from spotconn._database.errors import map_errors
from spotconn._tokens.freshness import Freshness, freshness
from spotconn._user_ids import UserId
from spotconn.accounts import SpotifyAccounts
from spotconn.manager import TokenManager
from spotconn.models import Connection, TokenGrant

CLOCKS = 60
"""Seconds by which the clocks of two hosts may differ."""

# The first connection wins: a user who has connected again meanwhile has an account of their own choice.
_SET_ACCOUNT = """
update public.spotify_connections set
    spotify_user_id = $2, display_name = coalesce(display_name, $3), email = coalesce(email, $4)
where user_id = $1 and spotify_user_id = ''
"""


async def import_grant(
    tokens: TokenManager,
    user_id: UserId,
    found: TokenGrant,
    *,
    authorized_at: datetime | None = None,
    spotify_user_id: str | None = None,
) -> Connection:
    """Store tokens from elsewhere for a user, and replace what was stored.

    An access token that has ended is refreshed first, which also shows that the tokens are of this app. Where Spotify
    replaces refresh tokens, that spends the one that was found: what can be refused is refused before.

    Args:
        tokens: of the service that is to have them; they must be of its app of new connections.
        user_id: an id of auth.users.
        found: the tokens; one whose end is not known ends now.
        authorized_at: when the user authorized; None for just now.
        spotify_user_id: of the account that they must be of.

    Raises:
        ValueError: they are of another account, or an argument is refused; nothing is stored, and for an argument no
            refresh token is spent either.
        UnknownUser: the user id is no user of auth.users; no refresh token is spent.
        SpotconnError: they are of no use, or could not be stored.
    """
    await tokens.store.check_save(user_id, connected_at=authorized_at)
    ends = freshness(found.expires_at, time.time(), window=CLOCKS, margin=CLOCKS)
    grant = found if ends is Freshness.FRESH else await _refreshed(tokens.accounts, found)
    profile = await tokens.accounts.profile(grant.access_token)
    if spotify_user_id is not None and profile.spotify_user_id != spotify_user_id:
        raise ValueError("spotify_user_id: these tokens are of another account")
    client_id = tokens.accounts.client_id
    return await tokens.store.save(user_id, grant, profile, connected_at=authorized_at, client_id=client_id)


async def _refreshed(accounts: SpotifyAccounts, found: TokenGrant) -> TokenGrant:
    grant = await accounts.refresh(found.refresh_token or "")
    fallback = {"refresh_token": grant.refresh_token or found.refresh_token, "scope": grant.scope or found.scope}
    return grant.model_copy(update=fallback)


async def verify_connection(tokens: TokenManager, user_id: UserId) -> bool:
    """Verify a connection that was migrated by one refresh, and fill in its Spotify account if that is not known.

    One that this library has saved before is not refreshed again.

    Args:
        tokens: of the service. What replaces a refresh token is saved as with each refresh, also if this is cancelled.
        user_id: whose connection.

    Returns:
        Whether it was refreshed now.

    Raises:
        NotConnected, ReauthorizationRequired: the user must connect.
        ConnectFailed: Spotify does not let the app read the account.
        StatementRefused: the project's constraints allow no such account here; what was refreshed is saved.
        SpotconnError: as `TokenManager.replace_rejected`.
    """
    stored = await tokens.store.get(user_id)
    refreshes = not stored.saves
    if refreshes:
        # As after a 401: also a token that is still good is replaced.
        rejected = stored.access_token if stored.access_token.isascii() else ""
        await tokens.replace_rejected(user_id, rejected)
    if not stored.spotify_user_id:
        await _fill_account(tokens, stored.user_id)
    return refreshes


async def _fill_account(tokens: TokenManager, user_id: UUID) -> None:
    profile = await tokens.accounts.profile(await tokens.get_valid_token(user_id))
    async with tokens.store.as_user(user_id) as session:
        account = profile.spotify_user_id, profile.display_name, profile.email
        await map_errors(session.execute(_SET_ACCOUNT, user_id, *account))
