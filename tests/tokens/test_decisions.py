"""Every combination of row, lease, failure and freshness, and the one thing that is done about each."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
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
from spotconn.models import fingerprint
from spotconn.testing import FakeSpotify
from support.connections import connect
from support.memory_database import Row, State, apps_to_try, decide

FRESHNESS = {"fresh": 3600, "stale": 60, "in the margin": 10, "expired": -60}
"""Seconds that the stored token is still good for; the window is 300 seconds and the margin 30."""
LEASES = {"none": None, "live": (-10, 300), "lapsed": (-20, -1), "void": (300, 600)}
"""Seconds from now at which the lease has begun and at which it ends. Void: the clock was set back meanwhile."""
FAILURES = {
    "none": None,
    "unavailable, due": ("unavailable", -20, -1),
    "unavailable, waiting": ("unavailable", -20, 300),
    "refused, due": ("revoked", -20, -1),
    "refused, waiting": ("invalid", -20, 300),
    "refused, void": ("invalid", 300, 600),
    "refused, final": ("expired", -20, None),
}
"""What is recorded, and the seconds from now at which that was and until which it counts."""
GRANTED = {"long ago": -3000, "lately": -10, "never": None, "ahead": 300}
"""Seconds from now at which Spotify has granted the stored access token."""
OWN, FURTHER, FOREIGN = "demo-client", "app-b", "app-c"
APPS = {
    "own": (OWN, ()),
    "foreign": (FOREIGN, ()),
    "unknown": (None, ()),
    "unknown, refused by the own": (None, (OWN,)),
    "unknown, refused by a foreign": (None, (FOREIGN,)),
}
"""The app that a refresh token was issued to and, where that is not known, those with which Spotify has refused it."""
CALLERS: dict[str, tuple[str, ...]] = {"of any app": (), "of one app": (OWN,), "of two apps": (OWN, FURTHER)}
"""The apps of a process, as it names them to begin_refresh."""


@dataclass(frozen=True)
class Case:
    freshness: str
    of_this_token: bool
    lease: str
    failure: str
    granted: str
    app: str = "own"

    def state(self, connection: Connection, now: float) -> State:
        """What is known of the refresh token of a row, or of another one."""
        state = State(fingerprint(connection.texts.refresh_token if self.of_this_token else "another"))
        state.client_id, state.refused_by = APPS[self.app]
        if (lease := LEASES[self.lease]) is not None:
            state.lease_id = UUID(int=1)
            state.leased_at, state.lease_until = now + lease[0], now + lease[1]
        if (failure := FAILURES[self.failure]) is not None:
            state.failure, paused, until = failure
            state.failed_at = state.paused_at = now + paused
            state.retry_at = None if until is None else now + until
        if (granted := GRANTED[self.granted]) is not None:
            state.granted_at = now + granted
        return state

    def outcome(self, connection: Connection, now: float, seen: str, client_ids: tuple[str, ...] = ()) -> Outcome:
        """What the database must decide."""
        row = Row("", connection.texts.access_token, "", now + FRESHNESS[self.freshness], None)
        state = self.state(connection, now) if self.of_this_token else None
        return Outcome(decide(row, state, seen, client_ids or None, now)[0])

    def error(self, outcome: Outcome) -> type[SpotconnError] | None:
        """What a caller must hear who asks for any token; None for a token."""
        if self.freshness in {"fresh", "stale"}:
            return None
        return {
            Outcome.REFUSED: ReauthorizationRequired,
            Outcome.PAUSED: SpotifyUnavailable,
            Outcome.BUSY: RefreshInProgress,
        }.get(outcome)

    def calls(self, outcome: Outcome) -> int:
        """How often Spotify must be asked, in the background or not."""
        return int(self.freshness != "fresh" and outcome is Outcome.GRANTED)


def cases() -> Iterator[Case]:
    for case in product(FRESHNESS, (True, False), LEASES, FAILURES, GRANTED):
        yield Case(*case)


async def arrange(admin: asyncpg.Connection, connection: Connection, case: Case) -> None:
    """Write lease and failure beside a row, whose access token is as good from now on as the case has it."""
    now = time.time()
    state = case.state(connection, now)
    await admin.execute(
        "update public.spotify_connections set expires_at = $2 where user_id = $1",
        connection.user_id,
        moment(now + FRESHNESS[case.freshness]),
    )
    await admin.execute(
        "insert into spotconn.refresh_state as state (user_id, fingerprint, lease_id, leased_at, lease_until, failure, "
        "failed_at, paused_at, retry_at, granted_at, client_id, refused_by) "
        "values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) "
        "on conflict (user_id) do update set fingerprint = $2, lease_id = $3, leased_at = $4, lease_until = $5, "
        "failure = $6, failed_at = $7, paused_at = $8, retry_at = $9, granted_at = $10, client_id = $11, "
        "refused_by = $12",
        connection.user_id,
        bytes.fromhex(state.fingerprint),
        state.lease_id,
        moment(state.leased_at),
        moment(state.lease_until),
        state.failure,
        moment(state.failed_at),
        moment(state.paused_at),
        moment(state.retry_at),
        moment(state.granted_at),
        state.client_id,
        list(state.refused_by),
    )


def moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


@pytest.mark.timeout(120)
async def test_each_combination_has_one_outcome(
    store: ConnectionStore, spotify: FakeSpotify, user: UUID, admin: asyncpg.Connection
) -> None:
    """begin_refresh decides each as the database of the order tests, and no second caller gets what one has."""
    met = set[Outcome]()
    for freshness, ttl in FRESHNESS.items():
        stored = await connect(store, spotify, user, ttl=ttl)
        for case, seen in product(cases(), (stored.fingerprint, fingerprint("another"))):
            if case.freshness != freshness:
                continue
            await arrange(admin, stored, case)
            expected = case.outcome(stored, time.time(), seen)
            first = await store.begin_refresh(user, seen=seen)
            assert first.outcome is expected, (case, seen)
            assert first.connection is not None
            assert first.connection.access_token == stored.access_token
            if expected is Outcome.GRANTED:
                opinion = case.of_this_token and case.failure.startswith("refused")  # nobody waits for a second one
                second = Outcome.REFUSED if opinion else Outcome.BUSY
                assert (await store.begin_refresh(user, seen=seen)).outcome is second, (case, seen)
            met.add(expected)
    await store.delete(user)
    met.add((await store.begin_refresh(user, seen=fingerprint("another"))).outcome)
    assert met == set(Outcome) - {Outcome.OTHER_APP}


@pytest.mark.long
@pytest.mark.timeout(120)
async def test_each_combination_with_an_app_has_one_outcome(
    store: ConnectionStore, spotify: FakeSpotify, user: UUID, admin: asyncpg.Connection
) -> None:
    """Whoever has the app refreshes with it; where it is not known, with those that Spotify has not refused."""
    met = set[Outcome]()
    for freshness, ttl in FRESHNESS.items():
        stored = await connect(store, spotify, user, ttl=ttl)
        for lease, failure, app, client_ids in product(LEASES, FAILURES, APPS, CALLERS.values()):
            case = Case(freshness, True, lease, failure, "long ago", app)  # noqa: FBT003
            await arrange(admin, stored, case)
            expected = case.outcome(stored, time.time(), stored.fingerprint, client_ids)
            turn = await store.begin_refresh(user, seen=stored.fingerprint, client_ids=client_ids)
            assert turn.outcome is expected, (case, client_ids)
            assert turn.connection is not None
            assert turn.connection.client_id == APPS[app][0]
            state = case.state(stored, time.time())
            named = apps_to_try(state, client_ids or None) if expected is Outcome.GRANTED else None
            assert turn.client_ids == tuple(named or ()), (case, client_ids)
            if expected is Outcome.OTHER_APP:
                leased = await admin.fetchval("select lease_id from spotconn.refresh_state where user_id = $1", user)
                assert leased == state.lease_id, (case, client_ids)
            met.add(expected)
    assert met == set(Outcome) - {Outcome.GONE, Outcome.SUPERSEDED, Outcome.JUST_SAVED}


@pytest.mark.timeout(120)
@pytest.mark.long
@pytest.mark.parametrize("granted", ["long ago", "lately"])
async def test_each_combination_gives_a_good_token_or_one_error(
    store: ConnectionStore,
    accounts: SpotifyAccounts,
    spotify: FakeSpotify,
    user: UUID,
    admin: asyncpg.Connection,
    granted: str,
) -> None:
    """A token is one that Spotify accepts and that has not expired; Spotify is asked only where it must be."""
    for case in cases():
        if case.granted != granted:
            continue
        stored = await connect(store, spotify, user, ttl=FRESHNESS[case.freshness])
        await arrange(admin, stored, case)
        outcome = case.outcome(stored, time.time(), stored.fingerprint)
        calls = spotify.token_calls
        got: str | type[SpotconnError]
        in_vain = case.error(outcome) is RefreshInProgress
        async with TokenManager(store, accounts, refresh_timeout=0.2 if in_vain else 10) as tokens:
            try:
                got = await tokens.get_valid_token(user)
            except SpotconnError as error:
                got = type(error)
            if in_background := tokens._source.refreshes.tasks:
                await asyncio.wait(in_background)
        if isinstance(got, str):
            assert case.error(outcome) is None, case
            assert spotify.accepts(got), case
            keeps = case.freshness in {"fresh", "stale"} or outcome is Outcome.JUST_SAVED
            assert (got == stored.access_token) == keeps, case
        else:
            assert got is case.error(outcome), case
        assert spotify.token_calls - calls == case.calls(outcome), case
