-- Undoes lock_down.sql and close_writes.sql: a signed-in user can read and write all columns of the own row again, as schema.sql grants.
-- May be applied again.
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
begin
    if pg_catalog.to_regclass('spotconn.refresh_state') is null then
        raise exception 'schema spotconn is missing' using hint = 'Apply schema.sql first: spotconn schema --apply.';
    end if;
    -- One application at a time: this locks the schema until the transaction ends, and only its owner can.
    comment on schema spotconn is 'What the library spotconn keeps for itself.';
end
$$;

drop function if exists spotconn.locked_down();
drop function if exists spotconn.writes_closed();

grant select, insert, update, delete on public.spotify_connections to authenticated;

do $$
begin
    perform pg_catalog.set_config('search_path', pg_catalog.current_setting('spotconn.search_path'), true);
end
$$;
