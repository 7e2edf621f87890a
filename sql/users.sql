-- Ties the table of users that `spotconn schema --users` names to auth.users, whose rows connections belong to: triggers, and
-- a row for each user who is there. After users_check.sql and schema.sql, in the same transaction; may be applied again.

do $$
begin
    perform
        pg_catalog.set_config('spotconn.search_path', pg_catalog.current_setting('search_path'), true),
        pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    -- It is set until the transaction ends, by the files before.
    if pg_catalog.current_setting('spotconn.transaction', true) is distinct from 'on'
        or pg_catalog.current_setting('spotconn.users_type', true) is null
    then
        raise exception 'this file has to be applied within one transaction, behind users_check.sql and schema.sql'
            using errcode = 'no_active_sql_transaction',
                hint = 'spotconn schema --apply --users does so, or psql --single-transaction -v ON_ERROR_STOP=1 with all '
                    'that spotconn schema --users prints.';
    end if;
end
$$;

do $$
declare
    named constant text := pg_catalog.format('%I.%I',
        pg_catalog.current_setting('spotconn.users_schema'), pg_catalog.current_setting('spotconn.users_table')
    );
    id constant text := pg_catalog.quote_ident(pg_catalog.current_setting('spotconn.users_column'));
    kind constant text := case pg_catalog.current_setting('spotconn.users_type')
        when 'uuid' then 'uuid' when 'text' then 'text' when 'character varying' then 'text' else 'integer'
    end;
    -- A collation may take texts for equal that are different users.
    bytes constant text := case kind when 'text' then ' collate pg_catalog."C"' else '' end;
    security constant text := pg_catalog.current_setting('row_security');
    one record;
begin
    -- A login that a policy binds is refused, where it would see some of the users.
    perform pg_catalog.set_config('row_security', 'off', true);
    -- The conditions also keep the type of the column from being changed. After each row, so that other triggers have had it.
    for one in
        select * from (values
            ('insert', 'after insert', 'each row', pg_catalog.format('when (new.%s is not null) ', id)),
            ('update', 'after update', 'each row',
                pg_catalog.format('when (old.%1$s%2$s is distinct from new.%1$s%2$s) ', id, bytes)),
            ('delete', 'after delete', 'each row', pg_catalog.format('when (old.%s is not null) ', id)),
            ('truncate', 'before truncate', 'each statement', '')
        ) as trigger (name, moment, level, condition)
    loop
        execute pg_catalog.format(
            'create or replace trigger %I %s on %s for %s %sexecute function spotconn.follow_user(%L, %L)',
            'spotconn_follow_' || one.name, one.moment, named, one.level, one.condition,
            pg_catalog.current_setting('spotconn.users_column'), kind
        );
    end loop;
    execute pg_catalog.format(
        'with present as materialized (select spotconn.user_id(%1$s) as id from %2$s where %1$s is not null) '
        'insert into auth.users (id) select present.id from present '
        'where not exists (select from auth.users as known where known.id = present.id)', id, named
    );
    perform
        pg_catalog.set_config('row_security', security, true),
        pg_catalog.set_config('search_path', pg_catalog.current_setting('spotconn.search_path'), true);
end
$$;
