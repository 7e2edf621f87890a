-- Stored Spotify connections: the documented table under row level security, then the library's own schema spotconn.
-- Needs Postgres 15 or later and what Supabase has (elsewhere: plain_postgres.sql first).
-- May be applied again, also over a database that has only the documented table: every row is kept.

begin;
set local client_min_messages = warning;

do $$
begin
    perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('spotconn'));
    if pg_catalog.to_regclass('auth.users') is null then
        raise exception 'schema auth is missing'
            using hint = 'This is no Supabase database: apply plain_postgres.sql first.';
    end if;
    if not exists (select from pg_catalog.pg_roles where rolname = 'spotconn') then
        create role spotconn nologin;
    end if;
    -- A login that may create roles is not yet a member of those it creates; a superuser needs no membership.
    if not (select rolsuper from pg_catalog.pg_roles where rolname = current_user) then
        execute pg_catalog.format('grant spotconn to %I', current_user);
    end if;
end
$$;

--------------------------------------------------------------------------------------------------------------------
-- The documented table
--------------------------------------------------------------------------------------------------------------------

create table if not exists public.spotify_connections (
    id uuid primary key default gen_random_uuid(),
    user_id uuid not null references auth.users (id) on delete cascade,
    spotify_user_id text not null,
    access_token text not null,
    refresh_token text not null,
    expires_at timestamptz not null,
    connected_at timestamptz default now(),
    display_name text,
    email text,
    unique (user_id)
);

alter table public.spotify_connections add column if not exists scope text;

comment on column public.spotify_connections.expires_at is
    'End of the access token and version of the row: every write changes it.';
comment on column public.spotify_connections.connected_at is
    'When the user last authorized; Spotify ends the refresh token six months later.';
comment on column public.spotify_connections.scope is
    'The granted scopes, separated by spaces; null where they were never recorded.';

create index if not exists idx_spotify_connections_user on public.spotify_connections (user_id);
create index if not exists idx_spotify_connections_spotify_user on public.spotify_connections (spotify_user_id);

alter table public.spotify_connections enable row level security;

-- (select auth.uid()) means the same as auth.uid() and is evaluated once per statement instead of once per row.

drop policy if exists "Users can view own connections" on public.spotify_connections;
create policy "Users can view own connections" on public.spotify_connections
    for select using ((select auth.uid()) = user_id);

drop policy if exists "Users can create own connections" on public.spotify_connections;
create policy "Users can create own connections" on public.spotify_connections
    for insert with check ((select auth.uid()) = user_id);

drop policy if exists "Users can update own connections" on public.spotify_connections;
create policy "Users can update own connections" on public.spotify_connections
    for update using ((select auth.uid()) = user_id) with check ((select auth.uid()) = user_id);

drop policy if exists "Users can delete own connections" on public.spotify_connections;
create policy "Users can delete own connections" on public.spotify_connections
    for delete using ((select auth.uid()) = user_id);

-- Older projects granted all privileges by default, among them TRUNCATE, which no policy prevents.
revoke all on public.spotify_connections from public, anon, authenticated, service_role;
grant select, insert, update, delete on public.spotify_connections to service_role, spotconn;
grant usage on schema public to spotconn;

-- The function locked_down marks a database to which lock_down.sql was applied; it stays in force here.
do $$
begin
    if pg_catalog.to_regprocedure('spotconn.locked_down()') is null then
        grant select, insert, update, delete on public.spotify_connections to authenticated;
    else
        grant select (id, user_id, spotify_user_id, expires_at, connected_at, display_name, email, scope), delete
            on public.spotify_connections to authenticated;
    end if;
end
$$;

--------------------------------------------------------------------------------------------------------------------
-- The schema spotconn: the library's own tables and functions. PostgREST does not expose it.
--------------------------------------------------------------------------------------------------------------------

create schema if not exists spotconn;
revoke all on schema spotconn from public;
grant usage on schema spotconn to spotconn, service_role;

-- For each connection, the lease of the refresh under way and the last failure. A row belongs to one version of the
-- connection, its expires_at, and is void once that has changed.
create table if not exists spotconn.refresh_state (
    user_id uuid primary key references public.spotify_connections (user_id) on update cascade on delete cascade,
    version timestamptz not null,
    lease_id uuid,
    lease_until timestamptz,
    failure text check (failure in ('expired', 'revoked', 'invalid', 'unavailable')),
    failures integer not null default 0,
    failed_at timestamptz,
    retry_at timestamptz,
    check ((lease_id is null) = (lease_until is null)),
    check ((failure is null) = (failed_at is null)),
    check ((failure = 'unavailable') = (retry_at is not null))
);

