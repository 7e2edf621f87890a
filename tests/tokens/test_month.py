"""What a process holds does not grow: a simulated month of users who come and go, with faults of all kinds."""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import asyncpg
import pytest

from spotconn._database import decryptions, refreshes
from spotconn._spotify import app_refusals, circuit_breaker
from spotconn._tokens import local_backoff, refusal_wave, request_budget, web_answers
from support.consent import SCOPES
from support.database import Database
from support.loops import SteppedLoop
from support.month import CACHED, Month
from support.tables import Sizes, tables

BOUNDS = {
    "._backoffs": local_backoff.MOST_BACKOFFS,
    "._budget._spent_until": request_budget.MOST_USERS,
    "._wave._answers": refusal_wave.MOST_ANSWERS,
    "._wave._answers[]": 3 * refusal_wave.MOST_ANSWERS,
    "._backoffs[].about": 2 * local_backoff.MOST_BACKOFFS,
    ".answers._known": web_answers.MOST_KNOWN,
    ".answers._known[]": 2 * web_answers.MOST_KNOWN,
    ".refreshes._unanswered": refreshes.MOST_UNANSWERED,
    ".decryptions._failed": decryptions.MOST_USERS,
    ".decryptions._succeeded": decryptions.MOST_USERS,
    "._circuit_breaker._refused": circuit_breaker.MOST_REFUSED,
    "._users": 2 * app_refusals.MOST_USERS,
    "entries[].scope": len(SCOPES) * sum(CACHED.values()),
}
"""Tables that lose an entry only for another one, by the end of the way to them: they grow up to this number."""
OTHERS = ("._Held", ".Backoff", "spotconn.errors.", "pgproto.UUID", "asyncio.events.")
"""In the classes of the objects that those tables hold, and of timers that are cancelled."""
BLOCKS = 4
"""Of memory for each entry of those tables: the id with its number, and a time."""
SLACK, FEW = 1.1, 10
"""How much more there may be than before, of what differs from day to day: what grows by one a day is seen in 15."""


def live(database: Database, days: int, *, steps: int) -> tuple[list[Sizes], Counter[str]]:
    """What the process holds at the end of each day, and what came of the calls."""

    async def lived() -> tuple[list[Sizes], Counter[str]]:
        admin = await asyncpg.connect(database.admin_dsn)
        try:
            month = Month(database, admin, steps=steps)
            async with month.opened():
                return [await month.day(number) for number in range(days)], month.outcomes
        finally:
            await admin.close(timeout=10)

    with asyncio.Runner(loop_factory=SteppedLoop) as runner:
        return runner.run(lived())


def grown(before: Iterable[Mapping[str, int]], after: Iterable[Mapping[str, int]]) -> dict[str, tuple[int, int]]:
    """What is larger than it was on any of the days before, with both numbers."""
    least, most = _largest(before), _largest(after)
    return {name: (least[name], number) for name, number in most.items() if number > SLACK * least[name] + FEW}


def _largest(days: Iterable[Mapping[str, int]]) -> Counter[str]:
    largest: Counter[str] = Counter()
    for day in days:
        largest |= Counter(day)
    return largest


def bound_of(table: str) -> int:
    """The number up to which a table may grow."""
    return next((bound for end, bound in BOUNDS.items() if table.endswith(end)), 0)


def check(days: Sequence[Sizes], outcomes: Counter[str], *, first: slice, last: slice) -> None:
    """Nothing has grown from some days to others, nor over its bound."""
    held = grown((day.tables for day in days[first]), (day.tables for day in days[last]))
    assert not {name: numbers for name, numbers in held.items() if numbers[1] > bound_of(name)}
    assert not [name for name, number in days[-1].tables.items() if number > (bound_of(name) or number)]
    made = grown((day.objects for day in days[first]), (day.objects for day in days[last]))
    assert not {name: numbers for name, numbers in made.items() if not any(part in name for part in OTHERS)}
    seen = outcomes.keys()
    assert seen >= {"token", "job", "Refreshed", "ReauthorizationRequired", "RefreshFailed", "AppRefused", "Connected"}
    assert seen >= {"NotConnected", "DatabaseUnavailable", "DecryptionError", "SpotifyUnavailable", "Disconnected"}
    assert any(name.endswith("refresher.saved._grants") for name in days[-1].tables), "the tables were not found"


def print_tables(days: Sequence[Sizes], outcomes: Counter[str]) -> None:
    print(dict(outcomes.most_common()))
    for name in sorted(days[-1].tables):
        numbers = [day.tables[name] for day in days]
        if max(numbers) != min(numbers) and "spotconn." not in name:
            print(f"{name}: {numbers}")
    print("blocks:", [day.blocks for day in days])


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_a_month(prepared: Database, caplog: pytest.LogCaptureFixture) -> None:
    """After half a month every table has its size; what Python has allocated does not grow either."""
    caplog.set_level(logging.CRITICAL)  # what is caught takes memory
    days, outcomes = live(prepared, 30, steps=16)
    print_tables(days, outcomes)
    check(days, outcomes, first=slice(11, 15), last=slice(26, 30))
    before, after = days[14], days[29]
    assert after.blocks < 1.01 * before.blocks + BLOCKS * (in_bounds(after) - in_bounds(before))


def in_bounds(day: Sizes) -> int:
    """The entries of the tables that may grow up to a bound."""
    return sum(number for name, number in day.tables.items() if bound_of(name) and "[]" not in name)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_some_days(prepared: Database, caplog: pytest.LogCaptureFixture) -> None:
    """The same, for four days of fewer steps: what grows with each is seen, as long as it is no table with a bound."""
    caplog.set_level(logging.CRITICAL)
    days, outcomes = live(prepared, 4, steps=8)
    print_tables(days, outcomes)
    check(days, outcomes, first=slice(1, 2), last=slice(3, 4))


def test_a_table_is_found_wherever_it_is() -> None:
    """In attributes, in the entries of other tables and in modules; also the cache of a function."""
    found = tables(wave=refusal_wave.RefusalWave(), several=[local_backoff.LocalBackoffs()])
    assert {"wave._answers", "several[]._backoffs", "spotconn._affinity:_forks.carriers"} <= found.keys()
    assert "spotconn._database.host_search:_order" in found
