"""What a manager shows of a connection and of its own work; none of it holds a token."""

from collections.abc import Collection
from typing import Self

from pydantic import AwareDatetime

from spotconn._value import Value
from spotconn.errors import ReauthorizationReason
from spotconn.models import Connection


class ConnectionStatus(Value):
    """What a profile page shows of a user's connection; it holds no token.

    `spotify_user_id`, `display_name`, `email` and `scope` are what the row says. Where clients may write they are
    written by the user, not verified: escape them, and decide nothing by them.

    Attributes:
        connected: whether a connection is stored.
        reauthorization: why the user must connect again, now or when the access token has ended; None while nothing
            is known against the connection.
        reauthorization_since: when that was found out; None for an app that is given up.
        client_id: the app that the refresh token was issued to; None where that is not known.
        spotify_user_id: Spotify's id of the connected account.
        display_name: of the Spotify account.
        email: of the Spotify account.
        scope: the granted scopes; None where they were never recorded.
        connected_at: when the user last authorized.
        reauthorize_by: when the user must have authorized again.
        expires_at: end of the stored access token.
    """

    connected: bool
    reauthorization: ReauthorizationReason | None = None
    reauthorization_since: AwareDatetime | None = None
    client_id: str | None = None
    spotify_user_id: str | None = None
    display_name: str | None = None
    email: str | None = None
    scope: frozenset[str] | None = None
    connected_at: AwareDatetime | None = None
    reauthorize_by: AwareDatetime | None = None
    expires_at: AwareDatetime | None = None

    @classmethod
    def of(
        cls, connection: Connection, *, client_ids: Collection[str] = (), retired_client_ids: Collection[str] = ()
    ) -> Self:
        """Return the status of a stored connection.

        Args:
            connection: as stored.
            client_ids: of the apps that may refresh it; none for any.
            retired_client_ids: of apps that are given up for good.
        """
        ended = connection.failure if connection.is_refused_to(client_ids) else None
        retired = connection.client_id in retired_client_ids
        return cls(
            connected=True,
            reauthorization=connection.reauthorization if ended else "other_app" if retired else None,
            reauthorization_since=None if ended is None else ended.since,
            client_id=connection.client_id,
            spotify_user_id=connection.spotify_user_id,
            display_name=connection.display_name,
            email=connection.email,
            scope=connection.scope,
            connected_at=connection.connected_at,
            reauthorize_by=connection.reauthorize_by,
            expires_at=connection.expires_at,
        )


class TokensProgress(Value):
    """How far `TokenManager.get_valid_tokens` has come.

    Attributes:
        done: user ids that the caller has had an answer for.
        failed: those of them whose answer was an error.
        waiting: seconds for which refreshes wait from now on, because Spotify has asked an app to wait.
    """

    done: int
    failed: int
    waiting: float = 0.0
