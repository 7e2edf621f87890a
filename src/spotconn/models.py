"""The values that pass between the rooms: frozen, with every token kept out of their repr and their dumps."""

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, Literal, Protocol
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, Field

from spotconn._value import Value
from spotconn.errors import ReauthorizationReason

REFRESH_TOKEN_MONTHS = 6
"""Months from the authorization to the end of a refresh token: Spotify's blog 2026-06-18-refresh-token-expiration."""

LONGEST_EXPIRES_IN = 86_400
"""Seconds that an access token can live; Spotify sends 3600. An end further ahead counts as past."""

LARGEST_TOKEN, LARGEST_TEXT = 8_192, 1_024
"""Octets of a token, and of an id, a name, an address or a scope of an answer of Spotify; some 400 and 60 are usual."""

_TOKEN = re.compile(r"[!#-&(-\[\]-~]+")
_NO_VALUES = frozenset({"null", "none", "undefined"})
_SCOPES = re.compile(r"""[^\s,"'\[\]{}\\]+""")


def is_token(text: str) -> bool:
    """Return whether a text can be an access or refresh token of Spotify.

    That is visible ASCII (RFC 6749, appendix A.12 and A.17) without blanks, quotes and backslashes: no Bearer token has
    them (RFC 6750, section 2.1), and programs that write a token wrongly add them. The words null, None and undefined
    are what such programs write for a token that they do not have.
    """
    return _TOKEN.fullmatch(text) is not None and text.lower() not in _NO_VALUES


@lru_cache(maxsize=128)  # most users of an app have granted the same, and a cached token holds its scopes
def read_scope(text: str | None) -> frozenset[str] | None:
    """Return the scopes that a text names, whichever program has written it; None where it says nothing.

    Scopes are separated by blanks (RFC 6749, section 3.3) or commas, or written as a JSON array, a Postgres array or a
    list of Python or JavaScript. An empty text says that none were granted: this library stores a grant without scopes
    so. Another text that names none, such as blanks, `[]`, `{}` or `null`, was never a record of a grant.
    """
    if text is None:
        return None
    names = frozenset(name for name in _SCOPES.findall(text) if name.lower() not in _NO_VALUES)
    return names if names or not text else None


def _checked_token(text: str) -> str:
    if not is_token(text):
        raise ValueError("expected visible ASCII without blanks, quotes and backslashes")
    return text


Token = Annotated[str, AfterValidator(_checked_token)]
"""An access or refresh token, as `is_token`."""

Text = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]+$")]
"""Text that a Postgres column can hold."""


class TokenGrant(Value):
    """What Spotify's token endpoint granted (RFC 6749, section 5.1).

    `model_dump`, JSON and what a web framework makes of them leave the tokens out.

    Attributes:
        access_token: for the Web API.
        refresh_token: None where Spotify sent none: the stored one stays good.
        expires_at: when the access token ends, for tokens obtained elsewhere; as Spotify grants them, by the clock of
            this host, which is not stored.
        expires_in: seconds that the access token lives from the request on. What is stored counts them by the clock of
            the database.
        scope: the granted scopes; None where Spotify did not say.
    """

    access_token: Token = Field(repr=False, exclude=True)
    refresh_token: Token | None = Field(default=None, repr=False, exclude=True)
    expires_at: AwareDatetime
    expires_in: float | None = Field(default=None, gt=0, le=LONGEST_EXPIRES_IN)
    scope: frozenset[str] | None = None

    def dump_with_tokens(self) -> dict[str, object]:
        """Return all fields with the tokens, ready for JSON, to hand the grant over in secret.

        `TokenGrant.model_validate` takes it back.
        """
        tokens: dict[str, object] = {"access_token": self.access_token, "refresh_token": self.refresh_token}
        return self.model_dump(mode="json") | tokens


class Profile(Value):
    """The Spotify account behind a token (GET /v1/me). Two are equal where their attributes other than `raw` are.

    Attributes:
        spotify_user_id: Spotify's id of the account, which names it to others.
        display_name: None where the account has none.
        email: None without the scope user-read-email, and for apps in development mode.
        account_id: Spotify's lasting id of the account, by which to tell accounts apart; None where Spotify names none.
        raw: all that Spotify answered, such as `images`, and `country` and `product` with the scope user-read-private
            and outside of development mode. It is in no repr and in no dump.
    """

    spotify_user_id: Text
    display_name: Text | None = None
    email: Text | None = None
    account_id: Text | None = None
    raw: Mapping[str, Any] = Field(default_factory=dict, repr=False, exclude=True)

    def __eq__(self, other: object) -> bool:
        """Return whether both are the same account with the same names."""
        return isinstance(other, Profile) and dict(self) == dict(other)

    def __hash__(self) -> int:
        """Return a hash that goes with the equality."""
        return hash(tuple(dict(self).values()))


FailureReason = Literal["expired", "revoked", "invalid", "unavailable"]


class RecordedFailure(Value):
    """The last failed refresh of a connection, as recorded for every process.

    Attributes:
        reason: Spotify has refused the refresh token: "expired" six months after the user authorized, "revoked" before,
            "invalid" where that date is not known. The user must connect again. "unavailable" is Spotify's own trouble
            and passes.
        since: when it was first recorded, by the database's clock.
        retry_at: when Spotify may be asked again, by the database's clock; None beside a refusal that is final.
    """

    reason: FailureReason
    since: AwareDatetime
    retry_at: AwareDatetime | None = None


