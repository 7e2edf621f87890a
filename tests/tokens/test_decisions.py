"""Every combination of row, lease, failure and freshness, and the one thing that is done about each."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import product
from uuid import UUID

import asyncpg
import pytest

from spotconn import (
    Connection,
    ConnectionStore,
    Outcome,
    ReauthorizationRequired,
    RefreshInProgress,
    SpotconnError,
    SpotifyAccounts,
    SpotifyUnavailable,
    TokenManager,
)
from spotconn.testing import FakeSpotify
from support.connections import connect

FRESHNESS = {"fresh": 3600, "stale": 60, "in the margin": 10, "expired": -60}
"""Seconds that the stored token is still good for; the window is 300 seconds and the margin 30."""
LEASES = ("none", "live", "lapsed")
FAILURES = ("none", "due", "waiting", "expired", "revoked", "invalid")
TERMINAL = ("expired", "revoked", "invalid")
SEEN = {"older": 1, "equal": 0, "newer": -1}
"""What the row is against what the caller has seen, and the seconds from the row's version to that."""


@dataclass(frozen=True)
class Case:
    freshness: str
    of_this_version: bool
    lease: str
    failure: str

    @property
    def usable(self) -> bool:
        return self.freshness in {"fresh", "stale"}

    def outcome(self, *, newer: bool) -> Outcome:
        """What the database must decide."""
        if newer:
            return Outcome.SUPERSEDED
        if self.of_this_version and self.failure in {"waiting", *TERMINAL}:
            return Outcome.BLOCKED
        if self.of_this_version and self.lease == "live":
            return Outcome.BUSY
        return Outcome.GRANTED

    def error(self) -> type[SpotconnError] | None:
        """What a caller must hear; None for a token."""
        if self.usable:
            return None
        match self.outcome(newer=False):
            case Outcome.BLOCKED:
                return ReauthorizationRequired if self.failure in TERMINAL else SpotifyUnavailable
            case Outcome.BUSY:
                return RefreshInProgress
            case _:
                return None

    def calls(self) -> int:
        """How often Spotify must be asked, in the background or not."""
        return int(self.freshness != "fresh" and self.outcome(newer=False) is Outcome.GRANTED)


def cases() -> Iterator[Case]:
    for case in product(FRESHNESS, (True, False), LEASES, FAILURES):
        yield Case(*case)


async def arrange(admin: asyncpg.Connection, connection: Connection, case: Case) -> None:
    """Write lease and failure beside a row."""
    now = datetime.now(UTC)
    other = connection.expires_at - timedelta(hours=1)
    lease_id = None if case.lease == "none" else UUID(int=1)
    lease_until = {"none": None, "live": now + timedelta(minutes=5), "lapsed": now - timedelta(seconds=1)}[case.lease]
    failure = {"none": None, "due": "unavailable", "waiting": "unavailable"}.get(case.failure, case.failure)
    retry_at = {"due": now - timedelta(seconds=1), "waiting": now + timedelta(minutes=5)}.get(case.failure)
    await admin.execute(
        "insert into spotconn.refresh_state (user_id, version, lease_id, lease_until, failure, failed_at, retry_at) "
        "values ($1, $2, $3, $4, $5, $6, $7)",
        connection.user_id,
        connection.expires_at if case.of_this_version else other,
        lease_id,
        lease_until,
        failure,
        failure and now,
        retry_at,
    )


async def test_each_combination_has_one_outcome(
    store: ConnectionStore, spotify: FakeSpotify, user: UUID, admin: asyncpg.Connection
) -> None:
    """begin_refresh decides each as the table says, and no second caller is granted what one has."""
    met = 0
    for case, (seen, seconds) in product(cases(), SEEN.items()):
        stored = await connect(store, spotify, user, ttl=FRESHNESS[case.freshness])
        await arrange(admin, stored, case)
        version = stored.expires_at + timedelta(seconds=seconds)
        first = await store.begin_refresh(user, seen=version)
        second = await store.begin_refresh(user, seen=version)
        expected = case.outcome(newer=seen == "newer")
        assert first.outcome is expected, (case, seen)
        assert second.outcome is (Outcome.BUSY if expected is Outcome.GRANTED else expected), (case, seen)
        assert first.lapsed == (expected is Outcome.GRANTED and case.of_this_version and case.lease == "lapsed"), case
        assert first.connection is not None
        assert first.connection.access_token == stored.access_token
        met += 1
    assert met == 4 * 2 * 3 * 6 * 3
    await store.delete(user)
    assert (await store.begin_refresh(user, seen=datetime.now(UTC))).outcome is Outcome.GONE


@pytest.mark.timeout(120)
async def test_each_combination_gives_a_good_token_or_one_error(
    store: ConnectionStore, accounts: SpotifyAccounts, spotify: FakeSpotify, user: UUID, admin: asyncpg.Connection
) -> None:
    """A token is one that Spotify accepts and that has not expired; Spotify is asked only where it must be."""
    met = 0
    for case in cases():
        stored = await connect(store, spotify, user, ttl=FRESHNESS[case.freshness])
        await arrange(admin, stored, case)
        calls = spotify.token_calls
        got: str | type[SpotconnError]
        in_vain = case.error() is RefreshInProgress
        async with TokenManager(store, accounts, refresh_timeout=0.4 if in_vain else 10) as tokens:
            try:
                got = await tokens.get_valid_token(user)
            except SpotconnError as error:
                got = type(error)
        if isinstance(got, str):
            assert case.error() is None, case
            assert spotify.accepts(got), case
            assert (got == stored.access_token) == case.usable, case
        else:
            assert got is case.error(), case
        assert spotify.token_calls - calls == case.calls(), case
        met += 1
    assert met == 4 * 2 * 3 * 6
