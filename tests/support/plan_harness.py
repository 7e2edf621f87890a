"""A database of realistic size, and what each call of the library reads there, by the server's own counters.

The counters see every scan: inside functions, for policies and for foreign keys.
"""

import ast
import importlib
import pkgutil
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import asyncpg

import spotconn
from spotconn import (
    AesGcmSivCipher,
    ConnectionAdmin,
    ConnectionStore,
    Profile,
    RefreshFailure,
    RefreshTurn,
    TokenGrant,
    importing,
    schema_sql,
)
from spotconn._command.catalog import ROLE_OF_THE_LIBRARY
from spotconn._command.checks import CHECKS, Check
from spotconn._command.decryption import check_decryption
from spotconn._command.probe import Probe
from spotconn._database import application, migration
from spotconn._database.pending_connects import Binding, Claim, PendingConnect
from spotconn._tokens.cache import ConnectionCache
from spotconn.errors import ConnectFailed, NotConnected, RowSecurityError
from spotconn.models import fingerprint
from spotconn.testing import apply_schema
from support.bulk import add_connections, bulk_user
from support.database import Database

ROWS = 5000
TABLES = ("public.spotify_connections", "spotconn.refresh_state", "spotconn.pending_connect", "spotconn.reminder")
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
LIFE = 600.0

# Every connection has a state of some kind and every user an authorization under way; one in fifty of these is old.
# The last two hundred users have none of it.
_INSERT_ROWS = f"""
insert into spotconn.refresh_state (
    user_id, fingerprint, failure, failures, failed_at, paused_at, retry_at, lease_id, leased_at, lease_until
)
select user_id, spotconn.fingerprint(refresh_token),
    case kind when 0 then 'revoked' when 1 then 'unavailable' end, kind, case when kind < 2 then now() end,
    case kind when 1 then now() end, case kind when 1 then now() + interval '1 minute' end,
    case kind when 2 then gen_random_uuid() end, case kind when 2 then now() end,
    case kind when 2 then now() + interval '1 second' end
from (
    select user_id, refresh_token,
        row_number() over (order by user_id) % 4 as kind, row_number() over (order by user_id)
    from public.spotify_connections
) as numbered
where row_number <= {ROWS - 200};
insert into spotconn.pending_connect (state_hash, user_id, code_verifier, expires_at)
select sha256(convert_to(user_id::text, 'UTF8')), user_id, repeat('v', 43),
    now() + case when random() < 0.02 then interval '-1 minute' else interval '10 minutes' end
from public.spotify_connections;
insert into spotconn.reminder (user_id, connected_at, asked_at)
select user_id, connected_at, now() from public.spotify_connections;
insert into auth.users (id) select ('00000000-0000-4000-9000-' || lpad(to_hex(n), 12, '0'))::uuid
from generate_series(1, 200) as n;
vacuum analyze
"""
_LOGINS = """
do $$ begin
    if not exists (select from pg_roles where rolname = 'planner') then
        create role planner login password 'planner' in role spotconn, service_role;
    end if;
end $$
"""
_COUNTERS = """
select schemaname || '.' || relname, seq_scan,
    (select coalesce(sum(idx_tup_read), 0) from pg_stat_user_indexes as index where index.relid = stats.relid)::bigint
from pg_stat_user_tables as stats where relid = any($1::text[]::regclass[])
"""
_CALLED = "select funcname::text from pg_stat_user_functions where schemaname = 'spotconn' and calls > 0"
_FUNCTIONS = "select proname::text from pg_proc where pronamespace = 'spotconn'::regnamespace"


class Scans(NamedTuple):
    """How often a call began to read a table as a whole, and how many entries of its indexes it read."""

    whole: int
    entries: int


class Planned(NamedTuple):
    """The filled database."""

    database: Database
    name: str

    def dsn(self, login: str | None = None) -> str:
        server = self.database.server
        return server.dsn(self.name) if login is None else server.dsn(self.name, user=login, password=login)


async def filled(database: Database, name: str) -> Planned:
    """Make and fill it."""
    planned = Planned(database, name)
    maintenance = await asyncpg.connect(database.server.dsn())
    await maintenance.execute(f"create database {name}")
    await maintenance.execute(_LOGINS)
    await maintenance.close()
    await apply_schema(planned.dsn())
    admin = await asyncpg.connect(planned.dsn())
    await add_connections(admin, ROWS)
    for statement in _INSERT_ROWS.split(";"):
        await admin.execute(statement)
    await admin.close()
    return planned


