"""No call of the library reads a whole table, but for those that must: the cost of a call does not grow with the rows.

Every call is made at 5,000 rows under each plan_cache_mode; the server counts how it reads the tables.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol
from uuid import uuid4

import pytest

from spotconn._command import decryption
from spotconn._database import service_role
from spotconn._database.statements import EXPIRING, GET, RECHECK
from support.database import Database
from support.plan_harness import CALLS, ROWS, TABLES, PlanHarness, Planned, copied, dropped, filled, opened, statements

CONNECTIONS, STATES, PENDING, REMINDERS = TABLES
BY_DESIGN = {
    ("ConnectionAdmin.stats", CONNECTIONS): "it counts all connections, and all token values by key",
    ("ConnectionAdmin.stats", STATES): "it counts all connections by their state",
    ("ConnectionAdmin.rekey", CONNECTIONS): "before and after the batches it counts the values under other keys",
    ("doctor, stored tokens", CONNECTIONS): "it counts all token values that are in plain text",
}
"""What may and does read a whole table, and why. Each is an operator's, and none is asked for a user."""
IN_BATCHES = {
    "ConnectionAdmin.assign_app": "it looks at the app of every connection",
    "ConnectionAdmin.expiring": "it looks at the age of every connection",
    "ConnectionAdmin.failing": "it looks at every state",
    "ConnectionAdmin.prune": "it looks at every state",
    "ConnectionAdmin.recheck": "it looks at every state",
    "ConnectionAdmin.rekey": "it looks at every token",
    "doctor, decryption": "it looks at every token",
}
"""What goes along whole indexes, one batch after the other, and why."""

ROUNDS = 7
"""Of each call for a user: more than the five executions after which a server may choose a generic plan."""
BATCH = 10
"""Of an operator's lists, which so run many times, too: from a larger share of a table a server reads it whole."""
FEW = ROWS // 10
"""Entries of an index that no other call comes near, however many it is for; `get_many` is called for fifty users."""


class Open(Protocol):
    def __call__(self, plans: str, *damage: str) -> AbstractAsyncContextManager[PlanHarness]: ...


@pytest.fixture(scope="module")
def planned(prepared: Database) -> Iterator[Planned]:
    """The filled database, which nobody is connected to."""
    made = asyncio.run(filled(prepared, f"planned_{uuid4().hex}"))
    yield made
    asyncio.run(dropped(made))


@pytest.fixture
def open_copy(planned: Planned, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Opens the library over a copy, to which some damage may be done first."""
    monkeypatch.setattr(service_role, "BATCH", BATCH)
    monkeypatch.setattr(decryption, "BATCH", BATCH)

    @asynccontextmanager
    async def opening(plans: str, *damage: str) -> AsyncGenerator[PlanHarness]:
        copy = await copied(planned, f"{planned.name}_copy")
        try:
            async with opened(copy, plans) as harness:
                for statement in damage:
                    await harness.root.execute(statement)
                yield harness
        finally:
            await dropped(copy)

    return opening


@pytest.mark.long
@pytest.mark.parametrize(
    "plans",
    ["force_generic_plan", *(pytest.param(mode, marks=pytest.mark.long) for mode in ("auto", "force_custom_plan"))],
)
async def test_every_call_reads_by_an_index(open_copy: Open, plans: str) -> None:
    """None but the listed ones begins to read a whole table, or goes along a whole index, and these do; no function
    and no statement is left out.
    """
    whole: set[tuple[str, str]] = set()
    long: set[str] = set()
    async with open_copy(plans) as harness:
        for n in range(ROUNDS):
            for name, call in CALLS.items():
                if n and name.startswith("ConnectionAdmin."):
                    continue
                for table, scans in (await harness.reads(call)).items():
                    whole |= {(name, table)} if scans.whole else set()
                    long |= {name} if scans.entries > FEW else set()
        assert whole == set(BY_DESIGN)
        assert long == set(IN_BATCHES)
        # A call that ends with an error is not counted, as each of this one does.
        assert await harness.never_called() == {"refuse_hidden"}, "add a call to CALLS"
        begun = {text for text in statements() for executed in harness.executed if executed.startswith(text)}
        assert statements() - begun == set(), "add a call to CALLS"


UNIQUE = (
    "alter table public.spotify_connections drop constraint spotify_connections_user_id_key cascade",
    "drop index public.idx_spotify_connections_user",
)
NO_KEY = ["alter table spotconn.refresh_state drop constraint refresh_state_pkey"]
NO_REMINDER_KEY = ["alter table spotconn.reminder drop constraint reminder_pkey"]
VIEW = 'alter policy "Users can view own connections" on public.spotify_connections using '
CAST = [VIEW + "(auth.uid()::text = user_id::text)"]


@pytest.mark.parametrize(
    ("damage", "call", "table"),
    [
        (UNIQUE, "ConnectionStore.get", CONNECTIONS),
        (["drop index spotconn.idx_pending_connect_slot"], "PendingConnects.put and take", PENDING),
        (CAST, "ConnectionStore.as_user", CONNECTIONS),
        *(
            pytest.param(damage, call, table, marks=pytest.mark.long)
            for damage, call, table in (
                (UNIQUE, "ConnectionStore.get_many", CONNECTIONS),
                (UNIQUE, "ConnectionStore.delete", CONNECTIONS),
                (UNIQUE, "ConnectionAdmin.failing", CONNECTIONS),
                (UNIQUE, "the end of a user", CONNECTIONS),
                (NO_KEY, "ConnectionStore.get", STATES),
                (NO_KEY, "ConnectionStore.delete", STATES),
                (NO_REMINDER_KEY, "ConnectionStore.delete", REMINDERS),
                (["drop index spotconn.idx_pending_connect_expires"], "PendingConnects.put and take", PENDING),
                (["drop index spotconn.idx_pending_connect_slot"], "the end of a user", PENDING),
                (CAST, "doctor, isolation", CONNECTIONS),
            )
        ),
    ],
)
async def test_a_lost_index_is_seen(open_copy: Open, damage: list[str], call: str, table: str) -> None:
    """Without an index, or with a policy that cannot use it, the same call reads the whole table, or a whole index."""

    async def reads_much(harness: PlanHarness) -> bool:
        whole, entries = (await harness.reads(CALLS[call]))[table]
        return whole > 0 or (entries > FEW and call not in IN_BATCHES)

    async with open_copy("auto") as harness:
        assert not await reads_much(harness)
    async with open_copy("auto", *damage) as harness:
        assert await reads_much(harness)


async def test_what_is_not_in_the_list_is_seen(open_copy: Open) -> None:
    """A function that no call reaches is named, and the statements are found where they stand in the source."""
    new = "create function spotconn.new(integer) returns integer language sql return 1"
    async with open_copy("auto", new) as harness:
        await harness.reads(CALLS["ConnectionStore.get"])
        missing = await harness.never_called()
        assert "new" in missing
        assert not missing & {"get_connection", "act_as"}
        assert GET in harness.executed
    found = statements()
    assert len(found) > 20
    assert {EXPIRING, RECHECK, "select spotconn.act_as($1)"} <= found
