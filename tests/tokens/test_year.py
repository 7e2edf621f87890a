"""A simulated year of a thousand users: connects, refreshes, letters, ends, refusals, a rotated secret, another app.

Twelve months of five steps each. Every other month each user has three calls for a token, one of which is after the
hour that a token lasts. The daily job of the guide runs at each step, once a month on two hosts at once, and prune at
the end of each month. The clocks of the manager, of the simulated Spotify and of the database are stepped together.
"""

from collections import Counter
from collections.abc import Callable
from datetime import timedelta

import asyncpg
import pytest

from remind_users import LETTERS
from spotconn import ConnectionStats, events
from support.database import Database
from support.printed_tables import YEAR
from support.year import (
    DELETES,
    DISCONNECTS,
    MONTHS,
    NEVER,
    NEW_APP,
    OLD_APP,
    REVOKES,
    SILENT,
    START,
    STEP,
    STEPS,
    Person,
    Year,
)

WEEK, MONTH = LETTERS
ROTATED, CHANGED, RETIRED = 4, 6, 10
"""The months in which the client secret, the app of new connections and the apps in use change."""
REVOKED, DISCONNECTED, DELETED, RETURNED = 7, 7, 8, 9
"""The months in which users revoke their consent, disconnect and delete their accounts; half of the first come back."""

EXPECTED = {
    "users": 1_000,
    "connected, first": 1_000,
    "connected, again": 895,
    "calls: expired": 110,
    "calls: not connected": 85,
    "calls: other_app": 173,
    "calls: revoked": 501,
    "calls: token": 11_094,
    "event Connected": 385,
    "refreshed with old-app": 2_502,
    "refreshed with new-app": 1_002,
    "ended by Spotify: expired": 74,
    "event Disconnected": 50,
    "ended by Spotify: revoked": 39,
    "users with 1 letters": 416,
    "letters a week before": 325,
    "letters a month before": 995,
    "authorizations with two letters": 325,
    "users with 2 letters": 410,
    "users with 3 letters": 28,
    "users with 0 letters": 146,
    "pruned: expired": 17,
    "pruned: revoked": 18,
    "pruned: invalid": 0,
    "pruned: retired_app": 50,
    "connected at the end": 815,
    "of new-app": 775,
    "of old-app": 40,
}
"""What the year brings; no call meets the rotated secret, and no event tells of it."""


async def live(year: Year, month: int) -> None:
    """One month of the service."""
    people = year.people.values()
    for step in range(STEPS):
        await year.step()
        if step == 0:
            await _begin(year, month)
        now = month * STEPS + step
        await year.connect([one for one in people if one.returns or one.first_step == now])
        await year.call([one for one in people if one.is_connected and _is_called(one, now)])
        await year.write_letters(hosts=2 if step == 0 else 1)
    for person in await year.prune(retired=[OLD_APP] if month >= RETIRED else []):
        assert year.now - person.last_token >= timedelta(days=90)
        assert person.habit == SILENT or person.answer in {"expired", "revoked", "other_app"}
        person.is_connected = False
        await year.call([person])
        assert person.answer == "not connected"


async def _begin(year: Year, month: int) -> None:
    """Do what happens once, at the beginning of a month."""
    if month == ROTATED:
        year.rotate_secret()
    for person in [*year.people.values()]:
        if month == REVOKED and person.habit == REVOKES:
            year.spotify.revoke(person.account)
        elif (month, person.habit) in {(DISCONNECTED, DISCONNECTS), (DELETED, DELETES)}:
            await year.sign_off(person)
        elif month == RETURNED and person.habit == REVOKES and person.number % 40 < 20:
            person.returns = True


def _is_called(person: Person, now: int) -> bool:
    """Every other month; who was refused before the time at each step, as by a job that goes through all users."""
    is_due = (person.number - now) % (2 * STEPS) == 0
    return person.habit != SILENT and (is_due or person.answer == "revoked")


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_a_year(
    database: Database, admin: asyncpg.Connection, record_property: Callable[[str, object], None]
) -> None:
    """Nobody gets more than two letters about one authorization, and who lets it end got both in time; every token is
    accepted, and no call ends otherwise than with a token or with "connect again"; what is pruned was dead for 90 days.
    """
    year = Year(database.dsn, admin, database.admin_dsn)
    async with year.opened():
        for first, last, service in (
            (0, CHANGED, year.service(OLD_APP)),
            (CHANGED, RETIRED, year.service(NEW_APP, other=OLD_APP)),
            (RETIRED, MONTHS, year.service(NEW_APP, retired=OLD_APP)),
        ):
            async with service:
                for month in range(first, last):
                    await live(year, month)
        stats = await year.house.stats()
    about_one = [letters for person in year.people.values() for letters in person.letters.values()]
    for letters in about_one:
        assert timedelta() < letters[-1] <= MONTH
        assert len(letters) == 1 or (letters[0] > WEEK >= letters[1] and len(letters) == 2)
    retired = START + STEP * STEPS * RETIRED  # from then on, prune takes what would have ended later
    ended = [
        letters
        for person in year.people.values() if person.habit in {NEVER, SILENT}
        for end, letters in person.letters.items() if end <= retired
    ]  # fmt: skip
    assert {len(letters) for letters in ended} == {2}
    counts = counted(year, stats)
    for kind, count in counts.items():
        record_property(YEAR, (kind, f"{count:,}"))
    assert counts == EXPECTED


def counted(year: Year, stats: ConnectionStats) -> dict[str, int]:
    """All that has happened, by kind."""
    kinds: Counter[str] = Counter({"users": len(year.people)})
    kinds.update({f"connected, {which}": count for which, count in year.connects.items()})
    kinds.update({f"calls: {answer}": count for answer, count in sorted(year.answers.items())})
    for event in year.told:
        match event:
            case events.ReauthorizationRequired():
                kinds[f"ended by Spotify: {event.reason}"] += 1
            case events.Refreshed():
                kinds[f"refreshed with {event.client_id}"] += 1
            case _:
                kinds[f"event {type(event).__name__}"] += 1
    for person in year.people.values():
        letters = [before for about in person.letters.values() for before in about]
        kinds[f"users with {len(letters)} letters"] += 1
        kinds["letters a week before"] += sum(before <= WEEK for before in letters)
        kinds["letters a month before"] += sum(before > WEEK for before in letters)
        kinds["authorizations with two letters"] += sum(len(about) == 2 for about in person.letters.values())
    kinds.update({f"pruned: {reason}": count for reason, count in year.pruned.items()})
    kinds["connected at the end"] = stats.connections
    kinds.update({f"of {app}": count for app, count in stats.by_app.items()})
    return dict(kinds)
