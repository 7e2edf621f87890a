"""What operators see of connections; none of it holds a token."""

from collections.abc import Mapping
from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import AwareDatetime

from spotconn._value import Value
from spotconn.models import REFRESH_TOKEN_MONTHS, RecordedFailure, add_months


class ConnectionOverview(Value):
    """One stored connection without its tokens.

    `spotify_user_id`, `display_name` and `email` are what the row says. Where clients may write they are written by
    the user, not verified: escape them, and send nothing to that address.

    Attributes:
        user_id: the user it belongs to.
        spotify_user_id: Spotify's id of the connected account.
        display_name: of the Spotify account.
        email: of the Spotify account.
        connected_at: when the user last authorized.
        expires_at: end of the stored access token.
        client_id: the app that the refresh token was issued to; None where that is not known.
        failure: the last failed refresh, if any.
        asked_at: when `ConnectionAdmin.mark_asked` last recorded that the user was asked to connect again, since
            `connected_at`.
    """

    user_id: UUID
    spotify_user_id: str
    display_name: str | None
    email: str | None
    connected_at: AwareDatetime | None
    expires_at: AwareDatetime
    client_id: str | None = None
    failure: RecordedFailure | None = None
    asked_at: AwareDatetime | None = None

    @property
    def reauthorize_by(self) -> datetime | None:
        """When Spotify ends the refresh token: six months after `connected_at`."""
        return None if self.connected_at is None else add_months(self.connected_at, REFRESH_TOKEN_MONTHS)


class ConnectionStats(Value):
    """How many connections are in which state.

    Attributes:
        connections: all that are stored.
        refreshing: those that a process is refreshing now.
        unavailable: those whose last refresh failed for a passing reason.
        expired: those whose refresh token Spotify has ended, mostly six months after the authorization.
        revoked: those that the user has ended at Spotify.
        invalid: those whose refresh token Spotify does not know.
        plain_text: token values that are stored as they are; each connection has two.
        damaged: token values that begin like encrypted ones and name no key.
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
    damaged: int
    by_key: Mapping[str, int]
    app_unknown: int
    by_app: Mapping[str, int]


class RekeyProgress(Value):
    """How far a rekey has come.

    Attributes:
        total: connections with a value under another key, or none, when it began.
        done: connections rewritten so far.
        lost: rewrites that came second to another write; these connections are looked at again.
        encrypted: connections among those rewritten that held a value in plain text.
        plain_text: connections left in plain text, because the cipher requires encryption.
        unknown_key: connections left under a key that the ring lacks.
        unreadable: connections left that are damaged or altered, or were moved from another row.
    """

    total: int
    done: int
    lost: int
    encrypted: int = 0
    plain_text: int = 0
    unknown_key: int = 0
    unreadable: int = 0

    @property
    def remaining(self) -> int:
        """How many connections are left as they are: the sum of the last three."""
        return self.plain_text + self.unknown_key + self.unreadable


class PruneProgress(Value):
    """How far `ConnectionAdmin.prune` has come: connections that it has deleted, or would delete, by their reason.

    Attributes:
        expired: those whose refresh token had ended six months after the authorization.
        revoked: those that Spotify had refused before.
        invalid: those that Spotify had refused, of users who have authorized at a time that is not known.
        retired_app: those of an app that is given up.
        not_final: those refused for as long that stay: Spotify is to be asked once more, or their app is not known.
        too_recent: those refused for good, or of an app that is given up, that stay: not for so long.
    """

    expired: int = 0
    revoked: int = 0
    invalid: int = 0
    retired_app: int = 0
    not_final: int = 0
    too_recent: int = 0

    @property
    def total(self) -> int:
        """How many are deleted, or would be: the sum of all but the last two."""
        return self.expired + self.revoked + self.invalid + self.retired_app


class MigratedRow(Value):
    """What becomes of a row of another table in `ConnectionAdmin.migrate`; it holds no token.

    Attributes:
        user_id: whose connection it is; None where the row names no user.
        key: what the table says of the user.
        state: "ready" (it would be written), "written", "present" (the user has a connection, which stays), "older"
            (of a user with a newer row) or "unusable".
        lacks: of a row that is unusable, what it needs or what refuses it; of another, what is not known of it.
    """

    user_id: UUID | None
    key: str
    state: Literal["ready", "written", "present", "older", "unusable"]
    lacks: tuple[str, ...] = ()
