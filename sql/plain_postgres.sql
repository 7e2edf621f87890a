-- What Supabase already has, for any other Postgres (15 or later): the client roles, the schema auth,
-- its users, and the functions that read the claims of a request. Apply it before schema.sql; on Supabase, do not.
-- Needs no superuser: the owner of the database, with CREATEROLE where roles are missing.
-- May be applied again; all data is kept. What is there and differs is the project's own: it is named, and nothing changes.
-- Apply it within one transaction, of your own or by `spotconn schema --apply` or `psql --single-transaction
-- -v ON_ERROR_STOP=1 -f`: it has no BEGIN and no COMMIT. A tool that sends the whole file as one query does so already.

set local client_min_messages = warning;
-- It is set until the transaction ends: for this statement alone where each statement is a transaction of its own.
set local spotconn.transaction = 'on';

-- No object in the search path of the login takes the place of a type or an operator below; the end puts the path back.
do $$
begin
    perform
        pg_catalog.set_config('spotconn.search_path', pg_catalog.current_setting('search_path'), true),
        pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    if pg_catalog.current_setting('spotconn.transaction', true) is distinct from 'on' then
        raise exception 'this file has to be applied within one transaction'
            using errcode = 'no_active_sql_transaction',
                hint = 'spotconn schema --apply does so, or psql --single-transaction -v ON_ERROR_STOP=1 -f FILE.';
    end if;
end
$$;

do $$
declare
    wanted constant text[] := array['anon', 'authenticated', 'service_role', 'authenticator'];
    named constant text[] := pg_catalog.regexp_split_to_array(
        coalesce(pg_catalog.current_setting('spotconn.owner', true), ''), '\s*,\s*'
    );
    stranger record;
    own text;
    missing text;
    expected record;
    lacking record;
