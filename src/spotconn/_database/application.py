"""Apply the schema to a database that may be in use, and read what it has."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import asyncpg

from spotconn._database.acquire import TIMEOUT, within
from spotconn._database.errors import map_errors
from spotconn._database.idle_sessions import Session
from spotconn.errors import ConfigurationError, DatabaseUnavailable, SpotconnError

TIMEOUT_OF_ALL = 600.0
"""Seconds for one attempt, whatever the login's own limits are: an upgrade copies what is recorded of every user."""
PATIENCE = 60.0
"""Seconds in which locks that are not to be had are tried again."""
_BACKOFF = 1.0
"""Seconds between two attempts."""

# A lock that is waited for holds up the statements behind it.
_LIMITS = """
set local statement_timeout = '10min';
select pg_catalog.set_config(name, value, true) from (values
    ('lock_timeout', '2s'), ('idle_in_transaction_session_timeout', '10min'), ('transaction_timeout', '10min')
) as changed (name, value)
where exists (select from pg_catalog.pg_settings as known where known.name = changed.name);
"""
_LOCKED = {"55P03", "40P01"}
_MISSING_PRIVILEGE = "42501"
# Raised by the files, with a hint; and what else a statement of theirs cannot be done for.
_RAISED = {"P0001", "25P01"}
_REFUSED = {"0L", "2B", "42"}

# By the catalog alone, because the login may lack privileges. Supabase's schema auth is of a
# superuser: what another login made is for plain_postgres.sql to refuse, before auth.uid() is called; owners as there.
_LOOK = r"""
with recursive mine as (
    select oid from pg_catalog.pg_roles where rolname = current_user
    union
    select roleid from mine join pg_catalog.pg_auth_members as membership on member = mine.oid
    where not pg_catalog.to_jsonb(membership) @> '{"inherit_option": false, "set_option": false}'
), present as (
    select nspname || '.' || relname as name from pg_catalog.pg_class
    join pg_catalog.pg_namespace as schema on schema.oid = relnamespace
    union all
    select nspname || '.' || proname || '()' from pg_catalog.pg_proc
    join pg_catalog.pg_namespace as schema on schema.oid = pronamespace
    where pronargs = 0 and nspname in ('auth', 'spotconn')
)
select
    'auth.users' in (select name from present) and 'auth.uid()' in (select name from present)
        and 3 = (
            select pg_catalog.count(*) from pg_catalog.pg_roles
            where rolname in ('anon', 'authenticated', 'service_role')
        )
        and exists (
            select from pg_catalog.pg_namespace join pg_catalog.pg_roles as owner on owner.oid = nspowner
            where nspname = 'auth' and (
                rolsuper or rolname = any (pg_catalog.regexp_split_to_array($1, '\s*,\s*'))
                or owner.oid in (select oid from mine) and rolname not in ('anon', 'authenticated', 'authenticator')
            )
        ) as supabase,
    'public.spotify_connections' in (select name from present) as has_table,
    (
        select pg_catalog.substring(pg_catalog.pg_get_function_sqlbody(proc.oid), '\d+')::integer
        from pg_catalog.pg_proc as proc join pg_catalog.pg_namespace as schema on schema.oid = pronamespace
        where nspname = 'spotconn' and proname = 'schema_version'
    ) as version,
    'spotconn.locked_down()' in (select name from present) and not exists (
        select from pg_catalog.pg_roles as client, pg_catalog.pg_attribute as stored
        join pg_catalog.pg_class as relation on relation.oid = attrelid
        join pg_catalog.pg_namespace as schema on schema.oid = relnamespace
        where (nspname, relname) = ('public', 'spotify_connections') and attname in ('access_token', 'refresh_token')
            and rolname in ('anon', 'authenticated')
            and pg_catalog.has_column_privilege(client.oid, attrelid, attnum, 'select, insert, update')
    ) as locked_down,
    array['spotconn.locked_down()', 'spotconn.writes_closed()'] && (select pg_catalog.array_agg(name) from present)
        and not exists (
            select from pg_catalog.pg_roles as client, pg_catalog.pg_class as relation
            join pg_catalog.pg_namespace as schema on schema.oid = relnamespace
            where (nspname, relname) = ('public', 'spotify_connections') and rolname in ('anon', 'authenticated')
                and pg_catalog.has_any_column_privilege(client.oid, relation.oid, 'insert, update')
        ) as writes_closed,
    pg_catalog.current_setting('server_encoding') as encoding
"""
# Others who hold what the files lock: the tables, or a schema, as another application does. A plain login does not see
# when another login's transaction began.
_HOLDERS = """
select distinct activity.pid, activity.usename, activity.state,
    extract(epoch from pg_catalog.clock_timestamp() - activity.xact_start)::float8 as seconds
from pg_catalog.pg_locks as lock
join pg_catalog.pg_stat_activity as activity on activity.pid = lock.pid
where lock.granted and lock.pid <> pg_catalog.pg_backend_pid()
    and lock.database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
    and coalesce(activity.xact_start < pg_catalog.clock_timestamp() - interval '1 second', true)
    and (
        lock.relation in (
            select relation.oid from pg_catalog.pg_class as relation
            join pg_catalog.pg_namespace as schema on schema.oid = relnamespace
            where nspname = 'spotconn' or (nspname, relname) in (('public', 'spotify_connections'), ('auth', 'users'))
        )
        or lock.classid = 'pg_catalog.pg_namespace'::pg_catalog.regclass and lock.mode = 'ShareUpdateExclusiveLock'
            and lock.objid in (select oid from pg_catalog.pg_namespace where nspname in ('auth', 'spotconn'))
    )
order by seconds desc nulls last
limit 3
"""


