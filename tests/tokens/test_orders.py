"""Every order in which callers of one TokenManager can meet, on an event loop that is driven step by step.

A step is one callback of the loop; callbacks run first in, first out. Between any two of them a caller may arrive or
be cancelled, a statement or a request may end, and a manager may be closed: the walk takes each of these choices, an
order at a time, up to the horizon of its scenario, and from there on the first choice. Callers of one scenario that
are alike arrive in one sequence only: exchanging them changes nothing. A timer fires when nothing else can happen.
"""

import asyncio
import random
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count, islice
from typing import Any

import pytest

from spotconn import (
    DatabaseUnavailable,
    NotConnected,
    ReauthorizationRequired,
    RefreshInProgress,
    SpotconnError,
    SpotifyUnavailable,
    TokenManager,
)
from support.order_harness import (
    OLD,
    USER,
    Asking,
    Caller,
    Fault,
    Operation,
    OrderHarness,
    answer_is_lost,
    answer_to_the_lease_is_lost,
    batch,
    database_is_away,
    disconnect,
    every_other_save_fails,
    faults_of,
    first_and_fourth_save_fail,
    first_request_fails,
    first_save_fails,
    first_saves_fail,
    first_statement_fails,
    job,
    leftovers,
    network_is_away,
    nothing_fails,
    open_manager,
    page,
    reconnect,
    rejected,
    saves_fail_for_long,
    seed,
    shared_errors,
    spotify_is_away,
    spotify_refuses,
    unhappy,
)
from support.stepping_loop import STEP, SteppingLoop, TaskFactory, Trail, Watchdog, samples, trails

LONG, SHORT, STALE, EXPIRED, MISSING = 3500.0, 1000.0, 200.0, -5.0, None
"""Seconds that the stored token is good for: for all, for a page, for a page that refreshes it, for nobody."""
MOST_ORDERS, MOST_ORDERS_IF_LONG = 130, 1200
"""Orders of one scenario. Half of them take the later choices first; of a large scenario, the rest is drawn by lot."""
LONGEST_ORDER = 600
"""Steps; an order that takes more does not end."""
PATIENCE = 80
"""Steps after which a caller that insists takes no for an answer."""

SOME_PAUSES, A_LEASE = 2.0, 18.0
"""Seconds that a few looks at the row take, and those until a lease has run out."""

Errors = tuple[type[Exception], ...]
Option = tuple[str, Callable[[], object]]


@dataclass(frozen=True)
class Scenario:
    """What meets.

    Attributes:
        name: in the name of the test.
        callers: who asks.
        left: seconds that the stored token is good for; None where nothing is stored.
        fault: what fails.
        errors: what a caller may hear.
        happenings: what else comes in, each once and in this sequence: names of methods of `Order`.
        start: how it begins, beside the row: the name of a method of `OrderHarness`.
        run_sync: whether operations are done when they begin, and only their answers wait.
        timers: whether the first timer may fire while an answer is still waited for.
        rotates: whether each refresh replaces the refresh token.
        requests: how often Spotify may be asked.
        loses: whether the refresh token may be lost.
        longest_wait: seconds that a caller may wait for timers.
        exhaustive_steps: the number of steps in which all choices are taken.
    """

    name: str
    callers: tuple[Caller, ...]
    left: float | None
    fault: Fault = nothing_fails
    errors: Errors = ()
    happenings: tuple[str, ...] = ()
    start: str = ""
    run_sync: bool = False
    timers: bool = False
    rotates: bool = True
    requests: int = 1
    loses: bool = False
    longest_wait: float = SOME_PAUSES
    exhaustive_steps: int = LONGEST_ORDER

    def __str__(self) -> str:
        """The name of the scenario."""
        return self.name


