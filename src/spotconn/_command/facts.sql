-- What isolation rests on, as sorted facts (kind, object, property, value), read from the catalogs alone: any login may.
-- Run it after READ_AS of facts.py, which sets what the texts of expressions depend on. Owners whom the schema accepts
-- are "trusted", and their own rights no facts, so that it does not matter which role has applied the schema.

with recursive membership (member, role) as (
    select member, roleid from pg_auth_members
    union
    select membership.member, further.roleid
    from membership join pg_auth_members as further on further.member = membership.role
),
-- Without what PostgreSQL 16 and later give the maker of a role: to administer it, and neither its rights nor SET ROLE.
acting (member, role) as (
    select member, roleid from pg_auth_members as given
    where not to_jsonb(given) @> '{"inherit_option": false, "set_option": false}'
    union
    select acting.member, further.roleid
    from acting join pg_auth_members as further on further.member = acting.role
    where not to_jsonb(further) @> '{"inherit_option": false, "set_option": false}'
),
client (oid, name) as (
    select oid, rolname from pg_roles where rolname in ('anon', 'authenticated', 'authenticator')
),
-- Who may apply the schema, or manages its role.
manager (oid) as (
    select oid from pg_roles as role
    where rolname not in ('anon', 'authenticated', 'authenticator', 'service_role', 'spotconn')
        and (
            rolsuper or rolcreaterole
            or oid = (select datdba from pg_database where datname = current_database())
            or exists (
                select from pg_auth_members
                where roleid = to_regrole('spotconn') and member = role.oid and admin_option
            )
        )
),
trusted (oid) as (
    select oid from manager
    union
    select role from pg_namespace
    join manager on manager.oid = nspowner
    join acting on member = nspowner
    join pg_roles as owner on owner.oid = role
    where nspname = 'spotconn'
        and rolname not in ('anon', 'authenticated', 'authenticator', 'service_role', 'spotconn')
),
relation as (
    select class.oid, relkind, relowner, relacl, relrowsecurity, relforcerowsecurity, relpersistence, reloptions,
        format('%I.%I', nspname, relname) as name
    from pg_class as class join pg_namespace as schema on schema.oid = relnamespace
    where relkind in ('r', 'p', 'v', 'm', 'f', 'S', 'c')
        and (nspname = 'spotconn' or (nspname, relname) = ('public', 'spotify_connections'))
),
routine as (
    select proc.oid, proowner, proacl, lanname, provolatile, prosecdef, proisstrict, proleakproof, prokind, proconfig,
        prosrc, nspname = 'spotconn' as own,
        format('%I.%I(%s)', nspname, proname, oidvectortypes(proargtypes)) as name,
        concat_ws(
            ' ', pg_get_function_arguments(proc.oid), pg_get_function_result(proc.oid),
            coalesce(pg_get_function_sqlbody(proc.oid), prosrc)
        ) as text
    from pg_proc as proc
    join pg_namespace as schema on schema.oid = pronamespace
    join pg_language as language on language.oid = prolang
    where nspname = 'spotconn' or (nspname = 'auth' and proname = 'uid' and pronargs = 0)
),
-- What reads the tables, also by other views. A view reads as its owner, whom no policy binds, unless it is a
-- security_invoker: that one reads as the caller, also beneath another view. A materialized one has read already.
view (oid, bound, by_user) as (
    select oid, false, false from relation where relkind <> 'v'
    union
    select class.oid,
        class.relkind = 'v' and (
            bound or exists (
                select from unnest(reloptions) as option where option ~ '^security_invoker=(t|true|on|yes|1)$'
            )
        ),
        by_user or pg_get_viewdef(class.oid) ~ 'auth\.(uid|jwt)\(\)'
    from view
    join pg_depend on refclassid = 'pg_class'::regclass and refobjid = view.oid and classid = 'pg_rewrite'::regclass
    join pg_rewrite as rule on rule.oid = objid
    join pg_class as class on class.oid = ev_class and class.oid <> view.oid and class.relkind in ('v', 'm')
),
owned (kind, object, owner) as (
    select 'schema', nspname::text, nspowner from pg_namespace where nspname in ('auth', 'spotconn')
    union all
    select 'table', name, relowner from relation
    union all
    select 'function', name, proowner from routine
),
granted (kind, object, owner, acl) as (
    select 'schema', nspname::text, nspowner, coalesce(nspacl, acldefault('n', nspowner))
    from pg_namespace where nspname = 'spotconn'
    union all
    select 'table', name, relowner,
        coalesce(relacl, acldefault(case relkind when 'S' then 's'::"char" else 'r'::"char" end, relowner))
    from relation
    union all
    select 'column', format('%s.%I', name, attname), relowner, attacl
    from relation join pg_attribute on attrelid = relation.oid and attacl is not null and not attisdropped
    union all
    select 'function', name, proowner, coalesce(proacl, acldefault('f', proowner)) from routine where own
),
-- Each role that has a right or a policy or owns something here, and those that no policy binds.
powerful (oid) as (
    select grantee from granted, aclexplode(acl) where grantee <> 0
    union
    select owner from owned
    union
    select unnest(polroles) from pg_policy where polrelid in (select oid from relation)
    union
    select oid from pg_roles
    where rolsuper or rolbypassrls or rolcreaterole or rolname in ('pg_read_all_data', 'pg_write_all_data')
),
fact (kind, object, property, value) as (
    select owned.kind, object, 'owner',
        case
            when trusted.oid is not null then 'trusted'
            when object like 'auth%' and rolname in ('supabase_admin', 'supabase_auth_admin') then 'trusted'
            else quote_ident(rolname)
        end
    from owned join pg_roles as role on role.oid = owner left join trusted on trusted.oid = owner
    union all
    select kind, object, 'right',
        concat(
            option, privilege_type, ' to ', case grantee when 0 then 'PUBLIC' else quote_ident(pg_get_userbyid(grantee)) end
        )
    from granted, aclexplode(acl) as given, (values (''), ('GRANT OPTION FOR ')) as optional (option)
    where grantee <> owner and (option = '' or is_grantable)
        and not exists (  -- a right to a column says nothing beside that to the table
            select from granted as whole, aclexplode(whole.acl) as all_columns
            where granted.kind = 'column' and whole.kind = 'table'
                and starts_with(granted.object, whole.object || '.')
                and all_columns.grantee = given.grantee and all_columns.privilege_type = given.privilege_type
                and (option = '' or all_columns.is_grantable)
        )
    union all
    select 'table', name, 'form',
        concat_ws(
            ' ', case relpersistence when 'p' then null else 'unlogged' end,
            case relkind
                when 'r' then 'table' when 'v' then 'view' when 'm' then 'materialized view' when 'S' then 'sequence'
                when 'f' then 'foreign table' when 'c' then 'type' else 'partitioned table'
            end,
            case when relkind = 'v' then case
                when exists (
                    select from unnest(reloptions) as option where option ~ '^security_invoker=(t|true|on|yes|1)$'
                ) then 'with security_invoker' else 'without security_invoker'
            end end
        )
    from relation
    union all
    select 'table', name, 'row security',
        case when relrowsecurity then 'on' else 'off' end || case when relforcerowsecurity then ', forced' else '' end
    from relation where relkind in ('r', 'p', 'f')
    union all
    select 'table', name, 'definition', 'hash ' || pg_get_viewdef(oid) from relation where relkind in ('v', 'm')
    union all
    select 'table', name, 'children', inhrelid::regclass::text from relation join pg_inherits on inhparent = oid
    union all
    select 'table', name, 'parents', inhparent::regclass::text from relation join pg_inherits on inhrelid = oid
    union all
    select 'column', format('%s.%I', name, attname), 'form',
        format_type(atttypid, atttypmod) || case when attnotnull then ' not null' else '' end
        || case when attidentity <> '' then ' identity' else '' end
    from relation join pg_attribute on attrelid = relation.oid and attnum > 0 and not attisdropped
    where relkind in ('r', 'p', 'f', 'c')
    union all
    select 'column', format('%s.%I', name, attname), 'expression',
        case when attgenerated = '' then 'default ' else 'generated ' end || pg_get_expr(adbin, adrelid)
    from relation join pg_attribute on attrelid = relation.oid and not attisdropped
    join pg_attrdef on adrelid = relation.oid and adnum = attnum
    where relkind in ('r', 'p', 'f')
    union all
    -- From version 18 each NOT NULL is a constraint, too. A foreign key is enforced by triggers, also on its target.
    select 'constraint', format('%I on %s', conname, name), 'form',
        concat(
            pg_get_constraintdef(pg_constraint.oid),
            case when exists (
                select from pg_trigger where tgconstraint = pg_constraint.oid and tgenabled in ('D', 'R')
            ) then ', whose triggers are disabled' end
        )
    from relation join pg_constraint on conrelid = relation.oid and contype not in ('n', 't')
    union all
    select 'index', format('%I on %s', index.relname, name), 'form',
        case when indexprs is null and indpred is null then 'of columns: ' else 'of expressions: ' end
        || pg_get_indexdef(indexrelid) || case when indisvalid then '' else ', which is invalid' end
    from relation join pg_index on indrelid = relation.oid join pg_class as index on index.oid = indexrelid
    union all
    select 'policy', format('%I on %s', polname, name), 'form',
        concat_ws(
            ' ', case when polpermissive then 'permissive' else 'restrictive' end,
            case polcmd when 'r' then 'for select' when 'a' then 'for insert' when 'w' then 'for update'
                when 'd' then 'for delete' else 'for all' end,
            'to ' || array_to_string(array(
                select case role when 0 then 'PUBLIC' else quote_ident(pg_get_userbyid(role)) end
                from unnest(polroles) as role order by 1
            ), ', '),
            'using ' || pg_get_expr(polqual, polrelid), 'with check ' || pg_get_expr(polwithcheck, polrelid)
        )
    from relation join pg_policy on polrelid = relation.oid
    union all
    -- No shipped policy is restrictive. One that binds the library keeps it from rows of its users.
    select 'policy', format('%I on %s', polname, name), 'binds', 'spotconn'
    from relation join pg_policy on polrelid = relation.oid and not polpermissive
    where 0 = any (polroles)
        or exists (select from unnest(polroles) as bound (role) where pg_has_role('spotconn', bound.role, 'usage'))
    union all
    select 'function', name, 'body', 'hash ' || case when own then text
        else regexp_replace(text, '\s|;\s*$', '', 'g') end from routine
    union all
    -- What is left of the text of auth.uid() without the words that read the claims of a request.
    select 'function', name, 'source',
        case when regexp_replace(
            lower(prosrc),
            '''(request\.jwt\.claims|request\.jwt\.claim\.sub|sub)?'''
            '|\m(select|coalesce|nullif|current_setting|pg_catalog|true|uuid|jsonb?|text|as|begin|return|end)\M',
            '', 'g'
        ) ~ '[^\s().,:;>-]' then 'other than the claims' else 'the claims' end
    from routine where not own
    union all
    select 'function', name, 'form',
        concat_ws(
            ' ', lanname, case prokind when 'f' then null else 'kind ' || prokind::text end,
            case provolatile when 'i' then 'immutable' when 's' then 'stable' else 'volatile' end,
            case when prosecdef then 'security definer' end, case when proisstrict then 'strict' end,
            case when proleakproof then 'leakproof' end, 'set ' || array_to_string(proconfig, ', set ')
        )
    from routine
    union all
    select 'trigger', format('%I on %s', tgname, name), 'form',
        case tgenabled when 'A' then 'always' when 'O' then 'enabled' when 'R' then 'on replicas' else 'disabled' end
        || ': ' || pg_get_triggerdef(pg_trigger.oid)
    from relation join pg_trigger on tgrelid = relation.oid and not tgisinternal
    union all
    select 'rule', format('%I on %s', rulename, name), 'form', pg_get_ruledef(pg_rewrite.oid)
    from relation join pg_rewrite on ev_class = relation.oid and rulename <> '_RETURN'
    union all
    select 'publication', quote_ident(pubname), 'tables', name
    from pg_publication_tables join relation on name = format('%I.%I', schemaname, tablename)
    union all
    -- What a table or function that is made later would grant by itself.
    select 'default', quote_ident(pg_get_userbyid(defaclrole)),
        case defaclobjtype when 'r' then 'TABLES' when 'f' then 'FUNCTIONS' when 'S' then 'SEQUENCES' else 'TYPES' end,
        concat(privilege_type, ' to ', case grantee when 0 then 'PUBLIC' else quote_ident(pg_get_userbyid(grantee)) end)
    from pg_default_acl, aclexplode(defaclacl)
    where defaclnamespace = to_regnamespace('spotconn') and (grantee = 0 or grantee in (select oid from client))
    union all
    select 'event trigger', quote_ident(evtname), 'form',
        concat('ON ', evtevent, ' runs ', format('%I.%I()', nspname, proname))
    from pg_event_trigger join pg_proc as proc on proc.oid = evtfoid
    join pg_namespace as schema on schema.oid = pronamespace
    where evtenabled <> 'D' and (evtevent = 'login' or prosrc ~* 'spotify_connections|spotconn|request\.jwt')
    union all
    select 'role', quote_ident(rolname), 'attribute', attribute
    from pg_roles, lateral (values
        ('SUPERUSER', rolsuper), ('BYPASSRLS', rolbypassrls), ('CREATEROLE', rolcreaterole),
        ('REPLICATION', rolreplication)
    ) as one (attribute, has)
    where has and rolname in ('anon', 'authenticated', 'authenticator', 'service_role', 'spotconn')
    union all
    select 'role', quote_ident(member.rolname), 'member', quote_ident(role.rolname)
    from membership
    join pg_roles as member on member.oid = membership.member
    join pg_roles as role on role.oid = membership.role
    where case
        when member.rolname = 'spotconn' then true
        when member.rolname in ('anon', 'authenticated') then role.oid in (select oid from powerful)
        when member.rolname = 'authenticator' then role.oid in (select oid from powerful)
            and role.rolname not in ('anon', 'authenticated', 'service_role')
            and not exists (
                select from membership as its join client on client.oid = its.member
                where its.role = role.oid and client.name <> 'authenticator'
            )
        -- Roles of these names are the platform's own: nobody else may make one there. Who is a member of a trusted
        -- role, as the login of Supabase's command is of postgres, can do all that this one can.
        else role.rolname in ('pg_read_all_data', 'pg_write_all_data') and member.rolname !~ '^(pg|supabase)_'
            and member.oid not in (select oid from trusted)
            and not exists (
                select from membership as its join trusted on trusted.oid = its.role where its.member = member.oid
            )
    end
    union all
    select 'setting',
        case
            when setrole = 0 and setdatabase = 0 then 'ROLE ALL'
            when setrole = 0 then 'DATABASE ' || quote_ident(current_database())
            else 'ROLE ' || quote_ident(rolname)
                || case when setdatabase <> 0 then ' IN DATABASE ' || quote_ident(current_database()) else '' end
        end,
        quote_ident(split_part(setting, '=', 1)), 'set'
    from pg_db_role_setting left join pg_roles as role on role.oid = setrole, unnest(setconfig) as setting
    where setdatabase in (0, (select oid from pg_database where datname = current_database()))
        and setting ~* '^(request\.|spotconn\.|session_replication_role=)'
    union all
    select distinct 'view', format('%I.%I', nspname, relname),
        case when by_user then 'readers, by auth.uid()' else 'readers' end,
        coalesce((
            select string_agg(name, ', ' order by name) from client
            where name <> 'authenticator' and has_any_column_privilege(client.oid, view.oid, 'select')
        ), 'no client')
    from view join pg_class as class on class.oid = view.oid join pg_namespace as schema on schema.oid = relnamespace
    where not bound and not exists (select from relation where relation.oid = view.oid)
    union all
    select 'definer', format('%I.%I(%s)', nspname, proname, oidvectortypes(proargtypes)), 'callers',
        string_agg(client.name, ', ' order by client.name)
    from pg_proc as proc join pg_namespace as schema on schema.oid = pronamespace, client
    where prosecdef and nspname <> 'spotconn' and client.name <> 'authenticator'
        and concat(prosrc, pg_get_function_sqlbody(proc.oid)) ~* 'spotify_connections|spotconn'
        and has_schema_privilege(client.oid, schema.oid, 'usage')
        and has_function_privilege(client.oid, proc.oid, 'execute')
    group by nspname, proname, proargtypes
)
select kind, object, property,
    case
        when value like 'hash %' then left(encode(sha256(convert_to(substr(value, 6), 'UTF8')), 'hex'), 16)
        else regexp_replace(value, '\s+', ' ', 'g')
    end as value
from fact
order by 1, 2, 3, 4