@dataclass(frozen=True)
class Found:
    """What a database has.

    Attributes:
        supabase: whether it has what schema.sql expects of Supabase, from an owner that may be trusted with it.
        has_table: whether `public.spotify_connections` is there.
        version: of the schema spotconn; None if that is missing.
        locked_down: whether lock_down.sql is in force.
        writes_closed: whether close_writes.sql is in force, or lock_down.sql.
        encoding: of the database.
    """

    supabase: bool
    has_table: bool
    version: int | None
    locked_down: bool
    writes_closed: bool
    encoding: str

    def __str__(self) -> str:
        """Return it as a phrase."""
        if self.version is None:
            return "the table without the schema spotconn" if self.has_table else "no schema"
        return f"version {self.version}{level(locked_down=self.locked_down, writes_closed=self.writes_closed)}"


def level(*, locked_down: bool, writes_closed: bool) -> str:
    """Return what clients may not do, to be put behind a version."""
    return ", locked down" if locked_down else ", writes closed" if writes_closed else ""


async def look(session: Session, owner: str | None = None) -> Found:
    """Return what a database has.

    Args:
        session: of any login.
        owner: a role that may own what stands there; several with commas between them.

    Raises:
        DatabaseUnavailable: no answer in time.
    """
    return Found(**dict(await map_errors(session.fetchrow(_LOOK, owner or "", timeout=TIMEOUT)) or {}))


async def apply(session: Session, sql: str, *, waiting: Callable[[str], None], patience: float = PATIENCE) -> None:
    """Apply SQL in one transaction, again and again where a lock is not to be had.

    Args:
        session: of a login that owns the tables, or may make them.
        sql: without BEGIN and COMMIT.
        waiting: is called before each further attempt with what holds the locks.
        patience: seconds after which no further attempt is made.

    Raises:
        ConfigurationError: the database refuses it: the login lacks a privilege, or something else is in the way.
        DatabaseUnavailable: the locks were not to be had, or the connection was lost.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    while not await map_errors(_attempt(session, sql)):
        holders = await _holders(session)
        if loop.time() >= deadline:
            raise DatabaseUnavailable(
                f"the schema was not applied: {holders}; let that end and try again later", answered=True
            )
        waiting(holders)
        await asyncio.sleep(_BACKOFF)


async def _attempt(session: Session, sql: str) -> bool:
    """Return False where a lock was not to be had."""
    refusal: SpotconnError
    try:
        # As one query it is one transaction, which an error rolls back.
        await within(session.execute(_LIMITS + sql), seconds=TIMEOUT_OF_ALL)
    except asyncpg.PostgresError as error:
        if error.sqlstate in _LOCKED:
            return False
        if (refused := _refusal(error)) is None:
            raise
        refusal = refused
    else:
        return True
    raise refusal


def _refusal(error: asyncpg.PostgresError) -> ConfigurationError | None:
    """Return what an engineer mends, or None for an error that is no refusal of the SQL."""
    state = error.sqlstate or ""
    text = f"the schema was not applied: {error.args[0] if error.args else state}"
    if state in _RAISED:
        return ConfigurationError(f"{text}. {getattr(error, 'hint', None) or ''}".rstrip())
    if state == _MISSING_PRIVILEGE:
        return ConfigurationError(
            f"{text}. The login lacks that privilege: apply the schema with the login that owns the tables and may "
            "create roles (on Supabase, postgres)"
        )
    return ConfigurationError(f"{text} (SQLSTATE {state})") if state[:2] in _REFUSED else None


async def _holders(session: Session) -> str:
    """Return the transactions that hold the locks, as a phrase."""
    found = await map_errors(session.fetch(_HOLDERS, timeout=TIMEOUT))
    return f"it waits for {', '.join(_phrases(found)) or 'a transaction that holds a table of spotconn or of users'}"


def _phrases(rows: Iterable[asyncpg.Record]) -> Iterable[str]:
    for row in rows:
        began = "" if row["seconds"] is None else f", {row['state']}, open for {row['seconds']:.0f} s"
        yield f"the transaction of process {row['pid']} (login {row['usename']}{began})"
