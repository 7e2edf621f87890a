-- Stored Spotify connections: the documented table under row level security, then the library's own schema spotconn.
-- Needs Postgres 15 or later and what Supabase has (elsewhere: plain_postgres.sql first).
-- May be applied again, beside a running service and over a database that has only the documented table: every row is kept.
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
    users constant oid := (
        select oid from pg_catalog.pg_class
        where relnamespace = (select oid from pg_catalog.pg_namespace where nspname = 'auth') and relname = 'users'
    );
    -- From PostgreSQL 16 on, membership need not allow SET ROLE.
    acts constant text :=
        case when pg_catalog.current_setting('server_version_num')::integer < 160000 then 'member' else 'set' end;
    lacking text;
    commands text;
begin
    if users is null then
        raise exception 'schema auth is missing'
            using hint = 'This is no Supabase database: apply plain_postgres.sql first. spotconn schema --apply does so.';
    end if;
    if 'spotconn' in (current_user, session_user) then
        raise exception 'the login is itself the role spotconn, as which the library acts'
            using hint = 'That role has to be one that nobody logs in as. With another login that may alter yours, rename it '
                '(ALTER ROLE spotconn RENAME TO another_name), and apply the schema with that login: spotconn schema --apply.';
    end if;
    if not exists (select from pg_catalog.pg_roles where rolname = 'spotconn') then
        begin
            create role spotconn nologin;
        exception
            when duplicate_object or unique_violation then
                null;  -- another database of this server is prepared at the same time
            when insufficient_privilege then
                raise exception 'the role % is missing, and the login % may not create roles', 'spotconn', current_user
                    using hint = 'Nothing was changed. As a login with CREATEROLE: CREATE ROLE spotconn NOLOGIN;';
        end;
    end if;
    -- A login that may create roles does not yet have the rights of those it creates; a superuser has. Where another login
    -- made the role, this one may be unable to grant it, which the library needs and the statements below do not.
    if not (
        pg_catalog.pg_has_role(current_user, 'spotconn', 'usage') and pg_catalog.pg_has_role(current_user, 'spotconn', acts)
    ) then
        begin
            execute pg_catalog.format('grant spotconn to %I', current_user);
        exception
            when insufficient_privilege then
                if not pg_catalog.pg_has_role(current_user, 'spotconn', acts) then
                    raise warning 'the login % may not act as the role spotconn, so the library cannot use it', current_user
                        using hint = pg_catalog.format(
                            'As a login that administers that role, or a superuser: GRANT spotconn TO %I;', current_user
                        );
                end if;
        end;
    end if;
    -- What the statements below need of objects that may be another login's.
    select
        pg_catalog.string_agg(needed.privilege || ' on ' || needed.object, ', '),
        pg_catalog.string_agg(
            pg_catalog.format('GRANT %s ON %s TO %I;', needed.privilege, needed.object, needed.role), ' '
        )
    into lacking, commands
    from (values
        (
            'CREATE', pg_catalog.format('DATABASE %I', pg_catalog.current_database()), current_user,
            pg_catalog.to_regnamespace('spotconn') is not null
            or pg_catalog.has_database_privilege(pg_catalog.current_database(), 'create')
        ),
        ('CREATE', 'SCHEMA public', current_user, pg_catalog.has_schema_privilege('public', 'create')),
        ('USAGE', 'SCHEMA auth', current_user, pg_catalog.has_schema_privilege('auth', 'usage')),
        (
            'REFERENCES', 'auth.users', current_user,
            4 = (
                select pg_catalog.count(*) from pg_catalog.pg_class
                join pg_catalog.pg_namespace as schema on schema.oid = relnamespace
                where (nspname, relname) in (
                    ('public', 'spotify_connections'), ('spotconn', 'refresh_state'), ('spotconn', 'pending_connect'),
                    ('spotconn', 'reminder')
                )
            ) or pg_catalog.has_any_column_privilege(users, 'references')
        ),
        (
            'USAGE', 'SCHEMA public', 'spotconn',
            pg_catalog.has_schema_privilege('spotconn', 'public', 'usage')
            or pg_catalog.has_schema_privilege('public', 'usage with grant option')
        )
    ) as needed (privilege, object, role, is_there)
    where not needed.is_there;
    if lacking is not null then
        raise exception 'rights are missing that the login % cannot grant: %', current_user, lacking
            using hint = 'Nothing was changed. Apply the schema with the login that owns the tables (on Supabase, postgres). '
                'Where this is that login, as the owner of each of these, or a superuser: ' || commands;
    end if;
    if pg_catalog.to_regnamespace('spotconn') is null then
        begin
            create schema spotconn;
        exception
            when duplicate_schema or unique_violation then
                null;  -- another application was first
        end;
    end if;
    -- One application at a time: this locks the schema until the transaction ends, and only its owner can. Another login is
    -- refused below.
    if (
        select pg_catalog.pg_has_role(nspowner, 'usage') from pg_catalog.pg_namespace where nspname = 'spotconn'
    ) then
        comment on schema spotconn is 'What the library spotconn keeps for itself.';
    end if;
end
$$;

-- The policies compare user_id with auth.uid(), which has to follow the claims that the library sets.
do $$
declare
    sub constant text := pg_catalog.current_setting('request.jwt.claim.sub', true);
    claims constant text := pg_catalog.current_setting('request.jwt.claims', true);
    claimed constant uuid := pg_catalog.gen_random_uuid();
    seen uuid;
begin
    perform
        pg_catalog.set_config('request.jwt.claim.sub', '', true),
        pg_catalog.set_config('request.jwt.claims', pg_catalog.jsonb_build_object('sub', claimed)::text, true);
    begin
        seen := auth.uid();
    exception
        when undefined_function or data_exception then
            null;
    end;
    if seen is distinct from claimed then
        raise exception 'auth.uid() is missing or does not return the sub of request.jwt.claims'
            using hint = 'The policies of the table would show no user a row. Let auth.uid() return that claim, or use a '
                'database of its own for spotconn; then spotconn schema --apply.';
    end if;
    perform
        pg_catalog.set_config('request.jwt.claim.sub', coalesce(sub, ''), true),
        pg_catalog.set_config('request.jwt.claims', coalesce(claims, ''), true);
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

-- What stood here before is kept if its owner may be trusted with all tokens: no policy binds an owner. That is a superuser,
-- the login that applies this file, a role that it is a member of, or one that the setting spotconn.owner names (several with
-- commas between them). A client role is not, which the policies are to bind. A trigger's function may be of another role than
-- its table; the other objects are changed below, which takes their owner, a role that inherits from it, or a superuser.
do $$
declare
    named constant text[] := pg_catalog.regexp_split_to_array(
        coalesce(pg_catalog.current_setting('spotconn.owner', true), ''), '\s*,\s*'
    );
    stranger record;
begin
    with recursive mine as (
        select oid from pg_catalog.pg_roles where rolname = current_user
        union
        select roleid
        from mine
        join pg_catalog.pg_auth_members as membership on member = mine.oid
        -- PostgreSQL 16 and later: with neither option the login only administers that role.
        where not pg_catalog.to_jsonb(membership) @> '{"inherit_option": false, "set_option": false}'
    ), found as (
        select 'schema ' || nspname as object, nspowner as owner from pg_catalog.pg_namespace where nspname = 'spotconn'
        union all
        select 'relation ' || oid::pg_catalog.regclass, relowner from pg_catalog.pg_class
        where relnamespace = 'spotconn'::pg_catalog.regnamespace
            or oid = 'public.spotify_connections'::pg_catalog.regclass
        union all
        select 'function ' || oid::pg_catalog.regprocedure, proowner from pg_catalog.pg_proc
        where pronamespace = 'spotconn'::pg_catalog.regnamespace
        union all
        select pg_catalog.format('the function of trigger %s on %s', tgname, tgrelid::pg_catalog.regclass), proowner
        from pg_catalog.pg_trigger
        join pg_catalog.pg_proc as proc on proc.oid = tgfoid
        join pg_catalog.pg_class as relation on relation.oid = tgrelid
        where not tgisinternal and (
            relnamespace = 'spotconn'::pg_catalog.regnamespace
            or tgrelid = 'public.spotify_connections'::pg_catalog.regclass
        )
    )
    select object, rolname, trusted into stranger
    from found
    left join pg_catalog.pg_roles as role on role.oid = owner
    cross join lateral (values (coalesce(
        rolsuper or rolname = any (named)
        or role.oid in (select oid from mine) and rolname not in ('anon', 'authenticated', 'authenticator'),
        false
    ))) as judged (trusted)
    where not trusted or object not like 'the function of trigger %' and not pg_catalog.pg_has_role(owner, 'usage')
    order by trusted
    limit 1;
    if found and not stranger.trusted then
        raise exception '% belongs to the role %, which could read and change every token', stranger.object, stranger.rolname
            using hint = 'Nothing was changed. If another login made it, drop it; if it is yours, change its owner, make '
                'this login a member of the role, or as a superuser name it: spotconn schema --apply --owner ROLE (in SQL: '
                'set local spotconn.owner = ''ROLE'').';
    elsif found then
        raise exception '% belongs to the role %, and the login % cannot change it',
            stranger.object, stranger.rolname, current_user
            using hint = 'Nothing was changed. Change its owner to this login, or apply the schema as that role or a superuser.';
    end if;
end
$$;

-- All that a running service uses is locked here, before anything is changed. It locks in other orders, so what is not to be
-- had soon is given back: no statement of the service waits longer than that, and none is the victim of a deadlock, which
-- Postgres looks for after a second.
do $$
declare
    relations constant text := (
        select pg_catalog.string_agg(pg_catalog.format('%I.%I', nspname, relname), ', ' order by relkind, relname)
        from pg_catalog.pg_class join pg_catalog.pg_namespace as schema on schema.oid = relnamespace
        where relkind in ('r', 'p', 'v') and (nspname, relname) in (
            ('public', 'spotify_connections'), ('spotconn', 'refresh_state'), ('spotconn', 'pending_connect'),
            ('spotconn', 'reminder'), ('spotconn', 'own_row'), ('spotconn', 'connection_overview'),
            ('spotconn', 'connection')  -- a view before
        )
    );
    -- The table that users.sql ties, first, as in a statement that deletes a user of it: it holds up writes, not reads.
    followed constant text := (
        select pg_catalog.format('lock table %I.%I in share row exclusive mode; ', nspname, relname)
        from pg_catalog.pg_class join pg_catalog.pg_namespace as schema on schema.oid = relnamespace
        where nspname = pg_catalog.current_setting('spotconn.users_schema', true)
            and relname = pg_catalog.current_setting('spotconn.users_table', true)
    );
    -- A table that is made below refers to the users, whose deletion locks both, too.
    users constant text := (
        select 'lock table auth.users in share row exclusive mode; ' from pg_catalog.pg_class
        where relnamespace = (select oid from pg_catalog.pg_namespace where nspname = 'auth') and relname = 'users'
            and pg_catalog.has_table_privilege(pg_class.oid, 'update, delete, truncate')
            and pg_catalog.to_regclass('spotconn.reminder') is null
    );
    former constant text := pg_catalog.current_setting('lock_timeout');
begin
    for attempt in 1..case when relations is null then 0 else 25 end loop
        begin
            perform pg_catalog.set_config('lock_timeout', '100ms', true);
            execute pg_catalog.concat(followed, users, 'lock table ', relations, ' in access exclusive mode');
            perform pg_catalog.set_config('lock_timeout', former, true);
            exit;
        exception
            when lock_not_available or deadlock_detected then
                if attempt = 25 then
                    raise lock_not_available using
                        message = 'a transaction that goes on holds a table of spotconn or of users',
                        hint = 'Nothing was changed. Find it in pg_stat_activity, let it end, and apply the schema again.';
                end if;
        end;
        perform pg_catalog.pg_sleep(0.05 + pg_catalog.random() / 10);
    end loop;
end
$$;

-- What stands there may be of another shape. What is only missing is added, what loses nothing is converted, and the rest is
-- named in one error, which undoes all. A table that is sound costs a look at the catalog.
do $$
declare
    relation constant oid := 'public.spotify_connections'::pg_catalog.regclass;
    users constant oid := 'auth.users'::pg_catalog.regclass;
    wrong text[] := '{}';
    changes text[] := '{}';
    change text;
    fault text;
    detail text;
    expected record;
    other record;
    number bigint;
    zone_matters boolean := false;
    alter_table constant text := 'ALTER TABLE public.spotify_connections ';
    key_of constant text := 'select pg_catalog.count(*) from pg_catalog.pg_index join pg_catalog.pg_attribute '
        'on attrelid = indrelid and attnum = indkey[0] where indrelid = $1 and attname = $2 and indisunique and indisvalid '
        'and indimmediate and indnkeyatts = 1 and indpred is null and indexprs is null';
