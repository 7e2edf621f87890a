"""Each goal of the failover tests is kept by a good history and missed by a bad one; the table shows both."""

from collections.abc import Callable
from pathlib import Path

import pytest

from failover import oracle, table
from failover.clusters import ClusterWorld
from failover.history import Call, History
from failover.scenarios import SCENARIOS
from failover.timing import PERIOD, SHORT, USERS
from failover.two_servers import TwoServers, two_servers
from failover.ways import TWO_SERVERS
from failover.world import World

NOW = 1_000_000.0
FAULT = NOW + 3


def failed(began: float, seconds: float = 0.1, error: str = "DatabaseUnavailable", **more: int) -> Call:
    return Call(began, began + seconds, error, passing=error == "DatabaseUnavailable", user=more.get("user", 1))


def good() -> History:
    """A client that failed for as long as nothing could be written, and heard of the disconnect."""
    return History(
        "killed",
        "hosts",
        synchronous=True,
        began=FAULT,
        calls=900,
        bad=[failed(FAULT + 1), failed(FAULT + 2.5), failed(FAULT + 6, error="NotConnected", user=USERS)],
        slowest=3.0,
        pool=[failed(FAULT), failed(FAULT + 2)],
        fresh=[Call(NOW, NOW + 0.1), failed(FAULT), failed(FAULT + 2)],
        disconnected={USERS: FAULT + 4},
        served={1: FAULT + 9, USERS: FAULT + 5},
        sessions=12,
        logged=["a warning"],
    )


def test_a_good_history_keeps_every_goal() -> None:
    """Nothing is missed where nothing is wrong."""
    assert oracle.violations(good(), SHORT) == []


BAD: dict[str, tuple[str, Callable[[History], object]]] = {
    "late failures": (
        "is_served_as_soon_as_a_new_connection",
        lambda h: h.bad.extend(failed(FAULT + at) for at in range(3, 9)),
    ),
    "late waits": (
        "is_served_as_soon_as_a_new_connection",
        lambda h: h.bad.extend(failed(FAULT + at, seconds=2.5, error="") for at in range(3, 9)),
    ),
    "a slow call": ("calls_end_in_time", lambda h: setattr(h, "slowest", SHORT.longest_call + 2)),
    "a call without end": ("calls_end_in_time", lambda h: setattr(h, "hung", 1)),
    "an error for an engineer": (
        "only_try_later",
        lambda h: h.bad.append(failed(FAULT + 1, error="ConfigurationError")),
    ),
    "another library's error": ("only_try_later", lambda h: h.bad.append(failed(FAULT + 1, error="KeyError"))),
    "not connected before the disconnect": (
        "only_try_later",
        lambda h: h.bad.append(failed(FAULT + 3, error="NotConnected", user=USERS)),
    ),
    "not connected without a disconnect": (
        "only_try_later",
        lambda h: h.bad.append(failed(FAULT + 1, error="NotConnected")),
    ),
    "a user who has to connect again": ("nobody_is_lost", lambda h: h.lost.update({4: "revoked"})),
    "a token after a disconnect": (
        "a_disconnect_is_heard",
        lambda h: h.served.update({USERS: FAULT + 4 + SHORT.cache_ttl + 2}),
    ),
    "a disconnect undone": ("a_disconnect_lasts", lambda h: h.connected_again.append(USERS)),
    "too many sessions": ("sessions_are_those_of_the_pool", lambda h: setattr(h, "sessions", 13)),
    "a loud log": ("the_log_is_quiet", lambda h: h.logged.extend(["again"] * 320)),
    "a process that ended": ("the_run_is_sound", lambda h: h.problems.append("it ended")),
    "nothing served": ("the_run_is_sound", lambda h: h.served.clear()),
    "nothing written": ("the_run_is_sound", lambda h: h.fresh.clear()),
    "no disconnect": ("the_run_is_sound", lambda h: h.disconnected.clear()),
}


@pytest.mark.parametrize(("goal", "spoil"), BAD.values(), ids=BAD)
def test_each_goal_can_be_missed(goal: str, spoil: Callable[[History], object]) -> None:
    """A history with one thing wrong misses the goal that it concerns."""
    history = good()
    spoil(history)
    assert f"killed, hosts: {goal}: " in "\n".join(oracle.violations(history, SHORT))


def test_every_goal_has_a_bad_history() -> None:
    """No goal is there that nothing could miss."""
    assert {goal.__name__ for goal in oracle.GOALS} == {goal for goal, _ in BAD.values()}


def test_a_server_that_hangs_costs_one_timeout() -> None:
    """It is allowed for there, and not elsewhere."""
    history = good()
    history.bad.extend(failed(FAULT + 2 + SHORT.timeout - back) for back in (0, 2))
    assert oracle.violations(history, SHORT)
    history.hangs = True
    assert oracle.violations(history, SHORT) == []
    history.bad.append(failed(FAULT + 4.5 + SHORT.timeout))
    assert oracle.violations(history, SHORT)


def test_outages_far_apart_are_added_up() -> None:
    """One slow call long after the rest makes no outage of the time between."""
    history = good()
    history.bad.append(failed(FAULT + 30))
    assert history.without_service == good().without_service + PERIOD


def test_what_was_before_the_fault_is_no_outage() -> None:
    """A slow start is the machine's; an error before the fault is still counted among the failed calls."""
    history = good()
    history.bad.insert(0, failed(NOW))
    assert history.without_service == good().without_service
    assert history.failed["DatabaseUnavailable"] == good().failed["DatabaseUnavailable"] + 1


def test_a_call_that_hangs_into_the_fault_is_part_of_the_outage() -> None:
    """It counts from the fault on."""
    history = good()
    history.bad.insert(0, failed(FAULT - 1, seconds=3))
    assert history.without_service == pytest.approx(3.0)


def test_the_tables_are_put_between_their_markers(tmp_path: Path) -> None:
    """What a page has around them stays; one without markers is refused."""
    page = tmp_path / "page.md"
    begin, end = table.BEGIN.format("two-servers"), table.END.format("two-servers")
    page.write_text(f"before\n\n{begin}\nold\n{end}\n\nafter\n")
    table.write(page, "two-servers", [good()])
    text = page.read_text()
    assert text.startswith(f"before\n\n{begin}\n\n| scenario | way |")
    assert text.endswith(f"|\n\n{end}\n\nafter\n")
    assert "| killed | hosts | 2 of 900 | 2.0 | 2.5 | 2.5 | 3.0 | 0 | 1.0 | 12 | 1 |" in text
    assert "old" not in text
    with pytest.raises(ValueError, match="clusters"):
        table.write(page, "clusters", [good()])


def test_a_step_that_a_world_lacks_is_known() -> None:
    """Its scenarios are left out; there is a world for each of them."""
    assert all(TwoServers.can(scenario.step) or ClusterWorld.can(scenario.step) for scenario in SCENARIOS)
    assert not TwoServers.can("wake")
    assert not any(World.can(scenario.step) for scenario in SCENARIOS)


@pytest.mark.long
async def test_two_servers_heal_after_every_step() -> None:
    """After each change of the primary, `heal` brings back the first one with a standby that streams."""
    async with two_servers() as world:
        first = world.primary_dsn()
        for step in (world.switch, world.kill, world.freeze, world.split, world.turn_read_only, world.demote):
            await step()
            assert world.primary_dsn() != first
            await world.heal()
            assert world.primary_dsn() == first
        assert len(world.fresh_dsns(TWO_SERVERS[0])) == len(world.server_dsns()) == 2