async def copied(planned: Planned, name: str) -> Planned:
    """A copy; nobody may be connected to the original."""
    maintenance = await asyncpg.connect(planned.database.server.dsn())
    await maintenance.execute(f"create database {name} template {planned.name}")
    await maintenance.execute(f"alter database {name} set track_functions = 'all'")
    await maintenance.close()
    return planned._replace(name=name)


async def dropped(planned: Planned) -> None:
    maintenance = await asyncpg.connect(planned.database.server.dsn())
    await maintenance.execute(f"drop database {planned.name} with (force)")
    await maintenance.close()


class PlanHarness:
    """The library over that database, one session to each of its pools.

    Attributes:
        executed: the texts of all statements that the library has sent.
    """

    def __init__(self, store: ConnectionStore, house: ConnectionAdmin, probe: Probe, root: asyncpg.Connection) -> None:
        self.store = store
        self.house = house
        self.probe = probe
        self.root = root
        self.executed: set[str] = set()
        # By the numbers of the fill: with a state, and the last ones without.
        self._busy = iter(range(1, ROWS - 200))
        self._free = iter(range(ROWS - 199, ROWS + 1))
        self._new = iter(range(1, 201))

    def busy(self) -> UUID:
        """A user with a refresh state; each once."""
        return bulk_user(next(self._busy))

    def free(self) -> UUID:
        """A user whose connection has no refresh state."""
        return bulk_user(next(self._free))

    def new(self) -> UUID:
        """A user without a connection."""
        return UUID(f"00000000-0000-4000-9000-{next(self._new):012x}")

    async def reads(self, call: "Call") -> dict[str, Scans]:
        """What a call reads of the tables."""
        before = await self._counters()
        await call(self)
        after = await self._counters()
        return {table: Scans(*(b - a for a, b in zip(before[table], after[table], strict=True))) for table in TABLES}

    async def never_called(self) -> set[str]:
        """The functions of the schema that no call has reached."""
        called = {row[0] for row in await self.root.fetch(_CALLED)}
        return {row[0] for row in await self.root.fetch(_FUNCTIONS)} - called

    async def _counters(self) -> dict[str, Scans]:
        # A session keeps its counts to itself for up to a second, unless told.
        for pool in (self.store.pool._pool, self.house._pool._pool):
            async with pool.acquire() as session:
                await session.execute("select pg_stat_force_next_flush()")
        for other in (self.probe.session, self.root):
            await other.execute("select pg_stat_force_next_flush()")
        rows = await self.root.fetch(_COUNTERS, list(TABLES))
        return {table: Scans(*counts) for table, *counts in rows}


KEYS = {"SPOTCONN_ENCRYPTION_KEYS": AesGcmSivCipher.generate_key()}

Call = Callable[[PlanHarness], Awaitable[object]]


@asynccontextmanager
async def opened(planned: Planned, plans: str) -> AsyncGenerator[PlanHarness]:
    """The library; `plans` is a plan_cache_mode."""
    options: dict[str, Any] = {"min_size": 1, "max_size": 1, "server_settings": {"plan_cache_mode": plans}}
    executed: set[str] = set()

    async def watched(session: asyncpg.Connection) -> None:
        session.add_query_logger(lambda record: executed.add(record.query))

    async with AsyncExitStack() as stack:
        root = await asyncpg.connect(planned.dsn())
        stack.push_async_callback(root.close)
        # Two rings in another order, so that a rekey always finds something to do.
        keys = [AesGcmSivCipher.generate_key() for _ in range(2)]
        ours, theirs = AesGcmSivCipher(keys), AesGcmSivCipher(keys[::-1])
        opening = ConnectionStore.open(planned.dsn("app"), cipher=ours, init=watched, **options)
        store = await stack.enter_async_context(opening)
        house = ConnectionAdmin.open(planned.dsn("planner"), cipher=theirs, init=watched, **options)
        admin = await stack.enter_async_context(house)
        pool = await stack.enter_async_context(asyncpg.create_pool(planned.dsn("planner"), init=watched, **options))
        session = await stack.enter_async_context(pool.acquire())
        harness = PlanHarness(store, admin, Probe(session), root)
        harness.executed = executed
        yield harness


def _grant(minutes: float) -> TokenGrant:
    ends = datetime.now(UTC) + timedelta(minutes=minutes)
    return TokenGrant(access_token="access", refresh_token="refresh", expires_at=ends)