begin
    if pg_catalog.to_regnamespace('auth') is null then
        begin
            create schema auth;
        exception
            when duplicate_schema or unique_violation then
                null;  -- another application was first
        end;
    end if;
    -- One application at a time: a comment, here the one that stands, locks the schema until the transaction ends, and only
    -- its owner can. Another login can make nothing in it.
    if (
        select pg_catalog.pg_has_role(nspowner, 'usage') from pg_catalog.pg_namespace where nspname = 'auth'
    ) then
        execute pg_catalog.format(
            'comment on schema auth is %L',
            pg_catalog.obj_description('auth'::pg_catalog.regnamespace, 'pg_namespace')
        );
    end if;

    -- As in schema.sql: the owner could let auth.uid() return any user.
    with recursive mine as (
        select oid from pg_catalog.pg_roles where rolname = current_user
        union
        select roleid
        from mine
        join pg_catalog.pg_auth_members as membership on member = mine.oid
        where not pg_catalog.to_jsonb(membership) @> '{"inherit_option": false, "set_option": false}'
    ), found as (
        select 'schema auth' as object, nspowner as owner from pg_catalog.pg_namespace where nspname = 'auth'
        union all
        select 'relation auth.users', relowner from pg_catalog.pg_class
        where relnamespace = 'auth'::pg_catalog.regnamespace and relname = 'users'
        union all
        select 'function ' || oid::pg_catalog.regprocedure, proowner from pg_catalog.pg_proc
        where pronamespace = 'auth'::pg_catalog.regnamespace and proname in ('uid', 'role', 'jwt')
    )
    select object, rolname into stranger
    from found
    left join pg_catalog.pg_roles as role on role.oid = owner
    where rolname is null or not (
        rolsuper or rolname = any (named)
        or role.oid in (select oid from mine) and rolname not in ('anon', 'authenticated', 'authenticator')
    )
    limit 1;
    if found then
        raise exception '% belongs to the role %, which could act as every user', stranger.object, stranger.rolname
            using hint = 'Nothing was changed. If another login made it, drop it; if it is yours, change its owner, or name '
                'the role: spotconn schema --apply --owner ROLE (in SQL: set local spotconn.owner = ''ROLE'').';
    end if;

    if exists (
        select from pg_catalog.pg_class
        where relnamespace = pg_catalog.to_regnamespace('auth') and relname = 'users'
    ) and not exists (
        select from pg_catalog.pg_class as relation
        join pg_catalog.pg_index on indrelid = relation.oid and indisprimary and indnkeyatts = 1
        join pg_catalog.pg_attribute as key on key.attrelid = relation.oid and key.attnum = indkey[0]
        where relation.relnamespace = pg_catalog.to_regnamespace('auth') and relation.relname = 'users'
            and key.attname = 'id' and key.atttypid = 'uuid'::pg_catalog.regtype
    ) then
        raise exception 'auth.users exists, and its primary key is not the column id of type uuid'
            using hint = 'Nothing was changed. Connections belong to rows of auth.users: use a database of its own for '
                'spotconn, or give the table such a key.';
    end if;

    -- The three functions as Supabase defines them. The legacy settings request.jwt.claim.* win if they are not empty.
    for expected in
        select * from (values
            ('uid', 'uuid', $body$
    select coalesce(
        nullif(current_setting('request.jwt.claim.sub', true), ''),
        (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')
    )::uuid
$body$),
            ('role', 'text', $body$
    select coalesce(
        nullif(current_setting('request.jwt.claim.role', true), ''),
        (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role')
    )::text
$body$),
            ('jwt', 'jsonb', $body$
    select coalesce(
        nullif(current_setting('request.jwt.claim', true), ''),
        nullif(current_setting('request.jwt.claims', true), '')
    )::jsonb
$body$)
        ) as function (name, type, body)
        left join lateral (
            select
                proc.oid,
                (prokind, proretset, prorettype, provolatile, lanname) =
                    ('f', false, type::pg_catalog.regtype, 's', 'sql')
                -- But for white space.
                and pg_catalog.regexp_replace(prosrc, '\s|;\s*$', '', 'g')
                    = pg_catalog.regexp_replace(body, '\s', '', 'g') as same
            from pg_catalog.pg_proc as proc
            join pg_catalog.pg_language as language on language.oid = prolang
            where pronamespace = pg_catalog.to_regnamespace('auth') and proname = name and pronargs = 0
        ) as existing on true
    loop
        if expected.oid is null then
            execute pg_catalog.format(
                'create function auth.%I() returns %s language sql stable as %L',
                expected.name, expected.type, expected.body
            );
        elsif not expected.same then
            own := pg_catalog.concat_ws(', ', own, 'auth.' || expected.name || '()');
        end if;
    end loop;
    if own is not null then
        raise exception 'the project has a function of its own where Supabase has another: %', own
            using hint = 'Nothing was changed. Where your auth.uid() reads the sub of request.jwt.claims, keep it: leave '
                'this file out, create the table auth.users with the key id uuid and the roles anon, authenticated and '
                'service_role where they are missing, and apply the rest with spotconn schema --apply. Else use a database of its '
                'own for spotconn.';
    end if;

    -- Roles belong to all databases of the server, where another one may be prepared at the same time, or was by another login.
    foreach missing in array wanted loop
        if not exists (select from pg_catalog.pg_roles where rolname = missing) then
            begin
                -- An API server logs in as authenticator once that is given LOGIN and a password.
                execute pg_catalog.format(
                    'create role %I nologin %s', missing, case missing when 'authenticator' then 'noinherit' end
                );
                if missing = 'service_role' then
                    begin
                        alter role service_role bypassrls;
                    exception
                        when insufficient_privilege then
                            null;  -- as on managed servers: schema.sql makes policies in its place
                    end;
                end if;
            exception
                when duplicate_object or unique_violation then
                    null;
                when insufficient_privilege then
                    raise exception 'the role % is missing, and the login % may not create roles', missing, current_user
                        using hint = 'Nothing was changed. As a login with CREATEROLE: ' || (
                            select pg_catalog.string_agg(pg_catalog.format('CREATE ROLE %I NOLOGIN;', name), ' ')
                            from pg_catalog.unnest(wanted || 'spotconn'::text) as name
                            where not exists (select from pg_catalog.pg_roles where rolname = name)
                        );
            end;
        end if;
    end loop;
    foreach missing in array wanted[1:3] loop
        if not exists (
            select from pg_catalog.pg_auth_members
            where roleid = missing::pg_catalog.regrole and member = 'authenticator'::pg_catalog.regrole
        ) then
            begin
                execute pg_catalog.format('grant %I to authenticator', missing);
            exception
                when insufficient_privilege then
                    raise warning 'the role authenticator is no member of %, so no API server can act as it', missing
                        using hint = pg_catalog.format(
                            'As a login that administers that role, or a superuser: GRANT %I TO authenticator;', missing
                        );
            end;
        end if;
    end loop;

    -- The schemas may belong to another login, which has granted this already.
    for lacking in
        select nspname, rolname, pg_catalog.has_schema_privilege(schema.oid, 'usage with grant option') as grantable
        from pg_catalog.pg_namespace as schema, pg_catalog.pg_roles as role
        where nspname in ('auth', 'public') and rolname = any (wanted[1:3])
            and not exists (
                select from pg_catalog.aclexplode(nspacl) where grantee = role.oid and privilege_type = 'USAGE'
            )
    loop
        if lacking.grantable then
            execute pg_catalog.format('grant usage on schema %I to %I', lacking.nspname, lacking.rolname);
        elsif not pg_catalog.has_schema_privilege(lacking.rolname, lacking.nspname, 'usage') then
            raise exception 'the role % may not use the schema %, and the login % cannot grant that',
                lacking.rolname, lacking.nspname, current_user
                using hint = pg_catalog.format(
                    'Nothing was changed. As the owner of the schema: GRANT USAGE ON SCHEMA %I TO %I;',
                    lacking.nspname, lacking.rolname
                );
        end if;
    end loop;

    if not exists (
        select from pg_catalog.pg_class where relnamespace = 'auth'::pg_catalog.regnamespace and relname = 'users'
    ) then
        create table auth.users (
            id uuid primary key default pg_catalog.gen_random_uuid(),
            email text,
            created_at timestamptz default pg_catalog.now()
        );
    end if;
end
$$;

do $$
begin
    perform pg_catalog.set_config('search_path', pg_catalog.current_setting('spotconn.search_path'), true);
end
$$;
