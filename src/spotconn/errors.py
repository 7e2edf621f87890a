"""Every error of spotconn, in three branches: ask the user, try later, call an engineer.

    SpotconnError                      .retryable: bool
    ├── AskUser                        only the user can mend it
    │   ├── NotConnected               no connection is stored
    │   ├── UnknownUser                no such user; only when connecting or saving
    │   ├── ReauthorizationRequired    .reason, .since
    │   ├── MissingScope               .missing, .scopes
    │   └── ConnectFailed              .reason
    ├── TryLater                       .retry_after: float | None, seconds
    │   ├── SpotifyUnavailable         429, 5xx, unreadable answers, timeouts, the network
    │   ├── RefreshInProgress          another process is refreshing, beyond the deadline
    │   └── DatabaseUnavailable        no connection to Postgres in time
    └── CallEngineer                   settings, schema or grants are wrong
        ├── ConfigurationError
        │   └── OtherApp               .client_id, .known
        ├── SchemaMismatch
        ├── StatementRefused           .sqlstate
        ├── RowSecurityError
        └── DecryptionError

No text of these errors holds a token, a secret or a code. `args` are the arguments that make an equal error, as pickle
and the JSON of task queues do: `type(error)(*error.args)`.
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal

from spotconn._printable import shown

ReauthorizationReason = Literal["expired", "revoked", "invalid", "other_app"]
ConnectFailure = Literal[
    "denied", "state_mismatch", "state_used", "state_expired", "code_rejected", "not_allowed", "other_account"
]

_SCOPE = re.compile(r"[A-Za-z0-9._:-]{1,64}")
"""The form of Spotify's scopes, which have lower case letters and hyphens today."""


class SpotconnError(Exception):
    """The base of all errors of this library.

    Attributes:
        retryable: whether the same call may succeed later with nobody doing anything.
    """

    retryable: ClassVar[bool] = False

    def __str__(self) -> str:
        """Return the message."""
        return str(self.args[0]) if self.args else ""


class AskUser(SpotconnError):
    """Only the user can mend this, usually by connecting Spotify again."""


class NotConnected(AskUser):
    """No connection is stored for this user: send them through the connect flow."""


class UnknownUser(AskUser):
    """The id is no user of auth.users: the user was deleted, or the id is another table's. They must sign up first.

    It is raised only when connecting or saving. A read of such an id finds no row, which is NotConnected.
    """


class ReauthorizationRequired(AskUser):
    """The refresh token is of no more use: the user must authorize again.

    Attributes:
        reason: Spotify does not accept it any more: "expired" (six months passed), "revoked" (by the user) or
            "invalid"; "other_app" where it was issued to an app that you have given up (`retired_client_ids`).
        since: when this was found out; of "other_app", when the last access token ended.
    """

    def __init__(self, reason: ReauthorizationReason, since: datetime) -> None:
        super().__init__(reason, since)
        self.reason: ReauthorizationReason = reason
        self.since = since

    def __str__(self) -> str:
        """Return what was found, and when."""
        found = f"{self.since.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
        return f"refresh token {self.reason} (found {found}); the user must connect again"


class MissingScope(AskUser):
    """The user has not granted a scope that the call asked for: connect again with `scopes=error.scopes`.

    Args:
        missing: as the attribute.
        granted: as stored. Another writer may have put anything there; what no scope can be is left out of `scopes`.

    Attributes:
        missing: the scopes that are not granted.
        scopes: what to ask for: the missing ones, and those that are granted and would be lost without being asked for.
    """

    def __init__(self, missing: Iterable[str], granted: Iterable[str] = ()) -> None:
        self.missing: frozenset[str] = frozenset(missing)
        self.scopes: frozenset[str] = self.missing.union(filter(_SCOPE.fullmatch, granted))
        super().__init__(sorted(self.missing), sorted(self.scopes))  # lists: JSON has no sets

    def __str__(self) -> str:
        """Return the missing scopes, and those to ask for."""
        missing, scopes = map(" ".join, self.args)
        return f"not granted: {missing}; connect again and ask for {scopes}"


