"""Anything may happen in any order: refreshes, cancellations, reconnects, foreign writes, faults, time."""

import asyncio
import os
from collections.abc import Coroutine, Iterator
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from spotconn import SpotconnError
from spotconn.testing import Answer
from support.database import Database, serving
from support.state_harness import ACCOUNTS, StateHarness

STEPS = [30_000] if os.environ.get("SPOTCONN_SOAK") else [30, pytest.param(2_000, marks=pytest.mark.long)]
ANSWERS = [Answer.too_many_requests("0"), Answer.unavailable(), Answer.truncated(), Answer(status=500)]
TOO_LATE = Answer.too_many_requests("3")
"""Asks to wait longer than a refresh may: it fails at once, and the managers pause."""

users = st.integers(0, 1)
managers = st.integers(0, 1)
accounts = st.sampled_from(ACCOUNTS)


class Machine(RuleBasedStateMachine):
    """The rules; the harness does the work on one event loop."""

    database: Database
    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self.harness = StateHarness(self.database)
        self._run(self.harness.open())
        for user in self.harness.expected:
            self._run(self.harness.reconnect(user, "alice", 0))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        async def within() -> None:
            async with asyncio.timeout(60):
                await work

        self._runner.run(within())

    def _user(self, number: int) -> UUID:
        return list(self.harness.expected)[number]

    @rule(user=users, which=managers, min_ttl=st.sampled_from([None, 0, 600, 3000]), number=st.integers(1, 3))
    def asks(self, user: int, which: int, min_ttl: float | None, number: int) -> None:
        who, manager = self._user(user), self.harness.managers[which]

        async def ask() -> None:
            calls = [
                self.harness.check_answer(who, which, manager.get_valid_token(who, min_ttl=min_ttl))
                for _ in range(number)
            ]
            await asyncio.gather(*calls)

        self._run(ask())

    @rule(user=users, terminated=st.booleans())
    def both_ask(self, user: int, *, terminated: bool) -> None:
        who, harness = self._user(user), self.harness

        async def ask() -> None:
            calls = [harness.check_answer(who, which, harness.managers[which].get_valid_token(who)) for which in (0, 1)]
            await asyncio.gather(*calls, *([harness.terminate()] if terminated else []))

        self._run(ask())

    @rule(user=users, which=managers, loop_steps=st.integers(0, 60))
    def asks_and_leaves(self, user: int, which: int, loop_steps: int) -> None:
        who, manager = self._user(user), self.harness.managers[which]

        async def leave() -> None:
            caller = asyncio.create_task(manager.get_valid_token(who))
            for _ in range(loop_steps):
                await asyncio.sleep(0)
            caller.cancel()
            await asyncio.wait([caller])

        self._run(leave())

    @rule(user=users, which=managers)
    def token_is_rejected(self, user: int, which: int) -> None:
        who, harness = self._user(user), self.harness

        async def replace() -> None:
            try:
                token = await harness.managers[which].get_valid_token(who)
            except SpotconnError:
                return
            harness.spotify.reject_access_token(token)
            harness.rejected.add(token)
            await harness.check_answer(who, which, harness.managers[which].replace_rejected(who, token))

        self._run(replace())

    @rule(user=users, account=accounts, which=managers)
    def reconnects(self, user: int, account: str, which: int) -> None:
        self._run(self.harness.reconnect(self._user(user), account, which))

    @rule(user=users, account=accounts)
    def foreign_client_writes(self, user: int, account: str) -> None:
        self._run(self.harness.foreign_write(self._user(user), account))

    @rule(user=users, account=accounts, which=managers)
    def reconnects_during_a_refresh(self, user: int, account: str, which: int) -> None:
        who, harness = self._user(user), self.harness

        async def collide() -> None:
            await harness.expire(who)
            asking = asyncio.create_task(harness.managers[which].get_valid_token(who))
            await harness.foreign_write(who, account)
            await asyncio.wait([asking])
            asking.exception()

        self._run(collide())

    @rule(user=users, which=managers)
    def disconnects(self, user: int, which: int) -> None:
        who, harness = self._user(user), self.harness

        async def disconnect() -> None:
            assert await harness.managers[which].disconnect(who) == (harness.expected[who].account is not None)
            harness.holds(who, None)

        self._run(disconnect())

    @rule(user=users)
    def expires(self, user: int) -> None:
        self._run(self.harness.expire(self._user(user)))

    @rule(seconds=st.sampled_from([10, 31, 1800, 3400, 3600]))
    def time_passes(self, seconds: int) -> None:
        self._run(self.harness.pass_time(seconds))

    @rule()
    def pauses_pass(self) -> None:
        self._run(self.harness.let_pauses_pass())
        for which in (0, 1):
            self._run(self.harness.reopen(which))

    @rule(account=accounts)
    def revokes(self, account: str) -> None:
        self.harness.spotify.revoke(account)
        for expected in self.harness.expected.values():
            expected.revoked |= expected.account == account

    @rule(answer=st.sampled_from([*ANSWERS, TOO_LATE, TOO_LATE]))
    def spotify_has_trouble(self, answer: Answer) -> None:
        self.harness.spotify.script(answer)

    @rule()
    def backends_are_terminated(self) -> None:
        self._run(self.harness.terminate())

    @invariant()
    def everything_holds(self) -> None:
        type(self).steps += 1
        self._run(self.harness.check())

    def teardown(self) -> None:
        self._run(self.harness.close())
        self._runner.close()


@pytest.fixture(scope="module")
def own() -> Iterator[Database]:
    """One server, of the packaged kind: what differs between versions of Postgres is tested elsewhere."""
    with serving() as database:
        yield database


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.timeout(3600)
def test_nothing_is_lost_crossed_or_declared_dead(own: Database, steps: int) -> None:
    """After every step each row, token and record is what the steps before have made it."""

    class Here(Machine):
        database = own

    several = settings(
        max_examples=20,
        stateful_step_count=50,
        deadline=None,
        database=None,
        print_blob=True,
        phases=[Phase.generate],  # a failure over real servers is not shrunk: it takes minutes and may not come again
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    while Here.steps < steps:
        run_state_machine_as_test(Here, settings=several)
    print(f"{Here.steps} steps")
