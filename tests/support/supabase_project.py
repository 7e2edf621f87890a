"""What a project on Supabase has beside the schema: roles, owners, grants, settings and triggers."""

SUPABASE = """
create role supabase_read_only_user login bypassrls; create role supabase_etl_admin login replication bypassrls;
grant pg_read_all_data to supabase_read_only_user, supabase_etl_admin;
create role dashboard_user createrole replication; create role pgbouncer login;
create role supabase_storage_admin noinherit createrole; create role supabase_auth_admin noinherit createrole;
grant anon, authenticated, service_role, authenticator to supabase_storage_admin;
create role platform createrole bypassrls; grant pg_read_all_data, spotconn to platform with admin option;
create role cli_login_postgres login noinherit; grant platform to cli_login_postgres;
alter table public.spotify_connections owner to platform;
alter schema auth owner to supabase_auth_admin; alter function auth.uid() owner to supabase_auth_admin;
grant all on schema auth to dashboard_user; grant execute on function auth.uid() to dashboard_user;
alter role anon set statement_timeout = '3s'; alter role authenticator set session_preload_libraries = 'auto_explain';
create publication supabase_realtime;
create function public.watch() returns event_trigger language plpgsql as 'begin end';
create event trigger pgrst_ddl_watch on ddl_command_end execute function public.watch();
alter role authenticator login; create role my_login login; grant spotconn to my_login
"""
