-- Looks at the table of users that `spotconn schema --users` names, before anything is changed: plain_postgres.sql and
-- schema.sql follow, which locks it, then users.sql. The settings before this file name the table:
-- set local spotconn.users_schema, spotconn.users_table, spotconn.users_column, spotconn.users_type.

set local client_min_messages = warning;
-- It is set until the transaction ends: for this statement alone where each statement is a transaction of its own.
set local spotconn.transaction = 'on';

-- No object in the search path of the login takes the place of a type or an operator below; the end puts the path back.
do $$
begin
    perform
        pg_catalog.set_config('spotconn.search_path', pg_catalog.current_setting('search_path'), true),
        pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    if pg_catalog.current_setting('spotconn.transaction', true) is distinct from 'on'
        or pg_catalog.current_setting('spotconn.users_type', true) is null
    then
        raise exception 'this file has to be applied within one transaction, behind the settings that name the table'
            using errcode = 'no_active_sql_transaction',
                hint = 'spotconn schema --apply --users does so, or psql --single-transaction -v ON_ERROR_STOP=1 with all '
                    'that spotconn schema --users prints.';
    end if;
end
$$;

do $$
declare
    named_schema constant text := pg_catalog.current_setting('spotconn.users_schema', true);
    named_table constant text := pg_catalog.current_setting('spotconn.users_table', true);
    named_column constant text := pg_catalog.current_setting('spotconn.users_column', true);
    named_type constant text := pg_catalog.current_setting('spotconn.users_type', true);
    kind constant text := case
        when named_type in ('smallint', 'integer', 'bigint') then 'integer'
        when named_type = 'character varying' then 'text'
        else named_type
    end;
    known pg_catalog.pg_class;
    id pg_catalog.pg_attribute;
    tied record;
    types constant text[] := array['smallint', 'integer', 'bigint', 'text', 'character varying', 'uuid'];
    problem text;
    remedy text;
begin
    select relation.* into known
    from pg_catalog.pg_class as relation join pg_catalog.pg_namespace as schema on schema.oid = relnamespace
    where nspname = named_schema and relname = named_table;
    select attribute.* into id from pg_catalog.pg_attribute as attribute
    where attrelid = known.oid and attname = named_column and attnum > 0 and not attisdropped;
    select tgrelid, tgargs into tied
    from pg_catalog.pg_trigger join pg_catalog.pg_proc as proc on proc.oid = tgfoid
    join pg_catalog.pg_namespace as schema on schema.oid = pronamespace
    where nspname = 'spotconn' and proname = 'follow_user' and tgparentid = 0
    limit 1;
    problem := case
        when known.oid is null then 'there is no such table'
        when known.relkind not in ('r', 'p') then 'it is no table'
        when id.attname is null then pg_catalog.format('it has no column %I', named_column)
        when id.atttypid <> pg_catalog.to_regtype('pg_catalog.' || case named_type
                when 'character varying' then 'varchar' when 'smallint' then 'int2'
                when 'integer' then 'int4' when 'bigint' then 'int8' else named_type end)
            then pg_catalog.format(
                'its column %I has the type %s', named_column, pg_catalog.format_type(id.atttypid, id.atttypmod)
            )
        when not exists (
            select from pg_catalog.pg_index
            where indrelid = known.oid and indisunique and indisvalid and indimmediate and indnkeyatts = 1
                and indkey[0] = id.attnum and indpred is null
        ) then pg_catalog.format('its column %I is neither the primary key nor unique', named_column)
        when exists (
            select from pg_catalog.pg_constraint
            where contype = 'f' and conrelid = known.oid and conkey = array[id.attnum]
                and confrelid = pg_catalog.to_regclass('auth.users')
        ) or known.oid = pg_catalog.to_regclass('auth.users') then 'its rows are users of auth.users already'
        when pg_catalog.pg_get_userbyid(known.relowner) in ('anon', 'authenticated', 'authenticator', 'spotconn')
            then pg_catalog.format('it belongs to the role %I', pg_catalog.pg_get_userbyid(known.relowner))
        when not pg_catalog.has_table_privilege(known.oid, 'select')
            or not pg_catalog.has_table_privilege(known.oid, 'trigger')
            then pg_catalog.format('the login %I may not read it, or make no trigger on it', current_user)
        when tied.tgrelid <> known.oid
            then pg_catalog.format('auth.users follows another table: %s', tied.tgrelid::pg_catalog.regclass)
        when pg_catalog.encode(tied.tgargs, 'escape') not like '%\\000' || kind || '\\000'
            then 'auth.users follows it by ids of another kind'
    end;
    remedy := case
        when problem like '%neither the primary key%' then 'Two rows would be one user: add a unique constraint.'
        when problem like '%already' then 'Leave --users out: nothing is to be done for this table.'
        when problem like 'it belongs%' then 'A client could make and delete every user: change its owner.'
        when problem like 'the login%' then 'Apply the schema with the login that owns it, or a superuser.'
        when problem like 'auth.users follows%' then
            'The ids of two tables, or of two kinds, would name other users. Drop the triggers spotconn_follow_insert, '
            'spotconn_follow_update, spotconn_follow_delete and spotconn_follow_truncate there first; its users stay in auth.users.'
        when problem like 'there is%' then 'Create it first, or name the table of your users.'
        when problem like '%has the type%' and pg_catalog.format_type(id.atttypid, null) = any (types)
            then pg_catalog.format('Name that type: spotconn schema --apply --users ''%I.%I(%I %s)''.',
                named_schema, named_table, named_column, pg_catalog.format_type(id.atttypid, null))
        when problem like '%has the type%'
            then pg_catalog.format('Name a column of the type %s.', pg_catalog.array_to_string(types, ', '))
        when problem like 'it is no%' then 'Name the table that has the users: a view cannot be followed.'
        else 'Name the column that has the ids of the users.'
    end;
    if problem is not null then
        raise exception '%: %', pg_catalog.format('%I.%I', named_schema, named_table), problem
            using hint = 'Nothing was changed. ' || remedy;
    end if;
end
$$;

do $$
begin
    perform pg_catalog.set_config('search_path', pg_catalog.current_setting('spotconn.search_path'), true);
end
$$;
