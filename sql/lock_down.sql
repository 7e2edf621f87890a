-- Revokes the token columns from the client roles: anon and authenticated can no longer read or write them. A signed-in
-- user can still read the other columns of the own row and delete it (disconnect). The library works as before. Apply
-- this file after schema.sql; it stays in force when that is applied again. lock_down_undo.sql undoes it.
-- May be applied again.
--
-- Apply it within one transaction, of your own or by `spotconn schema --apply` or `psql --single-transaction
-- -v ON_ERROR_STOP=1 -f`: it has no BEGIN and no COMMIT. A tool that sends the whole file as one query does so already.
--
-- A client must name the columns that it reads: `select *` includes the tokens and is refused (42501).

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
        raise exception 'schema spotconn is missing' using hint = 'Apply schema.sql first: spotconn schema --apply --lock-down.';
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
end
$$;

-- A privilege on the whole table covers every column, so it is revoked before columns are granted.
revoke all on public.spotify_connections from public, anon, authenticated;
grant select (id, user_id, spotify_user_id, expires_at, connected_at, display_name, email, scope), delete
    on public.spotify_connections to authenticated;

-- schema.sql checks whether this function exists, or that of the weaker level.
drop function if exists spotconn.writes_closed();
create or replace function spotconn.locked_down() returns boolean
language sql immutable set search_path = pg_catalog, pg_temp
return true;

revoke all on function spotconn.locked_down() from public, anon, authenticated, service_role;
grant execute on function spotconn.locked_down() to spotconn;

do $$
begin
    perform pg_catalog.set_config('search_path', pg_catalog.current_setting('spotconn.search_path'), true);
end
$$;
