"""Statements of the doctor that try the tables, and look at who the library acts as."""

COUNT_PLAIN_TEXT = """
select
    count(*) filter (where not starts_with(value, 'spotconn')) as plain,
    count(*) as all,
    (array_agg(user_id::text) filter (where not starts_with(value, 'spotconn')))[1:6] as users
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