comment on column spotconn.refresh_state.version is 'The expires_at of the connection that this row belongs to.';
comment on column spotconn.refresh_state.failures is 'Consecutive temporary failures; the backoff doubles with each.';

alter table spotconn.refresh_state enable row level security;

drop policy if exists "Own refresh state" on spotconn.refresh_state;
create policy "Own refresh state" on spotconn.refresh_state to spotconn
    using ((select auth.uid()) = user_id) with check ((select auth.uid()) = user_id);

revoke all on spotconn.refresh_state from public, anon, authenticated;
grant select, insert, update, delete on spotconn.refresh_state to spotconn, service_role;

-- Authorizations that were started and not finished yet: ten minutes, single use. Of the state only the SHA-256 is
-- stored; the PKCE verifier has to be stored as it is.
create table if not exists spotconn.pending_connect (
    state_hash bytea primary key,
    user_id uuid not null references auth.users (id) on delete cascade,
    code_verifier text not null,
    expires_at timestamptz not null
);

create index if not exists idx_pending_connect_user on spotconn.pending_connect (user_id);
create index if not exists idx_pending_connect_expires on spotconn.pending_connect (expires_at);

alter table spotconn.pending_connect enable row level security;

drop policy if exists "Own pending connects are seen" on spotconn.pending_connect;
create policy "Own pending connects are seen" on spotconn.pending_connect
    for select to spotconn using ((select auth.uid()) = user_id);

drop policy if exists "Own pending connects are made" on spotconn.pending_connect;
create policy "Own pending connects are made" on spotconn.pending_connect
    for insert to spotconn with check ((select auth.uid()) = user_id);

-- Each start of an authorization also deletes the expired ones of all users. A DELETE without WHERE and RETURNING reads
-- nothing, so no SELECT policy has to show these rows.
drop policy if exists "Own and expired pending connects may go" on spotconn.pending_connect;
create policy "Own and expired pending connects may go" on spotconn.pending_connect
    for delete to spotconn using ((select auth.uid()) = user_id or expires_at <= now());

revoke all on spotconn.pending_connect from public, anon, authenticated, service_role;
grant select, insert, delete on spotconn.pending_connect to spotconn;

-- A connection with the failure recorded for its current version.
create or replace view spotconn.connection with (security_invoker = true) as
select
    connection.id,
    connection.user_id,
    connection.spotify_user_id,
    connection.access_token,
    connection.refresh_token,
    connection.expires_at,
    connection.connected_at,
    connection.display_name,
    connection.email,
    connection.scope,
    state.failure,
    state.failed_at,
    state.retry_at
from public.spotify_connections as connection
left join spotconn.refresh_state as state
    on state.user_id = connection.user_id
    and state.version = connection.expires_at;

revoke all on spotconn.connection from public, anon, authenticated;
grant select on spotconn.connection to spotconn, service_role;

-- One function per operation of the store. Each sets role and claims, then runs its statement, so a call is one
-- statement, one round trip and one implicit transaction, and no caller can leave out the claims.

create or replace function spotconn.schema_version() returns integer
language sql immutable set search_path = ''
return 3;

-- Role and claims last until the transaction ends. The legacy claim would win over request.jwt.claims: empty it.
create or replace function spotconn.act_as(p_user_id uuid) returns void
language plpgsql set search_path = '' as $$
begin
    perform
        pg_catalog.set_config('role', 'spotconn', true),
        pg_catalog.set_config('request.jwt.claim.sub', '', true),
        pg_catalog.set_config(
            'request.jwt.claims',
            pg_catalog.jsonb_build_object('sub', p_user_id, 'role', 'spotconn')::text,
            true
        );
end
$$;