async def _listed(items: AsyncIterator[object]) -> None:
    async for _ in items:
        pass


async def _followed(harness: PlanHarness) -> None:
    tied = schema_sql(users="public.people(id bigint)", transaction=False)
    await harness.root.execute(f"create table public.people (id bigint primary key); {tied}")
    try:
        for change in ("insert into {} values (42)", "update {} set id = 43", "delete from {}"):
            await harness.root.execute(change.format("public.people"))
        await harness.root.fetchval("select spotconn.integer_id(spotconn.user_id(42))")
    finally:
        await harness.root.execute("drop table public.people")


async def _migrated(harness: PlanHarness) -> None:
    user = harness.busy()
    await harness.root.execute(
        "create view public.elsewhere as select $$%s$$::uuid as user_id, $$r$$::text as refresh_token" % user  # noqa: UP031
    )
    login = await harness.house._database.fetch("select session_user as name")
    await harness.root.execute(f"grant select on public.elsewhere, auth.users to {login[0]['name']}")
    await harness.root.execute(f"grant usage on schema auth to {login[0]['name']}")
    try:
        await _listed(harness.house.migrate("public.elsewhere", needs_account=False))
        await harness.house._database.fetch(migration._INSERT, *(list[object]() for _ in range(9)))
    finally:
        await harness.root.execute("drop view public.elsewhere")


async def _with_account(harness: PlanHarness) -> None:
    user = harness.busy()
    async with harness.store.as_user(user) as connection:
        await connection.execute(importing._SET_ACCOUNT, user, "account", None, None)


async def _turn(harness: PlanHarness, user: UUID) -> RefreshTurn:
    # A short lease: a rekey waits for its end.
    return await harness.store.begin_refresh(user, seen=(await harness.store.get(user)).fingerprint, lease=0.5)


async def _begun(harness: PlanHarness) -> None:
    for _ in range(4):
        await _turn(harness, harness.busy())


async def _refreshed(harness: PlanHarness) -> None:
    turn = await _turn(harness, user := harness.free())
    assert await harness.store.finish_refresh(turn, _grant(60))
    assert (await harness.store.get(user)).access_token == "access"


async def _failed(harness: PlanHarness) -> None:
    turn = await _turn(harness, harness.free())
    assert await harness.store.fail_refresh(turn, RefreshFailure(reason="unavailable"))


async def _found_none(harness: PlanHarness) -> None:
    """Read and delete what is missing, read what a policy of the project hides; fail a refresh that was saved."""
    hide = f"create policy hide on {TABLES[0]} as restrictive for select using (spotify_user_id is null)"
    for user, policy in ((harness.new(), "select"), (harness.new(), hide), (harness.busy(), hide)):
        await harness.root.execute(policy)
        with suppress(NotConnected, RowSecurityError):
            await harness.store.get(user)
            raise AssertionError(policy)
        await harness.root.execute(f"drop policy if exists hide on {TABLES[0]}")
    assert not await harness.store.delete(harness.new())
    turn = await _turn(harness, harness.free())
    assert await harness.store.finish_refresh(turn, _grant(60))
    assert await harness.store.fail_refresh(turn, RefreshFailure()) is None


async def _connected(harness: PlanHarness) -> None:
    for user in (harness.new(), harness.busy()):
        await harness.store.save(user, _grant(60), Profile(spotify_user_id="account"))


async def _connecting(harness: PlanHarness) -> None:
    cases: list[tuple[UUID | None, Binding]] = [(harness.busy(), "user"), (harness.busy(), "none"), (None, "cookie")]
    for user, binding in cases:
        state = str(uuid4())
        cookie = "a cookie" if binding == "cookie" else None
        await harness.store.pending.put(PendingConnect(user, "v" * 43), state, life=LIFE, cookie=cookie)
        claim = Claim(state, binding, user, cookie)
        assert await harness.store.pending.take(claim) is not None
        with suppress(ConnectFailed):  # it is used
            assert not await harness.store.pending.take(claim)


async def _pruned(harness: PlanHarness) -> None:
    user = harness.busy()
    await harness.root.execute(
        f"update {TABLES[0]} set connected_at = null, expires_at = '1950-01-01' where user_id = '{user}'; "
        f"update {TABLES[1]} set failure = 'expired', failed_at = '1950-01-01', paused_at = null, retry_at = null, "
        f"lease_id = null, leased_at = null, lease_until = null, saved_at = null where user_id = '{user}'"
    )
    assert (await harness.house.prune(dead_for=timedelta(days=20_000), write=True)).expired == 1


