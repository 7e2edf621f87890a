"""The tables of the page about growth are those that its sums give, and the sums hold in a simulation."""

import re

import pytest

from benchmarks import growth, growth_page
from benchmarks.asking import asked


def test_the_page_has_what_is_computed() -> None:
    """After a change of a constant or of a sum: python -m benchmarks.growth_page."""
    page = growth_page.PAGE.read_text()
    assert growth_page.refreshed(page) == page


@pytest.mark.parametrize("times", [0, 2])
def test_marks_that_are_not_there_once_are_an_error(times: int) -> None:
    """A table cannot be lost with its marks."""
    mark = "<!-- computed: users -->"
    page = growth_page.PAGE.read_text().replace(mark, times * mark)
    with pytest.raises(ValueError, match="table users"):
        growth_page.refreshed(page)


@pytest.mark.parametrize("processes", growth.PROCESSES)
def test_the_sums_are_bounds_that_a_simulation_comes_near(processes: int) -> None:
    """More is never counted than they say, and no less than two thirds."""
    simulated = asked(processes, asks=growth.ASKS, period=growth.PERIOD)
    most = growth.statements(growth.PERIOD, growth.asking_processes(processes))
    assert 2 / 3 * most < simulated.statements < most
    assert 2 / 3 < simulated.refreshes < 1


def test_calls_that_stay_with_their_process_cost_least() -> None:
    """One process alone is as good as sticky routing, and many are no worse than one for each call."""
    assert growth.asking_processes(1) == 1
    assert growth.ASKS - 1 < growth.asking_processes(1_000) < growth.ASKS
    assert growth.statements(1_000_000) == 3 * growth.refreshes(1_000_000)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0123, "0.012"), (9.96, "10"), (42.4, "42"), (299.7, "300"), (84_123, "84,000"), (1_234_567, "1,200,000")],
)
def test_a_number_has_two_digits(value: float, shown: str) -> None:
    """No table says more than the measured numbers are good for."""
    assert growth_page.number(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(64, "64 B"), (999.6, "1 kB"), (1_300, "1.3 kB"), (3.9e6, "3.9 MB"), (2.5e13, "25 TB")]
)
def test_bytes_have_the_unit_that_suits_them(value: float, shown: str) -> None:
    """So that a line of a table can be read from left to right."""
    assert growth_page.octets(value) == shown


def test_no_address_of_a_source_is_written_without_a_link() -> None:
    """What is said of other engines says where that is from."""
    section = (
        growth_page.PAGE.read_text()
        .partition("## When one database is not enough")[2]
        .partition("## A read replica")[0]
    )
    for engine in ("Aurora PostgreSQL", "Aurora Limitless", "AlloyDB", "Citus", "YugabyteDB", "CockroachDB"):
        (line,) = re.findall(rf"^\| {engine} \|.*\|.*\|.*\|.*\|.*\|$", section, re.MULTILINE)
        assert "](https://" in line
