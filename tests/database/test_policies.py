"""Policies of the project's own: what they keep from the library is told by name, and nothing else is taken for it.

They are such as a project writes: a second factor, no anonymous users, `TO authenticated`.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import NamedTuple
from uuid import UUID

import asyncpg
import pytest

from spotconn import ConnectionStore, NotConnected, Outcome, Profile, RefreshFailure, RowSecurityError, TokenManager
from spotconn.accounts import SpotifyAccounts
from spotconn.models import Connection
from spotconn.testing import FakeSpotify, apply_schema
from spotconn.turns import RefreshTurn
from support.connections import connect, grant
from support.database import Database
from support.doctor import look
from support.pgbouncer import pgbouncer
from support.read_only import read_only

TABLE = "public.spotify_connections"
AAL = "(select current_setting('request.jwt.claims', true)::jsonb ->> 'aal') = 'aal2'"
ALICE = Profile(spotify_user_id="alice")
VIEW, CREATE, UPDATE, DELETE = (
    f'"Users can {verb} own connections"' for verb in ("view", "create", "update", "delete")
)
READS, BEGIN, FINISH, FAIL, SAVE, REMOVE = "reads", "begin", "finish", "fail", "save", "delete"
ALL = {READS, BEGIN, FINISH, FAIL, SAVE, REMOVE}
CHANGES = {BEGIN, FINISH, FAIL, SAVE}


class Policies(NamedTuple):
    """What a project does to its policies.

    Attributes:
        made: the statement.
        undone: takes it back.
        named: what the text of `open` names, with the remedy.
        refused: the operations that it keeps from the library.
    """

    made: str
    undone: str
    named: str
    refused: set[str]


def restrictive(clauses: str, command: str, refused: set[str], *, check: bool = True) -> Policies:
    """A restrictive policy `own`."""
    expression = f"using ({AAL})" if check else f"with check ({AAL})"
    return Policies(
        f"create policy own on {TABLE} as restrictive {clauses} {expression}",
        f"drop policy own on {TABLE}",
        rf"restrictive policy own on {TABLE} binds the role spotconn for {command}: "
        rf"ALTER POLICY own ON {TABLE} TO authenticated$",
        refused,
    )


def moved(policy: str, command: str, refused: set[str]) -> Policies:
    """A documented policy that is moved to the role of the browsers."""
    return Policies(
        f"alter policy {policy} on {TABLE} to authenticated",
        f"alter policy {policy} on {TABLE} to public",
        rf"no permissive policy on {TABLE} binds the role spotconn for {command}: .*spotconn schema --apply",
        refused,
    )


OF_ALL = "DELETE, INSERT, SELECT, UPDATE"
CASES = {
    "restrictive": restrictive("", OF_ALL, ALL),
    "restrictive to public": restrictive("for all to public", OF_ALL, ALL),
    "restrictive to spotconn": restrictive("to spotconn", OF_ALL, ALL),
    "restrictive to several": restrictive("to anon, spotconn", OF_ALL, ALL),
    "restrictive for select": restrictive("for select", "SELECT", ALL),
    "restrictive for insert": restrictive("for insert", "INSERT", {SAVE}, check=False),
    "restrictive for update": restrictive("for update", "UPDATE", CHANGES),
    "restrictive for delete": restrictive("for delete", "DELETE", {REMOVE}),
    "select to authenticated": moved(VIEW, "SELECT", ALL),
    "insert to authenticated": moved(CREATE, "INSERT", {SAVE}),
    "update to authenticated": moved(UPDATE, "UPDATE", CHANGES),
    "delete to authenticated": moved(DELETE, "DELETE", {REMOVE}),
    "select dropped": moved(VIEW, "SELECT", ALL)._replace(
        made=f"drop policy {VIEW} on {TABLE}",
        undone=f"create policy {VIEW} on {TABLE} for select using ((select auth.uid()) = user_id)",
    ),
    "delete dropped": moved(DELETE, "DELETE", {REMOVE})._replace(
        made=f"drop policy {DELETE} on {TABLE}",
        undone=f"create policy {DELETE} on {TABLE} for delete using ((select auth.uid()) = user_id)",
    ),
}
HARMLESS = {
    "restrictive to authenticated": f"create policy own on {TABLE} as restrictive to authenticated using ({AAL})",
    "restrictive to clients": f"create policy own on {TABLE} as restrictive to anon, authenticated using ({AAL})",
    "restrictive to the own row": f"create policy own on {TABLE} as restrictive using (user_id = (select auth.uid()))",
    "restrictive, true": f"create policy own on {TABLE} as restrictive using (true) with check (user_id = auth.uid())",
    "permissive": f"create policy own on {TABLE} using (spotify_user_id = 'shared')",
    "permissive to spotconn": f"create policy own on {TABLE} for select to spotconn using (false)",
}


@asynccontextmanager
async def altered(admin: asyncpg.Connection, policies: Policies) -> AsyncGenerator[None]:
    await admin.execute(policies.made)
    try:
        yield
    finally:
        await admin.execute(policies.undone)


async def told(call: Callable[[], Awaitable[object]]) -> bool:
    """Return whether a call raises the error of a policy, which names a remedy. Any other error passes through."""
    try:
        await call()
    except RowSecurityError as error:
        return "TO authenticated" in str(error) or "schema --apply" in str(error)
    return False


class Connected(NamedTuple):
    """A user with a connection, and the turn of a refresh that has begun."""

    user: UUID
    connection: Connection
    turn: RefreshTurn


@pytest.fixture
async def connected(store: ConnectionStore, users: list[UUID]) -> list[Connected]:
    """Two users whose refresh has begun."""
    found = list[Connected]()
    for user in users[:2]:
        saved = await store.save(user, grant(str(user), minutes=-5), ALICE)
        found.append(Connected(user, saved, await store.begin_refresh(user, seen=saved.fingerprint)))
    assert {one.turn.outcome for one in found} == {Outcome.GRANTED}
    return found


@pytest.mark.parametrize("name", CASES)
async def test_what_a_policy_keeps_from_the_library_is_told(
    store: ConnectionStore, admin: asyncpg.Connection, users: list[UUID], connected: list[Connected], name: str
) -> None:
    """Each operation that a policy refuses says so, and no other; a user without a connection has none, as before."""
    (user, before, turn), other = connected[0], connected[1]
    fresh = await store.save(users[2], grant("fresh", minutes=-5), ALICE)
    refused: set[str] = set()
    async with altered(admin, CASES[name]):
        for call in (
            lambda: store.get(user),
            lambda: store.tokens.get(user),
        ):
            if await told(call):
                refused.add(READS)
        many = await store.get_many([user, users[2]])
        alone = await store.tokens.get_many([user, users[2]])
        assert {type(one) for one in (*many.values(), *alone.values())} == (
            {RowSecurityError} if READS in refused else {Connection, type(alone[user])}
        )
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            BEGIN: lambda: store.begin_refresh(users[2], seen=fresh.fingerprint),
            FINISH: lambda: store.finish_refresh(turn, grant("later")),
            FAIL: lambda: store.fail_refresh(other.turn, RefreshFailure(reason="unavailable")),
            SAVE: lambda: store.save(user, grant("anew"), ALICE),
            REMOVE: lambda: store.delete(user),
        }
        refused |= {operation for operation, call in calls.items() if await told(call)}
        assert refused == CASES[name].refused
        # What was kept is still there, and only that.
        stored = await admin.fetchval(f"select count(*) from {TABLE} where user_id = $1", user)
        assert stored == (REMOVE in refused)
        await admin.execute(f"delete from {TABLE} where user_id = $1", user)
        with pytest.raises(NotConnected):
            await store.get(user)
        with pytest.raises(NotConnected):
            await store.tokens.get(user)
        assert (await store.begin_refresh(user, seen=before.fingerprint)).outcome is Outcome.GONE
        assert not await store.delete(user)
        assert await store.finish_refresh(turn, grant("later")) is None


@pytest.mark.parametrize("name", CASES)
async def test_no_store_opens_on_such_policies(database: Database, admin: asyncpg.Connection, name: str) -> None:
    """`open` names the policy, the command and the remedy; the doctor does; and after the remedy all is well."""
    async with altered(admin, CASES[name]):
        with pytest.raises(RowSecurityError, match=CASES[name].named) as raised:
            async with ConnectionStore.open(database.dsn):
                pass
        catalog = (await look(database.dsn))["catalog"]
        assert catalog.state == "fail"
        remedy = str(raised.value).rpartition(": ")[2]
        if remedy.startswith("ALTER POLICY"):
            assert remedy.partition(" TO ")[0].lower() in str(catalog.remedy).lower()
            await admin.execute(remedy)
        else:
            await apply_schema(database.admin_dsn)
        async with ConnectionStore.open(database.dsn):
            pass
        assert (await look(database.dsn))["catalog"].state != "fail"
        if "dropped" in name:
            await admin.execute(CASES[name].made)


@pytest.mark.parametrize("name", HARMLESS)
async def test_policies_that_spare_the_library_are_its_users_own(
    database: Database, admin: asyncpg.Connection, user: UUID, name: str
) -> None:
    """A restrictive policy of browsers, or to the own row, and a permissive one more refuse nothing and hide nobody."""
    await admin.execute(HARMLESS[name])
    try:
        async with ConnectionStore.open(database.dsn) as store:
            with pytest.raises(NotConnected):
                await store.get(user)
            saved = await store.save(user, grant("a", minutes=-5), ALICE)
            turn = await store.begin_refresh(user, seen=saved.fingerprint)
            assert await store.finish_refresh(turn, grant("b")) is not None
            assert await store.delete(user)
            assert not await store.delete(user)
    finally:
        await admin.execute(f"drop policy own on {TABLE}")


async def test_a_role_that_the_library_inherits_from_counts(database: Database, admin: asyncpg.Connection) -> None:
    """A restrictive policy of a role binds its members; one of a role that nobody here is a member of does not."""
    await admin.execute("create role team; create role others")
    await admin.execute(f"create policy own on {TABLE} as restrictive to team using (false)")
    try:
        async with ConnectionStore.open(database.dsn):
            pass
        await admin.execute("grant team to spotconn")
        with pytest.raises(RowSecurityError, match="restrictive policy own"):
            async with ConnectionStore.open(database.dsn):
                pass
    finally:
        await admin.execute(f"drop policy own on {TABLE}; drop role team; drop role others")


async def test_a_policy_on_a_table_of_the_library_is_to_be_dropped(
    database: Database, admin: asyncpg.Connection
) -> None:
    """In the schema spotconn a project has no browsers to bind."""
    await admin.execute('create policy "Own, too" on spotconn.refresh_state as restrictive using (false)')
    with pytest.raises(RowSecurityError) as raised:
        async with ConnectionStore.open(database.dsn):
            pass
    _, _, remedy = str(raised.value).rpartition(": ")
    assert remedy == 'DROP POLICY "Own, too" ON spotconn.refresh_state'
    await admin.execute(remedy)
    async with ConnectionStore.open(database.dsn):
        pass


@pytest.fixture
async def tokens(store: ConnectionStore, accounts: SpotifyAccounts) -> AsyncIterator[TokenManager]:
    """A manager over the store."""
    async with TokenManager(store, accounts) as manager:
        yield manager


@pytest.mark.parametrize("name", ["restrictive", "restrictive for select", "select to authenticated"])
async def test_no_call_of_a_manager_takes_a_hidden_connection_for_none(
    tokens: TokenManager, spotify: FakeSpotify, admin: asyncpg.Connection, users: list[UUID], name: str
) -> None:
    """A token, a batch of them, the status and a disconnect name the policy; nothing is deleted."""
    for user in users[:2]:
        await connect(tokens.store, spotify, user)
    async with altered(admin, CASES[name]):
        for call in (tokens.get_valid_token, tokens.status, tokens.disconnect):
            with pytest.raises(RowSecurityError, match="is stored, and kept from the library"):
                await call(users[0])
        found = {user: type(token) async for user, token in tokens.get_valid_tokens(users)}
    assert found == {users[0]: RowSecurityError, users[1]: RowSecurityError, users[2]: NotConnected}
    assert await tokens.get_valid_token(users[0])


async def test_a_whole_batch_that_is_hidden_ends_the_run(
    tokens: TokenManager, admin: asyncpg.Connection, store: ConnectionStore
) -> None:
    """Of hundreds of users not each is asked for alone: the run ends with the error of the policy."""
    made = "insert into auth.users select gen_random_uuid() from generate_series(1, 100) returning id"
    users = [row["id"] for row in await admin.fetch(made)]
    await admin.executemany(
        f"insert into {TABLE} (user_id, spotify_user_id, access_token, refresh_token, expires_at) "
        "values ($1, 'a', 'b', 'c', now() + interval '1 hour')",
        [(user,) for user in users],
    )
    async with altered(admin, CASES["restrictive"]):
        with pytest.raises(RowSecurityError, match="restrictive policy own"):
            _ = [one async for one in tokens.get_valid_tokens(users)]


async def test_spotify_is_not_asked_for_what_cannot_be_saved(
    tokens: TokenManager, spotify: FakeSpotify, admin: asyncpg.Connection, user: UUID
) -> None:
    """With a policy for updates no refresh begins, so that no rotated token is lost and no caller waits for another."""
    await connect(tokens.store, spotify, user, ttl=-5)
    before = spotify.token_calls
    async with altered(admin, CASES["restrictive for update"]), asyncio.timeout(5):
        with pytest.raises(RowSecurityError, match="restrictive policy own"):
            await tokens.get_valid_token(user)
    assert spotify.token_calls == before
    assert await tokens.get_valid_token(user)


async def test_a_policy_that_comes_during_a_refresh_loses_no_grant(
    tokens: TokenManager, spotify: FakeSpotify, admin: asyncpg.Connection, user: UUID
) -> None:
    """A save that changed nothing is not taken for another's write; the grant is saved once the policy is gone."""
    saved = await connect(tokens.store, spotify, user, ttl=-5)
    turn = await tokens.store.begin_refresh(user, seen=saved.fingerprint)
    async with altered(admin, CASES["restrictive for update"]):
        with pytest.raises(RowSecurityError, match="restrictive policy own"):
            await tokens.store.finish_refresh(turn, grant("rotated"))
    finished = await tokens.store.finish_refresh(turn, grant("rotated"))
    assert finished is not None
    assert finished.refresh_token == "refresh-rotated"


