"""Every DELETE and UPDATE of the library has a WHERE: pg-safeupdate, on Supabase for one, refuses those without."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore
from spotconn._database.pending_connects import PendingConnect
from spotconn._database.schema import SqlFile, read_sql
from support.plan_harness import source_texts

FILES: tuple[SqlFile, ...] = (
    "plain_postgres.sql",
    "schema.sql",
    "close_writes.sql",
    "lock_down.sql",
    "lock_down_undo.sql",
)
CHANGE = re.compile(
    r"\b(delete\s+from|update\s+(?:only\s+)?[\w.]+(?:\s+(?:as\s+)?(?!set\b)\w+)?\s+set)\b", re.IGNORECASE
)
PART = re.compile(r"'(?:[^']|'')*'|--[^\n]*|[();]|\bwhere\b", re.IGNORECASE)
EXPIRED = (
    "insert into spotconn.pending_connect (state_hash, user_id, code_verifier, expires_at) values ($1, $2, '', $3)"
)


def without_where(text: str) -> Iterator[str]:
    """Yield the beginning of each DELETE and UPDATE in a text of SQL that safeupdate would refuse.

    It refuses one whose parsed form has no condition, also within WITH and in a function, and takes any condition.
    """
    for change in CHANGE.finditer(re.sub(r"--[^\n]*", "", text)):
        if not _has_where(change.string[change.end() :]):
            yield change.string[change.start() :][:100]


def _has_where(rest: str) -> bool:
    depth = 0
    for part in PART.finditer(rest):
        word = part.group().lower()
        depth += {"(": 1, ")": -1}.get(word, 0)
        if depth < 0 or (word == ";" and not depth):
            return False
        if word == "where" and not depth:
            return True
    return False


@pytest.mark.parametrize(
    ("statement", "refused"),
    [
        ("delete from spotconn.pending_connect;", True),
        ("begin delete from a.b as c; select 1 where true; end", True),
        ("with gone as (update a.b as c set d = 1 returning c.e) select e from gone where true", True),
        ("update a.b set c = (select 1 where true)", True),
        ("update a.b set c = ' where ' -- where", True),
        ("delete from a.b where true", False),
        ("update a.b c set d = (select 1) from e where f = 1 returning g", False),
        ("insert into a.b values (1) on conflict (c) do update set d = 1; select from e for update", False),
    ],
)
def test_what_is_refused(statement: str, *, refused: bool) -> None:
    """A condition counts where it is that of the statement itself."""
    assert bool(list(without_where(statement))) is refused


def test_no_statement_of_the_library_is_refused() -> None:
    """All statements of the SQL files, their functions and the source have a condition."""
    texts = {*(read_sql(name) for name in FILES), *source_texts()}
    assert sum(len(CHANGE.findall(text)) for text in texts) > 20
    assert [found for text in texts for found in without_where(text)] == []


async def test_expired_starts_of_all_users_go(
    store: ConnectionStore, users: list[UUID], admin: asyncpg.Connection
) -> None:
    """A start deletes what has expired of others, whom its user does not see, and leaves what has not."""
    ends = datetime.now(UTC)
    for number, user in enumerate(users):
        await admin.execute(EXPIRED, b"%d" % number, user, ends + timedelta(minutes=number - 1))
    await store.pending.put(PendingConnect(users[0], "v" * 43), "state", life=600)
    rows = await admin.fetch("select user_id from spotconn.pending_connect")
    assert {row["user_id"] for row in rows} == {users[0], users[2]}