-- True if the policies bind this login once it acts for a user (here none, so no row is visible). Fails with 42501 if a
-- grant is missing.
create or replace function spotconn.row_security_binds() returns boolean
language plpgsql set search_path = '' as $$
begin
    perform spotconn.act_as(null);
    if exists (
        select from pg_catalog.unnest(array[
            'public.spotify_connections', 'spotconn.refresh_state', 'spotconn.pending_connect'
        ]) as relation
        cross join pg_catalog.unnest(array['select', 'insert', 'update', 'delete']) as privilege
        where (relation, privilege) <> ('spotconn.pending_connect', 'update')  -- no caller updates one
            and not pg_catalog.has_table_privilege(relation, privilege)
    ) then
        raise insufficient_privilege using message = 'the role spotconn lacks a grant';
    end if;
    return pg_catalog.row_security_active('public.spotify_connections')
        and pg_catalog.row_security_active('spotconn.refresh_state')
        and pg_catalog.row_security_active('spotconn.pending_connect');
end
$$;

create or replace function spotconn.get_connection(p_user_id uuid) returns setof spotconn.connection
language plpgsql set search_path = '' rows 1 as $$
begin
    perform spotconn.act_as(p_user_id);
    return query
        select connection.* from spotconn.connection where connection.user_id = p_user_id;
end
$$;

-- The connections of several users. Each is read as its own user, so the policies are evaluated for each user.
create or replace function spotconn.get_connections(p_user_ids uuid[]) returns setof spotconn.connection
language plpgsql set search_path = '' as $$
declare
    one uuid;
begin
    foreach one in array p_user_ids loop
        perform spotconn.act_as(one);
        return query
            select connection.* from spotconn.connection where connection.user_id = one;
    end loop;
end
$$;

-- Connect or reconnect. A new version voids the state of the old one, and a refresh under way is not saved.
-- p_connected_at is when the user authorized, null for now. Up to a minute ahead, as clocks may differ, counts as now.
-- The function without the last argument has another signature and would stay beside this one.
drop function if exists spotconn.save_connection(uuid, text, text, text, timestamptz, text, text, text);
create or replace function spotconn.save_connection(
    p_user_id uuid,
    p_spotify_user_id text,
    p_access_token text,
    p_refresh_token text,
    p_expires_at timestamptz,
    p_scope text,
    p_display_name text,
    p_email text,
    p_connected_at timestamptz default null
) returns setof spotconn.connection
language plpgsql set search_path = '' rows 1 as $$
begin
    if p_connected_at > pg_catalog.clock_timestamp() + interval '1 minute' then
        raise exception 'connected_at lies in the future' using errcode = 'SC001';
    end if;
    perform spotconn.act_as(p_user_id);
    insert into public.spotify_connections as stored (
        user_id, spotify_user_id, access_token, refresh_token, expires_at, connected_at, scope, display_name, email
    )
    values (
        p_user_id, p_spotify_user_id, p_access_token, p_refresh_token, p_expires_at,
        least(p_connected_at, pg_catalog.clock_timestamp()), p_scope, p_display_name, p_email
    )
    on conflict (user_id) do update set
        spotify_user_id = excluded.spotify_user_id,
        access_token = excluded.access_token,
        refresh_token = excluded.refresh_token,
        expires_at = excluded.expires_at
            - case when excluded.expires_at = stored.expires_at then interval '1 microsecond' else interval '0' end,
        connected_at = excluded.connected_at,
        scope = excluded.scope,
        display_name = excluded.display_name,
        email = excluded.email;
    delete from spotconn.refresh_state as state where state.user_id = p_user_id;
    return query
        select connection.* from spotconn.connection where connection.user_id = p_user_id;
end
$$;

create or replace function spotconn.delete_connection(p_user_id uuid) returns boolean
language plpgsql set search_path = '' as $$
begin
    perform spotconn.act_as(p_user_id);
    delete from public.spotify_connections as stored where stored.user_id = p_user_id;
    return found;
end
$$;

-- Acquires the lease for the refresh of a connection whose versions up to p_seen the caller cannot use.
-- granted: the caller holds the lease; busy: another does; superseded: the row is newer than p_seen;
-- blocked: a recorded failure still applies; gone: no row. All times are by the clock of this database.
create or replace function spotconn.begin_refresh(p_user_id uuid, p_seen timestamptz, p_lease interval)
returns table (
    outcome text,
    lease_id uuid,
    lapsed boolean,
    retry_after double precision,
    connection spotconn.connection
)
language plpgsql set search_path = '' rows 1 as $$
declare
    state spotconn.refresh_state;