async def test_what_cannot_be_saved_is_known_before(
    store: ConnectionStore, admin: asyncpg.Connection, user: UUID
) -> None:
    """`check_save` fails where `save` would."""
    for name, policies in CASES.items():
        async with altered(admin, policies):
            if "delete" in name:
                await store.check_save(user)
            else:
                with pytest.raises(RowSecurityError):
                    await store.check_save(user)


async def test_a_condition_more_in_a_documented_policy_is_told(
    store: ConnectionStore, admin: asyncpg.Connection, users: list[UUID]
) -> None:
    """It is permissive, so `open` cannot tell; a row that it hides is no missing one, and who has none has none."""
    await store.save(users[0], grant("a"), ALICE)
    own = "(select auth.uid()) = user_id"
    policies = Policies(
        f"alter policy {VIEW} on {TABLE} using ({own} and (select auth.role()) = 'authenticated')",
        f"alter policy {VIEW} on {TABLE} using ({own})",
        "",
        set(),
    )
    async with altered(admin, policies):
        with pytest.raises(RowSecurityError, match="a policy was altered"):
            await store.get(users[0])
        with pytest.raises(RowSecurityError, match="refuses the row"):
            await store.save(users[0], grant("b"), ALICE)
        with pytest.raises(NotConnected):
            await store.get(users[1])


