"""What Supabase's database linter (splinter) looks for, asked in queries of our own; each must find nothing."""

import asyncpg
import pytest

from spotconn._database.schema import read_sql

OURS = "('public', 'spotconn')"
RULES = {
    "0001 a foreign key without an index": f"""
        select conrelid::regclass::text, conname from pg_constraint
        where contype = 'f' and connamespace::regnamespace::text in {OURS} and not exists (
            select from pg_index where indrelid = conrelid and indisvalid and indkey::int2[] @> conkey
            and indkey[0] = conkey[1]
        )
    """,
    "0003 a policy that calls auth.* once per row": r"""
        select tablename, policyname from pg_policies
        where regexp_replace(coalesce(qual, '') || coalesce(with_check, ''), 'select auth\.\w+\(\)', '', 'gi')
            ~ 'auth\.\w+\('
    """,
    "0003 a policy that reads a setting once per row": r"""
        select tablename, policyname from pg_policies
        where coalesce(qual, '') || coalesce(with_check, '') ~* 'current_setting\('
    """,
    "0004 a table without a primary key": f"""
        select oid::regclass::text from pg_class where relkind = 'r' and relnamespace::regnamespace::text in {OURS}
        and not exists (select from pg_index where indrelid = pg_class.oid and indisprimary)
    """,
    "0006 two permissive policies for one role and action": f"""
        select tablename, role, action, array_agg(policyname) from pg_policies, unnest(roles) as role,
            unnest(case cmd when 'ALL' then array['SELECT', 'INSERT', 'UPDATE', 'DELETE'] else array[cmd] end) as action
        where permissive = 'PERMISSIVE' and schemaname in {OURS} group by schemaname, 1, 2, 3 having count(*) > 1
    """,
    "0007, 0008, 0013 a table with policies or row level security but not both": f"""
        select oid::regclass::text from pg_class where relkind = 'r' and relnamespace::regnamespace::text in {OURS}
        and not (relrowsecurity and exists (select from pg_policy where polrelid = pg_class.oid))
    """,
    "0009 two indexes of the same text": f"""
        select tablename, array_agg(indexname) from pg_indexes where schemaname in {OURS}
        group by schemaname, tablename, replace(indexdef, indexname, '') having count(*) > 1
    """,
    "0010, 0002 a view with the rights of its owner": f"""
        select oid::regclass::text from pg_class where relkind in ('v', 'm')
        and relnamespace::regnamespace::text in {OURS}
        and (relkind = 'm' or not coalesce(reloptions::text ~ 'security_invoker=(true|on|1|yes)', false))
        and (has_table_privilege('anon', oid, 'select') or has_table_privilege('authenticated', oid, 'select'))
    """,
    "0011 a function whose search_path is not pinned": f"""
        select oid::regprocedure::text from pg_proc where pronamespace::regnamespace::text in {OURS}
        and not coalesce(proconfig::text ~ 'search_path=', false)
    """,
    "0015 a policy that trusts what a user may edit": """
        select tablename, policyname from pg_policies
        where coalesce(qual, '') || coalesce(with_check, '') ~ 'user_metadata'
    """,
    "0024 a policy that is always true": f"""
        select tablename, policyname from pg_policies where schemaname in {OURS} and (
            qual = 'true' or with_check = 'true'
            or (cmd in ('SELECT', 'UPDATE', 'DELETE', 'ALL') and qual is null)
            or (cmd = 'INSERT' and with_check is null)
        )
    """,
    "0028, 0029 a SECURITY DEFINER function": f"""
        select oid::regprocedure::text from pg_proc
        where prosecdef and pronamespace::regnamespace::text in {OURS}
        and not (proname = 'follow_user' and proacl is not null and 1 = cardinality(proacl))
    """,
    "0028, 0029 a function of spotconn that a client role may execute": """
        select proc.oid::regprocedure::text, role from pg_proc as proc,
            unnest(array['anon', 'authenticated', 'service_role', 'authenticator']) as role
        where pronamespace = 'spotconn'::regnamespace and has_function_privilege(role, proc.oid, 'execute')
        and not (role = 'service_role' and proname in ('now', 'seconds_left', 'runs', 'user_id', 'integer_id'))
    """,
    "the schema spotconn open to a client role": """
        select role from unnest(array['anon', 'authenticated']) as role
        where has_schema_privilege(role, 'spotconn', 'usage') or has_schema_privilege(role, 'spotconn', 'create')
    """,
    "a client role that owns or may become something of ours": """
        select role from unnest(array['anon', 'authenticated', 'authenticator']) as role
        where pg_has_role(role, 'spotconn', 'member') or role in (select tableowner from pg_tables)
    """,
}
FAULTS = {
    "0001": "create table public.f (id int primary key, c uuid references auth.users (id))",
    "0003 a policy that calls": "create policy f on public.spotify_connections for select using (auth.uid() = user_id)",
    "0003 a policy that reads": "create policy f on public.spotify_connections using (current_setting('a') = email)",
    "0004": "create table public.f (id int)",
    "0006": "create policy f on public.spotify_connections for select using (email = 'x')",
    "0007": "create table public.f (id int primary key)",
    "0009": "create index idx_fault on public.spotify_connections (user_id)",
    "0010": "create view public.f as select * from public.spotify_connections; grant select on public.f to anon",
    "0011": "create function public.f() returns int language sql return 1",
    "0015": "create policy f on public.spotify_connections using (auth.jwt() ->> 'user_metadata' = email)",
    "0024": "create policy f on public.spotify_connections for select using (true)",
    "0028, 0029 a SECURITY": "create function spotconn.f() returns int security definer language sql return 1",
    "0028, 0029 a function": "create function spotconn.f() returns int language sql return 1",
    "the schema": "grant usage on schema spotconn to anon",
    "a client role": "grant spotconn to authenticated",
}


@pytest.mark.parametrize("locked", [False, True])
async def test_no_rule_finds_anything(
    admin: asyncpg.Connection,
    locked: bool,  # noqa: FBT001
) -> None:
    """The applied schemas give no finding, locked down or not."""
    if locked:
        await admin.execute(read_sql("lock_down.sql"))
    try:
        found = {rule: [tuple(row) for row in await admin.fetch(query)] for rule, query in RULES.items()}
    finally:
        if locked:
            await admin.execute(read_sql("lock_down_undo.sql"))
    assert {rule: rows for rule, rows in found.items() if rows} == {}


@pytest.mark.parametrize("rule", FAULTS)
async def test_each_rule_finds_its_fault(admin: asyncpg.Connection, rule: str) -> None:
    """A query that could find nothing would prove nothing."""
    (query,) = [text for name, text in RULES.items() if name.startswith(rule)]
    transaction = admin.transaction()
    await transaction.start()
    try:
        await admin.execute(FAULTS[rule])
        assert len(await admin.fetch(query)) > 0
    finally:
        await transaction.rollback()
