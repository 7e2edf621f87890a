"""One Chromium and one profile app for all tests of a worker that need no other."""

from collections.abc import Iterator
from uuid import UUID

import asyncpg
import pytest

from support.browser import check_complaints, chromium_running, profile_app_running
from support.database import Database

USERS = {name: UUID(int=number) for number, name in enumerate(("alice", "bob", "carol"), 1)}


@pytest.fixture(scope="session")
def shared_chromium() -> Iterator[str]:
    """The address of a Chromium, for `connected_to`."""
    with chromium_running() as address:
        yield address


@pytest.fixture(scope="session")
def shared_profile_app(prepared: Database) -> Iterator[str]:
    """The URL of the app, where Alice and Bob may sign in."""
    names = [f"{name}={USERS[name]}" for name in ("alice", "bob")]
    with profile_app_running(*names, settings={"DATABASE_URL": prepared.dsn}) as (url, complaints):
        yield url
        check_complaints(complaints.read_text())


@pytest.fixture
async def users_of_profile_app(admin: asyncpg.Connection) -> list[UUID]:
    """The users that the app knows, and a third, without a connection."""
    await admin.executemany(
        "insert into auth.users (id, email) values ($1, $2)", [(user, name) for name, user in USERS.items()]
    )
    return list(USERS.values())