async def test_a_pooler_in_between_changes_nothing(
    database: Database, admin: asyncpg.Connection, users: list[UUID]
) -> None:
    """Behind a transaction pooler a hidden connection is told from a missing one, also on one session for all."""
    with pgbouncer(database.server.port, size=1) as pooler:
        async with ConnectionStore.open(pooler.through(database.dsn), max_size=2) as store:
            await store.save(users[0], grant("a"), ALICE)
            async with altered(admin, CASES["restrictive for select"]):
                found = await asyncio.gather(*(_outcome(store, user) for user in users * 3))
            assert found == ["RowSecurityError", "NotConnected", "NotConnected"] * 3
            assert await _outcome(store, users[0]) == "read"


async def test_a_refused_row_names_the_policy(store: ConnectionStore, admin: asyncpg.Connection, user: UUID) -> None:
    """A WITH CHECK that the library's row does not pass is not taken for a grant that the login lacks."""
    async with altered(admin, CASES["restrictive for insert"]):
        with pytest.raises(RowSecurityError, match=r"refuses the row .* \(restrictive policy own\)") as raised:
            await store.save(user, grant("a"), ALICE)
    assert "GRANT spotconn TO" not in str(raised.value)


async def test_a_trigger_that_keeps_a_row_is_no_absent_connection(
    store: ConnectionStore, admin: asyncpg.Connection, user: UUID
) -> None:
    """A disconnect that a trigger of the project suppresses is not answered with False."""
    await store.save(user, grant("a"), ALICE)
    await admin.execute(
        "create function public.keep() returns trigger language plpgsql as 'begin return null; end'; "
        f"create trigger keep before delete on {TABLE} for each row execute function public.keep()"
    )
    try:
        with pytest.raises(RowSecurityError, match="or a trigger keeps it"):
            await store.delete(user)
    finally:
        await admin.execute("drop function public.keep() cascade")
    assert await store.delete(user)


