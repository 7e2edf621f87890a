-- Undoes lock_down.sql: a signed-in user can read and write all columns of the own row again, as schema.sql grants.
-- May be applied again.
-- Apply it within one transaction, of your own or by `spotconn schema --apply` or `psql --single-transaction
-- -v ON_ERROR_STOP=1 -f`: it has no BEGIN and no COMMIT. A tool that sends the whole file as one query does so already.

set local client_min_messages = warning;
-- It is set until the transaction ends: for this statement alone where each statement is a transaction of its own.
set local spotconn.transaction = 'on';

do $$
begin
    if pg_catalog.current_setting('spotconn.transaction', true) is distinct from 'on' then
        raise exception 'this file has to be applied within one transaction'
            using errcode = 'no_active_sql_transaction',
                hint = 'spotconn schema --apply does so, or psql --single-transaction -v ON_ERROR_STOP=1 -f FILE.';
    end if;
end
$$;

do $$
begin
    perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('spotconn'));
    if pg_catalog.to_regclass('spotconn.connection') is null then
        raise exception 'schema spotconn is missing' using hint = 'Apply schema.sql first: spotconn schema --apply.';
    end if;
end
$$;

drop function if exists spotconn.locked_down();

grant select, insert, update, delete on public.spotify_connections to authenticated;
