"""Each rule of the oracle holds of a good history, and is broken by a bad event."""

from collections.abc import Callable
from pathlib import Path

import pytest

from chaos import oracle, trace
from chaos.history import Beat, Call, Ending, History, Lease, Request, Step, Token, Write
from chaos.losses import FAILOVER, FOREIGN, FORGOTTEN, KILLED, LOST, NOBODY_KNEW, RECONNECT_LOST, excuse
from chaos.plan import LEASE

NOW = 1_000_000.0


def call(**changes: object) -> Call:
    known: dict[str, object] = {
        "process": "w0.0", "manager": 0, "user": 0, "kind": "get", "began": NOW, "ended": NOW + 1
    }  # fmt: skip
    return Call(**(known | changes))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def good() -> History:
    """A user whose token was refreshed twice, and is served."""
    return History(
        users=1,
        calls=[call(result="a1"), call(kind="replace_rejected", rejected="a1", result="a2", began=NOW + 1)],
        tokens={"a1": Token(0, NOW - 5, NOW + 5), "a2": Token(0, NOW, NOW + 9), "b": Token(1, NOW, NOW + 9)},
        requests=[
            Request("w0.0/0", "r0", NOW - 5, "granted", NOW - 4, 0, "r1"),
            Request("w1.0/0", "r1", NOW, "granted", NOW + 0.5, 0, "r2"),
        ],
        writes=[
            Write(NOW - 9, 0, "INSERT", "", "r0"),
            Write(NOW - 4, 0, "UPDATE", "w0.0/0", "r1"),
            Write(NOW + 0.5, 0, "UPDATE", "w1.0/0", "r2"),
        ],
        leases=[
            Lease(NOW - 5, NOW - 5 + LEASE, 0, "r0", "w0.0/0"),
            Lease(NOW - 0.1, NOW - 0.1 + LEASE, 0, "r1", "w1.0/0"),
        ],
        endings=[Ending(0, connected=True, refreshed=True, refresh="r2")],
    )


def lost(history: History, refresh: str = "r1") -> None:
    """The row holds a refresh token at the end that Spotify has ended."""
    history.endings = [Ending(0, connected=True, refreshed=False, refresh=refresh)]


def unsaved(history: History) -> None:
    """The last grant never came to the table."""
    del history.writes[-1]
    lost(history)


def never_saved(history: History) -> None:
    """Another authorization comes only after half a minute."""
    history.writes[-1] = Write(NOW + 30, 0, "UPDATE", "foreign", "other")


def fail_over(history: History, writer: str = FAILOVER) -> None:
    """The row comes back with a refresh token that has been replaced; one process knows its successor."""
    history.requests[1].access = "a2"
    history.tokens["a2"].ends = NOW + 90
    history.writes.append(Write(NOW + 3, 0, "UPDATE", writer, "r1"))
    lost(history)


def second_request(history: History, began: float, *, leased: bool = True) -> None:
    """Another manager sends the refresh token, for which Spotify has not yet answered the first."""
    if not leased:
        history.leases.clear()
    history.requests[1].ended = history.writes[-1].at = NOW + 9
    history.requests.append(Request("w0.0/1", "r1", began, "refused"))


