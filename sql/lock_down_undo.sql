-- Undoes lock_down.sql: a signed-in user can read and write all columns of the own row again, as schema.sql grants.
-- May be applied again.

begin;
set local client_min_messages = warning;

select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('spotconn'));

drop function if exists spotconn.locked_down();

grant select, insert, update, delete on public.spotify_connections to authenticated;

commit;
