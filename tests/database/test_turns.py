"""Who may refresh: every answer of `spotconn.begin_refresh`, against a plain function, at a clock that stands still."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import product
from typing import NamedTuple

import asyncpg
import pytest

from spotconn import Outcome
from support.database import Database
from support.database_clock import database_clock

NOW = datetime(2027, 3, 28, 0, 59, 30, tzinfo=UTC)
ZONE = "Europe/Berlin"
"""Of the sessions: the day from now on has 23 hours there."""
LEASE = 15.0
MINUTE = 60.0


class Span(NamedTuple):
    """From when until when, in seconds from now; with no end: for good."""

    since: float
    until: float | None


ENDS: dict[str, tuple[str, bool]] = {
    "not ended": (f"{NOW + timedelta(hours=1)}", False),
    "not ended, by a microsecond": (f"{NOW + timedelta(microseconds=1)}", False),
    "in a day": (f"{NOW + timedelta(days=1)}", False),
    "ended": (f"{NOW - timedelta(seconds=1)}", True),
    "ended just now": (f"{NOW}", True),
    "infinite": ("infinity", True),
    "infinitely past": ("-infinity", True),
    "before 2000": ("1999-12-31 23:59:59.999999+00", True),
    "the first day": ("0001-01-01 00:00+00", True),
    "the last microsecond": ("9999-12-31 23:59:59.999999+00", True),
    "over a day ahead": (f"{NOW + timedelta(days=1, microseconds=1)}", True),
}
"""Of the access token, and whether that counts as ended."""
LEASES: dict[str, Span | None] = {
    "none": None,
    "live": Span(-5, 10),
    "acquired before a small step back": Span(0.5, 15.5),
    "run out": Span(-15, 0),
    "with more left than its length": Span(600, 615),
}
FAILURES: dict[str, tuple[str, Span] | None] = {
    "none": None,
    "unavailable, due": ("unavailable", Span(-20, 0)),
    "unavailable, not due": ("unavailable", Span(-20, 40)),
    "unavailable, of a clock that was set back": ("unavailable", Span(600, 640)),
    "refused, final": ("revoked", Span(-20, None)),
    "expired, final": ("expired", Span(600, None)),
    "refused, due": ("revoked", Span(-3600, -1)),
    "refused, not due": ("invalid", Span(-20, 3580)),
    "refused, of a clock that was set back": ("invalid", Span(600, 4200)),
}
GRANTED: dict[str, float | None] = {
    "never": None,
    "young": -20,
    "a small step ahead": 0.5,
    "old": -60,
    "ahead": 600,
}
"""When the access token was granted, in seconds from now."""
CALLER = ["app-a", "app-b"]
"""The apps of the process that asks, where it says so."""
APPS: dict[str, tuple[str | None, list[str]]] = {
    "own": ("app-b", []),
    "foreign": ("app-c", []),
    "unknown": (None, []),
    "unknown, refused by one": (None, ["app-a"]),
    "unknown, refused by all": (None, ["app-a", "app-b", "app-c"]),
    "unknown, refused by others": (None, ["app-c"]),
}
"""The app of the refresh token and, where that is not known, those with which Spotify has refused it."""


class Case(NamedTuple):
    """A row and what is recorded; each value by its name."""

    held: bool
    end: str
    state: str
    lease: str = "none"
    failure: str = "none"
    granted: str = "never"
    app: str = "unknown"


def cases() -> Iterator[Case]:
    """Every combination."""
    for held, end in product((True, False), ENDS):
        yield Case(held, end, "none")
        for state, *rest in product(("this", "another"), LEASES, FAILURES, GRANTED):
            yield Case(held, end, state, *rest)


def cases_of_apps() -> Iterator[Case]:
    """Every combination with an app that makes a difference."""
    for held, end in product((True, False), ENDS):
        yield Case(held, end, "none")
    for held, end, *rest in product((True, False), ("not ended", "ended"), LEASES, FAILURES, ("young", "old"), APPS):
        yield Case(held, end, "this", *rest)


def runs(span: Span | None) -> bool:
    """Whether a time still runs. One with more left than its length does not, but for a second."""
    return span is not None and span.until is not None and span.since - 1 <= 0 < span.until


def expected(  # noqa: PLR0911  one for each outcome
    case: Case, caller: list[str] | None = None
) -> tuple[Outcome, float | None]:
    """What the database is to answer, and after how many seconds to ask again."""
    app, refused_by = APPS[case.app] if case.state == "this" else (None, [])
    ended = ENDS[case.end][1]
    known = case.state == "this"
    lease = LEASES[case.lease] if known else None
    reason, pause = (FAILURES[case.failure] if known else None) or (None, None)
    if reason != "unavailable" and app is None and caller is not None and set(caller) - set(refused_by):
        reason, pause = None, None  # what Spotify answered to other apps says nothing of these
    granted = GRANTED[case.granted] if known else None
    young = None if granted is None else Span(granted, granted + MINUTE)
    if not case.held and not ended:
        return Outcome.SUPERSEDED, None
    if reason not in {None, "unavailable"} and (pause is None or pause.until is None or runs(pause) or runs(lease)):
        return Outcome.REFUSED, None
    if case.held and not ended and young is not None and runs(young):
        return Outcome.JUST_SAVED, young.until
    if caller is not None and app not in {None, *caller} and not runs(lease):
        return Outcome.OTHER_APP, None
    if pause is not None and runs(pause):
        return Outcome.PAUSED, pause.until
    if lease is not None and runs(lease):
        return Outcome.BUSY, lease.until
    return Outcome.GRANTED, None


def to_try(case: Case) -> list[str]:
    """The apps with which a turn of `CALLER` is to be used."""
    app, refused_by = APPS[case.app] if case.state == "this" else (None, [])
    if app is not None:
        return [app]
    return [one for one in CALLER if one not in refused_by] or CALLER


_CONNECT = """
with added as (insert into auth.users (id) select unnest($1::uuid[]))
insert into public.spotify_connections (user_id, spotify_user_id, access_token, refresh_token, expires_at)
select id, 'account', 'access', 'refresh', ends::timestamptz from unnest($1::uuid[], $2::text[]) as row (id, ends)
"""
_RECORD = """
insert into spotconn.refresh_state (
    user_id, fingerprint, lease_id, leased_at, lease_until, failure, failed_at, paused_at, retry_at, granted_at,
    client_id, refused_by
)
select id, fingerprint, case when leased_at is not null then gen_random_uuid() end, leased_at, lease_until, failure,
    case when failure is not null then paused_at end, paused_at, retry_at, granted_at, client_id,
    string_to_array(refused_by, ' ')