class Order:
    """One order of a scenario, followed to its end."""

    def __init__(self, scenario: Scenario, trail: Trail, watchdog: Watchdog, factory: TaskFactory | None) -> None:
        self.loop = SteppingLoop.new(factory)
        self.harness = open_harness(scenario, self.loop.time)
        self._scenario = scenario
        self._trail = trail
        self._watchdog = watchdog
        self._absent = list(scenario.callers)
        self._askings: list[Asking] = []
        self._happenings = list(scenario.happenings)
        self._others: list[asyncio.Task[Any]] = []
        self._ending = self._closed = self._cut = self._silent = False

    def follow(self) -> list[str]:
        """Go through the order; what is wrong in it."""
        seed()
        self._watchdog.arm()
        with self.loop.running():
            self._manager = open_manager(self.harness)
            faults = self._run() or self._aftermath() or self._probe() or self._end()
            if faults:
                self._abandon()
        return faults

    def _abandon(self) -> None:
        """End what a fault has left behind, so that it does not show up in another test."""
        self._ending = True
        for _ in range(LONGEST_ORDER):
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            if not self.loop.is_ready():
                break
            with suppress(Watchdog.StoodStill):
                self.loop.step()

    def _run(self) -> list[str]:
        while options := self._options():
            label, happen = options[self._choice(options)]
            self._trail.note(label)
            happen()
            if self._watchdog.where:
                return [f"the event loop stands still: {self._watchdog.where}"]
            if self.loop.steps > LONGEST_ORDER:
                return ["it goes on without an end"]
        return []

    def _choice(self, options: list[Option]) -> int:
        beyond = self._trail.bounded and self.loop.steps >= self._scenario.exhaustive_steps
        if len(options) == 1 or self._ending or beyond:
            return 0
        return self._trail.choose([label for label, _ in options])

    def _options(self) -> list[Option]:
        """What can happen next; a cancellation must not be what ends a standstill."""
        ready = self.loop.is_ready()
        options: list[Option] = [(STEP, self.loop.step)] if ready else []
        options += [(f"{operation.name} ends", operation.end) for operation in self.harness.pending()]
        options += [(f"{caller} arrives", partial(self._arrive, caller)) for caller in dict.fromkeys(self._absent)]
        options += [(name, partial(self._happen, name)) for name in self._happenings[:1]]
        if not ready and (self._scenario.timers or not options) and self.loop.has_timer():
            options.append(("a timer fires", self._fire))
        return options and options + self._cancellations()

    def _cancellations(self) -> list[Option]:
        return [
            (f"{asking.caller} is cancelled", asking.cancel)
            for asking in self._askings
            if asking.caller.cancelled and not asking.cancelled and asking.task and not asking.task.done()
        ]

    def _fire(self) -> None:
        self._silent |= bool(self.harness.pending())
        self.loop.fire()

    def _arrive(self, caller: Caller) -> None:
        if caller in self._absent:
            self._absent.remove(caller)
        asking = Asking(caller, self.harness)
        self._askings.append(asking)
        run = asking.run(self._manager, lambda: self.loop.steps, lambda: self.loop.steps > PATIENCE)
        asking.task = self.loop.begin(run, str(caller))

    def _happen(self, name: str) -> None:
        self._happenings.pop(0)
        getattr(self, name)()

    def is_closed(self) -> None:
        self._closed = self.harness.closing = True
        self._begin(self._manager.aclose())

    def is_disconnected(self) -> None:
        self._begin(disconnect(self._manager, self.harness))

    def is_reconnected(self) -> None:
        self._begin(reconnect(self._manager, self.harness))

    def another_connects(self) -> None:
        self.harness.another_connects()

    def another_saves(self) -> None:
        self.harness.another_saves()

    def change_is_heard(self) -> None:
        self._manager._source.subscriber.invalidate(USER)
        if self._scenario.fault in {
            nothing_fails,
            first_request_fails,
        }:  # else an unsaved grant is served, until the database takes or drops it
            self.harness.heard()

    def last_commit_is_lost(self) -> None:
        self.harness.fails_over(1)

    def commits_are_lost(self) -> None:
        self.harness.fails_over(99)

    def rows_are_compared(self) -> None:
        """As when a new session listens."""
        self._manager._source.refresher.saved.compare()

    def old_row_is_written(self) -> None:
        self.harness.old_row_is_written()

    def another_name_is_written(self) -> None:
        self.harness.another_name_is_written()

    def another_row_is_heard_of(self) -> None:
        self.harness.another_row_is_written()
        self.change_is_heard()

    def rekeyed(self) -> None:
        self.harness.rekeyed()

    def token_is_stale(self) -> None:
        """Time passes, until a token that was granted at first ends soon."""
        self.loop.pass_time(3400)
        self.harness.skipped += 3400

    def tasks_are_cancelled(self) -> None:
        """As `asyncio.run` does when its main task has ended, but for the callers."""
        self._cut = True
        for task in self.loop.tasks:
            task.cancel()

    def _begin(self, coroutine: Coroutine[Any, Any, object]) -> None:
        self._others.append(self.loop.begin(coroutine, "other"))

    def _aftermath(self) -> list[str]:
        """What is wrong once nothing goes on any more."""
        errors = self._scenario.errors
        if self._closed or self._cut:
            errors = (*errors, SpotconnError, RuntimeError)
        faults = [fault for asking in self._askings for fault in faults_of(asking, errors)]
        faults += shared_errors(self._askings) + self.harness.broken + leftovers(self._manager) + self._loose_ends()
        if not (self._closed or self._cut or self._silent):
            faults += self._waits()
        if not (self._closed or self._cut) and self._manager._source.refresher.unsaved._unsaved:
            faults.append("a grant is left that no task goes on to save")
        if self.harness.spotify.requests > self._scenario.requests:
            faults.append(f"Spotify was asked {self.harness.spotify.requests} times")
        return faults

    def _waits(self) -> list[str]:
        """Who has waited for more than some looks at the row."""
        most = self._scenario.longest_wait
        return [f"{one.caller} has waited for {one.waited:.2f} s" for one in self._askings if one.waited > most]

    def _row_faults(self) -> list[str]:
        """The row is of the last authorization, and its refresh token is the one that is still good."""
        stored, spotify = self.harness.stored(), self.harness.spotify
        if stored is None or self.harness.expected is None:
            return [] if stored is None and self.harness.expected is None else ["a row came back, or is lost"]
        access_token, refresh_token = stored
        if {spotify.of[access_token], spotify.of[refresh_token]} != {self.harness.expected}:
            return [f"{access_token} and {refresh_token} are stored after another authorization"]
        out_of_reach = self._cut or (self._closed and self._silent)  # no answer came in time
        if out_of_reach or self._scenario.loses or spotify.accepts(refresh_token):
            return []
        return [f"{refresh_token} is stored, which is replaced: its successor is lost"]

    def _loose_ends(self) -> list[str]:
        faults = [
            f"the task {task.get_name()} is left" for task in (*self.loop.tasks, *self._others) if not task.done()
        ]
        faults += [repr(task.exception()) for task in self._others if task.done() and task.exception()]
        faults += self.loop.complaints + [f"nobody looked at {one}" for one in self.loop.unretrieved()]
        return faults

    def _probe(self) -> list[str]:
        """What is remembered must be what is stored."""
        if self._closed or self._cut:
            return []
        self._trail.note("afterwards a page asks")
        self._ending = True
        if self.harness.went_back:
            self._manager._cache.invalidate(USER)
        self._arrive(Caller(page))
        if faults := self._run():
            return faults
        if self.harness.went_back:
            self.rows_are_compared()
            if faults := self._run():
                return faults
        task, stored = self._askings[-1].task, self.harness.stored()
        assert task is not None
        if stored is None and not isinstance(task.exception(), NotConnected):
            return ["a disconnected user still has a token"]
        if stored is not None and not task.exception() and task.result() not in self._may_serve(stored[0]):
            return [f"{task.result()} is remembered, {stored[0]} is stored"]
        return []

    def _may_serve(self, stored: str) -> set[str]:
        """A stale token is served while the page's own refresh replaces it."""
        served = {stored}
        if self._scenario.left == STALE and stored == "token-1":
            served.add(OLD)
        if self.harness.went_back or "token_is_stale" in self._scenario.happenings:
            served |= {f"token-{number}" for number in range(int(stored.removeprefix("token-")))}
        return served

    def _end(self) -> list[str]:
        self._ending = True
        self._trail.note("at last the manager is closed")
        self._closed = self.harness.closing = True
        self._begin(self._manager.aclose())
        return self._run() or self._aftermath() or self._row_faults()