begin
    if (select relkind not in ('r', 'p') from pg_catalog.pg_class where oid = relation) then
        raise exception 'public.spotify_connections is no table'
            using hint = 'Nothing was changed. Rename it (ALTER TABLE public.spotify_connections RENAME TO another_name), and '
                'apply the schema again.';
    end if;

    -- The keys come second: they are of columns that the first step adds or converts.
    for step in 1..2 loop
        changes := '{}';
        if step = 1 then
            for expected in
                select wanted.*, attribute.attnum, attribute.attnotnull, attribute.atthasdef,
                    pg_catalog.pg_get_expr(adbin, adrelid) as own_default,
                    pg_catalog.format_type(attribute.atttypid, attribute.atttypmod) as found,
                    case
                        when attribute.atttypid = type::pg_catalog.regtype then ''
                        when attribute.atttypid in ('varchar'::pg_catalog.regtype, 'bpchar'::pg_catalog.regtype)
                            and type = 'text' then 'using %1$I::pg_catalog.text'
                        when attribute.atttypid = '_text'::pg_catalog.regtype and name = 'scope'
                            then 'using pg_catalog.array_to_string(%1$I, '' '')'
                        when attribute.atttypid = 'timestamp'::pg_catalog.regtype and type = 'timestamptz'
                            then 'using %1$I::pg_catalog.timestamptz'
                        when attribute.atttypid in ('text'::pg_catalog.regtype, 'varchar'::pg_catalog.regtype)
                            and type = 'uuid' then 'using %1$I::pg_catalog.uuid'
                    end as conversion
                from (values
                    (1, 'id', 'uuid', true, 'pg_catalog.gen_random_uuid()', true),
                    (2, 'user_id', 'uuid', true, null, false),
                    (3, 'spotify_user_id', 'text', true, null, false),
                    (4, 'access_token', 'text', true, null, false),
                    (5, 'refresh_token', 'text', true, null, false),
                    (6, 'expires_at', 'timestamptz', true, null, false),
                    (7, 'connected_at', 'timestamptz', false, 'pg_catalog.now()', true),
                    (8, 'display_name', 'text', false, null, true),
                    (9, 'email', 'text', false, null, true),
                    (10, 'scope', 'text', false, null, true)
                ) as wanted (place, name, type, required, initial, addable)
                left join pg_catalog.pg_attribute as attribute
                    on attribute.attrelid = relation and attribute.attname = name and attribute.attnum > 0
                    and not attribute.attisdropped
                left join pg_catalog.pg_attrdef on adrelid = attribute.attrelid and adnum = attribute.attnum
                order by place
            loop
                if expected.attnum is null and expected.name = 'scope' and exists (
                    select from pg_catalog.pg_attribute
                    where attrelid = relation and attname = 'scopes' and not attisdropped
                ) then
                    wrong := wrong || ('column scopes: ' || alter_table || 'RENAME COLUMN scopes TO scope');
                elsif expected.attnum is null and not expected.addable then
                    wrong := wrong
                        || pg_catalog.format('column %s is missing: rename the one that has it', expected.name);
                elsif expected.attnum is null then
                    -- The default of connected_at comes after the column: of the rows that stand nobody knows when.
                    changes := changes || pg_catalog.format(
                        'add column %I %s%s', expected.name, expected.type,
                        case when expected.required then ' not null default ' || expected.initial else '' end
                    );
                elsif expected.conversion is null then
                    wrong := wrong || pg_catalog.format(
                        'column %s: %s instead of %s', expected.name, expected.found, expected.type
                    );
                    continue;
                elsif expected.conversion <> '' then
                    if expected.atthasdef and (expected.type = 'uuid' or expected.found = 'text[]') then
                        changes := changes || pg_catalog.format('alter column %I drop default', expected.name);
                    end if;
                    changes := changes || pg_catalog.format(
                        'alter column %I type %s ' || pg_catalog.format(expected.conversion, expected.name),
                        expected.name, expected.type
                    );
                    -- Such as auth.uid(), on which a browser relies that leaves the column out.
                    if expected.atthasdef and expected.name = 'user_id' then
                        changes := changes || pg_catalog.format(
                            'alter column user_id set default (%s)::pg_catalog.uuid', expected.own_default
                        );
                    end if;
                    zone_matters := zone_matters or expected.type = 'timestamptz';
                end if;
                if expected.required and not expected.attnotnull then
                    changes := changes || pg_catalog.format('alter column %I set not null', expected.name);
                elsif expected.attnotnull and not expected.required then
                    wrong := wrong || pg_catalog.format(
                        'column %1$s is NOT NULL: %2$sALTER COLUMN %1$I DROP NOT NULL', expected.name, alter_table
                    );
                end if;
                if expected.initial is not null and (
                    expected.attnum is null and not expected.required
                    or not expected.atthasdef
                    or expected.type = 'uuid' and expected.conversion <> ''
                ) then
                    changes := changes
                        || pg_catalog.format('alter column %I set default %s', expected.name, expected.initial);
                end if;
            end loop;

            for other in
                select attname as name from pg_catalog.pg_attribute
                where attrelid = relation and attnum > 0 and not attisdropped
                    and attnotnull and not atthasdef and attidentity = ''
                    and attname <> all (array[
                        'id', 'user_id', 'spotify_user_id', 'access_token', 'refresh_token', 'expires_at',
                        'connected_at', 'display_name', 'email', 'scope'
                    ])
                order by attnum
            loop
                wrong := wrong || pg_catalog.format(
                    'column %1$s is NOT NULL without a default: %2$sALTER COLUMN %1$I DROP NOT NULL', other.name, alter_table
                );
            end loop;

            -- Those of the documented names are made anew below.
            if changes::text like '%alter column user_id type%' then
                drop policy if exists "Users can view own connections" on public.spotify_connections;
                drop policy if exists "Users can create own connections" on public.spotify_connections;
                drop policy if exists "Users can update own connections" on public.spotify_connections;
                drop policy if exists "Users can delete own connections" on public.spotify_connections;
            end if;
        else
            -- ON CONFLICT (user_id) takes any unique index of that column, that of a primary key as well.
            execute key_of into number using relation, 'user_id';
            if number = 0 and exists (
                select from pg_catalog.pg_attribute
                where attrelid = relation and attname = 'user_id' and not attisdropped
            ) then
                execute 'select pg_catalog.count(*) from (select from public.spotify_connections '
                    'where user_id is not null group by user_id having pg_catalog.count(*) > 1) as repeated' into number;
                if number > 0 then
                    wrong := wrong || pg_catalog.format(
                        'UNIQUE (user_id): %s users have several rows: keep one of each', number
                    );
                else
                    changes := changes || 'add unique (user_id)'::text;
                end if;
            end if;
            execute key_of into number using relation, 'id';
            if number = 0 and wrong = '{}' then
                changes := changes || case
                    when exists (select from pg_catalog.pg_constraint where conrelid = relation and contype = 'p')
                        then 'add unique (id)'
                    else 'add primary key (id)'
                end;
            end if;
            if 'uuid' = (
                select pg_catalog.format_type(atttypid, atttypmod) from pg_catalog.pg_attribute
                where attrelid = relation and attname = 'user_id' and not attisdropped
            ) and not exists (
                select from pg_catalog.pg_constraint
                where conrelid = relation and contype = 'f' and confrelid = users and confdeltype = 'c' and convalidated
                    and pg_catalog.pg_get_constraintdef(oid) like 'FOREIGN KEY (user_id) REFERENCES auth.users(id)%'
            ) then
                execute 'select pg_catalog.count(*) from public.spotify_connections as stored '
                    'where not exists (select from auth.users where users.id = stored.user_id)' into number;
                if number > 0 then
                    wrong := wrong || pg_catalog.format(
                        'FOREIGN KEY (user_id): no user in auth.users for %s of the rows: insert these users, or delete the rows',
                        number
                    );
                else
                    -- One of another action would refuse the deletion of a user before that of ours is done.
                    changes := changes || array(
                        select pg_catalog.format('drop constraint %I', conname) from pg_catalog.pg_constraint
                        where conrelid = relation and contype = 'f' and confrelid = users
                            and pg_catalog.pg_get_constraintdef(oid)
                                like 'FOREIGN KEY (user_id) REFERENCES auth.users(id)%'
                    ) || 'add foreign key (user_id) references auth.users (id) on delete cascade'::text;
                end if;
            end if;
        end if;
        foreach change in array changes loop
            fault := null;
            begin
                execute alter_table || change;
            exception
                when lock_not_available or deadlock_detected or insufficient_privilege then
                    raise;
                when invalid_text_representation then  -- its text repeats the value
                    fault := 'a value is none of that type';
                when not_null_violation then
                    fault := 'some rows have null there';
                when feature_not_supported or datatype_mismatch then  -- the detail names what depends on the column
                    get stacked diagnostics detail = pg_exception_detail;
                    fault := pg_catalog.concat_ws('. ', sqlerrm, nullif(detail, ''));
                when others then
                    fault := sqlerrm;
            end;
            if fault is not null then
                wrong := wrong || pg_catalog.format('%s: %s', change, fault);
            end if;
        end loop;
    end loop;

    if wrong <> '{}' then
        raise exception 'public.spotify_connections is of another shape: %', pg_catalog.array_to_string(wrong, '; ')
            using hint = 'Nothing was changed. Mend what is named, or keep the table under another name and bring its rows '
                'over: ALTER TABLE public.spotify_connections RENAME TO spotify_connections_old, spotconn schema --apply, then '
                'spotconn migrate --from public.spotify_connections_old.';
    end if;
    if zone_matters then
        perform pg_catalog.set_config('client_min_messages', 'notice', true);
        raise notice 'times without a zone in public.spotify_connections were read in the session''s zone: %',
            pg_catalog.current_setting('TimeZone');
        perform pg_catalog.set_config('client_min_messages', 'warning', true);
    end if;
end
$$;

comment on column public.spotify_connections.expires_at is
    'End of the access token, by the clock of this database.';
comment on column public.spotify_connections.connected_at is
    'When the user last authorized; Spotify ends the refresh token six months later.';
comment on column public.spotify_connections.scope is
    'The granted scopes, separated by spaces; null where they were never recorded.';

-- A table that was renamed to make room has kept its indexes, and their names.
do $$
declare
    wanted record;
begin
    for wanted in
        select name, attname as column, pg_catalog.to_regclass('public.' || name) is null as free
        from (values
            ('idx_spotify_connections_user', 'user_id'), ('idx_spotify_connections_spotify_user', 'spotify_user_id')
        ) as documented (name, indexed)
        join pg_catalog.pg_attribute on attrelid = 'public.spotify_connections'::pg_catalog.regclass and attname = indexed
        where not exists (
            select from pg_catalog.pg_index join pg_catalog.pg_class as index on index.oid = indexrelid
            where indrelid = attrelid and (
                relname = name
                or indnkeyatts = 1 and indkey[0] = attnum and not indisunique and indpred is null and indexprs is null
            )
        )
    loop
        execute pg_catalog.format(
            'create index %s on public.spotify_connections (%I)',
            case when wanted.free then wanted.name else '' end, wanted.column
        );
    end loop;
end
$$;

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
do $$
begin
    if pg_catalog.has_schema_privilege('public', 'usage with grant option') then
        grant usage on schema public to spotconn;
    end if;
    -- For auth.uid() in SQL within ConnectionStore.as_user. On Supabase the schema auth is not this login's to grant.
    if pg_catalog.has_schema_privilege('auth', 'usage with grant option') then
        grant usage on schema auth to spotconn;
    end if;
end
$$;

-- The functions locked_down and writes_closed mark a database to which lock_down.sql or close_writes.sql was applied; that
-- stays in force here.
do $$
begin
    if pg_catalog.to_regprocedure('spotconn.locked_down()') is not null then
        grant select (id, user_id, spotify_user_id, expires_at, connected_at, display_name, email, scope), delete
            on public.spotify_connections to authenticated;
    elsif pg_catalog.to_regprocedure('spotconn.writes_closed()') is not null then
        grant select, delete on public.spotify_connections to authenticated;
    else
        grant select, insert, update, delete on public.spotify_connections to authenticated;
    end if;
