"""What the schema of a database consists of, and the rows in its tables, for comparison."""

from typing import Any

import asyncpg

_OURS = "('public'::regnamespace, 'spotconn'::regnamespace)"
_ACL = "array(select acl::text from unnest({acl}) as acl order by 1)"
_QUERIES = {
    "schema": f"select nspname::text, {_ACL.format(acl='nspacl')} from pg_namespace where nspname = 'spotconn'",
    "relations": "select oid::regclass::text, relkind::text, relrowsecurity, relforcerowsecurity, reloptions::text, "
    f"{_ACL.format(acl='relacl')} from pg_class where relnamespace in {_OURS} order by 1",
    "columns": "select attrelid::regclass::text, attname::text, format_type(atttypid, atttypmod), attnotnull, "
    f"pg_get_expr(adbin, adrelid), col_description(attrelid, attnum), {_ACL.format(acl='attacl')} "
    "from pg_attribute join pg_class on pg_class.oid = attrelid left join pg_attrdef on adrelid = attrelid "
    f"and adnum = attnum where relnamespace in {_OURS} and attnum > 0 and not attisdropped "
    "order by attrelid::regclass::text, attnum",
    "constraints": "select conrelid::regclass::text, conname::text, pg_get_constraintdef(oid) from pg_constraint "
    f"where connamespace in {_OURS} order by 1, 2",
    "indexes": "select pg_get_indexdef(indexrelid) from pg_index join pg_class on pg_class.oid = indexrelid "
    f"where relnamespace in {_OURS} order by 1",
    "policies": "select polrelid::regclass::text, polname::text, polcmd::text, polpermissive, "
    "array(select rolname::text from pg_roles where pg_roles.oid = any(polroles) order by 1), "
    "pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid) from pg_policy order by 1, 2",
    "functions": f"select pg_get_functiondef(oid), {_ACL.format(acl='proacl')} from pg_proc "
    f"where pronamespace in {_OURS} order by 1",
    "triggers": "select pg_get_triggerdef(oid), tgenabled::text from pg_trigger where not tgisinternal order by 1",
}
_TABLES = (
    "auth.users",
    "public.spotify_connections",
    "spotconn.refresh_state",
    "spotconn.pending_connect",
    "spotconn.reminder",
)

Rows = dict[str, list[tuple[Any, ...]]]


async def schema_state(connection: asyncpg.Connection) -> Rows:
    """Return tables, types, functions, triggers, policies and privileges of the schemas public and spotconn."""
    return {name: [tuple(row) for row in await connection.fetch(query)] for name, query in _QUERIES.items()}


async def stored_rows(connection: asyncpg.Connection) -> Rows:
    """Return all rows of the tables; one that a version of the schema lacks is left out."""
    present = [name for name in _TABLES if await connection.fetchval("select to_regclass($1) is not null", name)]
    return {
        table: [tuple(row) for row in await connection.fetch(f"select * from {table} order by 1")] for table in present
    }