begin
    perform spotconn.act_as(p_user_id);
    lapsed := false;
    -- The first attempt takes no lock, and most callers return from it. The others lock the row and read it again.
    for attempt in 1..2 loop
        select stored.* into connection from spotconn.connection as stored where stored.user_id = p_user_id;
        if not found then
            outcome := 'gone';
            return next;
            return;
        end if;
        if connection.expires_at > p_seen then
            outcome := 'superseded';
            return next;
            return;
        end if;
        if connection.failure <> 'unavailable' or connection.retry_at > pg_catalog.clock_timestamp() then
            outcome := 'blocked';
            retry_after := extract(epoch from connection.retry_at - pg_catalog.clock_timestamp());
            return next;
            return;
        end if;
        select stored.* into state from spotconn.refresh_state as stored
            where stored.user_id = p_user_id and stored.version = connection.expires_at;
        if state.lease_until > pg_catalog.clock_timestamp() then
            outcome := 'busy';
            retry_after := extract(epoch from state.lease_until - pg_catalog.clock_timestamp());
            return next;
            return;
        end if;
        if attempt = 1 then
            perform from public.spotify_connections as stored where stored.user_id = p_user_id for no key update;
        end if;
    end loop;

    outcome := 'granted';
    lease_id := pg_catalog.gen_random_uuid();
    lapsed := state.lease_id is not null;
    insert into spotconn.refresh_state as stored (user_id, version, lease_id, lease_until)
    values (p_user_id, connection.expires_at, begin_refresh.lease_id, pg_catalog.clock_timestamp() + p_lease)
    on conflict (user_id) do update set
        version = excluded.version,
        lease_id = excluded.lease_id,
        lease_until = excluded.lease_until,
        failure = case when stored.version = excluded.version then stored.failure end,
        failures = case when stored.version = excluded.version then stored.failures else 0 end,
        failed_at = case when stored.version = excluded.version then stored.failed_at end,
        retry_at = case when stored.version = excluded.version then stored.retry_at end;
    return next;
end
$$;

-- Saves a refresh if the row is still the version that was refreshed: a disconnect or reconnect in between wins.
-- Null leaves the stored refresh token or scope.
create or replace function spotconn.finish_refresh(
    p_user_id uuid,
    p_version timestamptz,
    p_access_token text,
    p_refresh_token text,
    p_expires_at timestamptz,
    p_scope text
) returns setof spotconn.connection
language plpgsql set search_path = '' rows 1 as $$
begin
    perform spotconn.act_as(p_user_id);
    update public.spotify_connections as stored set
        access_token = p_access_token,
        refresh_token = coalesce(p_refresh_token, stored.refresh_token),
        expires_at = p_expires_at
            + case when p_expires_at = p_version then interval '1 microsecond' else interval '0' end,
        scope = coalesce(p_scope, stored.scope)
    where stored.user_id = p_user_id and stored.expires_at = p_version;
    if not found then
        return;
    end if;
    delete from spotconn.refresh_state as state where state.user_id = p_user_id;
    return query
        select connection.* from spotconn.connection where connection.user_id = p_user_id;
end
$$;

-- Ends a lease without a grant; only its holder can. After a temporary failure every process backs off: 1 s, doubled
-- with each consecutive failure up to 5 min, times a random factor from 0.5 to 1, but at least the Retry-After of
-- Spotify, up to a day. A null reason records nothing.
create or replace function spotconn.fail_refresh(
    p_user_id uuid,
    p_version timestamptz,
    p_lease_id uuid,
    p_reason text,
    p_retry_after double precision
) returns boolean
language plpgsql set search_path = '' as $$
begin
    perform spotconn.act_as(p_user_id);
    update spotconn.refresh_state as state set
        lease_id = null,
        lease_until = null,
        failure = coalesce(p_reason, state.failure),
        failures = state.failures + case when p_reason = 'unavailable' then 1 else 0 end,
        failed_at = case when p_reason is null then state.failed_at else pg_catalog.clock_timestamp() end,
        retry_at = case
            when p_reason is null then state.retry_at
            when p_reason = 'unavailable' then pg_catalog.clock_timestamp() + pg_catalog.make_interval(secs =>
                greatest(
                    least(300, 2 ^ least(state.failures, 9)) * (0.5 + pg_catalog.random() / 2),
                    least(86400, coalesce(p_retry_after, 0))
                ))
        end
    where state.user_id = p_user_id and state.version = p_version and state.lease_id = p_lease_id;
    return found;
