"""A row too large to be read is the error of its own user, in every read of many."""

from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore, DatabaseUnavailable, StatementRefused, TokenManager
from spotconn._database.halves import MOST_REFUSED, MOST_UNAVAILABLE, read_in_halves
from spotconn.accounts import SpotifyAccounts
from support.bulk import add_connections

TOO_LARGE = """
create function public.too_large() returns boolean language plpgsql as $$
begin raise program_limit_exceeded; end $$;
create policy too_large on public.spotify_connections as restrictive for select to spotconn
using (display_name is distinct from 'too large' or public.too_large())
"""
"""Raises for a row what the server does where one of its columns, or all of them together, exceed a gigabyte."""
UNDONE = "drop policy too_large on public.spotify_connections; drop function public.too_large()"


@pytest.fixture
async def many(store: ConnectionStore, admin: asyncpg.Connection) -> AsyncIterator[list[UUID]]:
    """A batch of users, of whom the owner of the table has written two rows that cannot be read."""
    await add_connections(admin, 200)
    users = [row["user_id"] for row in await admin.fetch("select user_id from public.spotify_connections")]
    await admin.execute(
        "update public.spotify_connections set expires_at = now() + interval '1 hour', "
        "display_name = case when user_id = any($1::uuid[]) then 'too large' end",
        users[:2],
    )
    await admin.execute(TOO_LARGE)
    yield users
    await admin.execute(UNDONE)


async def test_it_takes_no_other_user_from_a_batch(
    store: ConnectionStore, accounts: SpotifyAccounts, many: list[UUID]
) -> None:
    """Of 200 users 198 have their tokens, and the job goes on to its end."""
    async with TokenManager(store, accounts) as tokens:
        answers = {user: answer async for user, answer in tokens.get_valid_tokens(many)}
    assert {user for user, answer in answers.items() if isinstance(answer, StatementRefused)} == set(many[:2])
    assert sum(isinstance(answer, str) for answer in answers.values()) == 198


async def test_it_takes_no_other_user_from_a_list(store: ConnectionStore, many: list[UUID]) -> None:
    """`get_many` has the error in its place."""
    found = await store.get_many(many)
    assert {user for user, one in found.items() if isinstance(one, StatementRefused)} == set(many[:2])
    assert len(found) == 200


async def test_halves_find_one_row_in_few_statements() -> None:
    """Wherever it is among 200, 15 further statements find it, and no error is raised twice."""
    users = [UUID(int=number) for number in range(200)]
    for bad in users[::37]:
        statements = 0

        async def read(some: list[UUID], bad: UUID = bad) -> list[asyncpg.Record]:
            nonlocal statements
            statements += 1
            if bad in some:
                raise StatementRefused("54000", "too large")
            return []

        _, errors = await read_in_halves(read, users)
        assert list(errors) == [bad]
        assert statements <= 17


@pytest.mark.parametrize(
    ("error", "most"),
    [
        (StatementRefused("P0001", "by a trigger, for all"), MOST_REFUSED + 1),
        (DatabaseUnavailable("53200", answered=True), MOST_UNAVAILABLE),
        (DatabaseUnavailable("away"), 1),
    ],
)
async def test_what_concerns_all_ends_soon(error: StatementRefused | DatabaseUnavailable, most: int) -> None:
    """A refusal of every row, a server short of something and one that is away cost few statements."""
    statements = 0

    async def read(_some: list[UUID]) -> list[asyncpg.Record]:
        nonlocal statements
        statements += 1
        raise error

    with pytest.raises(type(error)):
        await read_in_halves(read, [UUID(int=number) for number in range(200)])
    assert statements == most
