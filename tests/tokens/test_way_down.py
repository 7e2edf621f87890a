"""A call goes down through the rooms and comes back once: no lower room calls into a higher one."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from uuid import UUID

import pytest

from spotconn import ConnectionStore, SpotifyAccounts, TokenManager
from spotconn.testing import FakeSpotify
from support.connections import connect

FLOORS = (
    ("spotconn.manager",),
    ("spotconn._tokens",),
    ("spotconn.store", "spotconn.accounts"),
    ("spotconn._database", "spotconn._spotify"),
)
RETRIED = {"_as_value -> SpotifyAccounts._request_grant"}
"""The one that there is: what repeats a request calls it, as tenacity does."""


def floor(frame: FrameType) -> int | None:
    """Return the floor of a function, or None if it is in none of these rooms."""
    name: str = frame.f_globals.get("__name__", "")
    return next((n for n, rooms in enumerate(FLOORS) if name.startswith(rooms)), None)


@contextmanager
def traced() -> Generator[tuple[set[int], set[str]]]:
    """Collect the floors that are visited, and the calls from a floor into a higher one."""
    visited, climbs = set[int](), set[str]()

    def look(frame: FrameType, event: str, _: object) -> None:
        if event != "call" or (here := floor(frame)) is None:
            return
        visited.add(here)
        caller = frame.f_back
        while caller is not None and floor(caller) is None:
            caller = caller.f_back
        if caller is not None and (floor(caller) or 0) > here:
            climbs.add(f"{caller.f_code.co_qualname} -> {frame.f_code.co_qualname}")

    sys.setprofile(look)
    try:
        yield visited, climbs
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize(
    ("ttl", "cached", "floors"),
    [(3600, True, {0}), (3600, False, {0, 1, 3}), (-1, False, {0, 1, 2, 3}), (100, False, {0, 1, 2, 3})],
    ids=["cached", "cold", "expired", "refreshed in the background"],
)
async def test_a_call_goes_down(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID, ttl: float, cached: bool,  # noqa: FBT001
    floors: set[int],
) -> None:  # fmt: skip
    """The floors are manager, _tokens, store and accounts, _database and _spotify."""
    store.changes = None
    await connect(store, spotify, user, ttl=ttl)
    async with TokenManager(store, accounts) as tokens:
        if cached:
            await tokens.get_valid_token(user)
        with traced() as (visited, climbs):
            await tokens.get_valid_token(user)
            for flight in list(tokens._source.refreshes._flights.values()):
                await flight.task
    assert climbs <= RETRIED
    assert visited == floors