async def test_a_missing_connection_costs_no_write(store: ConnectionStore, user: UUID) -> None:
    """With the documented policies no transaction id is taken for a user without a connection, alone or in a batch."""
    async with store.pool.acquire() as session, session.transaction():
        for query in ("get_connection($1)", "get_access_tokens(array[$1::uuid])", "get_connections(array[$1::uuid])"):
            assert await session.fetchrow(f"select from spotconn.{query}", user) is None
        assert await session.fetchval("select pg_current_xact_id_if_assigned()") is None


async def test_a_look_past_the_policies_leaves_nothing(
    store: ConnectionStore, admin: asyncpg.Connection, users: list[UUID], connected: list[Connected]
) -> None:
    """Whether a connection is hidden, missing or shown, no lock and no transaction id stays, also in a transaction."""
    policies = restrictive("for select", "SELECT", ALL)._replace(
        made=f"create policy own on {TABLE} as restrictive for select using (user_id <> '{users[0]}')"
    )
    async with altered(admin, policies), store.pool.acquire() as session, session.transaction():
        for user, expected in zip(users, (True, False, False), strict=True):
            await session.execute("select spotconn.act_as($1)", user)
            assert await session.fetchval("select spotconn.is_hidden($1, 'SELECT')", user) is expected
        assert await session.fetchval("select pg_current_xact_id_if_assigned()") is None
        # Another session may lock the rows that were looked at.
        assert await admin.fetch(f"select from {TABLE} for update nowait")


