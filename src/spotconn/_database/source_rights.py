"""What a login lacks to read another table and the users, each as the GRANT that gives it."""

from spotconn._database.bound_pool import BoundPool
from spotconn._database.errors import map_errors
from spotconn._database.service_role import TIMEOUT
from spotconn.errors import ConfigurationError, StatementRefused

# A name without a schema is of one that the login may use; ours is refused afterwards.
_RIGHTS = """
with source as (
    select pg_catalog.parse_ident($1) as parts
), relation as (
    select relation.oid, nspname, relname, relnamespace
    from pg_catalog.pg_class as relation join pg_catalog.pg_namespace as schema on schema.oid = relnamespace, source
    where case cardinality(parts)
        when 2 then nspname = parts[1] and relname = parts[2]
        when 1 then relation.oid = pg_catalog.to_regclass($1)
    end and relation.oid is distinct from pg_catalog.to_regclass('public.spotify_connections')
), needed as (
    select pg_catalog.format('USAGE ON SCHEMA %I', nspname) as needed,
        pg_catalog.has_schema_privilege(relnamespace, 'USAGE') as is_held
    from relation
    union all
    select pg_catalog.format('SELECT ON %I.%I', nspname, relname),
        pg_catalog.has_table_privilege(oid, 'SELECT') or pg_catalog.has_any_column_privilege(oid, 'SELECT')
    from relation
    union all
    select 'USAGE ON SCHEMA auth', pg_catalog.has_schema_privilege('auth', 'USAGE')
    union all
    select 'SELECT (id) ON auth.users', pg_catalog.has_column_privilege(users.oid, 'id', 'SELECT')
    from pg_catalog.pg_class as users where relname = 'users' and relnamespace = 'auth'::regnamespace
)
select (
    select pg_catalog.string_agg(distinct pg_catalog.format('GRANT %s TO %I', needed, current_user), '; ')
    from needed where not is_held
) as missing, (
    select pg_catalog.row_security_active(users.oid)
    from pg_catalog.pg_class as users where relname = 'users' and relnamespace = 'auth'::regnamespace
) as is_bound
"""


async def check_rights(pool: BoundPool, name: str) -> None:
    """Raise ConfigurationError unless the login may read a table and all users.

    Args:
        pool: of the operator's login.
        name: of the table, as in SQL; a malformed one is passed.

    Raises:
        ConfigurationError: the text names what is missing.
        DatabaseUnavailable: no answer.
    """
    try:
        async with pool.acquire() as session:
            found = await map_errors(session.fetchrow(_RIGHTS, name, timeout=TIMEOUT))
    except StatementRefused:
        return
    if found is not None and found["missing"]:
        raise ConfigurationError(f"this login may not read the rows: as the owner run {found['missing']}")
    if found is not None and found["is_bound"]:
        raise ConfigurationError(
            "policies hide users of auth.users from this login: use one with BYPASSRLS, such as postgres on Supabase"
        )