end
$$;

-- Stores a started authorization for p_life, at most ten for each user. Expired ones are deleted: without a user the
-- policies show only these to a DELETE without WHERE. One caller at a time does so, and the others do not wait for it.
create or replace function spotconn.start_connect(
    p_user_id uuid,
    p_state_hash bytea,
    p_code_verifier text,
    p_life interval
) returns void
language plpgsql set search_path = '' as $$
begin
    perform spotconn.act_as(null);
    if pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtext('spotconn.pending_connect')) then
        delete from spotconn.pending_connect;
    end if;
    perform spotconn.act_as(p_user_id);
    delete from spotconn.pending_connect as pending where pending.state_hash in (
        select older.state_hash from spotconn.pending_connect as older
        where older.user_id = p_user_id
        order by older.expires_at desc
        offset 9
    );
    insert into spotconn.pending_connect (state_hash, user_id, code_verifier, expires_at)
    values (p_state_hash, p_user_id, p_code_verifier, pg_catalog.clock_timestamp() + p_life);
end
$$;

-- Returns and deletes a started authorization. Of two concurrent callers one gets the row.
create or replace function spotconn.take_connect(p_user_id uuid, p_state_hash bytea)
returns table (code_verifier text, expired boolean)
language plpgsql set search_path = '' rows 1 as $$
begin
    perform spotconn.act_as(p_user_id);
    return query
        delete from spotconn.pending_connect as pending
        where pending.state_hash = p_state_hash and pending.user_id = p_user_id
        returning pending.code_verifier, pending.expires_at <= pg_catalog.clock_timestamp();
end
$$;

--------------------------------------------------------------------------------------------------------------------
-- Notifications of changes to the table, for processes that cache connections
--------------------------------------------------------------------------------------------------------------------

-- The names of schema version 2.
drop trigger if exists spotconn_tell_change on public.spotify_connections;
drop trigger if exists spotconn_tell_truncate on public.spotify_connections;
drop function if exists spotconn.tell_change();
drop function if exists spotconn.prove_telling(text);

-- The payload on channel spotconn: {"user_id": ..., "expires_at": ...}, the version that is stored now. Without a
-- version the connection is gone, without a user all may be. Sent when the transaction commits.
create or replace function spotconn.notify_change() returns trigger
language plpgsql set search_path = '' as $$
begin
    if tg_op = 'TRUNCATE' then
        perform pg_catalog.pg_notify('spotconn', '{}');
        return null;
    end if;
    if tg_op = 'DELETE' or (tg_op = 'UPDATE' and new.user_id <> old.user_id) then
        perform pg_catalog.pg_notify('spotconn', pg_catalog.json_build_object('user_id', old.user_id)::text);
    end if;
    if tg_op <> 'DELETE' then
        perform pg_catalog.pg_notify(
            'spotconn', pg_catalog.json_build_object('user_id', new.user_id, 'expires_at', new.expires_at)::text
        );
    end if;
    return null;
end
$$;

create or replace trigger spotconn_notify_change
    after insert or update or delete on public.spotify_connections
    for each row execute function spotconn.notify_change();
create or replace trigger spotconn_notify_truncate
    after truncate on public.spotify_connections
    for each statement execute function spotconn.notify_change();

-- Also for changes that arrive by replication.
alter table public.spotify_connections enable always trigger spotconn_notify_change;
alter table public.spotify_connections enable always trigger spotconn_notify_truncate;

-- A session that receives this has received everything before it. False where a trigger is missing or disabled.
create or replace function spotconn.heartbeat(p_nonce text) returns boolean
language plpgsql set search_path = '' as $$
begin
    perform pg_catalog.pg_notify('spotconn', 'heartbeat ' || p_nonce);
    return 2 = (
        select pg_catalog.count(*) from pg_catalog.pg_trigger
        where tgrelid = 'public.spotify_connections'::pg_catalog.regclass
            and tgname in ('spotconn_notify_change', 'spotconn_notify_truncate')
            and tgenabled = 'A'
    );
end
$$;

-- Postgres grants EXECUTE to PUBLIC by default, and a project's default privileges may grant it to the client roles.
revoke all on all functions in schema spotconn from public, anon, authenticated, service_role;
grant execute on all functions in schema spotconn to spotconn;

commit;