BAD: dict[str, tuple[str, Callable[[History], object]]] = {
    "a call that takes too long": ("calls_end_in_time", lambda h: h.calls.append(call(ended=NOW + 99))),
    "a call that never ends": ("calls_end_in_time", lambda h: h.calls.append(call(hung=True))),
    "a coroutine that was closed": ("callers_are_left_alone", lambda h: h.calls.append(call(closed=True))),
    "a handled error that was altered": ("callers_are_left_alone", lambda h: h.calls.append(call(disturbed=True))),
    "an event loop that stood still": ("loops_run", lambda h: h.beats.append(Beat("w0.0", NOW, 1.5))),
    "the token of another user": ("tokens_are_good", lambda h: h.calls.append(call(result="b"))),
    "a token that had ended": ("tokens_are_good", lambda h: h.calls.append(call(result="a1", ended=NOW + 6))),
    "a token that was never granted": ("tokens_are_good", lambda h: h.calls.append(call(result="x"))),
    "the rejected token itself": (
        "rejected_tokens_are_replaced",
        lambda h: h.calls.append(call(kind="replace_rejected", rejected="a2", result="a2")),
    ),
    "the rejected token later": (
        "rejected_tokens_are_replaced",
        lambda h: h.calls.append(call(result="a1", began=NOW + 2, ended=NOW + 2)),
    ),
    "an error for the engineer": ("errors_are_true", lambda h: h.calls.append(call(error="SchemaMismatch"))),
    "no connection, of one that stands": ("errors_are_true", lambda h: h.calls.append(call(error="NotConnected"))),
    "a refusal that was none": ("errors_are_true", lambda h: h.calls.append(call(error="ReauthorizationRequired"))),
    "two requests under one lease": ("one_request_in_flight", lambda h: second_request(h, NOW + 2)),
    "a request without a lease": (
        "one_request_in_flight",
        lambda h: second_request(h, NOW + 2, leased=False),
    ),
    "a reconnect that was overwritten": (
        "nothing_newer_is_overwritten",
        lambda h: h.writes.insert(2, Write(NOW + 0.4, 0, "UPDATE", "foreign", "other")),
    ),
    "a grant that was not saved": ("grants_are_saved", never_saved),
    "an answer that was not awaited": ("answers_are_awaited", lambda h: setattr(h.requests[0], "left", True)),
    "a new token that was refreshed": ("new_tokens_are_kept", lambda h: setattr(h.writes[1], "at", NOW - 0.3)),
    "a grant that was dropped": ("users_can_be_refreshed", unsaved),
    "a successor that was overwritten": ("users_can_be_refreshed", lost),
    "a failover that was not mended": ("users_can_be_refreshed", fail_over),
    "an old row that was not mended": ("users_can_be_refreshed", lambda h: fail_over(h, FOREIGN)),
    "a user who vanished": (
        "users_can_be_refreshed",
        lambda h: h.endings.append(Ending(0, connected=False, refreshed=False)),
    ),
    "a session that is left": ("nothing_is_left", lambda h: h.problems.append("a session is left")),
}


def test_a_good_history_breaks_no_rule() -> None:
    """Nothing is found where nothing is wrong."""
    assert oracle.violations(good()) == []


@pytest.mark.parametrize("event", BAD)
def test_each_bad_event_breaks_its_rule(event: str) -> None:
    """One bad event breaks its rule and no other."""
    rule, spoil = BAD[event]
    history = good()
    spoil(history)
    assert {text.partition(":")[0] for text in oracle.violations(history)} == {rule}


def test_every_rule_can_be_broken() -> None:
    """There is a bad event for each rule."""
    assert {rule for rule, _ in BAD.values()} == {rule.__name__ for rule in oracle.RULES}


def test_what_chaos_itself_took_does_not_count() -> None:
    """A process that was frozen is neither late nor still, and its token may have ended meanwhile."""
    history = good()
    history.stalls["w0.0"] = [(NOW, NOW + 90)]
    history.calls.append(call(result="a1", ended=NOW + 91))
    history.beats.append(Beat("w0.0", NOW + 90, 90))
    assert oracle.violations(history) == []


@pytest.mark.parametrize("excusing", [KILLED, LOST])
def test_what_strict_rotation_loses_is_excused(excusing: str) -> None:
    """A user is excused with the evidence where the library could do nothing."""
    history = good()
    unsaved(history)
    history.requests[1].lost = excusing == LOST
    if excusing == KILLED:
        history.kills["w1.0"] = NOW + 0.4
    assert oracle.violations(history) == []
    found = excuse(history, history.endings[0])
    assert found is not None
    assert found[0] == excusing
    assert oracle.excused(history)


@pytest.mark.parametrize("writer", [FAILOVER, FOREIGN])
@pytest.mark.parametrize("excusing", [NOBODY_KNEW, FORGOTTEN, RECONNECT_LOST, LOST])
def test_what_a_failover_loses_is_excused(excusing: str, writer: str) -> None:
    """A user is excused where no process could know of the last grant any more, or of a reconnect."""
    history = good()
    fail_over(history, writer)
    if excusing == NOBODY_KNEW:
        history.kills["w1.0"] = NOW + 2
    if excusing == FORGOTTEN:
        history.tokens["a2"].ends = NOW + 4
    if excusing == RECONNECT_LOST:
        history.writes.insert(3, Write(NOW + 2, 0, "UPDATE", "w0.0/0", "other"))
    if excusing == LOST:
        history.requests.append(Request("w0.0/0", "r2", NOW + 2.1, "granted", NOW + 2.2, 0, "r3", lost=True))
    assert oracle.violations(history) == []
    found = excuse(history, history.endings[0])
    assert found is not None
    assert found[0] == excusing


def test_what_was_half_mended_is_excused() -> None:
    """The process that knew of the last grant was killed, and one that knew of an earlier has saved that."""
    history = good()
    fail_over(history)
    history.writes[-1].refresh = "r0"
    history.writes.append(Write(NOW + 4, 0, "UPDATE", "w0.0/0", "r1"))
    assert oracle.violations(history)
    history.kills["w1.0"] = NOW + 2
    assert oracle.violations(history) == []


