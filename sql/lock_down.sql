-- Revokes the token columns from the client roles: anon and authenticated can no longer read or write them. A signed-in
-- user can still read the other columns of the own row and delete it (disconnect). The library works as before. Apply
-- this file after schema.sql; it stays in force when that is applied again. lock_down_undo.sql undoes it.
-- May be applied again.
--
-- A client must name the columns that it reads: `select *` includes the tokens and is refused (42501).

begin;
set local client_min_messages = warning;

do $$
begin
    perform pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('spotconn'));
    if pg_catalog.to_regclass('spotconn.connection') is null then
        raise exception 'schema spotconn is missing' using hint = 'Apply schema.sql first.';
    end if;
end
$$;

-- A privilege on the whole table covers every column, so it is revoked before columns are granted.
revoke all on public.spotify_connections from public, anon, authenticated;
grant select (id, user_id, spotify_user_id, expires_at, connected_at, display_name, email, scope), delete
    on public.spotify_connections to authenticated;

-- schema.sql checks whether this function exists.
create or replace function spotconn.locked_down() returns boolean
language sql immutable set search_path = ''
return true;

revoke all on function spotconn.locked_down() from public, anon, authenticated, service_role;
grant execute on function spotconn.locked_down() to spotconn;

commit;
