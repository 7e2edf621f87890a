"""Whatever another program writes into any column: errors of the library come out, and no other user is touched."""

import asyncio
import logging
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from support.database import Database
from support.foreign_rows import ForeignRows, extremes, rows, states

EXAMPLES = [25, pytest.param(500, marks=[pytest.mark.long, pytest.mark.timeout(900)])]
PATIENCE = 60
"""Seconds for one example, on a busy machine."""
NOT_HERE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


@pytest.mark.parametrize("examples", EXAMPLES)
def test_any_row_ends_in_errors_of_the_library_and_touches_no_other_user(
    prepared: Database, caplog: pytest.LogCaptureFixture, examples: int
) -> None:
    """No call raises anything else, or says that the database is wrong; no text of an error or a log shows a token."""
    harness = ForeignRows(prepared)
    unhandled: list[dict[str, Any]] = []

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=NOT_HERE, print_blob=True)
    @given(row=rows, state=states, cache_ttl=st.sampled_from([0.0, 30.0]))
    def check(row: dict[str, object], state: dict[str, object], cache_ttl: float) -> None:
        caplog.clear()

        async def within() -> None:
            async with asyncio.timeout(PATIENCE):
                await harness.check(row, state, cache_ttl=cache_ttl)

        runner.run(within())
        assert not unhandled
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR], "a grant was not saved"
        assert not harness.shown_in(caplog.text)

    for row, state in extremes():
        check = example(row=row, state=state, cache_ttl=0.0)(check)
    with asyncio.Runner() as runner:
        runner.get_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        runner.run(harness.open())
        try:
            check()
        finally:
            runner.run(harness.close())
