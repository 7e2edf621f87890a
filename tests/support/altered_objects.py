"""Alterations of functions, views, owners, roles and columns, for the doctor's comparison of the catalog."""

from spotconn._database.errors import APPLY_SCHEMA
from support.altered_rights import SUB, TABLE, UID, Case

OBJECTS = {
    "security definer": Case(
        "alter function spotconn.get_connection(uuid) security definer",
        "fail",
        "function spotconn.get_connection(uuid) was altered (form: plpgsql volatile security definer",
    ),
    "search path of a function": Case(
        "alter function spotconn.act_as(uuid) reset search_path", "fail", "function spotconn.act_as(uuid) was altered"
    ),
    "body of a function": Case(
        "create or replace function spotconn.act_as(p_user_id uuid) returns void language plpgsql "
        "set search_path = pg_catalog, pg_temp as 'begin end'",
        "fail",
        "function spotconn.act_as(uuid) was altered",
    ),
    "clock": Case(
        "create or replace function spotconn.now() returns timestamptz language sql stable "
        "set search_path = pg_catalog, pg_temp return pg_catalog.statement_timestamp()",
        "fail",
        "function spotconn.now() was altered",
    ),
    "function gone": Case("drop function spotconn.act_as(uuid)", "fail", "function spotconn.act_as(uuid) is missing"),
    "function added": Case(
        "create function spotconn.more(uuid) returns void language sql as ''",
        "fail",
        "function spotconn.more(uuid) was added, and PUBLIC may use it",
        "DROP FUNCTION spotconn.more(uuid)",
    ),
    "table added": Case(
        "create table spotconn.mine ()", "warn", "table spotconn.mine was added", "DROP TABLE spotconn.mine"
    ),
    "view with the tokens": Case(
        f"create view public.leak as select * from {TABLE}; grant select on public.leak to anon",
        "fail",
        "the view public.leak reads rows of all users past the policies (anon may read it)",
        "ALTER VIEW public.leak SET (security_invoker = true)",
    ),
    "view of an operator": Case(
        f"create view public.mine as select * from {TABLE}",
        "warn",
        "the view public.mine reads rows of all users past the policies (no client may read it)",
        "ALTER VIEW public.mine SET (security_invoker = true)",
    ),
    "view of a view": Case(
        f"create view public.below as select * from {TABLE}; create view public.above as select * from public.below; "
        "grant select on public.above to anon",
        "fail",
        "the view public.above reads rows of all users past the policies (anon may read it)",
        "ALTER VIEW public.below SET (security_invoker = true)",
    ),
    "materialized view of a view as its reader": Case(
        f"create view public.careful with (security_invoker = true) as select * from {TABLE}; "
        "create materialized view public.kept as select * from public.careful; grant select on public.kept to anon",
        "fail",
        "the view public.kept reads rows of all users past the policies (anon may read it)",
        "drop materialized view public.kept",
        by_hand=True,
    ),
    "view of a view as its reader": Case(
        f"create view public.careful with (security_invoker = true) as select * from {TABLE}; "
        "create view public.above as select * from public.careful; grant select on public.above to anon",
        "ok",
        "as shipped",
        None,
    ),
    "security definer elsewhere": Case(
        f"create function public.leak() returns setof {TABLE} language sql security definer as 'select * from {TABLE}'",
        "warn",
        "the function public.leak() is SECURITY DEFINER and speaks of the table; anon, authenticated may call it",
        None,
    ),
    "type": Case(
        "alter type spotconn.connection alter attribute scope type varchar(2)",
        "fail",
        "column spotconn.connection.scope was altered (form: character varying(2))",
        "ALTER TYPE spotconn.connection ALTER ATTRIBUTE scope TYPE text",
        by_hand=True,
    ),
    "trigger disabled": Case(
        f"alter table {TABLE} disable trigger spotconn_notify_change",
        "warn",
        f"trigger spotconn_notify_change on {TABLE} was altered (form: disabled",
    ),
    "trigger gone": Case(
        f"drop trigger spotconn_notify_truncate on {TABLE}",
        "warn",
        f"trigger spotconn_notify_truncate on {TABLE} is missing",
    ),
    "rule": Case(
        f"create table public.loot (t text); create rule r as on insert to {TABLE} do also "
        "insert into public.loot values (new.refresh_token)",
        "fail",
        f"rule r on {TABLE} was added: CREATE RULE r AS",
        f"DROP RULE r ON {TABLE}",
    ),
    "parent": Case(
        f"create table public.parent (user_id uuid not null); alter table {TABLE} inherit public.parent",
        "fail",
        f"{TABLE} inherits from public.parent",
        f"ALTER TABLE {TABLE} NO INHERIT public.parent",
    ),
    "child": Case(
        f"create table public.child () inherits ({TABLE})",
        "fail",
        f"public.child inherits from {TABLE}",
        f"ALTER TABLE public.child NO INHERIT {TABLE}",
    ),
    "owner of the table": Case(
        f"create role stranger; alter table {TABLE} owner to stranger",
        "fail",
        f"table {TABLE} belongs to stranger, who may read and change all of it",
        "GRANT spotconn TO stranger WITH ADMIN OPTION",
    ),
    "owner of the schema": Case(
        "create role stranger; alter schema spotconn owner to stranger",
        "fail",
        "schema spotconn belongs to stranger",
        "ALTER SCHEMA spotconn OWNER TO current_user",
    ),
    "owner of a function": Case(
        "create role stranger; alter function spotconn.now() owner to stranger",
        "fail",
        "function spotconn.now() belongs to stranger",
        "ALTER FUNCTION spotconn.now() OWNER TO current_user",
    ),
    "the library owns a table": Case(
        "alter table spotconn.refresh_state owner to spotconn",
        "fail",
        "table spotconn.refresh_state belongs to spotconn",
        f"ALTER TABLE spotconn.refresh_state OWNER TO current_user; {APPLY_SCHEMA}",
        by_hand=True,
    ),
    "owner of auth.uid()": Case(
        "create role stranger; alter function auth.uid() owner to stranger",
        "warn",
        "function auth.uid() belongs to stranger",
        None,
    ),
    "auth.uid() of the project's own": Case(
        UID.format(SUB.format("null")).replace("null)", "'')"), "warn", "function auth.uid() was altered", None
    ),
    "auth.uid() by another function": Case(
        "create function public.who() returns uuid language sql as 'select null::uuid'; " + UID.format("public.who()"),
        "fail",
        "it reads more than the claims",
        None,
    ),
    "member by a role between": Case(
        "create role between; grant spotconn to between; grant between to anon",
        "fail",
        "anon is a member of spotconn",
        "REVOKE between FROM anon",
        by_hand=True,
    ),
    "member of service_role": Case(
        "grant service_role to anon", "fail", "anon is a member of service_role", "REVOKE service_role FROM anon"
    ),
    "API server": Case(
        "grant spotconn to authenticator",
        "warn",
        "authenticator is a member of spotconn",
        "REVOKE spotconn FROM authenticator",
    ),
    "library as another": Case(
        "grant service_role to spotconn",
        "fail",
        "spotconn is a member of service_role",
        "REVOKE service_role FROM spotconn",
    ),
    "reader of all data": Case(
        "create role auditor; grant pg_read_all_data to auditor",
        "warn",
        "auditor is a member of pg_read_all_data",
        "REVOKE pg_read_all_data FROM auditor",
    ),
    "attribute": Case(
        "alter role authenticated bypassrls",
        "fail",
        "the role authenticated has BYPASSRLS",
        "ALTER ROLE authenticated NOBYPASSRLS",
    ),
    "attribute of the library": Case("alter role spotconn bypassrls", "fail", "the role spotconn has BYPASSRLS", None),
    "attribute gone": Case(
        "alter role service_role nobypassrls",
        "fail",
        "the role service_role lacks BYPASSRLS, and rows are hidden from it",
        APPLY_SCHEMA,
        by_hand=True,  # the line of the grants has it
    ),
    "claims of everybody": Case(
        """alter role authenticated set "request.jwt.claim.sub" = '00000000-0000-0000-0000-000000000001'""",
        "fail",
        'ROLE authenticated sets "request.jwt.claim.sub"',
        'alter role authenticated RESET "request.jwt.claim.sub"',
    ),
    "column altered": Case(
        "alter table spotconn.refresh_state alter column saves drop not null",
        "fail",
        "column spotconn.refresh_state.saves was altered (form: bigint)",
        "alter table spotconn.refresh_state alter column saves set not null",
        by_hand=True,
    ),
    "column gone": Case(
        "alter table public.spotify_connections drop column scope cascade",
        "fail",
        "column public.spotify_connections.scope is missing",
    ),
    "column with code": Case(
        f"alter table {TABLE} add column t text generated always as (refresh_token) stored",
        "warn",
        f"column {TABLE}.t was added: generated refresh_token",
        f"alter table {TABLE} drop column t",
        by_hand=True,
    ),
    "constraint gone": Case(
        "alter table spotconn.refresh_state drop constraint refresh_state_check1",
        "warn",
        "constraint refresh_state_check1 on spotconn.refresh_state is missing",
        "alter table spotconn.refresh_state add constraint refresh_state_check1 "
        "check ((failure is null) = (failed_at is null))",
        by_hand=True,
    ),
    "index gone": Case(
        "drop index public.idx_spotify_connections_user",
        "warn",
        f"index idx_spotify_connections_user on {TABLE} is missing",
    ),
    "index with code": Case(
        f"create function public.f(text) returns text language sql immutable as 'select 1::text'; "
        f"create index i on {TABLE} (public.f(email))",
        "warn",
        f"index i on {TABLE} was added: of expressions",
        "drop index public.i",
        by_hand=True,
    ),
    # What a project may do as it likes.
    "own column": Case(f"alter table {TABLE} add column notes text", "ok", "as shipped", None),
    "own index": Case(f"create index i on {TABLE} (email); create index j on {TABLE} (lower(email))", "ok", "", None),
    "times of its rows": Case(
        f"alter table {TABLE} add column created_at timestamptz not null default timezone('utc', now()), "
        "add column updated_at timestamptz default now(), add column kind text default 'x'::text",
        "ok",
        "as shipped",
        None,
    ),
    "policy for the service role": Case(
        f"create policy s on {TABLE} for all to service_role using (true) with check (true)", "ok", "as shipped", None
    ),
    "own policies as the project wrote them": Case(
        f"create policy a on {TABLE} for select using (auth.uid() = user_id); "
        f"create policy b on {TABLE} to authenticated using (user_id = (select auth.uid()) and email <> '')",
        "warn",
        f"policy a on {TABLE} was added",
        f"DROP POLICY a ON {TABLE}; DROP POLICY b ON {TABLE}",
        by_hand=True,
    ),
    "policy that goes on behind the own row": Case(
        f"create policy a on {TABLE} using ((auth.uid() = user_id and email <> '') or email = 'x')",
        "fail",
        f"policy a on {TABLE} was added",
        f"DROP POLICY a ON {TABLE}",
    ),
    "view for each user": Case(
        f"create view public.mine as select email from {TABLE} where user_id = auth.uid(); "
        "grant select on public.mine to authenticated",
        "warn",
        "the view public.mine reads rows of all users past the policies (authenticated may read it), and asks",
        "ALTER VIEW public.mine SET (security_invoker = true)",
    ),
    "login of a manager": Case(
        "create role overseer createrole; grant pg_read_all_data to overseer; create role cli login noinherit; "
        "grant overseer to cli",
        "ok",
        "as shipped",
        None,
    ),
    "login of the service": Case("create role s login; grant spotconn to s", "ok", "as shipped", None),
    "view as its reader": Case(
        f"create view public.mine with (security_invoker = on) as select * from {TABLE}", "ok", "as shipped", None
    ),
}