async def test_no_lock_holds_up_a_read(
    store: ConnectionStore, admin: asyncpg.Connection, connected: list[Connected]
) -> None:
    """Nor of a row that is hidden."""
    async with altered(admin, CASES["restrictive for select"]), admin.transaction():
        await admin.execute(f"select from {TABLE} for update")
        async with asyncio.timeout(5):
            assert await _outcome(store, connected[0].user) == "RowSecurityError"


async def _outcome(store: ConnectionStore, user: UUID) -> str:
    try:
        await store.get(user)
    except Exception as error:  # noqa: BLE001  its class is what is asked for
        return type(error).__name__
    return "read"


@pytest.mark.parametrize("replica", [False, True], ids=["read-only", "replica"])
async def test_a_read_only_server_tells_them_apart(
    database: Database, admin: asyncpg.Connection, connected: list[Connected], users: list[UUID], *, replica: bool
) -> None:
    """So does one on which no foreign key is checked."""
    settings = {"session_replication_role": "replica"} if replica else {}
    async with (
        ConnectionStore.open(database.admin_dsn, server_settings=settings) as store,
        altered(admin, CASES["restrictive for select"]),
        nullcontext() if replica else read_only(database),
    ):
        assert await _outcome(store, connected[0].user) == "RowSecurityError"
        assert await _outcome(store, users[2]) == "NotConnected"


@pytest.mark.parametrize("forced", [False, True])
async def test_where_the_owner_is_bound_the_catalog_decides(
    database: Database, admin: asyncpg.Connection, store: ConnectionStore, users: list[UUID], *, forced: bool
) -> None:
    """An owner without BYPASSRLS sees past policies unless row security is forced; no hidden row is a missing one."""
    await store.save(users[0], grant("a"), ALICE)
    former = await admin.fetchval("select current_user")
    await admin.execute("create role plain nologin; grant usage, create on schema public, spotconn to plain")
    owners = [f"alter {kind} owner to" for kind in (f"table {TABLE}", "view spotconn.own_row")]
    try:
        await admin.execute("; ".join(f"{owner} plain" for owner in owners))
        await admin.execute(f"alter table {TABLE} {'force' if forced else 'no force'} row level security")
        assert await _outcome(store, users[1]) == "NotConnected"
        async with altered(admin, CASES["restrictive for select"]):
            assert await _outcome(store, users[0]) == "RowSecurityError"
            assert await _outcome(store, users[1]) == ("RowSecurityError" if forced else "NotConnected")
    finally:
        await admin.execute("; ".join(f"{owner} {former}" for owner in owners))
        await admin.execute(f"alter table {TABLE} no force row level security; drop owned by plain; drop role plain")


async def test_claims_that_are_not_read_make_nobody_unconnected(
    database: Database, admin: asyncpg.Connection, store: ConnectionStore, user: UUID
) -> None:
    """Where `auth.uid()` is replaced under a running service, the schema no longer fits."""
    await store.save(user, grant("a"), ALICE)
    definition = await admin.fetchval("select pg_get_functiondef('auth.uid()'::regprocedure)")
    await admin.execute("create or replace function auth.uid() returns uuid language sql stable as 'select null::uuid'")
    try:
        assert await _outcome(store, user) == "SchemaMismatch"
    finally:
        await admin.execute(definition)


async def test_the_table_may_be_truncated_alone(store: ConnectionStore, admin: asyncpg.Connection, user: UUID) -> None:
    """Nothing refers to it, so neither a seed nor a replica that applies a TRUNCATE needs CASCADE."""
    await store.save(user, grant("a"), ALICE)
    await admin.execute(f"truncate {TABLE}")
    with pytest.raises(NotConnected):
        await store.get(user)
