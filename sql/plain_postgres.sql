-- What Supabase already has, for any other Postgres (15 or later): the client roles, the schema auth,
-- its users, and the functions that read the claims of a request. Apply it before schema.sql; on Supabase, do not.
-- May be applied again; all data is kept.

begin;
set local client_min_messages = warning;

do $$
declare
    missing text;
begin
    perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('spotconn'));
    foreach missing in array array['anon', 'authenticated', 'service_role', 'authenticator'] loop
        if not exists (select from pg_catalog.pg_roles where rolname = missing) then
            execute pg_catalog.format('create role %I nologin', missing);
            if missing = 'service_role' then
                alter role service_role bypassrls;
            elsif missing = 'authenticator' then
                -- An API server logs in as this role once it is given LOGIN and a password.
                alter role authenticator noinherit;
            end if;
        end if;
    end loop;
end
$$;

grant anon, authenticated, service_role to authenticator;
grant usage on schema public to anon, authenticated, service_role;

create schema if not exists auth;
grant usage on schema auth to anon, authenticated, service_role;

create table if not exists auth.users (
    id uuid primary key default gen_random_uuid(),
    email text,
    created_at timestamptz default now()
);

-- The three functions as Supabase defines them. The legacy settings request.jwt.claim.* win if they are not empty.

create or replace function auth.uid() returns uuid language sql stable as $$
    select coalesce(
        nullif(current_setting('request.jwt.claim.sub', true), ''),
        (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')
    )::uuid
$$;

create or replace function auth.role() returns text language sql stable as $$
    select coalesce(
        nullif(current_setting('request.jwt.claim.role', true), ''),
        (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role')
    )::text
$$;

create or replace function auth.jwt() returns jsonb language sql stable as $$
    select coalesce(
        nullif(current_setting('request.jwt.claim', true), ''),
        nullif(current_setting('request.jwt.claims', true), '')
    )::jsonb
$$;

commit;