end
$$;

--------------------------------------------------------------------------------------------------------------------
-- The schema spotconn: the library's own tables and functions. PostgREST does not expose it.
--------------------------------------------------------------------------------------------------------------------

revoke all on schema spotconn from public;
grant usage on schema spotconn to spotconn, service_role;

-- The clock of everything below: the only one that all processes share. Stable, so that an index on a time can be used;
-- each statement that calls it, also one within a function, reads the clock anew.
create or replace function spotconn.now() returns timestamptz
language sql stable set search_path = pg_catalog, pg_temp
return pg_catalog.clock_timestamp();

-- A connection with what is known of its refresh token. Before, this was a view, whose isolation hung on an option that dumps
-- and copies of the database may lose. The functions that return its rows go with it, and are made again below.
do $$
declare
    routine pg_catalog.regprocedure;
begin
    if exists (
        select from pg_catalog.pg_class where oid = pg_catalog.to_regclass('spotconn.connection') and relkind = 'v'
    ) then
        for routine in
            select distinct proc.oid
            from pg_catalog.pg_type as type
            join pg_catalog.pg_depend on refclassid = 'pg_catalog.pg_type'::pg_catalog.regclass and refobjid = type.oid
            join pg_catalog.pg_proc as proc
                on classid = 'pg_catalog.pg_proc'::pg_catalog.regclass and objid = proc.oid
                and pronamespace = 'spotconn'::pg_catalog.regnamespace
            where typrelid = 'spotconn.connection'::pg_catalog.regclass
        loop
            execute pg_catalog.format('drop function %s', routine);
        end loop;
        drop view spotconn.connection;
    end if;
    if pg_catalog.to_regtype('spotconn.connection') is null then
        create type spotconn.connection as (
            id uuid,
            user_id uuid,
            spotify_user_id text,
            access_token text,
            refresh_token text,
            expires_at timestamptz,
            connected_at timestamptz,
            display_name text,
            email text,
            scope text,
            client_id text,
            refused_by text[],
            failure text,
            failed_at timestamptz,
            retry_at timestamptz,
            saves bigint,
            family uuid,
            remaining double precision,
            account_id text,
            previous_spotify_user_id text
        );
    elsif not exists (
        select from pg_catalog.pg_attribute
        where attrelid = pg_catalog.to_regclass('spotconn.connection') and attname = 'account_id'
    ) then
        alter type spotconn.connection add attribute account_id text, add attribute previous_spotify_user_id text;
    end if;
end
$$;

-- Schema version 2 named the version of a connection by its expires_at. What it has recorded of rows that still stand is
-- carried over below.
do $$
begin
    if exists (
        select from pg_catalog.pg_attribute
        where attrelid = pg_catalog.to_regclass('spotconn.refresh_state') and attname = 'version' and not attisdropped
    ) then
        drop function if exists spotconn.fail_refresh(uuid, timestamptz, uuid, text, double precision);
        -- Not renamed: its constraints would keep their names, and those of the new table would get others.
        create table spotconn.refresh_state_2 as select * from spotconn.refresh_state;
        drop table spotconn.refresh_state;
    end if;
end
$$;

-- What is known of one refresh token of a user, named by its fingerprint. It counts only while the connection holds that
-- very refresh token, so no other writer of the table has to know of it; `saves` alone goes on. It hangs on auth.users,
-- because a connection that is deleted and inserted again may hold the same refresh token.
create table if not exists spotconn.refresh_state (
    user_id uuid primary key references auth.users (id) on update cascade on delete cascade,
    fingerprint bytea not null,
    client_id text,
    refused_by text[] not null default '{}',
    lease_id uuid,
    leased_at timestamptz,
    lease_until timestamptz,
    lapsed boolean not null default false,
    failure text check (failure in ('expired', 'revoked', 'invalid', 'unavailable')),
    failed_at timestamptz,
    paused_at timestamptz,
    retry_at timestamptz,
    failures integer not null default 0,
    refusals integer not null default 0,
    saved_at timestamptz,
    granted_at timestamptz,
    saves bigint not null default 0,
    family uuid not null default pg_catalog.gen_random_uuid(),
    account_id text,
    check ((lease_id is null) = (lease_until is null) and (lease_id is null) = (leased_at is null)),
    check ((failure is null) = (failed_at is null))
);

alter table spotconn.refresh_state add column if not exists account_id text;

comment on column spotconn.refresh_state.fingerprint is 'SHA-256 of the stored text of the refresh token.';
comment on column spotconn.refresh_state.client_id is
    'The app that this refresh token was issued to (RFC 6749, section 6); null where it is not known.';
comment on column spotconn.refresh_state.refused_by is
    'The apps with which Spotify has refused it, while its own is not known.';
comment on column spotconn.refresh_state.lapsed is
    'Whether a holder of the lease let it run out: it may still save what replaced this refresh token.';
comment on column spotconn.refresh_state.retry_at is
    'When Spotify may be asked again; null beside a refusal: never, the user must authorize again.';
comment on column spotconn.refresh_state.failures is 'Consecutive temporary failures; the backoff doubles with each.';
comment on column spotconn.refresh_state.refusals is 'Refusals of this refresh token by Spotify.';
comment on column spotconn.refresh_state.saved_at is 'When the library last saved this refresh token; null where another writer''s comes before it, so that the date of the authorization is not known.';
comment on column spotconn.refresh_state.granted_at is
    'When Spotify granted the stored access token, where the library asked for it.';
comment on column spotconn.refresh_state.saves is
    'How often the library has saved tokens of this user: fewer than before, in one family, show a row that came back.';
comment on column spotconn.refresh_state.family is
    'The family of refresh tokens (RFC 9700), each granted for the one before, that began with a connect or with another writer''s token.';
comment on column spotconn.refresh_state.account_id is
    'Spotify''s lasting id of the account that this refresh token is for; null where no connect has recorded it.';

do $$
begin
    if pg_catalog.to_regclass('spotconn.refresh_state_2') is not null then
        insert into spotconn.refresh_state (
            user_id, fingerprint, lease_id, leased_at, lease_until, failure, failures, failed_at, paused_at, retry_at
        )
        select
            state.user_id, pg_catalog.sha256(pg_catalog.convert_to(stored.refresh_token, 'UTF8')),
            state.lease_id, case when state.lease_id is not null then pg_catalog.clock_timestamp() end,
            state.lease_until, state.failure, state.failures, state.failed_at, state.failed_at, state.retry_at
        from spotconn.refresh_state_2 as state
        join public.spotify_connections as stored
            on stored.user_id = state.user_id and stored.expires_at = state.version;
        drop table spotconn.refresh_state_2;
    end if;
end
$$;

alter table spotconn.refresh_state enable row level security;

drop policy if exists "Own refresh state" on spotconn.refresh_state;
create policy "Own refresh state" on spotconn.refresh_state to spotconn
    using ((select auth.uid()) = user_id) with check ((select auth.uid()) = user_id);

revoke all on spotconn.refresh_state from public, anon, authenticated;
grant select, insert, update, delete on spotconn.refresh_state to spotconn, service_role;

-- Authorizations that were started in the last ten minutes, each for one use. Of the state and of the cookie of the browser
-- only the SHA-256 is stored; the PKCE verifier as the store's cipher leaves it, and none once used. A row stays until it
-- expires, also when used: the rows of a user are the starts that count for the limit, each in a slot of its own. A sign-in
-- has no user yet, and no slot.
create table if not exists spotconn.pending_connect (
    state_hash bytea primary key,
    user_id uuid references auth.users (id) on delete cascade,
    code_verifier text not null,
    expires_at timestamptz not null
);
alter table spotconn.pending_connect
    add column if not exists started_at timestamptz not null default pg_catalog.clock_timestamp(),
    add column if not exists used_at timestamptz,
    add column if not exists slot smallint,
    add column if not exists cookie_hash bytea,
    alter column user_id drop not null;

drop index if exists spotconn.idx_pending_connect_user;
create unique index if not exists idx_pending_connect_slot on spotconn.pending_connect (user_id, slot);
create index if not exists idx_pending_connect_expires on spotconn.pending_connect (expires_at);

alter table spotconn.pending_connect enable row level security;

-- The hash of the state that a transaction has. A callback may come without a user: who has its state, which nobody can
-- guess, may see that one row.
create or replace function spotconn.claimed_state() returns bytea
language sql stable set search_path = pg_catalog, pg_temp
return pg_catalog.decode(nullif(pg_catalog.current_setting('spotconn.state_hash', true), ''), 'hex');

drop policy if exists "Own pending connects are seen" on spotconn.pending_connect;
create policy "Own pending connects are seen" on spotconn.pending_connect
    for select to spotconn
    using ((select auth.uid()) = user_id or (select spotconn.claimed_state()) = state_hash);

drop policy if exists "Own pending connects are made" on spotconn.pending_connect;
create policy "Own pending connects are made" on spotconn.pending_connect
    for insert to spotconn with check (
        (select auth.uid()) = user_id
        or user_id is null and cookie_hash is not null and (select spotconn.claimed_state()) = state_hash
    );

drop policy if exists "Own pending connects are used" on spotconn.pending_connect;
create policy "Own pending connects are used" on spotconn.pending_connect
    for update to spotconn
    using ((select auth.uid()) = user_id or (select spotconn.claimed_state()) = state_hash)
    with check ((select auth.uid()) = user_id or (select spotconn.claimed_state()) = state_hash);

-- Each start of an authorization also deletes the expired ones of all users. A DELETE that names no column reads nothing, so no SELECT policy has to show these rows.
drop policy if exists "Own and expired pending connects may go" on spotconn.pending_connect;
create policy "Own and expired pending connects may go" on spotconn.pending_connect
    for delete to spotconn using ((select auth.uid()) = user_id or expires_at <= spotconn.now());

revoke all on spotconn.pending_connect from public, anon, authenticated, service_role;
grant select, insert, update, delete on spotconn.pending_connect to spotconn;

-- When an operator has last asked a user to connect again, and about which authorization: it counts only while the connection
-- has that connected_at, to the second, so it outlasts refreshes, and a connect ends it without a statement. It hangs on
-- auth.users, not on the connection, which then could not be truncated. service_role writes it; spotconn, the role of the
-- service, may only delete the one of its user, with the connection.
create table if not exists spotconn.reminder (
    user_id uuid primary key references auth.users (id) on update cascade on delete cascade,
    connected_at timestamptz,
    asked_at timestamptz not null
);

comment on column spotconn.reminder.connected_at is
    'The connected_at of the connection that the user was asked about; null where it had none.';

alter table spotconn.reminder enable row level security;

drop policy if exists "Own reminder is seen" on spotconn.reminder;
create policy "Own reminder is seen" on spotconn.reminder
    for select to spotconn using ((select auth.uid()) = user_id);

drop policy if exists "Own reminder may go" on spotconn.reminder;
create policy "Own reminder may go" on spotconn.reminder
    for delete to spotconn using ((select auth.uid()) = user_id);

revoke all on spotconn.reminder from public, anon, authenticated, service_role, spotconn;
grant select, insert, update, delete on spotconn.reminder to service_role;
grant select (user_id), delete on spotconn.reminder to spotconn;

-- service_role sees every row by BYPASSRLS. Where nobody may give it that, as on managed servers, it does by policies of
-- its own, which bind no other role.
do $$
declare
    relation text;
begin
    foreach relation in array array['public.spotify_connections', 'spotconn.refresh_state', 'spotconn.reminder'] loop
        execute 'drop policy if exists "Every row for service_role" on ' || relation;
        if exists (
            select from pg_catalog.pg_roles where rolname = 'service_role' and not (rolsuper or rolbypassrls)
        ) then
            execute 'create policy "Every row for service_role" on ' || relation
                || ' to service_role using (true) with check (true)';
        end if;
    end loop;
end
$$;

-- The connection of the user acted for, whatever the policies hide: for spotconn.is_hidden. A view reads as its owner.
-- By its LIMIT nothing can be written through it, and no condition of a query on it meets a row of another user.
create or replace view spotconn.own_row as
select stored.id, stored.user_id
from (select auth.uid() as user_id) as claimed
join public.spotify_connections as stored on stored.user_id = claimed.user_id
limit 1;

revoke all on spotconn.own_row from public, anon, authenticated, service_role;
grant select on spotconn.own_row to spotconn;

-- Names a stored token by its content.
create or replace function spotconn.fingerprint(p_stored text) returns bytea
language sql stable set search_path = pg_catalog, pg_temp
return pg_catalog.sha256(pg_catalog.convert_to(p_stored, 'UTF8'));