from unnest(
    $1::uuid[], $2::bytea[], $3::timestamptz[], $4::timestamptz[], $5::text[], $6::timestamptz[], $7::timestamptz[],
    $8::timestamptz[], $9::text[], $10::text[]
) as row (id, fingerprint, leased_at, lease_until, failure, paused_at, retry_at, granted_at, client_id, refused_by)
"""
_BEGIN = """
select number, turn.outcome, turn.retry_after, turn.lease_id, turn.lease_until, turn.client_ids,
    (turn.connection).remaining
from unnest($1::uuid[], $2::bytea[]) with ordinality as asked (id, seen, number),
    lateral spotconn.begin_refresh(asked.id, asked.seen, $3, $4) as turn
order by number
"""


def digest(text: str) -> bytes:
    return sha256(text.encode()).digest()


def moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else NOW + timedelta(seconds=seconds)


def state_of(case: Case) -> tuple[object, ...]:
    """The arguments of `_RECORD`, without the user."""
    lease = LEASES[case.lease] or (None, None)
    reason, pause = FAILURES[case.failure] or (None, (None, None))
    times = [moment(seconds) for seconds in (*lease, *pause, GRANTED[case.granted])]
    app, refused_by = APPS[case.app]
    name = digest("refresh" if case.state == "this" else "replaced")
    return name, *times[:2], reason, *times[2:], app, " ".join(refused_by)


async def test_every_turn_is_the_one_of_the_plain_function(database: Database, admin: asyncpg.Connection) -> None:
    """Row, access token, lease, failure and grant in all combinations; a granted lease lasts as long as asked for."""
    every = list(cases())
    turns = await turns_of(every, None, database, admin)
    assert len(turns) == len(every) == 2 * len(ENDS) * (1 + 2 * len(LEASES) * len(FAILURES) * len(GRANTED))
    for case, turn in zip(every, turns, strict=True):
        outcome, after = expected(case)
        assert (Outcome(turn["outcome"]), turn["retry_after"]) == (outcome, after), case
        assert (turn["lease_id"] is not None) is (outcome is Outcome.GRANTED), case
        assert turn["lease_until"] == (moment(LEASE) if outcome is Outcome.GRANTED else None), case
        assert (turn["remaining"] <= 0) is ENDS[case.end][1], case
        assert turn["client_ids"] is None, case
    assert Counter(turn["outcome"] for turn in turns).keys() == {one.value for one in Outcome} - {"gone", "other_app"}


async def test_every_turn_of_an_app_is_the_one_of_the_plain_function(
    database: Database, admin: asyncpg.Connection
) -> None:
    """The app of the refresh token, known or not, and those that Spotify has refused; no lease for who has it not."""
    every = list(cases_of_apps())
    turns = await turns_of(every, CALLER, database, admin)
    for case, turn in zip(every, turns, strict=True):
        outcome, after = expected(case, CALLER)
        assert (Outcome(turn["outcome"]), turn["retry_after"]) == (outcome, after), case
        assert (turn["lease_id"] is not None) is (outcome is Outcome.GRANTED), case
        assert turn["client_ids"] == (to_try(case) if outcome is Outcome.GRANTED else None), case
    assert Counter(turn["outcome"] for turn in turns).keys() == {one.value for one in Outcome} - {"gone"}


async def turns_of(
    every: list[Case], client_ids: list[str] | None, database: Database, admin: asyncpg.Connection
) -> list[asyncpg.Record]:
    """Return the turn of each case, which a user of its own asks for."""
    users = [row[0] for row in await admin.fetch("select gen_random_uuid() from generate_series(1, $1)", len(every))]
    await admin.execute(_CONNECT, users, [ENDS[case.end][0] for case in every])
    recorded = [(user, *state_of(case)) for user, case in zip(users, every, strict=True) if case.state != "none"]
    await admin.execute(_RECORD, *map(list, zip(*recorded, strict=True)))
    seen = [digest("access" if case.held else "another") for case in every]
    session = await asyncpg.connect(database.dsn, server_settings={"timezone": ZONE})
    try:
        async with database_clock(admin) as clock:
            await clock.stop_at(NOW)
            turns = await session.fetch(_BEGIN, users, seen, timedelta(seconds=LEASE), client_ids)
            return list(turns)
    finally:
        await session.close()


LEFT = """
select user_id, fingerprint, lapsed, leased_at, lease_until, failure, granted_at, client_id from spotconn.refresh_state
where user_id = any($1::uuid[])
"""


@pytest.mark.parametrize("known", [True, False])
async def test_a_turn_voids_what_is_known_of_another_refresh_token(
    database: Database, admin: asyncpg.Connection, *, known: bool
) -> None:
    """The state speaks of the stored refresh token from then on, keeps what it knows of that one, and marks a lapse."""
    case = Case(
        held=True, end="ended", state="this" if known else "another",
        lease="run out", failure="refused, due", granted="old", app="own",
    )  # fmt: skip
    user = await admin.fetchval("select gen_random_uuid()")
    await admin.execute(_CONNECT, [user], [ENDS["ended"][0]])
    await admin.execute(_RECORD, *([value] for value in (user, *state_of(case))))
    await admin.execute("update spotconn.refresh_state set saves = 7 where user_id = $1", user)
    session = await asyncpg.connect(database.dsn, server_settings={"timezone": ZONE})
    try:
        async with database_clock(admin) as clock:
            await clock.stop_at(NOW)
            (turn,) = await session.fetch(_BEGIN, [user], [digest("access")], timedelta(seconds=LEASE), None)
    finally:
        await session.close()
    assert turn["outcome"] == "granted"
    (state,) = await admin.fetch(LEFT, [user])
    expected_ = (user, digest("refresh"), known, NOW, moment(LEASE))
    assert tuple(state)[:5] == expected_
    recorded = state["failure"], state["granted_at"], state["client_id"]
    assert recorded == (("revoked", moment(-60), "app-b") if known else (None, None, None))
    assert await admin.fetchval("select saves from spotconn.refresh_state where user_id = $1", user) == 7
