"""The values that pass between the rooms: frozen, with every secret kept out of their repr."""

from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Protocol, Self
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from spotconn.errors import ReauthorizationReason

REFRESH_TOKEN_MONTHS = 6
"""Months after the user's authorization at which Spotify ends a refresh token.

Source: developer.spotify.com/blog/2026-06-18-refresh-token-expiration.
"""


Token = Annotated[str, Field(pattern=r"^[\x20-\x7e]+$")]
"""An access or refresh token: visible ASCII characters (RFC 6749, appendix A)."""

Text = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]+$")]
"""Text that a Postgres column can hold."""


class _Value(BaseModel):
    """A frozen value whose validation errors never show the input."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    if not TYPE_CHECKING:  # a checker would take it as leave to assign any attribute

        def __setattr__(self, name: str, value: object) -> None:
            """Refuse in words of our own: pydantic's would repeat the value, which may be a token."""
            raise AttributeError(f"{name}: a {type(self).__name__} is frozen")


class TokenGrant(_Value):
    """What Spotify's token endpoint granted (RFC 6749, section 5.1).

    Attributes:
        access_token: for the Web API.
        refresh_token: None where Spotify sent none: the stored one stays good.
        expires_at: when the access token ends, by the clock of the host that asked.
        scope: the granted scopes; None where Spotify did not say.
    """

    access_token: Token = Field(repr=False)
    refresh_token: Token | None = Field(default=None, repr=False)
    expires_at: AwareDatetime
    scope: frozenset[str] | None = None


class Profile(_Value):
    """The Spotify account behind a token (GET /v1/me).

    Attributes:
        spotify_user_id: Spotify's id of the account.
        display_name: None where the account has none.
        email: None without the scope user-read-email, and for apps in development mode.
    """

    spotify_user_id: Text
    display_name: Text | None = None
    email: Text | None = None


class RecordedFailure(_Value):
    """The last failed refresh of a connection, as recorded for every process.

    Attributes:
        reason: "expired", "revoked" or "invalid" end the connection until the user connects again;
            "unavailable" is Spotify's own trouble and passes.
        since: when it was recorded, by the database's clock.
        retry_at: when the next attempt is due, by the database's clock; None where none will be.
    """

    reason: ReauthorizationReason | Literal["unavailable"]
    since: AwareDatetime
    retry_at: AwareDatetime | None = None


class Connection(_Value):
    """A stored connection.

    Attributes:
        id: the row's id.
        user_id: the user it belongs to.
        spotify_user_id: Spotify's id of the connected account.
        access_token: good until `expires_at`.
        refresh_token: good for six months after `connected_at`.
        expires_at: end of the access token, and the version of this row: every write changes it.
        connected_at: when the user last authorized.
        display_name: of the Spotify account.
        email: of the Spotify account.
        scope: the granted scopes; None where they were never recorded.
        failure: the last failed refresh of this version, if any.
    """

    id: UUID
    user_id: UUID
    spotify_user_id: str
    access_token: str = Field(repr=False)
    refresh_token: str = Field(repr=False)
    expires_at: AwareDatetime
    connected_at: AwareDatetime | None
    display_name: str | None
    email: str | None
    scope: frozenset[str] | None
    failure: RecordedFailure | None = None

    @property
    def reauthorize_by(self) -> datetime | None:
        """When Spotify ends the refresh token: six months after `connected_at`."""
        return None if self.connected_at is None else add_months(self.connected_at, REFRESH_TOKEN_MONTHS)

    @property
    def reauthorization(self) -> ReauthorizationReason | None:
        """Why the user must connect again; None while Spotify is not known to refuse the refresh token."""
        if self.failure is None or self.failure.reason == "unavailable":
            return None
        return self.failure.reason


