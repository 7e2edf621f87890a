"""The statements of the store, each a call of a function of the schema `spotconn`, and those of the admin."""
# ruff: noqa: S608  they are put together from constants

from spotconn._database.read_only import STATE

# Arrays are sent as text. asyncpg looks up the type of any other array on each new connection, and turns jit off for
# the session meanwhile, which Supavisor can be set to refuse.

# Of the store. Each names the user that its row belongs to, so that the answer can be checked, and its columns, which a
# later schema may add to.
_CONNECTION = (
    "id, user_id, spotify_user_id, access_token, refresh_token, expires_at, connected_at, display_name, email, scope, "
    "client_id, refused_by, failure, failed_at, retry_at, saves, family, remaining, account_id, "
    "previous_spotify_user_id"
)
_COLUMNS = ", ".join(f"(answer.connection).{column}" for column in _CONNECTION.split(", "))
GET = f"select {_CONNECTION} from spotconn.get_connection($1)"
GET_MANY = f"select {_CONNECTION} from spotconn.get_connections($1::text[]::uuid[])"
GET_ACCESS_TOKENS = "select user_id, access_token, remaining, scope from spotconn.get_access_tokens($1::text[]::uuid[])"
SAVE = (
    f"select {_CONNECTION} from spotconn.save_connection($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)"
)
CHECK_SAVE = "select $1::uuid as user_id, spotconn.check_save($1, $2)"
DELETE = "select $1::uuid as user_id, spotconn.delete_connection($1) as deleted"
BEGIN_REFRESH = (
    f"select answer.outcome, answer.lease_id, answer.lease_until, answer.retry_after, answer.client_ids, {_COLUMNS} "
    "from spotconn.begin_refresh($1, $2, $3, $4, $5) as answer"
)
FINISH_REFRESH = (
    f"select answer.saved, answer.recovered, {_COLUMNS} "
    "from spotconn.finish_refresh($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) as answer"
)
FAIL_REFRESH = (
    "select $1::uuid as user_id, failure, failed_at, retry_at from spotconn.fail_refresh($1, $2, $3, $4, $5, $6)"
)
ACT_AS = "select spotconn.act_as($1)"
SERVER_LIFE = "select spotconn.server_life()"
SCHEMA_VERSION = "select spotconn.schema_version()"
VERIFY = (
    "select pg_catalog.jsonb_build_array(spotconn.verify(), "
    f"(select pg_catalog.to_jsonb(server) from ({STATE}) as server), pg_catalog.pg_backend_pid())::text"
)

# Of the admin. Lists are read in batches by user id, so no rows and no transaction are held between two batches.
# $1 is the first user id, $2 the size of a batch.
WITH_STATE = """
from public.spotify_connections as stored
left join spotconn.refresh_state as state
    on state.user_id = stored.user_id
    and coalesce(state.fingerprint = sha256(convert_to(stored.refresh_token, 'UTF8')), false)
"""
# The times are those that a client can hold, as in spotconn.connections. A client that writes a row back may have lost
# digits of the date of the authorization.
_OVERVIEW = f"""
select
    stored.user_id, stored.spotify_user_id, stored.display_name, stored.email,
    case when stored.connected_at between '2000-01-01 00:00+00' and '9998-12-31 00:00+00'
        then stored.connected_at::timestamptz end as connected_at,
    least(greatest(stored.expires_at::timestamptz, '0001-01-02 00:00+00'), '9999-12-31 00:00+00') as expires_at,
    state.client_id, state.failure,
    case when state.failed_at is not null
        then least(greatest(state.failed_at, '0001-01-02 00:00+00'), '9999-12-31 00:00+00') end as failed_at,
    case when state.retry_at between '0001-01-02 00:00+00' and '9999-12-31 00:00+00'
        then state.retry_at end as retry_at,
    reminder.asked_at
{WITH_STATE}
left join spotconn.reminder as reminder
    on reminder.user_id = stored.user_id
    and date_trunc('second', reminder.connected_at) is not distinct from date_trunc('second', stored.connected_at)
where stored.user_id >= $1 and {{condition}}
order by stored.user_id
limit $2
"""
EXPIRING = _OVERVIEW.format(
    condition="(failure is null or failure = 'unavailable') and (coalesce(client_id = any($4::text[]), false) or "
    "stored.connected_at between '2000-01-01 00:00+00' and '9998-12-31 00:00+00' and "
    "(stored.connected_at::timestamptz at time zone 'UTC') + interval '6 months' "
    "<= ((select spotconn.now()) + make_interval(secs => $3)) at time zone 'UTC') and "
    "coalesce(reminder.asked_at < $5, true)"
)
FAILING = _OVERVIEW.format(condition="failure is not null and coalesce(state.failed_at >= $3, true)")

