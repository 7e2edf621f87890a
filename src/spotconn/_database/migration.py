"""The migration of connections from another table: what its rows hold, and their insertion."""

import re
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import groupby
from typing import NamedTuple
from uuid import UUID

import asyncpg

from spotconn._database.bound_pool import BoundPool
from spotconn._database.rows import scope_text
from spotconn._database.service_role import ServiceRole
from spotconn._database.source_rights import check_rights
from spotconn._database.source_table import SourceTable
from spotconn._database.source_tokens import TokenReader
from spotconn._tracebacks import scrub
from spotconn.cipher import TokenCipher, TokenColumn
from spotconn.errors import StatementRefused, UnknownUser
from spotconn.models import LARGEST_TEXT, read_scope
from spotconn.overview import MigratedRow

MILLISECONDS_FROM = 1e11
"""Numbers from here on are milliseconds since 1970; in seconds it is the year 5138."""
PAST = datetime(2000, 1, 1, tzinfo=UTC)
"""The end of an access token that is not known: the first call refreshes."""

_PRESENT = "select user_id from public.spotify_connections where user_id = any($1::uuid[])"
_INSERT = """
insert into public.spotify_connections
    (user_id, refresh_token, access_token, expires_at, spotify_user_id, display_name, email, scope, connected_at)
select user_id, refresh_token, access_token, expires_at, spotify_user_id, display_name, email, scope,
    case when connected_at <= spotconn.now() then connected_at end
from unnest(
    $1::uuid[], $2::text[], $3::text[], $4::timestamptz[], $5::text[], $6::text[], $7::text[], $8::text[],
    $9::timestamptz[]
) as new (
    user_id, refresh_token, access_token, expires_at, spotify_user_id, display_name, email, scope, connected_at
)
on conflict (user_id) do nothing
returning user_id
"""


def read_time(text: str | None) -> datetime | None:
    """Return the time that a text means: seconds or milliseconds since 1970, or ISO 8601, in UTC without a zone."""
    if not text:
        return None
    try:
        if re.fullmatch(r"-?\d+(\.\d+)?", text):
            number = float(text)
            return datetime.fromtimestamp(number / 1000 if abs(number) >= MILLISECONDS_FROM else number, UTC)
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        return None


class Options(NamedTuple):
    """How the rows of the table are read.

    Attributes:
        connected_at: of the rows whose own is not known.
        tokens: reads both tokens.
        needs_account: whether a row without a Spotify account is left, because nothing fills it later.
    """

    connected_at: datetime | None
    tokens: TokenReader
    needs_account: bool


class Candidate:
    """A row of the table as it would be stored. Its tokens are in no repr.

    Attributes:
        row: what is told of it.
        expires_at: end of the access token.
    """

    def __init__(self, found: asyncpg.Record, options: Options) -> None:
        self._found = found
        self._options = options
        self.refresh_token, self._fault = self._token("refresh_token")
        self.access_token, _ = self._token("access_token")
        self.expires_at = (self._time("expires_at") if self.access_token else None) or PAST
        self.connected_at = self._time("connected_at") or options.connected_at
        self.scope = read_scope(self._text("scope"))
        self.row = self._row()

    @property
    def values(self) -> tuple[object, ...]:
        """What follows the tokens in the statement that inserts it."""
        texts = [self._text(name) for name in ("display_name", "email")]
        account = self._text("spotify_user_id") or ""
        return self.expires_at, account, *texts, scope_text(self.scope), self.connected_at

    @property
    def is_usable(self) -> bool:
        """Whether it can be written."""
        return self.row.state == "ready" and not self.lacks_account

    @property
    def lacks_account(self) -> bool:
        """Whether it is left, because nothing fills in its Spotify account."""
        return self._options.needs_account and not self._text("spotify_user_id")

    def _row(self) -> MigratedRow:
        user_id, unusable = self._found["user_id"], tuple(self._unusable())
        key = str(self._found["key"])
        if unusable:
            return MigratedRow(user_id=user_id, key=key, state="unusable", lacks=unusable)
        return MigratedRow(user_id=user_id, key=key, state="ready", lacks=tuple(self._unknown()))

    def _unusable(self) -> Iterator[str]:
        """Yield what a connection cannot be without."""
        if self._found["user_id"] is None:
            yield "user_id"
            return
        if not self._found["is_user"]:
            yield "user in auth.users"
        if not self.refresh_token:
            yield f"refresh_token ({self._fault})" if self._fault else "refresh_token"

    def _unknown(self) -> Iterator[str]:
        """Yield what is not known, and is found out later or left null."""
        known = {
            "spotify_user_id": self._text("spotify_user_id"),
            "access_token": self.access_token,
            "expires_at": self.expires_at != PAST,
            "scope": self.scope is not None,
            "connected_at": self.connected_at,
        }
        yield from (name for name, value in known.items() if not value)

    def _text(self, name: str) -> str | None:
        text: str | None = self._found.get(name)
        return text if text and len(text.encode()) <= LARGEST_TEXT else None

    def _token(self, name: TokenColumn) -> tuple[str, str]:
        """Return a token, or an empty text, which is refreshed at the first use or refused, and why it is empty."""
        text, user_id = self._found.get(name), self._found["user_id"]
        return ("", "") if not text or user_id is None else self._options.tokens.read(text, user_id, name)

    def _time(self, name: str) -> datetime | None:
        moment = read_time(self._found.get(name))
        return moment if moment is not None and moment > PAST else None