class ConnectionStatus(_Value):
    """What a profile page shows of a user's connection; it holds no token.

    Attributes:
        connected: whether a connection is stored.
        reauthorization: why the user must connect again; None while the connection works.
        reauthorization_since: when that was found out.
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
    spotify_user_id: str | None = None
    display_name: str | None = None
    email: str | None = None
    scope: frozenset[str] | None = None
    connected_at: AwareDatetime | None = None
    reauthorize_by: AwareDatetime | None = None
    expires_at: AwareDatetime | None = None

    @classmethod
    def of(cls, connection: Connection) -> Self:
        """Return the status of a stored connection."""
        ended = connection.failure if connection.reauthorization else None
        return cls(
            connected=True,
            reauthorization=connection.reauthorization,
            reauthorization_since=None if ended is None else ended.since,
            spotify_user_id=connection.spotify_user_id,
            display_name=connection.display_name,
            email=connection.email,
            scope=connection.scope,
            connected_at=connection.connected_at,
            reauthorize_by=connection.reauthorize_by,
            expires_at=connection.expires_at,
        )


class Outcome(Enum):
    """The database's answer to a process that wants to refresh a connection."""

    GRANTED = "granted"
    """This process holds the lease and refreshes."""
    BUSY = "busy"
    """Another process holds the lease."""
    SUPERSEDED = "superseded"
    """The row is newer than the one seen: use it."""
    BLOCKED = "blocked"
    """This version has a recorded failure that still counts."""
    GONE = "gone"
    """No connection is stored."""


class RefreshTurn(_Value):
    """One process's turn at a refresh.

    Attributes:
        outcome: what the database decided.
        user_id: whose connection.
        connection: the row as it stands; None only if it is gone.
        lease_id: names this process as the holder; None unless granted.
        lapsed: whether an earlier holder of this version let its lease run out without an answer.
        retry_after: seconds until the other's lease or the recorded pause ends, where one stands.
    """

    outcome: Outcome
    user_id: UUID
    connection: Connection | None = None
    lease_id: UUID | None = None
    lapsed: bool = False
    retry_after: float | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.connection is None) != (self.outcome is Outcome.GONE):
            raise ValueError("connection: missing exactly when the outcome is GONE")
        if (self.lease_id is None) == (self.outcome is Outcome.GRANTED):
            raise ValueError("lease_id: present exactly when the outcome is GRANTED")
        return self


class RefreshFailure(_Value):
    """How a refresh ended without a grant, to be recorded by `ConnectionStore.fail_refresh`.

    Attributes:
        reason: "expired", "revoked" or "invalid" (Spotify's invalid_grant) end the connection;
            "unavailable" pauses it for every process; None releases the lease and records nothing.
        retry_after: seconds that Spotify asked to wait, if it did.
    """

    reason: ReauthorizationReason | Literal["unavailable"] | None = None
    retry_after: float | None = Field(default=None, ge=0)


def parse_user_id(user_id: UUID | str) -> UUID:
    """Return the user id as a UUID.

    Raises:
        ValueError: it is none; the text does not repeat it.
    """
    if isinstance(user_id, UUID):
        return user_id
    try:
        return UUID(user_id)
    except (ValueError, TypeError, AttributeError):
        pass
    raise ValueError("user_id: expected a UUID")


def add_months(moment: datetime, months: int) -> datetime:
    """Return the same day and time `months` later, or that month's last day where it has no such day."""
    moment = moment.astimezone(UTC)
    years, month = divmod(moment.month - 1 + months, 12)
    first = moment.replace(year=moment.year + years, month=month + 1, day=1)
    following = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
    return first.replace(day=min(moment.day, (following - first).days))


class TokenSource(Protocol):
    """What gives tokens for a user; `TokenManager` is one."""

    async def get_valid_token(self, user_id: UUID | str) -> str:
        """Return an access token that Spotify accepts now."""
        ...

    async def replace_rejected(self, user_id: UUID | str, rejected_token: str) -> str:
        """Return another access token than the one that Spotify refused with 401."""
        ...
