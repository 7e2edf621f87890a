-- Revokes what the client roles may write: anon and authenticated can no longer insert or update a row. A signed-in user
-- still reads the own row, tokens included, and deletes it (disconnect). The library works as before. lock_down.sql
-- takes the tokens away, too. Apply this file after schema.sql; it stays in force when that is applied again.
-- lock_down_undo.sql undoes it. May be applied again.
--
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
        raise exception 'schema spotconn is missing' using hint = 'Apply schema.sql first: spotconn schema --apply --close-writes.';
    end if;
    -- One application at a time: this locks the schema until the transaction ends, and only its owner can.
    comment on schema spotconn is 'What the library spotconn keeps for itself.';
    if exists (
        select from pg_catalog.pg_roles
        where rolname in ('anon', 'authenticated') and pg_catalog.pg_has_role(oid, 'spotconn', 'member')
    ) then
        raise exception 'a client role may act as the role spotconn, which reads and writes the tokens of the own row'
            using hint = 'Nothing was changed. REVOKE spotconn FROM authenticated and anon, or from the role between them; '
                'then apply this file again.';
    end if;
    if pg_catalog.to_regprocedure('spotconn.locked_down()') is not null then
        raise exception 'the database is locked down, which closes the writes, too'
            using hint = 'Nothing was changed. To let clients read their tokens again: spotconn schema --apply '
                '--undo-lock-down, then spotconn schema --apply --close-writes.';
    end if;
end
$$;

-- This covers the privileges on columns, too.
revoke all on public.spotify_connections from public, anon, authenticated;
grant select, delete on public.spotify_connections to authenticated;

-- schema.sql checks whether this function exists.
create or replace function spotconn.writes_closed() returns boolean
language sql immutable set search_path = pg_catalog, pg_temp
return true;

revoke all on function spotconn.writes_closed() from public, anon, authenticated, service_role;
grant execute on function spotconn.writes_closed() to spotconn;

do $$
begin
    perform pg_catalog.set_config('search_path', pg_catalog.current_setting('spotconn.search_path'), true);
end
$$;