# A connection that is refused again meanwhile is not in a later batch. One that is due already is not counted twice.
RECHECK = """
with batch as (
    select state.user_id from spotconn.refresh_state as state
    join public.spotify_connections as stored
        on stored.user_id = state.user_id
        and coalesce(state.fingerprint = sha256(convert_to(stored.refresh_token, 'UTF8')), false)
    where state.user_id >= $1 and state.failure in ('expired', 'revoked', 'invalid') and state.failed_at >= $3
        and (state.refusals > 0 or state.retry_at is null or state.retry_at > spotconn.now())
    order by state.user_id
    limit $2
    for no key update of stored, state
), changed as (
    update spotconn.refresh_state as state
    set retry_at = spotconn.now(), refusals = 0
    from batch where state.user_id = batch.user_id
)
select user_id from batch order by user_id
"""

STATS = """
select
    count(*) as connections,
    count(*) filter (where spotconn.runs(leased_at, lease_until, spotconn.now())) as refreshing,
    count(*) filter (where failure = 'unavailable') as unavailable,
    count(*) filter (where failure = 'expired') as expired,
    count(*) filter (where failure = 'revoked') as revoked,
    count(*) filter (where failure = 'invalid') as invalid
from public.spotify_connections as stored
left join spotconn.refresh_state as state
    on state.user_id = stored.user_id and state.fingerprint = sha256(convert_to(stored.refresh_token, 'UTF8'))
"""
# Any client may write what begins like an encrypted value; of such a text nothing is repeated.
KEYS = r"""
select
    starts_with(value, 'spotconn') as marked,
    substring(value from '^spotconn[0-9]+\.([0-9a-f]{8})\.') as key,
    count(*)
from public.spotify_connections, lateral (values (access_token), (refresh_token)) as token (value)
group by 1, 2
"""
APPS = f"select client_id, count(*) {WITH_STATE} group by client_id order by client_id"

# A policy also binds roles that inherit from those it names. A command needs a permissive policy that lets every row
# pass, and no restrictive one that may keep one back: any but the constant may.
HIDES_ROWS = """
array(
    with role as (
        select oid, rolsuper or rolbypassrls as exempt from pg_catalog.pg_roles where rolname = 'service_role'
    ), bound as (
        select relation.oid, nspname || '.' || relname as name, role.oid as role
        from role
        cross join pg_catalog.pg_class as relation
        join pg_catalog.pg_namespace as schema on schema.oid = relnamespace
        where (nspname, relname) in (
                ('public', 'spotify_connections'), ('spotconn', 'refresh_state'), ('spotconn', 'reminder')
            )
            and relrowsecurity and not exempt
            and (relforcerowsecurity or not pg_catalog.pg_has_role(role.oid, relowner, 'usage'))
    ), policy as (
        select bound.name, polname, polpermissive, polcmd,
            pg_catalog.pg_get_expr(polqual, polrelid) as reads,
            coalesce(
                pg_catalog.pg_get_expr(polwithcheck, polrelid), pg_catalog.pg_get_expr(polqual, polrelid)
            ) as writes
        from bound join pg_catalog.pg_policy on polrelid = bound.oid
        where exists (
            select from pg_catalog.unnest(polroles) as given
            where case when given = 0 then true else pg_catalog.pg_has_role(role, given, 'usage') end
        )
    )
    select 'no policy shows it every row of ' || name || ': spotconn schema --apply'
    from bound cross join (values ('r'), ('a'), ('w'), ('d')) as command (letter)
    where not exists (
        select from policy
        where policy.name = bound.name and polpermissive and polcmd in ('*', letter::"char")
            and (letter = 'a' or reads = 'true') and (letter in ('r', 'd') or writes = 'true')
    )
    union
    select pg_catalog.format(
        'the restrictive policy %1$I binds it: ALTER POLICY %1$I ON %2$s TO anon, authenticated', polname, name
    )
    from policy
    where not polpermissive and not (coalesce(reads, 'true') = 'true' and coalesce(writes, 'true') = 'true')
    order by 1
)
"""
"""What hides rows from service_role, each with what mends it; by the catalog alone, so that any login may ask."""
