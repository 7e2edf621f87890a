"""Queries of the system catalogs and the tables for the checks of the doctor."""

_OWN = "(( SELECT auth.uid() AS uid) = user_id)"
# Relation, name, command, USING and WITH CHECK, as pg_get_expr writes them.
POLICIES = {
    ("public.spotify_connections", "Users can view own connections", "r", _OWN, None),
    ("public.spotify_connections", "Users can create own connections", "a", None, _OWN),
    ("public.spotify_connections", "Users can update own connections", "w", _OWN, _OWN),
    ("public.spotify_connections", "Users can delete own connections", "d", _OWN, None),
    ("spotconn.refresh_state", "Own refresh state", "*", _OWN, _OWN),
}
READ_POLICIES = """
select nspname || '.' || relname, polname::text, polcmd::text,
    pg_catalog.pg_get_expr(polqual, polrelid), pg_catalog.pg_get_expr(polwithcheck, polrelid)
from pg_catalog.pg_policy
join pg_catalog.pg_class as relation on relation.oid = polrelid
join pg_catalog.pg_namespace as namespace on namespace.oid = relnamespace
where polpermissive
    and polrelid in ('public.spotify_connections'::regclass, 'spotconn.refresh_state'::regclass)
"""
TABLES_WITHOUT_ROW_SECURITY = """
select relation.oid::regclass::text as name from pg_catalog.pg_class as relation
where relkind = 'r' and not relrowsecurity
    and (oid = 'public.spotify_connections'::regclass or relnamespace = 'spotconn'::regnamespace)
"""
# Roles that may read a token column, other than the owner, the library, service_role and members of these.
ROLES_THAT_READ_TOKENS = """
select rolname::text as name from pg_catalog.pg_roles as reader
where not rolsuper and not rolname like 'pg\\_%'
    and (pg_catalog.has_column_privilege(oid, 'public.spotify_connections', 'access_token', 'select')
        or pg_catalog.has_column_privilege(oid, 'public.spotify_connections', 'refresh_token', 'select'))
    and not exists (
        select from pg_catalog.pg_class as relation, pg_catalog.pg_roles as trusted
        where relation.oid = 'public.spotify_connections'::regclass
            and (trusted.oid = relowner or trusted.rolname in ('spotconn', 'service_role'))
            and pg_catalog.pg_has_role(reader.oid, trusted.oid, 'member')
    )
order by 1
"""
COUNT_PLAIN_TEXT = """
select count(*) filter (where not starts_with(value, 'spotconn')) as plain, count(*) as all
from public.spotify_connections, lateral (values (access_token), (refresh_token)) as token (value)
"""
INSERT_FOR_ANOTHER_USER = (
    "insert into public.spotify_connections (user_id, spotify_user_id, access_token, refresh_token, expires_at) "
    "values ($1, 'doctor', 'doctor', 'doctor', now())"
)

# The superuser that `initdb` makes has the oid 10 (pg_authid.dat). It cannot be demoted.
ROLE_OF_THE_LIBRARY = """
select oid = 10 as made_by_initdb, rolsuper as superuser, rolbypassrls as bypasses,
    exists (
        select from pg_catalog.pg_class as relation
        where relation.oid in ('public.spotify_connections'::regclass, 'spotconn.refresh_state'::regclass)
            and pg_catalog.pg_has_role(role.oid, relowner, 'usage')
    ) as owns,
    exists (
        select from pg_catalog.pg_roles as other where rolsuper and rolcanlogin and other.oid <> role.oid
    ) as other_superuser
from pg_catalog.pg_roles as role where rolname = 'spotconn'
"""
# $1 is the first user id, $2 the size of a batch.
READ_TOKENS = """
select user_id, access_token, refresh_token from public.spotify_connections
where user_id >= $1
order by user_id
limit $2
"""
