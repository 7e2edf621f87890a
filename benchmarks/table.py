"""The figures of a run, as a table for a person."""

from collections.abc import Iterator, Mapping

from benchmarks.goals import GOALS


def lines(figures: Mapping[str, float]) -> Iterator[str]:
    """The figures with a goal, then the others."""
    for goal in GOALS:
        value = figures[goal.key]
        verdict = "reached" if goal.reached(value) else "MISSED"
        yield f"{goal.key:<30}{shown(value):>9}  {goal.bound} {goal.limit:<5g} {verdict:<8}{goal.what}"
    yield ""
    keys = {goal.key for goal in GOALS}
    for key, value in figures.items():
        if key not in keys:
            yield f"{key:<38}{shown(value):>9}"
    if names := missed(figures):
        yield f"\nMISSED: {', '.join(names)}"


def missed(figures: Mapping[str, float]) -> list[str]:
    """The figures that do not reach their goals."""
    return [goal.key for goal in GOALS if not goal.reached(figures[goal.key])]


def shown(value: float) -> str:
    """A number in as many digits as it deserves."""
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"  # noqa: PLR2004
