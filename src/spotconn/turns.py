"""The values of the refresh protocol: what the database decides, and how a turn ends without a grant."""

from enum import Enum
from typing import Literal, Self
from uuid import UUID

from pydantic import AwareDatetime, Field, model_validator

from spotconn._value import Value
from spotconn.models import Connection


class Outcome(Enum):
    """The database's answer to a process that wants to refresh a connection."""

    GRANTED = "granted"
    """This process holds the lease and refreshes."""
    JUST_SAVED = "just_saved"
    """The access token found wanting was granted less than a minute ago: there is no better one."""
    BUSY = "busy"
    """Another process holds the lease."""
    SUPERSEDED = "superseded"
    """The row holds another access token that has not ended: use it."""
    OTHER_APP = "other_app"
    """The refresh token was issued to an app that this process does not have."""
    PAUSED = "paused"
    """Spotify could not refresh it, and it is not yet time to ask again."""
    REFUSED = "refused"
    """Spotify has refused the refresh token, and is not to be asked now."""
    GONE = "gone"
    """No connection is stored."""


class RefreshTurn(Value):
    """One process's turn at a refresh.

    Attributes:
        outcome: what the database decided.
        user_id: whose connection.
        connection: the row as it stands; None only if it is gone.
        lease_id: names this process as the holder; None unless granted.
        lease_until: the end of the lease, by the database's clock; None unless granted.
        client_ids: the apps to refresh it with, in this order: its own or, where that is not known, those that were
            named and not refused.
        retry_after: seconds until the other's lease, the recorded pause or the minute of a new token ends.
    """

    outcome: Outcome
    user_id: UUID
    connection: Connection | None = None
    lease_id: UUID | None = None
    lease_until: AwareDatetime | None = None
    client_ids: tuple[str, ...] = ()
    retry_after: float | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.connection is None) != (self.outcome is Outcome.GONE):
            raise ValueError("connection: missing exactly when the outcome is GONE")
        if {self.lease_id is None, self.lease_until is None} != {self.outcome is not Outcome.GRANTED}:
            raise ValueError("lease_id, lease_until: present exactly when the outcome is GRANTED")
        return self


class RefreshFailure(Value):
    """How a refresh ended without a grant, to be recorded by `ConnectionStore.fail_refresh`.

    Attributes:
        reason: "refused" (Spotify's invalid_grant): the user must connect again, unless a second opinion differs;
            "unavailable" pauses it for every process; None releases the lease and records nothing.
        retry_after: seconds that Spotify asked to wait, if it did.
        refused_by: client ids of the apps with which Spotify refused the refresh token; none for all of the turn.
    """

    reason: Literal["refused", "unavailable"] | None = None
    retry_after: float | None = Field(default=None, ge=0)
    refused_by: tuple[str, ...] = ()