def test_a_kill_long_after_a_failover_excuses_nothing() -> None:
    """The process had the time to mend the row."""
    history = good()
    fail_over(history)
    history.kills["w1.0"] = NOW + 60
    assert len(oracle.violations(history)) == 1


@pytest.mark.parametrize(("offset", "excuses"), [(-0.5, False), (-5.0, True), (5.0, True), (0.5, False)])
def test_a_clock_that_is_set_ends_a_lease(offset: float, excuses: bool) -> None:  # noqa: FBT001
    """A lease is over or void by the clock of the database, as it was set."""
    history = good()
    history.steps.append(Step(NOW + 1, NOW + 1.3, offset))
    second_request(history, NOW + 2)
    assert bool(list(oracle.one_request_in_flight(history))) is not excuses


def test_a_lease_that_was_taken_over_does_not_come_back() -> None:
    """Another lease was granted while the clock had ended the first; then the clock is set once more."""
    history = good()
    history.steps += [Step(NOW + 1, NOW + 1.3, 9.0), Step(NOW + 3, NOW + 3.1, 0.0)]
    history.leases.append(Lease(NOW + 2, NOW + 2 + LEASE, 0, "r1", "w0.0/1", 9.0))
    second_request(history, NOW + 3.5)
    assert not list(oracle.one_request_in_flight(history))
    history.leases.pop()
    assert list(oracle.one_request_in_flight(history))


def test_a_holder_does_not_know_that_its_lease_is_void() -> None:
    """The clock is set back after it was granted, another takes it over and asks, and then it asks itself."""
    history = good()
    history.leases.insert(1, Lease(NOW - 0.3, NOW - 0.3 + LEASE, 0, "r1", "w0.0/1"))
    second_request(history, NOW + 1)
    assert list(oracle.one_request_in_flight(history))
    history.leases[2].offset = -5.0
    history.steps.append(Step(NOW - 0.25, NOW - 0.2, -5.0))
    assert not list(oracle.one_request_in_flight(history))


def test_the_grant_of_a_row_that_was_deleted_is_not_saved() -> None:
    """The user has disconnected after the lease was granted, and before Spotify was asked."""
    history = good()
    never_saved(history)
    assert list(oracle.grants_are_saved(history))
    history.writes.insert(2, Write(NOW - 0.05, 0, "DELETE", "w0.0/0", None))
    assert not list(oracle.grants_are_saved(history))


def test_the_attempts_of_one_lease_share_a_timeout() -> None:
    """It began before the last request was on the way."""
    history = good()
    history.requests[1].left = True
    assert list(oracle.answers_are_awaited(history))
    history.leases[1].began = NOW - 1.5
    assert not list(oracle.answers_are_awaited(history))


def test_a_clock_that_is_set_back_lengthens_tokens() -> None:
    """An end that is stored comes later by as much, and by no more."""
    history = good()
    history.steps += [Step(NOW - 2, NOW - 1, 3.0), Step(NOW + 2, NOW + 2.3, -4.0)]
    history.calls.append(call(result="a1", ended=NOW + 11.9))
    assert not list(oracle.tokens_are_good(history))
    history.calls.append(call(result="a1", ended=NOW + 12.9))
    assert list(oracle.tokens_are_good(history))


def test_a_minute_of_a_clock_that_was_set_is_none() -> None:
    """A new token may be refreshed once the clock was set."""
    history = good()
    history.writes[1].at = NOW - 0.3
    history.steps.append(Step(NOW - 0.2, NOW - 0.1, -4.0))
    assert not list(oracle.new_tokens_are_kept(history))


def test_the_trace_has_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each event is a line of the file, and user 0 is named."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    history = good()
    history.kills["w1.0"] = NOW
    history.steps.append(Step(NOW, NOW, 3.0))
    lines = trace.write(history, ["seed 1"], "1").read_text().splitlines()
    assert lines[0] == "seed 1"
    assert len(lines) == 1 + 2 + 3 + 2 + 3 + 2 + 1 + 1
    assert f"{NOW + 0.5:.3f} write at={NOW + 0.5:.3f} user=0 operation=UPDATE writer=w1.0/0 refresh=r2" in lines


def test_a_lease_that_is_over_or_void_excuses_a_second_request() -> None:
    """Another may ask once the lease is over, its holder is dead, or the row held another refresh token meanwhile."""
    for excused in ("over", "dead", "void"):
        history = good()
        second_request(history, NOW + (LEASE if excused == "over" else 2))
        if excused == "dead":
            history.kills["w1.0"] = NOW + 1
        if excused == "void":
            history.writes.append(Write(NOW + 1, 0, "DELETE", "w0.0/0", None))
        assert not list(oracle.one_request_in_flight(history))
