"""What an operator sees of many connections; none of it holds a token."""

from collections.abc import Mapping
from datetime import datetime
from typing import ClassVar
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict

from spotconn.models import REFRESH_TOKEN_MONTHS, RecordedFailure, add_months


class _Overview(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class ConnectionOverview(_Overview):
    """One stored connection without its tokens.

    Attributes:
        user_id: the user it belongs to.
        spotify_user_id: Spotify's id of the connected account.
        display_name: of the Spotify account.
        email: of the Spotify account.
        connected_at: when the user last authorized.
        expires_at: end of the stored access token.
        client_id: the app that the refresh token was issued to; None where that is not known.
        failure: the last failed refresh, if any.
    """

    user_id: UUID
    spotify_user_id: str
    display_name: str | None
    email: str | None
    connected_at: AwareDatetime | None
    expires_at: AwareDatetime
    client_id: str | None = None
    failure: RecordedFailure | None = None

    @property
    def reauthorize_by(self) -> datetime | None:
        """When Spotify ends the refresh token: six months after `connected_at`."""
        return None if self.connected_at is None else add_months(self.connected_at, REFRESH_TOKEN_MONTHS)


class ConnectionStats(_Overview):
    """How many connections are in which state.

    Attributes:
        connections: all that are stored.
        refreshing: those that a process is refreshing now.
        unavailable: those whose last refresh failed for a passing reason.
        expired: those whose refresh token Spotify has ended, mostly six months after the authorization.
        revoked: those that the user has ended at Spotify.
        invalid: those whose refresh token Spotify does not know.
        plain_text: token values that are stored as they are; each connection has two.
        by_key: token values under each encryption key, by the key's id.
        app_unknown: connections whose app is not known; `ConnectionAdmin.assign_app` records it.
        by_app: connections of each app, by its client id.
    """

    connections: int
    refreshing: int
    unavailable: int
    expired: int
    revoked: int
    invalid: int
    plain_text: int
    by_key: Mapping[str, int]
    app_unknown: int
    by_app: Mapping[str, int]


class TokensProgress(_Overview):
    """How far `TokenManager.get_valid_tokens` has come.

    Attributes:
        done: user ids that the caller has had an answer for.
        failed: those of them whose answer was an error.
    """

    done: int
    failed: int


class RekeyProgress(_Overview):
    """How far a rekey has come.

    Attributes:
        total: connections with a value under another key, or none, when it began.
        done: connections rewritten so far.
        lost: rewrites that came second to another write; these connections are looked at again.
    """

    total: int
    done: int
    lost: int
