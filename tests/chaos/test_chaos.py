"""A short run of chaos; `make chaos` runs longer ones."""

import json
from random import Random

import pytest

from chaos.plan import Plan
from chaos.run import run


@pytest.mark.long
def test_a_short_run_breaks_no_rule() -> None:
    """Every rule holds over some seconds of random faults."""
    verdict = run(Plan.of(1380, 1.2, processes=2))
    verdict.print()
    assert verdict.violations == []
    assert verdict.figures["served"] > 20
    assert verdict.figures["refreshes"] > 5


def test_the_plan_is_that_of_its_seed() -> None:
    """One seed gives one plan, another another, and neither touches the state of the module random."""
    plan = json.dumps(Plan.of(1, 20).as_json())
    assert plan == json.dumps(Plan.of(1, 20).as_json())
    assert plan != json.dumps(Plan.of(2, 20).as_json())


def test_a_longer_plan_has_every_kind() -> None:
    """No fault and no call is left out of a minute or two."""
    plan = Plan.of(Random(1).randrange(100), 600)
    assert len({action.kind for action in plan.faults}) == 20
    assert len({call.kind for calls in plan.calls for call in calls}) == 11