def open_harness(scenario: Scenario, now: Callable[[], float]) -> OrderHarness:
    """Return what the manager meets in a scenario."""
    harness = OrderHarness(now, scenario.left, scenario.fault, run_sync=scenario.run_sync)
    harness.spotify.rotates = scenario.rotates
    if scenario.start:
        getattr(harness, scenario.start)()
    return harness


def orders_of(scenario: Scenario, most: int) -> Iterator[Trail]:
    """All orders of a scenario up to its horizon; of one that has more than half of the most, the rest by lot."""
    by_lot = most
    for trail in islice(trails(), most // 2):
        by_lot -= 1
        yield trail
    if by_lot == most - most // 2:
        yield from islice(samples(scenario.name), by_lot)


@dataclass
class Walk:
    """Counts the orders of all scenarios."""

    orders: Counter[str] = field(default_factory=Counter[str])

    def through(self, scenario: Scenario, factory: TaskFactory | None = None, *, most: int = MOST_ORDERS) -> int:
        """Follow the orders of a scenario, up to the first that is wrong."""
        watchdog, number = Watchdog(), 0
        with watchdog.watching():
            for number, trail in enumerate(orders_of(scenario, most), 1):
                if faults := Order(scenario, trail, watchdog, factory).follow():
                    pytest.fail(f"order {number}:\n  {trail}\n" + "\n".join(faults), pytrace=False)
        self.orders[scenario.name] += number
        return number


@pytest.fixture(scope="module")
def walk(request: pytest.FixtureRequest) -> Iterator[Walk]:
    state = random.getstate()
    walk = Walk()
    yield walk
    random.setstate(state)
    plugins = request.config.pluginmanager
    reporter, capture = plugins.get_plugin("terminalreporter"), plugins.get_plugin("capturemanager")
    if reporter is not None and capture is not None:
        with capture.global_and_fixture_disabled():
            reporter.write_line(f"\n{sum(walk.orders.values())} orders in {len(walk.orders)} scenarios")


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """The library's warnings of many thousand failures are not wanted."""
    caplog.set_level(100, logger="spotconn")


PAGE, JOB, REJECTED, BATCH, UNHAPPY = (Caller(call) for call in (page, job, rejected, batch, unhappy))
PAGE_OR_NOT, JOB_OR_NOT, REJECTED_OR_NOT, UNHAPPY_OR_NOT = (
    Caller(call, cancelled=True) for call in (page, job, rejected, unhappy)
)
PAGE_INSISTS, JOB_INSISTS, REJECTED_INSISTS = (Caller(call, insists=True) for call in (page, job, rejected))
DATABASE, SPOTIFY, REFUSED, GONE, LATE = (
    (DatabaseUnavailable,),
    (SpotifyUnavailable,),
    (ReauthorizationRequired,),
    (NotConnected,),
    (RefreshInProgress,),
)

# Two callers, each cancelled or not.
TWO = [
    Scenario("two-pages-fresh", (PAGE_OR_NOT, PAGE_OR_NOT), LONG),
    Scenario("two-pages-stale", (PAGE_OR_NOT, PAGE), STALE),
    Scenario("two-pages-expired", (PAGE_OR_NOT, PAGE), EXPIRED),
    Scenario("two-pages-missing", (PAGE_OR_NOT, PAGE_OR_NOT), MISSING, errors=GONE),
    Scenario("page-job-short", (PAGE_OR_NOT, JOB_OR_NOT), SHORT),
    Scenario("page-job-expired", (PAGE, JOB_OR_NOT), EXPIRED),
    Scenario("page-job-missing", (PAGE_OR_NOT, JOB_OR_NOT), MISSING, errors=GONE),
    Scenario("page-rejected-long", (PAGE, REJECTED), LONG),
    Scenario("page-rejected-cancelled", (PAGE, REJECTED_OR_NOT), LONG, exhaustive_steps=10),
    Scenario("job-rejected-short", (JOB, REJECTED), SHORT),
    Scenario("two-rejected", (REJECTED, REJECTED), LONG),
    Scenario("rejected-missing", (PAGE, REJECTED_OR_NOT), MISSING, errors=GONE),
    Scenario("job-batch-expired", (JOB, BATCH), EXPIRED, exhaustive_steps=14),
]

# Two callers, and something fails.
FAILING = [
    Scenario("first-statement-fails", (PAGE_OR_NOT, JOB), SHORT, first_statement_fails, DATABASE, exhaustive_steps=16),
    Scenario("database-is-away", (PAGE_OR_NOT, JOB_OR_NOT), EXPIRED, database_is_away, DATABASE),
    Scenario("database-is-away-rejected", (PAGE, REJECTED), LONG, database_is_away, DATABASE),
    Scenario("spotify-is-away-short", (PAGE, JOB_OR_NOT), SHORT, spotify_is_away, SPOTIFY),
    Scenario("spotify-is-away-expired", (PAGE, JOB), EXPIRED, spotify_is_away, SPOTIFY),
    Scenario("spotify-is-away-rejected", (JOB, REJECTED), SHORT, spotify_is_away, SPOTIFY),
    Scenario("network-is-away", (PAGE, JOB), EXPIRED, network_is_away, SPOTIFY),
    Scenario("spotify-is-away-stale", (PAGE, PAGE), STALE, spotify_is_away),
    Scenario("spotify-refuses", (PAGE, JOB), EXPIRED, spotify_refuses, REFUSED),
    Scenario("first-save-fails", (PAGE, JOB), EXPIRED, first_save_fails),
    Scenario("batch-fails", (JOB, BATCH), EXPIRED, spotify_is_away, SPOTIFY, exhaustive_steps=14),
]

# Callers that ask again at once after an error.
INSISTING = [
    Scenario("pages-insist-missing", (PAGE_INSISTS, PAGE_INSISTS), MISSING, errors=GONE, exhaustive_steps=22),
    Scenario("page-job-insist-missing", (PAGE_INSISTS, JOB_INSISTS), MISSING, errors=GONE, exhaustive_steps=22),
    Scenario("insist-database", (PAGE_INSISTS, JOB_INSISTS), EXPIRED, database_is_away, DATABASE, exhaustive_steps=22),
    Scenario(
        "insist-first-statement", (PAGE_INSISTS, JOB), EXPIRED, first_statement_fails, DATABASE, exhaustive_steps=22
    ),
    Scenario("insist-spotify", (PAGE_INSISTS, JOB_INSISTS), EXPIRED, spotify_is_away, SPOTIFY, exhaustive_steps=22),
]

# The manager is closed, the tasks are cancelled, or another writes, at every step.
CLOSED, CUT, CHANGED, LEFT = (
    ("is_closed",),
    ("tasks_are_cancelled",),
    ("another_connects", "change_is_heard"),
    ("is_disconnected",),
)
MEANWHILE = [
    Scenario("closed-short", (PAGE, JOB), SHORT, happenings=CLOSED, timers=True, exhaustive_steps=14),
    Scenario("closed-expired", (PAGE,), EXPIRED, happenings=CLOSED, timers=True),
    Scenario("closed-rejected", (REJECTED,), LONG, happenings=CLOSED, timers=True),
    Scenario("closed-batch", (BATCH,), EXPIRED, happenings=CLOSED, timers=True, exhaustive_steps=18),
    Scenario("closed-failing", (JOB,), SHORT, spotify_is_away, SPOTIFY, happenings=CLOSED, timers=True),
    Scenario("cut-short", (PAGE, JOB), SHORT, happenings=CUT, requests=2, exhaustive_steps=15),
    Scenario("cut-expired", (PAGE, PAGE), EXPIRED, happenings=CUT, requests=2, exhaustive_steps=15),
    Scenario("changed-fresh", (PAGE, PAGE), SHORT, happenings=CHANGED),
    Scenario("changed-fresh-at-once", (PAGE, PAGE), SHORT, happenings=CHANGED, run_sync=True),
    Scenario("changed-expired", (PAGE,), EXPIRED, happenings=CHANGED, run_sync=True),
    Scenario("disconnected-fresh", (PAGE, PAGE), LONG, errors=GONE, happenings=LEFT, run_sync=True),
    Scenario("disconnected-job", (JOB,), SHORT, errors=GONE, happenings=LEFT, run_sync=True),
    Scenario("disconnected-short", (PAGE, JOB), SHORT, errors=GONE, happenings=LEFT, exhaustive_steps=11),
]

THREE = [
    Scenario("three-pages-missing", (PAGE, PAGE, PAGE), MISSING, errors=GONE),
    Scenario("three-pages-expired", (PAGE, PAGE, PAGE), EXPIRED),
    Scenario("page-job-rejected", (PAGE, JOB, REJECTED), SHORT, exhaustive_steps=9),
    Scenario("pages-job-short", (PAGE, PAGE, JOB), SHORT),
    Scenario("three-fail", (PAGE, PAGE, JOB), EXPIRED, database_is_away, DATABASE),
]

# A grant that the database does not take at once, or of which it does not say that it has.
RECONNECTED = ("is_reconnected",)
UNSAVED = [
    Scenario("unsaved", (PAGE_OR_NOT, JOB), EXPIRED, first_saves_fail, exhaustive_steps=30),
    Scenario("unsaved-stale", (PAGE, PAGE), STALE, first_saves_fail, exhaustive_steps=24),
    Scenario("unsaved-two-rejected", (REJECTED, REJECTED), LONG, first_saves_fail, DATABASE, exhaustive_steps=24),
    Scenario(
        "unsaved-is-rejected",
        (UNHAPPY, PAGE),
        EXPIRED,
        first_saves_fail,
        (*DATABASE, *SPOTIFY),
        requests=2,
        exhaustive_steps=40,
    ),
    Scenario(
        "unsaved-is-rejected-cancelled", (UNHAPPY_OR_NOT,), EXPIRED, first_saves_fail, (*DATABASE, *SPOTIFY), requests=2
    ),
    Scenario(
        "saver-and-flight",
        (UNHAPPY, UNHAPPY),
        EXPIRED,
        every_other_save_fails,
        (*DATABASE, *SPOTIFY),
        timers=True,
        requests=4,
        exhaustive_steps=30,
    ),
    Scenario(
        "saver-ends",
        (UNHAPPY,),
        EXPIRED,
        first_and_fourth_save_fail,
        (*DATABASE, *SPOTIFY),
        timers=True,
        requests=2,
        exhaustive_steps=50,
    ),
    Scenario(
        "unsaved-reconnected", (PAGE, PAGE), EXPIRED, first_saves_fail, DATABASE, RECONNECTED, exhaustive_steps=12
    ),
    Scenario("unsaved-reconnected-alone", (PAGE,), EXPIRED, first_saves_fail, DATABASE, RECONNECTED, timers=True),
    Scenario(
        "unsaved-disconnected", (PAGE, JOB), EXPIRED, first_saves_fail, (*GONE, *DATABASE), LEFT, exhaustive_steps=12
    ),
    Scenario("unsaved-disconnected-alone", (PAGE,), EXPIRED, first_saves_fail, (*GONE, *DATABASE), LEFT, timers=True),
    Scenario("unsaved-changed", (PAGE, PAGE), EXPIRED, first_saves_fail, DATABASE, CHANGED, exhaustive_steps=12),
    Scenario("unsaved-reconnected-late", (PAGE, PAGE), EXPIRED, saves_fail_for_long, DATABASE, RECONNECTED),
    Scenario("unsaved-disconnected-late", (PAGE, PAGE), EXPIRED, saves_fail_for_long, (*GONE, *DATABASE), LEFT),
    Scenario("unsaved-for-long-rejected", (UNHAPPY, PAGE), EXPIRED, saves_fail_for_long, DATABASE, requests=2),
    Scenario(
        "unsaved-beside-another-token",
        (PAGE, REJECTED),
        EXPIRED,
        saves_fail_for_long,
        start="another_writes_meanwhile",
    ),
    Scenario("unsaved-closed", (PAGE,), EXPIRED, first_saves_fail, happenings=CLOSED, timers=True),
    Scenario(
        "unsaved-closed-rejected", (UNHAPPY,), EXPIRED, first_saves_fail, (*DATABASE, *SPOTIFY), CLOSED, requests=2
    ),
    Scenario("unsaved-cut", (PAGE,), EXPIRED, first_saves_fail, happenings=CUT, timers=True, requests=2),
    Scenario("answer-lost", (PAGE, JOB), EXPIRED, answer_is_lost, exhaustive_steps=26),
    Scenario("answer-lost-rejected", (UNHAPPY,), EXPIRED, answer_is_lost, (*DATABASE, *SPOTIFY), requests=2),
    Scenario("answer-lost-reconnected", (PAGE,), EXPIRED, answer_is_lost, DATABASE, RECONNECTED),
    Scenario("answer-lost-disconnected", (PAGE,), EXPIRED, answer_is_lost, (*GONE, *DATABASE), LEFT),
    Scenario("answer-lost-kept", (PAGE, JOB), EXPIRED, answer_is_lost, rotates=False, exhaustive_steps=26),
    Scenario(
        "lease-answer-lost",
        (PAGE, JOB),
        EXPIRED,
        answer_to_the_lease_is_lost,
        (*DATABASE, *LATE),
        longest_wait=A_LEASE,
        exhaustive_steps=20,
    ),
]

# A row that goes back in time: before a lease, between lease and save, and after a save.
BACK, LAST, WRITTEN, COMPARED = (
    ("commits_are_lost",),
    ("last_commit_is_lost",),
    ("old_row_is_written",),
    ("rows_are_compared",),
)
AGAIN = ("token_is_stale",)
WENT_BACK = [
    Scenario("back", (PAGE, PAGE), EXPIRED, happenings=BACK, exhaustive_steps=30),
    Scenario("back-at-once", (PAGE, PAGE), EXPIRED, happenings=BACK, run_sync=True, exhaustive_steps=24),
    Scenario("back-rejected", (REJECTED,), LONG, happenings=BACK),
    Scenario("back-unhappy", (UNHAPPY,), EXPIRED, errors=SPOTIFY, happenings=BACK, requests=2),
    Scenario("back-kept", (PAGE,), EXPIRED, happenings=BACK, rotates=False, requests=2),
    Scenario("back-unsaved", (PAGE, PAGE), EXPIRED, first_saves_fail, happenings=BACK, exhaustive_steps=24),
    Scenario("back-answer-lost", (PAGE,), EXPIRED, answer_is_lost, happenings=BACK),
    Scenario("old-row", (PAGE, PAGE), EXPIRED, happenings=WRITTEN, exhaustive_steps=30),
    Scenario("old-row-compared", (PAGE,), EXPIRED, happenings=(*WRITTEN, *COMPARED)),
    Scenario("back-compared", (PAGE,), EXPIRED, happenings=(*BACK, *COMPARED)),
    # Where the commit is lost that has given a turn back, its lease stands again until it ends.
    Scenario(
        "back-again", (PAGE, PAGE), EXPIRED, errors=LATE, happenings=(*AGAIN, *BACK), requests=2, exhaustive_steps=50
    ),
    Scenario(
        "back-again-by-one",
        (PAGE, PAGE),
        EXPIRED,
        errors=LATE,
        happenings=(*AGAIN, *LAST),
        requests=2,
        longest_wait=A_LEASE,
        exhaustive_steps=50,
    ),
    Scenario("old-row-again", (PAGE, PAGE), EXPIRED, happenings=(*AGAIN, *WRITTEN), requests=2, exhaustive_steps=50),
    Scenario(
        "back-reconnected", (PAGE,), EXPIRED, errors=DATABASE, happenings=(*BACK, *RECONNECTED, *COMPARED), requests=2
    ),
    Scenario(
        "old-row-of-another-name",
        (PAGE, PAGE),
        EXPIRED,
        errors=REFUSED,
        happenings=("another_name_is_written", *COMPARED),
        requests=2,
        loses=True,
    ),
    # A page whose time has passed meanwhile finds the refresh of another token of the user under way.
    Scenario(
        "old-row-of-before-reconnect",
        (PAGE, PAGE),
        EXPIRED,
        errors=(*REFUSED, *LATE),
        happenings=(*RECONNECTED, *AGAIN, *WRITTEN, *COMPARED),
        requests=3,
        loses=True,
    ),
    Scenario("back-changed", (PAGE,), EXPIRED, happenings=(*BACK, *CHANGED, *COMPARED), requests=2),
    Scenario("back-disconnected", (PAGE,), EXPIRED, errors=GONE, happenings=(*BACK, *LEFT, *COMPARED), requests=2),
    Scenario("reconnected-back", (PAGE,), EXPIRED, happenings=(*RECONNECTED, *BACK, *COMPARED), requests=2, loses=True),
    Scenario(
        "disconnected-back",
        (PAGE,),
        EXPIRED,
        errors=(*GONE, *REFUSED),
        happenings=(*LEFT, *BACK, *COMPARED),
        requests=2,
        loses=True,
    ),
]

# Another process saves late; a token that was granted lately; a rekey.
LAPSED, LATELY, REKEYED = "lease_has_lapsed", "granted_lately", ("rekeyed",)
OTHERS = [
    Scenario("another-saves", (PAGE, PAGE), EXPIRED, errors=REFUSED, happenings=("another_saves",), start=LAPSED),
    Scenario("another-saves-job", (JOB,), SHORT, errors=REFUSED, happenings=("another_saves",), start=LAPSED),
    Scenario("lately-job-rejected", (JOB, REJECTED), SHORT, errors=SPOTIFY, start=LATELY, requests=0),
    Scenario("lately-two-rejected", (REJECTED_OR_NOT, REJECTED), LONG, errors=SPOTIFY, start=LATELY, requests=0),
    Scenario("lately-two-jobs", (JOB, JOB_OR_NOT), SHORT, start=LATELY, requests=0),
    Scenario(
        "lately-insists",
        (JOB, REJECTED_INSISTS),
        SHORT,
        errors=SPOTIFY,
        start=LATELY,
        requests=0,
        exhaustive_steps=20,
    ),
    Scenario("two-unhappy", (UNHAPPY, UNHAPPY), EXPIRED, errors=SPOTIFY, exhaustive_steps=30),
    Scenario("rekeyed", (PAGE, PAGE), EXPIRED, happenings=REKEYED, exhaustive_steps=24),
    Scenario("rekeyed-job", (JOB,), SHORT, happenings=REKEYED),
    Scenario("rekeyed-rejected", (REJECTED,), LONG, happenings=REKEYED),
    Scenario("rekeyed-twice", (PAGE,), EXPIRED, happenings=(*REKEYED, *REKEYED)),
    Scenario("rekeyed-kept", (PAGE,), EXPIRED, happenings=REKEYED, rotates=False),
    Scenario("rekeyed-unsaved", (UNHAPPY,), EXPIRED, first_saves_fail, (*DATABASE, *SPOTIFY), REKEYED, requests=2),
    Scenario("rekeyed-answer-lost", (PAGE,), EXPIRED, answer_is_lost, happenings=REKEYED),
    Scenario("rekeyed-back", (PAGE,), EXPIRED, happenings=(*REKEYED, *BACK)),
    Scenario(
        "another-row",
        (PAGE, PAGE),
        EXPIRED,
        first_request_fails,
        SPOTIFY,
        ("another_row_is_heard_of",),
        requests=3,
    ),
    Scenario(
        "another-row-rejected",
        (PAGE, REJECTED),
        EXPIRED,
        first_request_fails,
        SPOTIFY,
        start="another_connects_meanwhile",
        requests=2,
    ),
    Scenario(
        "another-row-rejected-unsaved",
        (PAGE, REJECTED),
        EXPIRED,
        first_saves_fail,
        DATABASE,
        start="another_row_meanwhile",
        requests=2,
    ),
    Scenario(
        "another-row-unsaved",
        (PAGE, PAGE),
        EXPIRED,
        first_saves_fail,
        DATABASE,
        ("another_row_is_heard_of",),
        requests=2,
    ),
    Scenario("late-answers", (PAGE, REJECTED), STALE, errors=SPOTIFY, run_sync=True, exhaustive_steps=14),
    Scenario("closed-unhappy", (UNHAPPY,), EXPIRED, errors=SPOTIFY, happenings=CLOSED, timers=True),
    Scenario("unhappy-cancelled", (UNHAPPY_OR_NOT, PAGE), EXPIRED, errors=SPOTIFY, exhaustive_steps=20),
]

SCENARIOS = [*TWO, *FAILING, *INSISTING, *MEANWHILE, *THREE, *UNSAVED, *WENT_BACK, *OTHERS]


def parameters(scenarios: Iterable[Scenario]) -> list[Any]:
    return [pytest.param(one, id=one.name) for one in scenarios]


@pytest.mark.parametrize("scenario", parameters(SCENARIOS))
def test_every_order(scenario: Scenario, walk: Walk, record_property: Callable[[str, object], None]) -> None:
    """In each order every caller ends with its own result or error, and nothing is left."""
    record_property("orders", walk.through(scenario))


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("scenario", parameters(SCENARIOS))
def test_more_orders(scenario: Scenario, walk: Walk) -> None:
    """The same holds in many more orders."""
    walk.through(scenario, most=MOST_ORDERS_IF_LONG)


def _eager() -> TaskFactory:
    if sys.version_info < (3, 12):
        pytest.skip("tasks begin eagerly from Python 3.12 on")
    return asyncio.eager_task_factory


EAGER = [scenario for scenario in SCENARIOS if not any(caller.cancelled for caller in scenario.callers)]


@pytest.mark.parametrize("scenario", parameters(EAGER))
def test_every_order_with_eager_tasks(scenario: Scenario, walk: Walk) -> None:
    """The same holds where each task runs its first step when it is made."""
    walk.through(scenario, _eager())


class Traffic:
    """Callers in every turn of a real loop, and operations that end after some turns.

    Args:
        scenario: who asks, and what fails.
        seed: chooses who comes when.
    """

    TURNS = 60

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.harness = open_harness(scenario, float)
        self.harness.on_begin = self._later
        self._scenario = scenario
        self._random = random.Random(seed)
        self._loop = asyncio.get_running_loop()
        self._askings: list[Asking] = []
        self._turn = 0

    async def run(self) -> list[str]:
        """Let them come; what is wrong with their ends."""
        manager = open_manager(self.harness)
        while self._turn < self.TURNS:
            self._arrive(manager)
            await asyncio.sleep(0)
            self._turn += 1
        await asyncio.wait([asking.task for asking in self._askings if asking.task], timeout=20)
        await manager.aclose()
        faults = [fault for asking in self._askings for fault in faults_of(asking, self._scenario.errors)]
        return faults + shared_errors(self._askings) + self.harness.broken + leftovers(manager)

    def _arrive(self, manager: TokenManager) -> None:
        asking = Asking(self._random.choice(self._scenario.callers), self.harness)
        run = asking.run(manager, count().__next__, lambda: self._turn >= self.TURNS)
        asking.task = self._loop.create_task(run)
        self._askings.append(asking)
        if asking.caller.cancelled and self._random.random() < 0.3:
            self._after(self._random.randrange(12), asking.cancel)

    def _later(self, operation: Operation) -> None:
        self._after(self._random.randrange(5), operation.end)

    def _after(self, turns: int, happen: Callable[[], object]) -> None:
        self._loop.call_soon(happen) if turns == 0 else self._loop.call_soon(self._after, turns - 1, happen)


CROWD = (PAGE_OR_NOT, JOB_OR_NOT, REJECTED_OR_NOT, PAGE_INSISTS, JOB_INSISTS, BATCH)
CROWDS = [
    Scenario("short", CROWD, SHORT),
    Scenario("expired", CROWD, EXPIRED),
    Scenario("missing", CROWD, MISSING, errors=GONE),
    Scenario("database-is-away", CROWD, EXPIRED, database_is_away, DATABASE),
    Scenario("spotify-is-away", CROWD, SHORT, spotify_is_away, SPOTIFY),
    Scenario("spotify-refuses", CROWD, EXPIRED, spotify_refuses, REFUSED),
]
RUNS = 20
"""Crowds of each scenario; the number of each is the seed of its arrivals."""


@pytest.fixture(params=["asyncio", "uvloop"])
def new_loop(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    if request.param == "asyncio":
        return asyncio.new_event_loop
    uvloop = pytest.importorskip("uvloop", reason="the extra uvloop is not installed")
    new: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return new


@pytest.mark.long
@pytest.mark.parametrize("scenario", CROWDS, ids=str)
def test_a_caller_in_every_turn_of_a_real_loop(
    scenario: Scenario, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """The same holds for a crowd on a loop that cannot be stepped, with arrivals and cancellations at random."""
    watchdog = Watchdog()
    for number in range(RUNS):
        with watchdog.watching(), asyncio.Runner(loop_factory=new_loop) as runner:
            watchdog.arm(seconds=2)
            faults = runner.run(_crowd(scenario, number))
        assert not watchdog.where, f"crowd {number}: the event loop stands still: {watchdog.where}"
        assert not faults, f"crowd {number}"


async def _crowd(scenario: Scenario, number: int) -> list[str]:
    return await Traffic(scenario, number).run()


def test_the_walk_takes_each_sequence_of_choices_once() -> None:
    """Two choices, the second of which depends on the first, have as many orders as there are paths."""
    orders: list[tuple[int, int]] = []
    for trail in trails():
        first = trail.choose(["a", "b", "c"])
        orders.append((first, trail.choose(["x"] * (first + 1))))
    assert orders == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]


def test_callbacks_and_timers_run_in_the_order_of_asyncio() -> None:
    """First in, first out; a timer runs by its time, and a cancelled callback not at all."""
    loop, ran = SteppingLoop.new(), list[str]()
    loop.call_later(2, ran.append, "late")
    loop.call_later(1, ran.append, "early")
    for name in ("first", "cancelled", "second"):
        handle = loop.call_soon(ran.append, name)
        if name == "cancelled":
            handle.cancel()
    while loop.is_ready() or loop.has_timer():
        (loop.step if loop.is_ready() else loop.fire)()
    assert ran == ["first", "second", "early", "late"]
    assert loop.time() == 2


def test_a_step_without_an_end_is_broken_off() -> None:
    """The watchdog names the lines of a loop that never suspends."""
    watchdog = Watchdog()
    with watchdog.watching(), pytest.raises(Watchdog.StoodStill):
        _stand_still(watchdog)
    assert "_stand_still" in watchdog.where


def _stand_still(watchdog: Watchdog) -> None:
    watchdog.arm(seconds=0.05)
    while True:
        pass