class ConnectFailed(AskUser):
    """A connect attempt ended without a connection; what was stored before is untouched.

    Attributes:
        reason: "denied" (the user said no), "state_mismatch", "state_used", "state_expired",
            "code_rejected" (start again), "not_allowed" (Spotify refuses this account to this app) or "other_account"
            (than the stored one, where the call demands the same).
    """

    def __init__(self, reason: ConnectFailure, message: str) -> None:
        super().__init__(reason, message)
        self.reason: ConnectFailure = reason

    def __str__(self) -> str:
        """Return the message."""
        return str(self.args[1])


class TryLater(SpotconnError):
    """The same call may succeed later.

    Attributes:
        retry_after: seconds to wait, where known.
    """

    retryable: ClassVar[bool] = True

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after)
        self.retry_after = retry_after


class SpotifyUnavailable(TryLater):
    """Spotify gave no usable answer: 429, 5xx, an unreadable body, a timeout, the network.

    Attributes:
        answered: whether Spotify itself answered; False for a fault on the way there.
    """

    def __init__(self, message: str, retry_after: float | None = None, answered: bool = True) -> None:  # noqa: FBT001, FBT002  for *args
        super().__init__(message, retry_after)
        self.args: tuple[Any, ...] = (message, retry_after, answered)
        self.answered = answered


class RefreshInProgress(TryLater):
    """Another process is refreshing this connection and this call's deadline came first."""


class DatabaseUnavailable(TryLater):
    """Postgres could not be reached, or had no free connection, in time.

    Attributes:
        answered: whether Postgres itself, or a pooler, answered; False for a fault on the way there.
        locked: whether other transactions or writes hold up this one alone; the database serves others.
        sqlstate: PostgreSQL's code of the reason (appendix A of its manual), where it gave one.
    """

    def __init__(
        self,
        message: str,
        retry_after: float | None = None,
        answered: bool = False,  # noqa: FBT001, FBT002  for *args
        locked: bool = False,  # noqa: FBT001, FBT002
        sqlstate: str | None = None,
    ) -> None:
        super().__init__(message, retry_after)
        self.args: tuple[Any, ...] = (message, retry_after, answered, locked, sqlstate)
        self.answered = answered
        self.locked = locked
        self.sqlstate = sqlstate


class CallEngineer(SpotconnError):
    """Settings, schema or grants are wrong; neither waiting nor the user helps."""


class ConfigurationError(CallEngineer):
    """A setting is missing or malformed, or Spotify refuses this app's credentials."""


class OtherApp(ConfigurationError):
    """The connection belongs to an app that this process does not have: no other can refresh it (RFC 6749, section 6).

    Attributes:
        client_id: of that app.
        known: client ids of the apps of this process.
    """

    def __init__(self, client_id: str, known: Iterable[str]) -> None:
        self.client_id = client_id
        self.known: tuple[str, ...] = tuple(known)
        super().__init__(client_id, self.known)

    def __str__(self) -> str:
        """Return both, and the settings to change."""
        return (
            f"the connection belongs to the app {shown(self.client_id)}, and this process has {', '.join(self.known)}: "
            "add the app to SPOTCONN_OTHER_APPS (other_apps) or, if you have given it up, to "
            "SPOTCONN_RETIRED_CLIENT_IDS (retired_client_ids)"
        )


class SchemaMismatch(CallEngineer):
    """The database does not have the schema that this version of the library needs."""


class StatementRefused(CallEngineer):
    """The database refused a statement: by a constraint, column or trigger of the project's own, or for another reason.

    The text names what refused it, as far as the database does; never a value.

    Attributes:
        sqlstate: PostgreSQL's code of the refusal (appendix A of its manual).
    """

    def __init__(self, sqlstate: str, message: str) -> None:
        super().__init__(sqlstate, message)
        self.sqlstate = sqlstate

    def __str__(self) -> str:
        """Return the message."""
        return str(self.args[1])


class RowSecurityError(CallEngineer):
    """Row level security would not bind, hides rows from the library itself, or the login role lacks a grant.

    Attributes:
        hidden: whether it is about the connection of one user, which a policy hides; others may be served.
    """

    def __init__(self, message: str, hidden: bool = False) -> None:  # noqa: FBT001, FBT002  for *args
        super().__init__(message, hidden)
        self.hidden = hidden


class DecryptionError(CallEngineer):
    """A stored value does not decrypt: unknown key, altered or moved ciphertext."""
