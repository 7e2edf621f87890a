"""Encryption of every stored token with the first key of the ring, beside the running service.

A rewrite changes only the text of the tokens, and what is known of a refresh token is carried over to its new text. It
is saved only over the values that were read, so a concurrent refresh, reconnect or disconnect always wins. A row whose
refresh is under way is left for later: that refresh is saved over the text that was sent. So is one that another
transaction has locked, because the rows of a batch that are locked already hold up the writes of their users.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple
from uuid import UUID

import asyncpg

from spotconn._database.errors import map_errors
from spotconn._database.idle_sessions import Session
from spotconn._database.row_owners import check_users
from spotconn._database.service_role import TIMEOUT, ServiceRole
from spotconn._printable import counted
from spotconn.cipher import MARK, VERSION, AesGcmSivCipher, TokenColumn
from spotconn.errors import ConfigurationError, DecryptionError
from spotconn.models import digest
from spotconn.overview import RekeyProgress

MAX_PASSES = 5
"""Passes over all connections. The second rewrites what the first lost to concurrent writes."""
MOST_NAMED = 3
"""Users that an error names."""
LONGEST_WAIT = 30.0
"""Seconds that a pass waits for refreshes under way at most."""
LOCKED_WAIT = 1.0
"""Seconds that a pass waits for transactions that hold a row."""

COUNT_OLD = """
select count(*) from public.spotify_connections
where not (starts_with(access_token, $1) and starts_with(refresh_token, $1))
"""
READ_OLD = """
select user_id, access_token, refresh_token from public.spotify_connections
where user_id >= $1 and not (starts_with(access_token, $3) and starts_with(refresh_token, $3))
order by user_id
limit $2
"""
LOCK_FREE_ROWS = """
select user_id from public.spotify_connections where user_id = any($1::text[]::uuid[]) order by user_id
for no key update skip locked
"""
# In a statement of its own, after the rows are locked: nobody acquires a lease without that lock.
LEASED = """
select user_id, extract(epoch from lease_until - spotconn.now())::float8 as remaining from spotconn.refresh_state
where user_id = any($1::text[]::uuid[]) and spotconn.runs(leased_at, lease_until, spotconn.now())
"""
# The old values are compared by their hash, because the server may log arguments, and these may be plain text.
WRITE = """
with rewritten as (
    update public.spotify_connections as stored
    set access_token = rewritten.access_token, refresh_token = rewritten.refresh_token
    from unnest($1::text[]::uuid[], $2::text[]::bytea[], $3::text[]::bytea[], $4::text[], $5::text[])
        as rewritten (user_id, old, fingerprint, access_token, refresh_token)
    where stored.user_id = rewritten.user_id
        and sha256(convert_to(stored.access_token || ' ' || stored.refresh_token, 'UTF8')) = rewritten.old
    returning stored.user_id, rewritten.fingerprint, stored.refresh_token
), carried as (
    update spotconn.refresh_state as state
    set fingerprint = sha256(convert_to(rewritten.refresh_token, 'UTF8'))
    from rewritten
    where state.user_id = rewritten.user_id and state.fingerprint = rewritten.fingerprint
)
select user_id from rewritten
"""
_KEY_ID = re.compile(rf"{VERSION}\.([0-9a-f]{{8}})\.")


class State(Enum):
    """What a row is to a rekey. Of its two values the worse one counts, which comes later here."""

    OLD = 0
    """Under another key of the ring, or in plain text that the cipher reads: to be rewritten."""
    PLAIN_TEXT = 1
    """In plain text, which the cipher refuses."""
    UNKNOWN_KEY = 2
    """Under a key that the ring lacks."""
    UNREADABLE = 3
    """Damaged, altered, or of another row."""


class _Rewritten(NamedTuple):
    """The arguments of `WRITE` for a row; hashes as Postgres reads a bytea."""

    user_id: UUID
    old: str
    fingerprint: str
    access_token: str
    refresh_token: str


class Rekey:
    """Rewrites all rows that are not under the first key of a ring.

    Args:
        database: of the admin.
        cipher: with whose first key all tokens are to be encrypted.
    """

    def __init__(self, database: ServiceRole, cipher: AesGcmSivCipher) -> None:
        self._database = database
        self._cipher = cipher
        self._total = self._done = self._lost = self._encrypted = 0
        self._wait = 0.0
        self._rest = Counter[State]()
        self._old: list[UUID] = []

    @property
    def progress(self) -> RekeyProgress:
        """The progress so far."""
        return RekeyProgress(
            total=self._total,
            done=self._done,
            lost=self._lost,
            encrypted=self._encrypted,
            plain_text=self._rest[State.PLAIN_TEXT],
            unknown_key=self._rest[State.UNKNOWN_KEY],
            unreadable=self._rest[State.UNREADABLE],
        )

    async def run(self, report: Callable[[RekeyProgress], object] | None) -> RekeyProgress:
        """Pass over all rows until none is left that can be rewritten, and call `report` after each batch.

        Raises:
            ConfigurationError: some are left, because others write or hold them all the time.
            RowSecurityError, DatabaseUnavailable, SchemaMismatch: as `ServiceRole.fetch`.
        """
        ((self._total,),) = await self._database.fetch(COUNT_OLD, self._cipher.current_prefix)
        for _ in range(MAX_PASSES):
            await asyncio.sleep(min(self._wait, LONGEST_WAIT))  # for what the last pass left
            self._wait = 0.0
            async for rows in self._database.batches(READ_OLD, self._cipher.current_prefix):
                await self._rewrite(rows)
                if report is not None:
                    report(self.progress)
            await self._look()
            if not self._rest[State.OLD]:
                await self._database.confirm()  # a key may be dropped then
                return self.progress
        raise self._not_done()

    async def _rewrite(self, rows: list[asyncpg.Record]) -> None:
        plain_text = {row["user_id"] for row in rows if not (_is_marked(row, "access") and _is_marked(row, "refresh"))}
        rewritten = {row["user_id"]: self._rewritten(row) for row in rows if self._state(row) is State.OLD}
        if not rewritten:
            return
        users = await self._database.run(lambda session: self._write(session, rewritten))
        self._done += len(users)
        self._lost += len(rewritten) - len(users)
        self._encrypted += len(users & plain_text)

    async def _write(self, session: Session, rewritten: dict[UUID, _Rewritten]) -> set[UUID]:
        """Save what may be saved now, and return whose rows these are."""
        users = [str(user) for user in rewritten]
        free = await map_errors(session.fetch(LOCK_FREE_ROWS, users, timeout=TIMEOUT))
        leased = await map_errors(session.fetch(LEASED, users, timeout=TIMEOUT))
        ready = self._ready(rewritten, {row["user_id"] for row in free}, leased)
        columns = [[str(row[place]) for row in ready] for place in range(len(_Rewritten._fields))]
        saved = await map_errors(session.fetch(WRITE, *columns, timeout=TIMEOUT))
        written = {row["user_id"] for row in saved}
        check_users(session, written <= rewritten.keys())
        return written

    def _ready(
        self, rewritten: dict[UUID, _Rewritten], free: set[UUID], leased: list[asyncpg.Record]
    ) -> list[_Rewritten]:
        """Leave the rows for later that another transaction holds, or whose refresh is under way."""
        if len(free) < len(rewritten):
            self._wait = max(self._wait, LOCKED_WAIT)
        for row in leased:
            free.discard(row["user_id"])
            self._wait = max(self._wait, row["remaining"])
        return [row for row in rewritten.values() if row.user_id in free]

    async def _look(self) -> None:
        """Look what is left."""
        rest, old = Counter[State](), list[UUID]()
        async for rows in self._database.batches(READ_OLD, self._cipher.current_prefix):
            for row in rows:
                state = self._state(row)
                rest[state] += 1
                if state is State.OLD and len(old) < MOST_NAMED:
                    old.append(row["user_id"])
        self._rest, self._old = rest, old

    def _not_done(self) -> ConfigurationError:
        connections = counted(self._rest[State.OLD], "connection is", "connections are")
        text = f"{connections} left (among them user {', '.join(map(str, self._old))})"
        if self._wait:
            return ConfigurationError(
                f"{text}, some of them being refreshed or held by another transaction: run rekey again"
            )
        return ConfigurationError(
            f"{text} that are again under another key or in plain text: a running process still encrypts with it, or "
            "these users write old values back; give every process the same SPOTCONN_ENCRYPTION_KEYS, then run rekey "
            "again"
        )

    def _state(self, row: asyncpg.Record) -> State:
        states = self._value_state(row, "access_token"), self._value_state(row, "refresh_token")
        return max(states, key=lambda state: state.value)

    def _value_state(self, row: asyncpg.Record, column: TokenColumn) -> State:
        stored: str = row[column]
        if not stored.startswith(self._cipher.current_prefix):
            try:
                self._cipher.decrypt(stored, user_id=row["user_id"], column=column)
            except DecryptionError:
                if not stored.startswith(MARK):
                    return State.PLAIN_TEXT
                key = _KEY_ID.match(stored)
                return State.UNKNOWN_KEY if key and key[1] not in self._cipher.key_ids else State.UNREADABLE
        return State.OLD

    def _rewritten(self, row: asyncpg.Record) -> _Rewritten:
        old = f"{row['access_token']} {row['refresh_token']}"
        access_token, refresh_token = self._text(row, "access_token"), self._text(row, "refresh_token")
        before, fingerprint = (rf"\x{digest(text).hex()}" for text in (old, row["refresh_token"]))
        return _Rewritten(row["user_id"], before, fingerprint, access_token, refresh_token)

    def _text(self, row: asyncpg.Record, column: TokenColumn) -> str:
        """Return the text to store."""
        stored: str = row[column]
        if stored.startswith(self._cipher.current_prefix):
            return stored
        token = self._cipher.decrypt(stored, user_id=row["user_id"], column=column)
        return self._cipher.encrypt(token, user_id=row["user_id"], column=column)


def _is_marked(row: asyncpg.Record, kind: str) -> bool:
    return bool(row[f"{kind}_token"].startswith(MARK))