class Migration:
    """Brings the rows of another table into ours, and leaves those that stand.

    Args:
        pool: of the operator's login, which reads the table.
        database: of the admin, which writes.
        cipher: encrypts what is written.
        options: how the rows are read.
    """

    def __init__(self, pool: BoundPool, database: ServiceRole, cipher: TokenCipher, options: Options) -> None:
        self._pool = pool
        self._database = database
        self._cipher = cipher
        self._options = options

    async def rows(self, name: str, columns: Mapping[str, str], *, write: bool) -> AsyncIterator[MigratedRow]:
        """Yield what becomes of each row, batch by batch; one batch is written before its rows are told.

        Args:
            name: of the table, as `SourceTable.describe`.
            columns: as there.
            write: whether to insert; else it is only looked at.
        """
        handled = sys.exc_info()[1]
        try:
            async for row in self._rows(name, columns, write=write):
                yield row
        except Exception as error:
            scrub(error, handled)  # frames below hold rows with tokens
            raise

    async def _rows(self, name: str, columns: Mapping[str, str], *, write: bool) -> AsyncIterator[MigratedRow]:
        await check_rights(self._pool, name)
        source = await SourceTable.describe(self._pool, name, columns)
        async for found in source.batches(self._pool):
            candidates = [Candidate(row, self._options) for row in found]
            chosen = {candidate.row.user_id: candidate for candidate in _newest(candidates)}
            users = [user_id for user_id in chosen if user_id is not None]
            present: set[UUID | None] = {row["user_id"] for row in await self._database.fetch(_PRESENT, users)}
            new = [candidate for user_id, candidate in chosen.items() if candidate.is_usable and user_id not in present]
            refused = dict[UUID | None, str]()
            if write:
                written = await self._write(new, refused)
                # Who has connected meanwhile.
                present |= {candidate.row.user_id for candidate in new} - written - set(refused)
            for candidate in candidates:
                yield self._outcome(candidate, chosen, present, refused, write=write)
        if write:
            await self._database.confirm()

    @staticmethod
    def _outcome(
        candidate: Candidate,
        chosen: dict[UUID | None, Candidate],
        present: set[UUID | None],
        refused: dict[UUID | None, str],
        *,
        write: bool,
    ) -> MigratedRow:
        row = candidate.row
        is_present = row.user_id in present
        if row.state == "unusable" and not is_present:
            return row
        if chosen[row.user_id] is not candidate:
            return row.model_copy(update={"state": "older", "lacks": ()})
        if is_present:
            return row.model_copy(update={"state": "present", "lacks": ()})
        if candidate.lacks_account:
            return row.model_copy(update={"state": "unusable", "lacks": ("spotify_user_id",)})
        if row.user_id in refused:
            return row.model_copy(update={"state": "unusable", "lacks": (refused[row.user_id],)})
        return row.model_copy(update={"state": "written" if write else "ready"})

    async def _write(self, candidates: list[Candidate], refused: dict[UUID | None, str]) -> set[UUID | None]:
        """Insert rows, in halves where the database refuses them together, and return the users of those inserted.

        Args:
            candidates: of users without a connection.
            refused: gets the text of the error for each user whose row the database refuses alone.
        """
        if not candidates:
            return set()
        try:
            values = zip(*map(self._values, candidates), strict=True)
            return {row["user_id"] for row in await self._database.fetch(_INSERT, *map(list, values))}
        except (UnknownUser, ValueError, StatementRefused) as error:
            if len(candidates) == 1:
                refused[candidates[0].row.user_id] = str(error)
                return set()
        half = len(candidates) // 2
        return await self._write(candidates[:half], refused) | await self._write(candidates[half:], refused)

    def _values(self, candidate: Candidate) -> tuple[object, ...]:
        user_id = candidate.row.user_id
        assert user_id is not None  # noqa: S101  else it is unusable
        encrypt = self._cipher.encrypt
        return (
            user_id,
            encrypt(candidate.refresh_token, user_id=user_id, column="refresh_token"),
            encrypt(candidate.access_token, user_id=user_id, column="access_token"),
            *candidate.values,
        )


def _newest(candidates: Iterable[Candidate]) -> Iterator[Candidate]:
    """Yield of the rows of each user the usable one whose access token ends last."""
    for _, rows in groupby(candidates, key=lambda candidate: candidate.row.user_id):
        yield max(rows, key=lambda one: (one.row.state == "ready", one.is_usable, one.expires_at))