class StoredTexts(Value):
    """The token columns of a row as they are stored, encrypted where the store has a cipher."""

    access_token: str = Field(repr=False, exclude=True)
    refresh_token: str = Field(repr=False, exclude=True)

    def __init__(self, access_token: str, refresh_token: str) -> None:
        """Take the texts in the order of the columns."""
        texts = {"access_token": access_token, "refresh_token": refresh_token}
        super().__init__(**texts)


class StoredAccessToken:
    """An access token as it was read. It is no dataclass, which serializers would write out with the token.

    `digest` is that of its text as stored; the others are as in `Connection`.
    """

    __slots__ = ("access_token", "digest", "remaining", "scope")

    def __init__(self, access_token: str, digest: bytes, remaining: float, scope: frozenset[str] | None) -> None:
        self.access_token: str = access_token
        self.digest: bytes = digest
        self.remaining: float = remaining
        self.scope: frozenset[str] | None = scope


class Connection(Value):
    """A stored connection.

    `model_dump`, JSON and what a web framework makes of them leave the tokens and `texts` out. `spotify_user_id`,
    `display_name`, `email` and `scope` are as in `ConnectionStatus`: the user may have written them.

    Attributes:
        id: the row's id.
        user_id: the user it belongs to.
        spotify_user_id: Spotify's id of the connected account.
        access_token: good until `expires_at`.
        refresh_token: good for six months after `connected_at`.
        expires_at: end of the access token, by the database's clock.
        remaining: seconds until then when it was read, by the database's clock; not over 0 once it has ended, nor for
            one that cannot be sent.
        connected_at: when the user last authorized.
        display_name: of the Spotify account.
        email: of the Spotify account.
        scope: the granted scopes; None where they were never recorded.
        client_id: the app that the refresh token was issued to; None where that is not known.
        refused_by: while it is not, the apps with which Spotify has refused the refresh token.
        failure: the last failed refresh with this refresh token, if any.
        recovered: the failure that this save has ended, if any.
        saves: how often the library has saved tokens of this user; None where another writer stored this refresh token.
        family: names the family of refresh tokens (RFC 9700), each granted for the one before, within which `saves`
            counts.
        account_id: Spotify's lasting id of the account; None where no connect has recorded it.
        previous_spotify_user_id: of the account that this save has replaced, which may be the same; None if there was
            none, and where the connection was not just saved.
        texts: the tokens as they are stored.
    """

    id: UUID
    user_id: UUID
    spotify_user_id: str
    access_token: str = Field(repr=False, exclude=True)
    refresh_token: str = Field(repr=False, exclude=True)
    expires_at: AwareDatetime
    remaining: float
    connected_at: AwareDatetime | None
    display_name: str | None
    email: str | None
    scope: frozenset[str] | None
    client_id: str | None = None
    refused_by: frozenset[str] = frozenset()
    failure: RecordedFailure | None = None
    recovered: FailureReason | None = None
    saves: int | None = None
    family: UUID | None = None
    account_id: str | None = None
    previous_spotify_user_id: str | None = None
    texts: StoredTexts = Field(repr=False, exclude=True)

    def __eq__(self, other: object) -> bool:
        """Return whether both are the same row in the same state, whenever read and under whichever key stored."""
        return isinstance(other, Connection) and self._state == other._state

    def __hash__(self) -> int:
        """Return a hash that goes with the equality."""
        return hash(self._state)

    @property
    def _state(self) -> tuple[object, ...]:
        aside = {"remaining", "texts", "previous_spotify_user_id"}
        return tuple(value for name, value in self.__dict__.items() if name not in aside)

    @property
    def fingerprint(self) -> str:
        """The name of the stored access token by its content, for `ConnectionStore.begin_refresh`."""
        return fingerprint(self.texts.access_token)

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

    def is_refused_to(self, client_ids: Collection[str]) -> bool:
        """Return whether Spotify refuses the refresh token to a process that has these apps; none for any."""
        if self.reauthorization is None:
            return False
        return self.client_id is not None or self.refused_by.issuperset(client_ids)


def digest(stored: str) -> bytes:
    """Return the SHA-256 of a text, as `spotconn.fingerprint` of the schema does."""
    return hashlib.sha256(stored.encode()).digest()


def fingerprint(stored: str) -> str:
    """Return the name of a stored token by its content: the SHA-256 of the stored text, in hexadecimal."""
    return digest(stored).hex()


def add_months(moment: datetime, months: int) -> datetime:
    """Return the same day and time `months` later, or that month's last day where it has no such day."""
    moment = moment.astimezone(UTC)
    years, month = divmod(moment.month - 1 + months, 12)
    first = moment.replace(year=moment.year + years, month=month + 1, day=1)
    following = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
    return first.replace(day=min(moment.day, (following - first).days))


class TokenSource(Protocol):
    """What gives tokens for a user; `TokenManager` is one."""

    async def get_valid_token(self, user_id: UUID | str, *, scopes: Iterable[str] = ()) -> str:
        """Return an access token that Spotify accepts now, with these scopes."""
        ...

    async def replace_rejected(self, user_id: UUID | str, rejected_token: str, *, scopes: Iterable[str] = ()) -> str:
        """Return another access token, with these scopes, than the one that Spotify refused with 401."""
        ...