async def _examined(check: Check, harness: PlanHarness) -> None:
    async with harness.probe.rolled_back():
        await check(harness.probe)


async def _own_sql(harness: PlanHarness) -> None:
    async with harness.store.as_user(harness.busy()) as connection:
        assert len(await connection.fetch("select user_id from public.spotify_connections")) == 1


async def _listening(harness: PlanHarness) -> None:
    assert harness.store.changes is not None
    async with harness.store.changes.subscribe(ConnectionCache(ttl=1, size=1)) as subscription:
        subscription._session.add_query_logger(lambda record: harness.executed.add(record.query))
        await subscription.heartbeat()


CALLS: dict[str, Call] = {
    "ConnectionStore.verify": lambda harness: harness.store.verify(),
    "ConnectionStore.get": lambda harness: harness.store.get(harness.busy()),
    "ConnectionStore.get_many": lambda harness: harness.store.get_many([harness.busy() for _ in range(50)]),
    "ConnectionStore.tokens.get": lambda harness: harness.store.tokens.get(harness.busy()),
    "ConnectionStore.save": _connected,
    "ConnectionStore.check_save": lambda harness: harness.store.check_save(harness.busy()),
    "ConnectionStore.delete": lambda harness: harness.store.delete(harness.busy()),
    "ConnectionStore.begin_refresh, superseded": lambda harness: harness.store.begin_refresh(
        harness.busy(), seen=fingerprint("another")
    ),
    "ConnectionStore.begin_refresh, four kinds of state": _begun,
    "ConnectionStore.finish_refresh": _refreshed,
    "ConnectionStore.fail_refresh": _failed,
    "ConnectionStore, where nothing is found": _found_none,
    "ConnectionStore.as_user": _own_sql,
    "PendingConnects.put and take": _connecting,
    "ConnectionAdmin.expiring": lambda harness: _listed(harness.house.expiring(within=timedelta(days=30))),
    "ConnectionAdmin.failing": lambda harness: _listed(harness.house.failing()),
    "ConnectionAdmin.mark_asked": lambda harness: harness.house.mark_asked([harness.busy() for _ in range(20)]),
    "ConnectionAdmin.stats": lambda harness: harness.house.stats(),
    "ConnectionAdmin.recheck": lambda harness: harness.house.recheck(since=LONG_AGO),
    "ConnectionAdmin.prune": _pruned,
    "ConnectionAdmin.assign_app": lambda harness: harness.house.assign_app("app"),
    "ConnectionAdmin.migrate": _migrated,
    "verify_connection, of an unknown account": _with_account,
    "ConnectionAdmin.move": lambda harness: harness.house.move(harness.free(), harness.new()),
    "ConnectionAdmin.rekey": lambda harness: harness.house.rekey(),
    "schema, what is there": lambda harness: application.look(harness.probe.session),
    "schema, what it waits for": lambda harness: application._holders(harness.probe.session),
    "a table of users that is followed": _followed,
    "the end of a user": lambda harness: harness.root.execute("delete from auth.users where id = $1", harness.busy()),
    **{f"doctor, {name}": partial(_examined, check) for name, check in CHECKS.items()},
    "doctor, decryption": partial(_examined, partial(check_decryption, environ=KEYS)),
    "doctor, why isolation fails": lambda harness: harness.probe.rows(ROLE_OF_THE_LIBRARY),
    "Refreshes.server_life": lambda harness: harness.store.refreshes.server_life(),
    "Subscription.heartbeat": _listening,
}
"""All that the library does with the tables, and what a deleted user sets off."""


_SQL = re.compile(r"\s*(select|insert|update|delete|with)\s")
_OURS = re.compile(r"spotify_connections|refresh_state|pending_connect|spotconn\.\w+")


def statements() -> set[str]:
    """Every statement in the source of the library that speaks of the tables or the functions."""
    return {text for text in source_texts() if _SQL.match(text) and _OURS.search(text) and "{" not in text}


def source_texts() -> Iterator[str]:
    """Yield the strings in the source of the library, also those put together at import."""
    package = Path(spotconn.__file__).parent
    for file in package.rglob("*.py"):
        if file.is_relative_to(package / "testing"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
    for module in pkgutil.walk_packages([str(package)], "spotconn."):  # what is put together at import
        if not module.name.endswith("__main__") and ".testing" not in module.name:
            found = vars(importlib.import_module(module.name)).values()
            yield from (value for value in found if isinstance(value, str))