-- Seconds until an access token ends. An end that no token of Spotify can have counts as past.
create or replace function spotconn.seconds_left(p_expires_at timestamptz, p_now timestamptz)
returns double precision
language sql stable set search_path = pg_catalog, pg_temp
return case
    when p_expires_at < '2000-01-01 00:00+00'::timestamptz or p_expires_at > p_now + interval '24 hours' then 0
    else extract(epoch from p_expires_at) - extract(epoch from p_now)
end;

-- Whether a stored text can be sent as a token: as spotconn.models.is_token. An encrypted one can; what is in it is for
-- its reader to check.
create or replace function spotconn.is_token(p_stored text) returns boolean
language sql stable set search_path = pg_catalog, pg_temp
return p_stored ~ '^[!#-&(-\[\]-~]+$' and pg_catalog.lower(p_stored) not in ('null', 'none', 'undefined');

-- Whether a time that was set at p_since and ends at p_until still runs. One with more left than its length shows that the
-- clock was set back, and is void; a second is allowed for small corrections of the clock. So is one that ends in more than
-- a day, the longest pause that is recorded here: a false one shuts a user out for no longer. Any time may be stored, so
-- all that is computed is computed from p_now.
create or replace function spotconn.runs(p_since timestamptz, p_until timestamptz, p_now timestamptz) returns boolean
language sql stable set search_path = pg_catalog, pg_temp
return coalesce(p_now < p_until and p_until < p_now + interval '25 hours' and p_now + interval '1 second' >= p_since, false);

-- The connection of a user, if the policies show it to the caller. Stable: it reads what the statement that calls it does.
-- The planner would take two equal columns for a rare row and read whole tables; from the COALESCE it concludes nothing.
create or replace function spotconn.connections(p_user_id uuid) returns setof spotconn.connection
language plpgsql stable set search_path = pg_catalog, pg_temp rows 1 as $$
declare
    moment constant timestamptz := spotconn.now();
begin
    return query
        select
            stored.id,
            stored.user_id,
            stored.spotify_user_id::text,
            stored.access_token::text,
            stored.refresh_token::text,
            -- Other writers may store any date. These are the ones that a client can hold.
            least(greatest(stored.expires_at::timestamptz, '0001-01-02 00:00+00'), '9999-12-31 00:00+00'),
            case when stored.connected_at between '2000-01-01 00:00+00' and '9998-12-31 00:00+00'
                then stored.connected_at::timestamptz end,
            stored.display_name::text,
            stored.email::text,
            stored.scope::text,
            state.client_id,
            state.refused_by,
            state.failure,
            case when state.failed_at is not null
                then least(greatest(state.failed_at, '0001-01-02 00:00+00'), '9999-12-31 00:00+00') end,
            case when state.retry_at between '0001-01-02 00:00+00' and '9999-12-31 00:00+00'
                then state.retry_at end,
            state.saves,
            state.family,
            -- As spotconn.seconds_left, which would cost as much as the rest.
            case
                when stored.expires_at < '2000-01-01 00:00+00' or stored.expires_at > moment + interval '24 hours' then 0
                else (extract(epoch from stored.expires_at) - extract(epoch from moment))::double precision
            end,
            state.account_id,
            null
        from public.spotify_connections as stored
        left join spotconn.refresh_state as state
            on state.user_id = stored.user_id
            and coalesce(state.fingerprint = sha256(convert_to(stored.refresh_token, 'UTF8')), false)
        where stored.user_id = p_user_id;
end
$$;

-- Writes an empty message into the WAL. A commit that has written something waits for the synchronous standby, and so for all
-- that was committed before; one that has not, waits for nothing. What found nothing to do calls this before it says so: a
-- write that was given up in that wait stands on this server alone, and a promotion of the standby would undo it.
create or replace function spotconn.write_wal() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform pg_catalog.pg_logical_emit_message(true, 'spotconn', '');
end
$$;

-- One function per operation of the store. Each sets role and claims, then runs its statement, so a call is one
-- statement, one round trip and one implicit transaction, and no caller can leave out the claims.

create or replace function spotconn.schema_version() returns integer
language sql immutable set search_path = pg_catalog, pg_temp
return 3;

-- Role and claims last until the transaction ends. The legacy claim would win over request.jwt.claims: empty it.
create or replace function spotconn.act_as(p_user_id uuid) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
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
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform spotconn.act_as(null);
    if exists (
        select from pg_catalog.unnest(array[
            'public.spotify_connections', 'spotconn.refresh_state', 'spotconn.pending_connect'
        ]) as relation
        cross join pg_catalog.unnest(array['select', 'insert', 'update', 'delete']) as privilege
        where not pg_catalog.has_table_privilege(relation, privilege)
    ) or not (
        pg_catalog.has_column_privilege('spotconn.reminder', 'user_id', 'select')
        and pg_catalog.has_table_privilege('spotconn.reminder', 'delete')
    ) then
        raise insufficient_privilege using message = 'the role spotconn lacks a grant';
    end if;
    return pg_catalog.row_security_active('public.spotify_connections')
        and pg_catalog.row_security_active('spotconn.refresh_state')
        and pg_catalog.row_security_active('spotconn.pending_connect')
        and pg_catalog.row_security_active('spotconn.reminder');
end
$$;

-- The user whom the policies see. Bound to auth.uid() when it is made, because the role spotconn may not use schema auth.
create or replace function spotconn.claimed_user() returns uuid
language sql stable set search_path = pg_catalog, pg_temp
return auth.uid();

-- Whether policies of these roles bind the role spotconn.
create or replace function spotconn.binds(p_roles oid[]) returns boolean
language sql stable set search_path = pg_catalog, pg_temp
return exists (
    select from pg_catalog.unnest(p_roles) as bound (role)
    where bound.role = 0 or pg_catalog.pg_has_role('spotconn', bound.role, 'usage')
);

-- What may keep the role spotconn from a row of its user: by table and command each restrictive policy that binds it, quoted
-- where it has to be, and null where no permissive one does. One that lets each user have the own row keeps nothing.
create or replace function spotconn.policy_faults() returns table (relation text, command text, policy text)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
    return query
        with bound as (
            select
                policy.polrelid, pg_catalog.quote_ident(policy.polname) as name, policy.polpermissive as permissive,
                policy.polcmd as code
            from pg_catalog.pg_policy as policy
            where spotconn.binds(policy.polroles) and (policy.polpermissive or not (
                policy.polrelid = 'public.spotify_connections'::pg_catalog.regclass
                and array[
                    pg_catalog.pg_get_expr(coalesce(policy.polqual, policy.polwithcheck), policy.polrelid),
                    pg_catalog.pg_get_expr(coalesce(policy.polwithcheck, policy.polqual), policy.polrelid)
                ] <@ array[
                    'true', '(( SELECT auth.uid() AS uid) = user_id)', '(user_id = ( SELECT auth.uid() AS uid))',
                    '(auth.uid() = user_id)', '(user_id = auth.uid())'
                ]
            ))
        )
        select protected.name, needed.command, bound.name
        from (values
            ('public.spotify_connections', '{r,a,w,d}'::"char"[]), ('spotconn.refresh_state', '{r,a,w,d}'),
            ('spotconn.pending_connect', '{r,a,w,d}'), ('spotconn.reminder', '{r,d}')
        ) as protected (name, codes)
        join (values ('r'::"char", 'SELECT'), ('a', 'INSERT'), ('w', 'UPDATE'), ('d', 'DELETE'))
            as needed (code, command) on needed.code = any (protected.codes)
        left join bound
            on bound.polrelid = protected.name::pg_catalog.regclass and bound.code in (needed.code, '*')
            and not bound.permissive
        where bound.name is not null or not exists (
            select from bound as showing
            where showing.polrelid = protected.name::pg_catalog.regclass and showing.code in (needed.code, '*')
                and showing.permissive
        );
end
$$;

-- All that ConnectionStore.verify looks at, in one round trip. unbound is why the policies would not bind, null where they do.
-- Fails with 42501 if a grant is missing.
create or replace function spotconn.verify() returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    claimed constant uuid := pg_catalog.gen_random_uuid();
    claims_read boolean := false;
    unbound text;
begin
    perform spotconn.act_as(claimed);
    begin
        claims_read := coalesce(spotconn.claimed_user() = claimed, false);
    exception
        when data_exception then
            null;
    end;
    if not spotconn.row_security_binds() then
        select case
            when (rolsuper or rolbypassrls) and rolcanlogin then 'login'
            when rolsuper then 'superuser'
            when rolbypassrls then 'exempt'
            when exists (
                select from pg_catalog.pg_class
                where relowner = role.oid and oid in (
                    'public.spotify_connections'::pg_catalog.regclass, 'spotconn.refresh_state'::pg_catalog.regclass,
                    'spotconn.pending_connect'::pg_catalog.regclass, 'spotconn.reminder'::pg_catalog.regclass
                )
            ) then 'owner'
            else 'disabled'
        end into unbound from pg_catalog.pg_roles as role where rolname = 'spotconn';
    end if;
    return pg_catalog.jsonb_build_object(
        'version', spotconn.schema_version(),
        'encoding', pg_catalog.current_setting('server_encoding'),
        'claims_read', claims_read,
        'unbound', unbound,
        'policies', coalesce(
            (select pg_catalog.jsonb_agg(fault order by fault) from spotconn.policy_faults() as fault), '[]'
        )
    );
end
$$;

-- Whether the documented policies alone decide which connection the role spotconn is shown (SELECT), or may change (UPDATE).
create or replace function spotconn.shows_own_rows(p_command text) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    code constant "char" := case p_command when 'UPDATE' then 'w' else 'r' end;
begin
    return (
        with policy as materialized (
            select
                polcmd, polpermissive,
                pg_catalog.pg_get_expr(polqual, polrelid) = '(( SELECT auth.uid() AS uid) = user_id)' as own
            from pg_catalog.pg_policy
            where polrelid = 'public.spotify_connections'::pg_catalog.regclass and polcmd in ('r', code, '*')
                and (0 = any (polroles) or spotconn.binds(polroles))
        )
        select coalesce(
            pg_catalog.bool_and(polpermissive)
            and pg_catalog.bool_or(own and polcmd in ('r', '*')) and pg_catalog.bool_or(own and polcmd in (code, '*')),
            false
        ) from policy
    );
end
$$;

-- Whether a policy hides the connection of the user acted for, who is shown none (SELECT) or none to change (UPDATE).
-- Where the documented policies alone bind there is no such connection. Else spotconn.own_row tells; where its owner may be
-- bound as well, the catalog says whether a policy may hide it.
create or replace function spotconn.is_hidden(p_user_id uuid, p_command text) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    former uuid;
begin
    if spotconn.claimed_user() is distinct from p_user_id then
        raise undefined_function using message = 'auth.uid() does not return the sub of request.jwt.claims';
    elsif spotconn.shows_own_rows(p_command) then
        return false;
    elsif not exists (
        select from pg_catalog.pg_class as view
        join pg_catalog.pg_roles as role on role.oid = view.relowner
        join pg_catalog.pg_class as stored on stored.oid = 'public.spotify_connections'::pg_catalog.regclass
        where view.oid = pg_catalog.to_regclass('spotconn.own_row') and view.reloptions is null  -- no security_invoker
            and pg_catalog.has_table_privilege(role.oid, stored.oid, 'select')
            and (
                role.rolsuper or role.rolbypassrls
                or not stored.relforcerowsecurity and pg_catalog.pg_has_role(role.oid, stored.relowner, 'usage')
            )
    ) then
        return exists (
            select from spotconn.policy_faults() as fault
            where fault.relation = 'public.spotify_connections' and fault.command in ('SELECT', p_command)
        );
    elsif p_command = 'SELECT' then
        -- One statement looks twice at the same moment.
        return exists (select from spotconn.own_row as own where own.user_id = p_user_id)
            and not exists (select from public.spotify_connections as stored where stored.user_id = p_user_id);
    end if;
    select own.id into former from spotconn.own_row as own where own.user_id = p_user_id;
    perform from public.spotify_connections as stored where stored.user_id = p_user_id for no key update;
    -- What is there before and after was there in between.
    return not found and exists (
        select from spotconn.own_row as own where own.user_id = p_user_id and own.id = former
    );
end
$$;

-- Raises SC002. Its fields name the restrictive policies for these commands, and the commands without a permissive one.
create or replace function spotconn.refuse_hidden(p_commands text[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    policies text;
    lacking text;
begin
    select
        pg_catalog.string_agg(distinct fault.policy, ', '),
        pg_catalog.string_agg(fault.command, ', ') filter (where fault.policy is null)
    into policies, lacking
    from spotconn.policy_faults() as fault
    where fault.relation = 'public.spotify_connections' and fault.command = any (p_commands);
    raise exception 'row level security hides a connection from the role spotconn' using
        errcode = 'SC002', schema = 'public', table = 'spotify_connections',
        constraint = coalesce(policies, ''), datatype = coalesce(lacking, '');
end
$$;

-- Raises SC002 where a user who is shown no connection has one all the same.
create or replace function spotconn.check_missing(p_user_id uuid) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if spotconn.is_hidden(p_user_id, 'SELECT') then
        perform spotconn.refuse_hidden('{SELECT}');
    end if;
end
$$;

-- Raises SC002 where a connection that holds this refresh token is shown, and is not to be changed.
create or replace function spotconn.check_unchanged(p_user_id uuid, p_fingerprint bytea) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if exists (
        select from public.spotify_connections as stored
        where stored.user_id = p_user_id and spotconn.fingerprint(stored.refresh_token) = p_fingerprint
    ) and spotconn.is_hidden(p_user_id, 'UPDATE') then
        perform spotconn.refuse_hidden('{SELECT,UPDATE}');
    end if;
end
$$;

create or replace function spotconn.get_connection(p_user_id uuid) returns setof spotconn.connection
language plpgsql set search_path = pg_catalog, pg_temp rows 1 as $$
begin
    perform spotconn.act_as(p_user_id);
    return query
        select connection.* from spotconn.connections(p_user_id) as connection;
    if not found then
        perform spotconn.check_missing(p_user_id);
    end if;
end
$$;

-- The connections of several users. Each is read as its own user, so the policies are evaluated for each user.
create or replace function spotconn.get_connections(p_user_ids uuid[]) returns setof spotconn.connection
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    one uuid;
begin
    perform spotconn.act_as(null);
    foreach one in array p_user_ids loop
        perform pg_catalog.set_config('request.jwt.claims', '{"sub": "' || one || '", "role": "spotconn"}', true);
        return query
            select connection.* from spotconn.connections(one) as connection;
        if not found then
            perform spotconn.check_missing(one);
        end if;
    end loop;
end
$$;

-- The access tokens of several users, each read as its own user, and nothing else of their connections: what is known of
-- the refresh token is not joined.
create or replace function spotconn.get_access_tokens(p_user_ids uuid[])
returns table (user_id uuid, access_token text, remaining double precision, scope text)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    one uuid;
    moment constant timestamptz := spotconn.now();
    shown boolean;
begin
    perform spotconn.act_as(null);
    foreach one in array p_user_ids loop
        perform pg_catalog.set_config('request.jwt.claims', '{"sub": "' || one || '", "role": "spotconn"}', true);
        return query
            select
                stored.user_id,
                stored.access_token,
                -- As spotconn.seconds_left, which would cost as much as the rest.
                case
                    when stored.expires_at < '2000-01-01 00:00+00' or stored.expires_at > moment + interval '24 hours' then 0
                    else (extract(epoch from stored.expires_at) - extract(epoch from moment))::double precision
                end,
                stored.scope
            from public.spotify_connections as stored where stored.user_id = one;
        if not found then
            shown := coalesce(shown, spotconn.shows_own_rows('SELECT') and spotconn.claimed_user() = one);
            if not shown then
                perform spotconn.check_missing(one);
            end if;
        end if;
    end loop;
end
$$;

-- Lets the state of a user speak of a refresh token: what was known of another one is void.
create or replace function spotconn.enter_state(p_user_id uuid, p_fingerprint bytea) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    insert into spotconn.refresh_state as state (user_id, fingerprint) values (p_user_id, p_fingerprint)
    on conflict (user_id) do update set
        fingerprint = excluded.fingerprint,
        client_id = null, refused_by = '{}',
        family = excluded.family,
        lease_id = null, leased_at = null, lease_until = null, lapsed = false,
        failure = null, failed_at = null, paused_at = null, retry_at = null, failures = 0, refusals = 0,
        saved_at = null, granted_at = null, account_id = null
    where state.fingerprint <> excluded.fingerprint;
end
$$;

-- Makes the state of a connected user who has none. Before the connection is locked: a deletion of the user locks auth.users first,
-- which a new state refers to. False if the user is gone.
create or replace function spotconn.ensure_state(p_user_id uuid, p_fingerprint bytea) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if not exists (select from spotconn.refresh_state as state where state.user_id = p_user_id) then
        insert into spotconn.refresh_state (user_id, fingerprint)
            select stored.user_id, p_fingerprint from public.spotify_connections as stored
                where stored.user_id = p_user_id
            on conflict (user_id) do nothing;
    end if;
    return true;
exception
    when foreign_key_violation then
        return false;
end
$$;

-- When a granted access token ends: the given moment, or its life from the start of this statement, less the seconds since
-- Spotify was asked.
create or replace function spotconn.token_end(
    p_expires_at timestamptz, p_expires_in double precision, p_age double precision
) returns timestamptz
language sql stable set search_path = pg_catalog, pg_temp
return case
    when p_expires_in is null then p_expires_at
    else spotconn.now() - (pg_catalog.clock_timestamp() - pg_catalog.statement_timestamp())
        + pg_catalog.make_interval(secs => p_expires_in - p_age)
end;

-- Connect or reconnect. Another refresh token voids what was known of the old one, and a refresh of that is not saved.
-- p_connected_at is when the user authorized, null for now. Up to a minute ahead, as clocks may differ, counts as now.
-- p_same_account: refuse another account than the stored one, which stays: another by Spotify's lasting id where both are
-- known, else by the id in the row. A row that names no account is of any.
-- previous_spotify_user_id is of the row that was there before; null where there was none, or it named none.
-- Earlier functions had other signatures and would stay beside this one.
drop function if exists spotconn.save_connection(uuid, text, text, text, timestamptz, text, text, text);
drop function if exists spotconn.save_connection(uuid, text, text, text, timestamptz, text, text, text, timestamptz);
drop function if exists spotconn.save_connection(
    uuid, text, text, text, timestamptz, text, text, text, timestamptz, double precision, double precision, text
);
create or replace function spotconn.save_connection(
    p_user_id uuid,
    p_spotify_user_id text,
    p_access_token text,
    p_refresh_token text,
    p_expires_at timestamptz,
    p_scope text,
    p_display_name text,
    p_email text,
    p_connected_at timestamptz default null,
    p_expires_in double precision default null,
    p_age double precision default 0,
    p_client_id text default null,
    p_account_id text default null,
    p_same_account boolean default false
) returns setof spotconn.connection
language plpgsql set search_path = pg_catalog, pg_temp rows 1 as $$
<<saving>>
declare
    ends constant timestamptz := spotconn.token_end(p_expires_at, p_expires_in, p_age);
    former public.spotify_connections;
    locked boolean;
    written boolean;
    saved spotconn.connection;
begin
    if p_connected_at > spotconn.now() + interval '1 minute' then
        raise exception 'connected_at lies in the future' using errcode = 'SC001';
    end if;
    perform spotconn.act_as(p_user_id);
    -- A locked row holds a connection of the pool no longer than this; the caller tries again. Longer than elsewhere: the
    -- user would have to authorize anew.
    perform pg_catalog.set_config('lock_timeout', '2s', true);
    -- A row is replaced only once it is locked and compared: one that another has inserted since the look is looked at, too.
    for attempt in 1..5 loop
        select stored.* into former from public.spotify_connections as stored
            where stored.user_id = p_user_id for no key update;
        locked := found;
        if locked and p_same_account and not coalesce(
            (
                select state.account_id = p_account_id from spotconn.refresh_state as state
                where state.user_id = p_user_id and state.fingerprint = spotconn.fingerprint(former.refresh_token)
            ),
            former.spotify_user_id in (p_spotify_user_id, '')
        ) then
            raise exception 'the stored connection is of another account' using errcode = 'SC003';
        end if;
        insert into public.spotify_connections as stored (
            user_id, spotify_user_id, access_token, refresh_token, expires_at, connected_at, scope, display_name, email
        )
        values (
            p_user_id, p_spotify_user_id, p_access_token, p_refresh_token, ends,
            least(p_connected_at, spotconn.now()), p_scope, p_display_name, p_email
        )
        on conflict (user_id) do update set
            spotify_user_id = excluded.spotify_user_id,
            access_token = excluded.access_token,
            refresh_token = excluded.refresh_token,
            expires_at = excluded.expires_at,
            connected_at = excluded.connected_at,
            scope = excluded.scope,
            display_name = excluded.display_name,
            email = excluded.email
        where saving.locked;  -- the table may have a column of that name
        written := found;
        exit when locked or written;
        if spotconn.is_hidden(p_user_id, 'UPDATE') then
            perform spotconn.refuse_hidden('{SELECT,UPDATE}');
        end if;
    end loop;
    if not (locked or written) and exists (
        select from public.spotify_connections as stored where stored.user_id = p_user_id
    ) then
        raise serialization_failure using message = 'others insert and delete the connection of this user';
    end if;
    perform spotconn.enter_state(p_user_id, spotconn.fingerprint(p_refresh_token));
    -- A lease stays where the refresh token does: its holder may be asking Spotify.
    update spotconn.refresh_state as state set
        client_id = coalesce(p_client_id, state.client_id), refused_by = '{}',
        account_id = coalesce(p_account_id, state.account_id),
        failure = null, failed_at = null, paused_at = null, retry_at = null, failures = 0, refusals = 0,
        family = pg_catalog.gen_random_uuid(),
        saved_at = spotconn.now(),
        granted_at = case when p_expires_in is not null then spotconn.now() end,
        saves = least(state.saves, 9223372036854775806) + 1
    where state.user_id = p_user_id;
    select stored.* into saved from spotconn.connections(p_user_id) as stored;
    if found then
        saved.previous_spotify_user_id := nullif(former.spotify_user_id, '');
        return next saved;
    else
        perform spotconn.check_missing(p_user_id);
    end if;
end
$$;

-- Fails as spotconn.save_connection would for these. auth.users is not readable here, so a row that refers to it is inserted
-- and deleted again, which no other transaction sees.
create or replace function spotconn.check_save(p_user_id uuid, p_connected_at timestamptz) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    own_hash constant bytea := pg_catalog.uuid_send(pg_catalog.gen_random_uuid());
begin
    if p_connected_at > spotconn.now() + interval '1 minute' then
        raise exception 'connected_at lies in the future' using errcode = 'SC001';
    end if;
    perform spotconn.act_as(p_user_id);
    if exists (
        select from spotconn.policy_faults() as fault
        where fault.relation = 'public.spotify_connections' and fault.command <> 'DELETE'
    ) then
        perform spotconn.refuse_hidden('{SELECT,INSERT,UPDATE}');
    end if;
    insert into spotconn.pending_connect (state_hash, user_id, code_verifier, expires_at)
    values (own_hash, p_user_id, '', spotconn.now());
    delete from spotconn.pending_connect as pending where pending.state_hash = own_hash;
end
$$;

create or replace function spotconn.delete_connection(p_user_id uuid) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    deleted boolean;
begin
    perform spotconn.act_as(p_user_id);
    perform pg_catalog.set_config('lock_timeout', '500ms', true);  -- as in spotconn.finish_refresh
    delete from public.spotify_connections as stored where stored.user_id = p_user_id;
    deleted := found;
    if not deleted then
        perform spotconn.check_missing(p_user_id);
        -- It may have come meanwhile. One that is shown and not deleted then is kept by a policy, or by a trigger.
        if exists (select from public.spotify_connections as stored where stored.user_id = p_user_id) then
            delete from public.spotify_connections as stored where stored.user_id = p_user_id;
            deleted := found;
            if not deleted and exists (
                select from public.spotify_connections as stored where stored.user_id = p_user_id
            ) then
                perform spotconn.refuse_hidden('{SELECT,DELETE}');
            end if;
        end if;
        perform spotconn.write_wal();
    end if;
    delete from spotconn.refresh_state as state where state.user_id = p_user_id;
    delete from spotconn.reminder as reminder where reminder.user_id = p_user_id;
    -- An authorization that is under way would bring the connection back.
    update spotconn.pending_connect as pending set used_at = spotconn.now(), code_verifier = ''
        where pending.user_id = p_user_id and pending.used_at is null;
    return deleted;
end
$$;

-- What a caller may do who found the access token p_seen wanting, from a connection and what is known of its refresh token.
-- p_client_ids are the apps of the caller; null where it does not say. client_ids are those to refresh it with, in order.
-- superseded: the row holds another access token that has not ended: use it.
-- refused: Spotify has refused the refresh token, for good or until it may be asked once more. Where its app is not known,
-- that counts for a caller all of whose apps were refused, and says nothing to another.
-- just_saved: the access token was granted less than a minute ago: there is no better one.
-- other_app: the refresh token was issued to an app that the caller does not have.
-- paused: Spotify could not refresh it and may not be asked yet. busy: another holds the lease.
create or replace function spotconn.decide_turn(
    p_connection spotconn.connection,
    p_state spotconn.refresh_state,
    p_seen bytea,
    p_client_ids text[],
    p_now timestamptz,
    out outcome text,
    out retry_after double precision,
    out client_ids text[]
)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    held constant boolean := spotconn.fingerprint(p_connection.access_token) = p_seen;
    ended constant boolean := spotconn.seconds_left(p_connection.expires_at, p_now) <= 0
        or not spotconn.is_token(p_connection.access_token);
    leased constant boolean := spotconn.runs(p_state.leased_at, p_state.lease_until, p_now);
    counts constant boolean := p_state.failure = 'unavailable' or p_state.client_id is not null or p_client_ids is null
        or p_client_ids <@ p_state.refused_by;
    paused constant boolean := counts and spotconn.runs(p_state.paused_at, p_state.retry_at, p_now);
    young constant boolean := p_state.granted_at > p_now - interval '1 minute'
        and p_state.granted_at <= p_now + interval '1 second';
    due timestamptz;
begin
    if not held and not ended then
        outcome := 'superseded';
    elsif counts and p_state.failure <> 'unavailable' and (p_state.retry_at is null or paused or leased) then
        outcome := 'refused';
    elsif held and not ended and young then
        outcome := 'just_saved';
        due := p_state.granted_at + interval '1 minute';
    elsif not leased and p_state.client_id <> all (p_client_ids) then
        outcome := 'other_app';
    elsif paused then
        outcome := 'paused';
        due := p_state.retry_at;
    elsif leased then
        outcome := 'busy';
        due := p_state.lease_until;
    else
        outcome := 'granted';
        client_ids := case
            when p_state.client_id is not null then array[p_state.client_id]
            when p_client_ids is null or p_client_ids <@ p_state.refused_by then p_client_ids
            else array(
                select one.client_id from pg_catalog.unnest(p_client_ids) with ordinality as one (client_id, place)
                where not coalesce(one.client_id = any (p_state.refused_by), false)
                order by one.place
            )
        end;
    end if;
    retry_after := extract(epoch from due - p_now);
end
$$;

-- What the two functions below return, each as one value: plpgsql_check warns of a row among several OUT columns.
do $$
begin
    if pg_catalog.to_regtype('spotconn.refresh_turn') is null then
        create type spotconn.refresh_turn as (
            outcome text,
            lease_id uuid,
            lease_until timestamptz,
            retry_after double precision,
            client_ids text[],
            connection spotconn.connection
        );
    end if;
    if pg_catalog.to_regtype('spotconn.saved_refresh') is null then
        drop function if exists spotconn.finish_refresh(
            uuid, bytea, bytea, text, text, timestamptz, double precision, double precision, text, uuid, timestamptz,
            boolean, bigint, uuid, text
        );
        create type spotconn.saved_refresh as (saved boolean, recovered text, connection spotconn.connection);
    end if;
end
$$;

-- Acquires the lease for the refresh of a connection whose access token p_seen the caller finds wanting, or says why not,
-- as spotconn.decide_turn; gone: no row.
-- p_lease_id: names the lease. A caller who got no answer asks again with the same: a lease of that name that stands is its own,
-- for which Spotify has not been asked, and ends.
drop function if exists spotconn.begin_refresh(uuid, bytea, interval, text[]);
create or replace function spotconn.begin_refresh(
    p_user_id uuid, p_seen bytea, p_lease interval, p_client_ids text[] default null, p_lease_id uuid default null
)
returns setof spotconn.refresh_turn
language plpgsql set search_path = pg_catalog, pg_temp rows 1 as $$
declare
    turn spotconn.refresh_turn;
    connection spotconn.connection;
    state spotconn.refresh_state;
    found_row record;
    locked boolean := false;
    moment timestamptz;
begin
    perform spotconn.act_as(p_user_id);
    perform pg_catalog.set_config('lock_timeout', '500ms', true);  -- as in spotconn.finish_refresh
    -- The first look takes no lock, and most callers return from it. A turn is decided on the row that is locked; where the
    -- lock met no row, another may have been inserted meanwhile.
    for look in 1..5 loop
        -- In one statement: between two, another process could save or record a failure.
        select stored as connection, known as state into found_row
            from spotconn.connections(p_user_id) as stored
            left join spotconn.refresh_state as known
                on known.user_id = stored.user_id
                and known.fingerprint = sha256(convert_to(stored.refresh_token, 'UTF8'));
        if not found then
            perform spotconn.check_missing(p_user_id);
            turn.outcome := 'gone';
            return next turn;
            return;
        end if;
        connection := found_row.connection;
        state := found_row.state;
        if state.lease_id = p_lease_id then
            state.leased_at := null;
            state.lease_until := null;
        end if;
        moment := spotconn.now();
        select decided.outcome, decided.retry_after, decided.client_ids
            into turn.outcome, turn.retry_after, turn.client_ids
            from spotconn.decide_turn(connection, state, p_seen, p_client_ids, moment) as decided;
        exit when locked or turn.outcome <> 'granted';
        if not spotconn.ensure_state(p_user_id, spotconn.fingerprint(connection.refresh_token)) then
            continue;
        end if;
        perform from public.spotify_connections as stored where stored.user_id = p_user_id for no key update;
        locked := found;
    end loop;

    if turn.outcome = 'granted' and not locked then
        if spotconn.is_hidden(p_user_id, 'UPDATE') then
            perform spotconn.refuse_hidden('{SELECT,UPDATE}');
        end if;
        turn.outcome := 'busy';
    elsif turn.outcome = 'granted' then
        turn.lease_id := coalesce(p_lease_id, pg_catalog.gen_random_uuid());
        turn.lease_until := moment + p_lease;
        perform spotconn.enter_state(p_user_id, spotconn.fingerprint(connection.refresh_token));
        update spotconn.refresh_state as stored set
            lapsed = stored.lapsed or coalesce(stored.lease_id <> turn.lease_id, false),
            lease_id = turn.lease_id,
            leased_at = moment,
            lease_until = turn.lease_until
        where stored.user_id = p_user_id
        returning stored.saves, stored.family into connection.saves, connection.family;
    end if;
    turn.connection := connection;
    return next turn;
end
$$;

-- Saves a refresh where the row still holds the refresh token that was replaced, and returns the row as it stands then.
-- The access token is saved where the row still holds the one it had at the grant (p_held), else only if it ends later.
-- Null leaves the stored refresh token or scope. The end is never later than the end of the lease and the life of the token.
-- p_saves, p_family: of a grant that was saved before and is saved once more, over a row that came back. Others compare
-- theirs with it, so that is notified too.
-- p_rejected: the replaced access token was refused, so every process that has it cached is notified.
-- p_client_id: the app with which it was granted, to which the stored refresh token belongs.
create or replace function spotconn.finish_refresh(
    p_user_id uuid,
    p_replaced bytea,
    p_held bytea,
    p_access_token text,
    p_refresh_token text,
    p_expires_at timestamptz,
    p_expires_in double precision,
    p_age double precision,
    p_scope text,
    p_lease_id uuid,
    p_lease_until timestamptz,
    p_rejected boolean default false,
    p_saves bigint default null,
    p_family uuid default null,
    p_client_id text default null
) returns setof spotconn.saved_refresh
language plpgsql set search_path = pg_catalog, pg_temp rows 1 as $$
declare
    ends constant timestamptz := least(
        spotconn.token_end(p_expires_at, p_expires_in, p_age),
        p_lease_until + pg_catalog.make_interval(secs => p_expires_in)
    );
    answer spotconn.saved_refresh;
    standing public.spotify_connections;
    known spotconn.refresh_state;
    stored_fingerprint bytea;
    taken boolean;
begin
    perform spotconn.act_as(p_user_id);
    -- A row that is locked holds up the saving of others' grants no longer than this; the caller tries again.
    perform pg_catalog.set_config('lock_timeout', '500ms', true);
    if not spotconn.ensure_state(p_user_id, p_replaced) then
        return;
    end if;
    select stored.* into standing from public.spotify_connections as stored
        where stored.user_id = p_user_id and spotconn.fingerprint(stored.refresh_token) = p_replaced
        for no key update;
    answer.saved := found;
    if not answer.saved then
        perform spotconn.check_unchanged(p_user_id, p_replaced);
        -- The row holds this grant already, or the caller drops it for what came first.
        perform spotconn.write_wal();
    end if;
    taken := spotconn.fingerprint(standing.access_token) = p_held or not spotconn.is_token(standing.access_token)
        or spotconn.seconds_left(ends, spotconn.now()) > spotconn.seconds_left(standing.expires_at, spotconn.now());
    if answer.saved then
        -- Nobody's cached token becomes wrong by this, so spotconn.notify_change is silent while the mark is set.
        perform pg_catalog.set_config('spotconn.refresh', case when p_rejected or p_saves is not null then '' else 'on' end, true);
        update public.spotify_connections as stored set
            refresh_token = coalesce(p_refresh_token, stored.refresh_token),
            scope = case when taken then coalesce(p_scope, stored.scope) else stored.scope end,
            access_token = case when taken then p_access_token else stored.access_token end,
            expires_at = case when taken then ends else stored.expires_at end
        where stored.user_id = p_user_id;
        perform pg_catalog.set_config('spotconn.refresh', '', true);
        -- What was known of the replaced refresh token goes over to the stored one; what speaks of another is void.
        perform spotconn.enter_state(p_user_id, p_replaced);
        select state.* into known from spotconn.refresh_state as state where state.user_id = p_user_id;
        answer.recovered := known.failure;
        stored_fingerprint := spotconn.fingerprint(coalesce(p_refresh_token, standing.refresh_token));
        if stored_fingerprint <> p_replaced or known.lease_id = p_lease_id then
            -- Else another process, which took a lapsed lease over, still holds it for the same refresh token.
            known.lease_id := null;
            known.leased_at := null;
            known.lease_until := null;
        end if;
        update spotconn.refresh_state as state set
            fingerprint = stored_fingerprint,
            client_id = coalesce(p_client_id, known.client_id), refused_by = '{}',
            lease_id = known.lease_id, leased_at = known.leased_at, lease_until = known.lease_until, lapsed = false,
            failure = null, failed_at = null, paused_at = null, retry_at = null, failures = 0, refusals = 0,
            -- Where another writer has authorized the user anew, connected_at may be of before: no date is known.
            saved_at = case when known.saved_at is null and known.saves > 0 and p_saves is null then null
                else spotconn.now() end,
            granted_at = case when not taken then known.granted_at when p_saves is null then spotconn.now() end,
            saves = greatest(least(known.saves, 9223372036854775806) + 1, p_saves),
            family = coalesce(p_family, known.family)
        where state.user_id = p_user_id;
    end if;
    select stored into answer.connection from spotconn.connections(p_user_id) as stored;
    if found then
        return next answer;
    else
        perform spotconn.check_missing(p_user_id);
    end if;
end
$$;

-- Ends a lease without a grant; only its holder can, and only while the row holds the refresh token that was sent. Returns
-- what is recorded then, or no row.
-- refused: Spotify accepts the refresh token no more. Six months after the user authorized that is final ("expired"), if the
-- library has saved this refresh token and so knows the date. Before, Spotify may be asked twice more, after an hour and
-- after a day. Where a lease has lapsed, its holder may still be saving: that refusal does not count, and Spotify may be
-- asked again after a minute.
-- p_refused_by: the apps with which it was refused. Where its own is known by now and none of them, that says nothing. Where
-- it is not, one that had not refused it before begins the count anew, and those of a second opinion replace the former.
-- unavailable: every process backs off: 1 s, doubled with each consecutive failure up to 5 min, times a random factor from
-- 0.5 to 1, but at least the Retry-After of Spotify, up to a day. A null reason records nothing.
create or replace function spotconn.fail_refresh(
    p_user_id uuid,
    p_fingerprint bytea,
    p_lease_id uuid,
    p_reason text,
    p_retry_after double precision,
    p_refused_by text[] default '{}'
) returns table (failure text, failed_at timestamptz, retry_at timestamptz)
language plpgsql set search_path = pg_catalog, pg_temp rows 1 as $$
declare
    connected timestamptz;
    known spotconn.refresh_state;
    moment timestamptz;
    first_by_these boolean := false;
    second_opinion boolean;
begin
    perform spotconn.act_as(p_user_id);
    perform pg_catalog.set_config('lock_timeout', '500ms', true);  -- as in spotconn.finish_refresh
    select stored.connected_at into connected from public.spotify_connections as stored
        where stored.user_id = p_user_id and spotconn.fingerprint(stored.refresh_token) = p_fingerprint
        for no key update;
    if not found then
        perform spotconn.check_unchanged(p_user_id, p_fingerprint);
        perform spotconn.check_missing(p_user_id);
        return;
    end if;
    select stored.* into known from spotconn.refresh_state as stored
        where stored.user_id = p_user_id and stored.fingerprint = p_fingerprint and stored.lease_id = p_lease_id;
    if not found then
        return;
    end if;
    moment := spotconn.now();
    -- Any number may be stored.
    known.failures := least(greatest(known.failures, 0), 1000000);
    known.refusals := least(greatest(known.refusals, 0), 1000000);
    if known.saved_at is null or connected not between '2000-01-01 00:00+00' and moment then
        connected := null;
    end if;
    if known.client_id is not null and p_refused_by <> '{}' and known.client_id <> all (p_refused_by) then
        p_reason := null;
    elsif known.client_id is null then
        first_by_these := not p_refused_by <@ known.refused_by;
        if first_by_these then
            known.refusals := 0;
        end if;
        second_opinion := p_reason = 'refused' and known.failure <> 'unavailable' and known.retry_at <= moment;
        known.refused_by := array(
            select distinct refusing.client_id
            from (
                select pg_catalog.unnest(p_refused_by)
                union all
                select pg_catalog.unnest(known.refused_by) where second_opinion is not true
            ) as refusing (client_id)
            where refusing.client_id is not null
            order by refusing.client_id
        );
    end if;
    if p_reason = 'refused' then
        known.failed_at := case when known.failure <> 'unavailable' then known.failed_at else moment end;
        known.failure := case
            when connected is null then 'invalid'
            when (connected at time zone 'UTC') + interval '6 months' <= moment at time zone 'UTC' then 'expired'
            else 'revoked'
        end;
        known.retry_at := case
            when known.failure = 'expired' then null
            when known.lapsed then moment + interval '1 minute'
            when known.refusals = 0 then moment + interval '1 hour'
            when known.refusals = 1 then moment + interval '24 hours'
        end;
        known.refusals := known.refusals + case when known.lapsed then 0 else 1 end;
        -- The refusal of an app that is perhaps another one's does not show that the grant of the lapsed lease is lost.
        known.lapsed := known.lapsed and first_by_these;
    elsif p_reason = 'unavailable' then
        known.failed_at := coalesce(known.failed_at, moment);
        known.failure := coalesce(known.failure, 'unavailable');
        known.retry_at := moment + pg_catalog.make_interval(secs => greatest(
            least(300, 2 ^ least(known.failures, 9)) * (0.5 + pg_catalog.random() / 2),
            least(86400, coalesce(p_retry_after, 0))
        ));
        known.failures := known.failures + 1;
    end if;
    update spotconn.refresh_state as stored set
        lease_id = null, leased_at = null, lease_until = null,
        failure = known.failure,
        failed_at = known.failed_at,
        paused_at = case when p_reason is null then stored.paused_at else moment end,
        retry_at = known.retry_at,
        failures = known.failures,
        refusals = known.refusals,
        refused_by = known.refused_by,
        lapsed = known.lapsed
    where stored.user_id = p_user_id;
    failure := known.failure;
    -- As in spotconn.connections.
    failed_at := case when known.failed_at is not null
        then least(greatest(known.failed_at, '0001-01-02 00:00+00'), '9999-12-31 00:00+00') end;
    retry_at := case when known.retry_at between '0001-01-02 00:00+00' and '9999-12-31 00:00+00'
        then known.retry_at end;
    return next;
end
$$;

-- Earlier functions had other signatures and would stay beside these.
drop function if exists spotconn.pending_connects(uuid);
drop function if exists spotconn.start_connect(uuid, bytea, text, interval);
drop function if exists spotconn.take_connect(uuid, bytea);

-- Stores a started authorization for p_life. Returns null, or the seconds to wait where the user has twenty that have not
-- expired, used ones included. The unique slots make that exact, however many processes start at once. Without a user, as
-- before a sign-in, there is nobody whose starts could be counted.
-- Expired ones of all users are deleted: without a user the policies show only these to a DELETE that reads no column. Its
-- WHERE is for pg-safeupdate, which refuses a DELETE or an UPDATE that has none. One caller at a time does so, and the others do not wait for it. The lock is one that takes a right to the table, and that no statement of
-- the service conflicts with; while autovacuum has it, nobody cleans.
create or replace function spotconn.start_connect(
    p_user_id uuid,
    p_state_hash bytea,
    p_code_verifier text,
    p_life interval,
    p_cookie_hash bytea default null
) returns double precision
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    moment constant timestamptz := spotconn.now();
    former constant text := pg_catalog.current_setting('lock_timeout');
begin
    perform spotconn.act_as(null);
    begin
        lock table spotconn.pending_connect in share update exclusive mode nowait;
        perform pg_catalog.set_config('lock_timeout', '100ms', true);
        delete from spotconn.pending_connect where true;
        perform pg_catalog.set_config('lock_timeout', former, true);
    exception
        when lock_not_available then
            null;
    end;
    perform spotconn.act_as(p_user_id);
    if p_user_id is null then
        perform pg_catalog.set_config('spotconn.state_hash', pg_catalog.encode(p_state_hash, 'hex'), true);
        insert into spotconn.pending_connect (state_hash, cookie_hash, code_verifier, started_at, expires_at)
        values (p_state_hash, p_cookie_hash, p_code_verifier, moment, moment + p_life);
        return null;
    end if;
    -- Also those that a clock which was set back has made void.
    delete from spotconn.pending_connect as pending
        where pending.user_id = p_user_id and not spotconn.runs(pending.started_at, pending.expires_at, moment);
    -- Each time that a slot is taken by another, one fewer is free.
    for attempt in 1..20 loop
        insert into spotconn.pending_connect (
            state_hash, user_id, slot, cookie_hash, code_verifier, started_at, expires_at
        )
        select
            p_state_hash, p_user_id, pg_catalog.min(free.slot), p_cookie_hash, p_code_verifier, moment, moment + p_life
        from pg_catalog.generate_series(1, 20) as free (slot)
        where free.slot <> all (array(
            select taken.slot from spotconn.pending_connect as taken
            where taken.user_id = p_user_id and taken.slot is not null
        ))
        having pg_catalog.count(*) > 0
        on conflict do nothing;
        if found then
            return null;
        end if;
    end loop;
    return (
        select greatest(extract(epoch from pg_catalog.min(pending.expires_at) - spotconn.now()), 0)
        from spotconn.pending_connect as pending where pending.user_id = p_user_id
    );
end
$$;

-- What speaks against a claim, null if nothing does. p_binding is what shows that the callback comes from who has started
-- it: user; cookie, and the user where both are known; none for a start without a cookie.
create or replace function spotconn.binding_fault(
    p_pending spotconn.pending_connect, p_user_id uuid, p_cookie_hash bytea, p_binding text
) returns text
language sql stable set search_path = pg_catalog, pg_temp
return case
    when p_binding = 'user' and p_pending.user_id = p_user_id then null
    when p_binding = 'user' then 'other_user'
    when p_binding = 'cookie' and p_pending.cookie_hash = p_cookie_hash then
        case when p_pending.user_id <> p_user_id then 'other_user' end
    when p_binding = 'none' and p_pending.cookie_hash is null and p_pending.user_id is not null then null
    else 'other_browser'
end;

-- Claims a started authorization, so that it can be used once: of concurrent callers one is the first. A claim that is refused
-- changes nothing. Returns no row where none was started with this state. outcome: claimed, or expired by then; used before;
-- or what spotconn.binding_fault says. owner is the user of one that is claimed, if it has one.
create or replace function spotconn.take_connect(
    p_user_id uuid, p_state_hash bytea, p_cookie_hash bytea default null, p_binding text default 'user'
)
returns table (code_verifier text, owner uuid, outcome text)
language plpgsql set search_path = pg_catalog, pg_temp rows 1 as $$
begin
    perform spotconn.act_as(p_user_id);
    perform pg_catalog.set_config('spotconn.state_hash', pg_catalog.encode(p_state_hash, 'hex'), true);
    -- As in spotconn.save_connection. The server would go on to wait when the caller has given up, and spend the state then.
    perform pg_catalog.set_config('lock_timeout', '2s', true);
    return query
        update spotconn.pending_connect as pending set used_at = spotconn.now(), code_verifier = ''
        from (
            select unused.state_hash, unused.code_verifier from spotconn.pending_connect as unused
            where unused.state_hash = p_state_hash and unused.used_at is null
                and spotconn.binding_fault(unused, p_user_id, p_cookie_hash, p_binding) is null
            for update
        ) as claimed
        where pending.state_hash = claimed.state_hash
        returning
            claimed.code_verifier, pending.user_id,
            case when spotconn.runs(pending.started_at, pending.expires_at, spotconn.now())
                then 'claimed' else 'expired' end;
    if not found then
        return query
            select
                null, null::uuid,
                coalesce(spotconn.binding_fault(pending, p_user_id, p_cookie_hash, p_binding), 'used')
            from spotconn.pending_connect as pending
            where pending.state_hash = p_state_hash;
    end if;
end
$$;

--------------------------------------------------------------------------------------------------------------------
-- For SQL of the project's own
--------------------------------------------------------------------------------------------------------------------

-- All connections without their tokens, for a role that reports on them. It reads as its owner, whom no policy binds (one
-- without BYPASSRLS is bound where row security is forced on a table: then the view shows no row).
create or replace view spotconn.connection_overview as
select
    stored.user_id,
    stored.spotify_user_id,
    stored.display_name,
    stored.email,
    stored.scope,
    stored.connected_at,
    case when stored.connected_at between '2000-01-01 00:00+00' and '9998-12-31 00:00+00'
        then ((stored.connected_at at time zone 'UTC') + interval '6 months') at time zone 'UTC' end as reauthorize_by,
    stored.expires_at,
    state.client_id,
    state.failure,
    state.failed_at,
    state.retry_at,
    state.account_id
from public.spotify_connections as stored
left join spotconn.refresh_state as state
    on state.user_id = stored.user_id
    and coalesce(state.fingerprint = sha256(convert_to(stored.refresh_token, 'UTF8')), false);

revoke all on spotconn.connection_overview from public, anon, authenticated, service_role, spotconn;
grant select on spotconn.connection_overview to service_role;

--------------------------------------------------------------------------------------------------------------------
-- Bounds of what the client roles write
--------------------------------------------------------------------------------------------------------------------

-- Bounds what a role changes in the table that the policies bind, the library's own aside: one value of 80 MB would cost each
-- reader of a batch as much. No CHECK does: it would also be enforced when the library saves what replaces the token of such a
-- row, and its DETAIL prints the row. A value that stood there before may stay. Length is that of the value as it is read, of
-- which a compressed one knows without being unpacked.
create or replace function spotconn.check_bounds() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    wrong record;
begin
    if not pg_catalog.row_security_active(tg_relid) then
        return new;
    end if;
    select written.name, written.bound into wrong
    from (values
        ('access_token', 8192, new.access_token, old.access_token),
        ('refresh_token', 8192, new.refresh_token, old.refresh_token),
        ('spotify_user_id', 1024, new.spotify_user_id, old.spotify_user_id),
        ('display_name', 1024, new.display_name, old.display_name),
        ('email', 1024, new.email, old.email),
        ('scope', 1024, new.scope, old.scope)
    ) as written (name, bound, value, before)
    where pg_catalog.octet_length(value) > bound and value is distinct from before
    limit 1;
    if found then
        raise exception '%: a client may write at most % octets', wrong.name, wrong.bound
            using errcode = 'check_violation', schema = tg_table_schema, table = tg_table_name, column = wrong.name;
    end if;
    select written.name into wrong
    from (values
        ('expires_at', new.expires_at, old.expires_at),
        ('connected_at', new.connected_at, old.connected_at)
    ) as written (name, value, before)
    where value not between '2000-01-01 00:00+00' and '2200-01-01 00:00+00' and value is distinct from before
    limit 1;
    if found then
        raise exception '%: a client may write times from 2000 to 2200', wrong.name
            using errcode = 'check_violation', schema = tg_table_schema, table = tg_table_name, column = wrong.name;
    end if;
    return new;
end
$$;

create or replace trigger spotconn_check_bounds
    before insert or update on public.spotify_connections
    for each row when (current_user <> 'spotconn') execute function spotconn.check_bounds();

--------------------------------------------------------------------------------------------------------------------
-- Notifications of changes to the table, for processes that cache connections
--------------------------------------------------------------------------------------------------------------------

-- The names of schema version 2.
drop trigger if exists spotconn_tell_change on public.spotify_connections;
drop trigger if exists spotconn_tell_truncate on public.spotify_connections;
drop function if exists spotconn.tell_change();
drop function if exists spotconn.prove_telling(text);

-- Counts changes that were not notified, because the queue of NOTIFY was half full: at the commit a full one fails the whole
-- transaction. nextval shows at once, before the commit, and its lock on the sequence lasts until after the commit, so
-- spotconn.count_skipped sees both what was skipped and who may still commit it. No two writers wait for each other.
-- Every role that may write the table has to count, so PUBLIC may; the condition of the trigger holds the sequence by its OID,
-- so that no right to the schema is needed, and none is given.
create sequence if not exists spotconn.skipped_notifications;
revoke all on sequence spotconn.skipped_notifications from public, anon, authenticated, service_role;
grant usage on sequence spotconn.skipped_notifications to public;
grant select on sequence spotconn.skipped_notifications to spotconn;

-- The payload on channel spotconn is the id of the user whose connection has changed; * where all may have. Sent when the
-- transaction commits.
create or replace function spotconn.notify_change() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if tg_op = 'TRUNCATE' then
        perform pg_catalog.pg_notify('spotconn', '*');
        return null;
    end if;
    if tg_op <> 'INSERT' then
        perform pg_catalog.pg_notify('spotconn', old.user_id::text);
    end if;
    if tg_op = 'INSERT' or (tg_op = 'UPDATE' and new.user_id <> old.user_id) then
        perform pg_catalog.pg_notify('spotconn', new.user_id::text);
    end if;
    return null;
end
$$;

-- A refresh by the library makes no cached token wrong and is silent: spotconn.finish_refresh sets the mark, and acts in the
-- role that is asked for here, which no other session has. The usage is looked at and the skip is counted in one place, so
-- nothing is skipped uncounted; looking at it also frees the part of the queue that every listener has read, which Postgres
-- does on its own only as it writes.
create or replace trigger spotconn_notify_change
    after insert or update or delete on public.spotify_connections
    for each row when (
        case
            when current_user = 'spotconn' and pg_catalog.current_setting('spotconn.refresh', true) = 'on' then false
            when pg_catalog.pg_notification_queue_usage() < 0.5 then true
            else pg_catalog.nextval('spotconn.skipped_notifications'::pg_catalog.regclass) < 0
        end
    )
    execute function spotconn.notify_change();
create or replace trigger spotconn_notify_truncate
    after truncate on public.spotify_connections
    for each statement when (
        case
            when pg_catalog.pg_notification_queue_usage() < 0.5 then true
            else pg_catalog.nextval('spotconn.skipped_notifications'::pg_catalog.regclass) < 0
        end
    )
    execute function spotconn.notify_change();

-- Also for changes that arrive by replication.
alter table public.spotify_connections enable always trigger spotconn_notify_change;
alter table public.spotify_connections enable always trigger spotconn_notify_truncate;

-- A number that grows with each change that was not notified; two looks with the same have missed none. The number is read before
-- the locks: a transaction that has counted by then and holds none any more has ended.
-- 0: a change is being skipped now, or would be. Null: a trigger is missing or disabled.
create or replace function spotconn.count_skipped() returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    skipped bigint;
begin
    if 2 > (
        select pg_catalog.count(*) from pg_catalog.pg_trigger
        where tgrelid = 'public.spotify_connections'::pg_catalog.regclass
            and tgname in ('spotconn_notify_change', 'spotconn_notify_truncate')
            and tgenabled = 'A'
    ) then
        return null;
    end if;
    select counted.last_value + counted.is_called::integer into skipped from spotconn.skipped_notifications as counted;
    if pg_catalog.pg_notification_queue_usage() >= 0.5 or skipped > 1 and exists (
        select from pg_catalog.pg_locks
        where locktype = 'relation' and mode = 'RowExclusiveLock'
            and database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
            and relation = 'spotconn.skipped_notifications'::pg_catalog.regclass
    ) then
        return 0;
    end if;
    return skipped;
end
$$;

-- Notifies a session that listens that notifications of others arrive there, once for each such session: it wakes all of them.
-- Returns what spotconn.count_skipped does; notifies nobody where that is 0 or null.
drop function if exists spotconn.heartbeat(text);
create function spotconn.heartbeat(p_nonce text) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    skipped constant bigint := spotconn.count_skipped();
begin
    if skipped > 0 then
        perform pg_catalog.pg_notify('spotconn', 'heartbeat ' || p_nonce);
    end if;
    return skipped;
end
$$;

-- The server and its life: the timeline, which a promotion raises, and the start of the postmaster, which no other server has.
-- Null on a standby. Both change at once: pg_control_checkpoint() has the former timeline until the checkpoint after a
-- promotion. The name of a WAL file is asked for with a volatile argument, because pg_walfile_name is immutable and a plan
-- would keep its result; where a provider or an administrator keeps these functions back, the start alone must do.
create or replace function spotconn.server_life() returns text
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    timeline text := '00000000';
begin
    if pg_catalog.pg_is_in_recovery() then
        return null;
    end if;
    begin
        timeline := pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8);
    exception when insufficient_privilege or feature_not_supported or undefined_function then
        null;
    end;
    return timeline || ' ' || extract(epoch from pg_catalog.pg_postmaster_start_time());
end
$$;

--------------------------------------------------------------------------------------------------------------------
-- Users of another table than auth.users
--------------------------------------------------------------------------------------------------------------------

-- The id in auth.users of a user with an id of another kind; spotconn.user_id in Python gives the same. RFC 9562, version 8,
-- so it is never a random UUID. An integer stays readable: 73706f74-S00D-8DDD-8DDD-DDDDDDDDDDDD has its nineteen decimal
-- digits, and S is 1 if it is negative. Other forms would read stored connections as other users': these stay as they are.
create or replace function spotconn.user_id(p_id bigint) returns uuid
language sql immutable strict parallel safe set search_path = pg_catalog, pg_temp
return (
    select ('73706f74' || case when p_id < 0 then '1' else '0' end || '00' || pg_catalog.substr(digits, 1, 1)
        || '8' || pg_catalog.substr(digits, 2, 3) || '8' || pg_catalog.substr(digits, 5))::uuid
    from (values (pg_catalog.lpad(pg_catalog.ltrim(p_id::text, '-'), 19, '0'))) as written (digits)
);

-- A text is hashed: 120 bits of the SHA-256 of a namespace and its octets, whatever it says, also 42 or a UUID. It is not
-- normalized: texts that differ are different users. The digit behind the third hyphen is b, where that of an integer is 8.
create or replace function spotconn.user_id(p_id text) returns uuid
language sql immutable strict parallel safe set search_path = pg_catalog, pg_temp
return (
    select (pg_catalog.substr(hash, 1, 12) || '8' || pg_catalog.substr(hash, 14, 3) || 'b' || pg_catalog.substr(hash, 18, 15))::uuid
    from (values (pg_catalog.encode(
        pg_catalog.sha256('\x0d6f7c1b5c9e4e0f9b7a51f2c8a4d3e6'::bytea || pg_catalog.convert_to(p_id, 'UTF8')), 'hex'
    ))) as hashed (hash)
);

create or replace function spotconn.user_id(p_id uuid) returns uuid
language sql immutable strict parallel safe set search_path = pg_catalog, pg_temp
return p_id;

-- The integer that such an id was made of; null for any other.
create or replace function spotconn.integer_id(p_user_id uuid) returns bigint
language sql immutable strict parallel safe set search_path = pg_catalog, pg_temp
return (
    select case
        when parts is null or digits not between -9223372036854775808 and 9223372036854775807 then null
        when spotconn.user_id(digits::bigint) = p_user_id then digits::bigint
    end
    from pg_catalog.regexp_match(
        p_user_id::text, '^73706f74-([01])00(\d)-8(\d{3})-8(\d{3})-(\d{12})$'
    ) as matched (parts),
    lateral (values (
        (case parts[1] when '1' then '-' else '' end || parts[2] || parts[3] || parts[4] || parts[5])::numeric
    )) as written (digits)
);

-- Lets auth.users follow the table that users.sql names; the trigger says its column and the kind of ids. As the owner, because
-- who registers a user has no right to auth.users, and is to get none. So nobody else may use it in a trigger, and
-- it reads a value of the types of Postgres alone: another could bring a cast of somebody's. A user whom auth.users has
-- already is another's: who may choose the id of a new row would take that user's connection over, or delete it.
create or replace function spotconn.follow_user() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp set row_security = off as $$
declare
    name constant text := (
        select pg_catalog.quote_ident(attname) from pg_catalog.pg_attribute
        where attrelid = tg_relid and attname = tg_argv[0] and attnum > 0 and not attisdropped and atttypid = any (
            case tg_argv[1]
                when 'integer' then '{bigint, integer, smallint}'::pg_catalog.regtype[]
                when 'text' then '{text, varchar}'::pg_catalog.regtype[]
                when 'uuid' then '{uuid}'::pg_catalog.regtype[]
            end
        )
    );
    former uuid;
    latter uuid;
begin
    if name is null then
        raise exception 'the column of %.% that spotconn follows was renamed, or has another type',
            pg_catalog.quote_ident(tg_table_schema), pg_catalog.quote_ident(tg_table_name)
            using errcode = 'undefined_column', hint = 'spotconn schema --apply --users names it anew.';
    end if;
    if tg_op = 'TRUNCATE' then
        execute pg_catalog.format(
            'delete from auth.users as known using %s as gone where known.id = spotconn.user_id(gone.%s)',
            tg_relid::pg_catalog.regclass, name
        );
        return null;
    end if;
    if tg_op <> 'INSERT' then
        execute pg_catalog.format('select spotconn.user_id(($1).%s)', name) into former using old;
    end if;
    if tg_op <> 'DELETE' then
        execute pg_catalog.format('select spotconn.user_id(($1).%s)', name) into latter using new;
    end if;
    if former = latter then
        return null;
    elsif latter is null then
        delete from auth.users as known where known.id = former;
        return null;
    elsif exists (select from auth.users as known where known.id = latter) then
        raise exception 'auth.users has the user of this new id already'
            using errcode = 'unique_violation', schema = tg_table_schema, table = tg_table_name, column = tg_argv[0],
                hint = 'Delete that user from auth.users if nobody has it. To restore data alone, disable the triggers.';
    elsif former is null then
        insert into auth.users (id) values (latter);
        return null;
    end if;
    delete from spotconn.pending_connect as pending where pending.user_id = former;
    -- In one statement, because the documented foreign key does not follow.
    with moved as (
        update public.spotify_connections as stored set user_id = latter where stored.user_id = former
    )
    update auth.users as known set id = latter where known.id = former;
    return null;
end
$$;

-- Postgres grants EXECUTE to PUBLIC by default, and a project's default privileges may grant it to the client roles.
revoke all on all functions in schema spotconn from public, anon, authenticated, service_role;
grant execute on all functions in schema spotconn to spotconn;
revoke execute on function spotconn.follow_user() from spotconn;
-- What the statements of an operator call; they read no table.
grant execute on function
    spotconn.now(),
    spotconn.seconds_left(timestamptz, timestamptz),
    spotconn.runs(timestamptz, timestamptz, timestamptz),
    spotconn.user_id(bigint),
    spotconn.user_id(text),
    spotconn.user_id(uuid),
    spotconn.integer_id(uuid)
to service_role;

do $$
begin
    perform pg_catalog.set_config('search_path', pg_catalog.current_setting('spotconn.search_path'), true);
end
$$;
