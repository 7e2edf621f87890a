"""Rows of another table, read in batches with the operator's own login, for a migration."""

from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import NamedTuple, Self

import asyncpg

from spotconn._database.bound_pool import BoundPool
from spotconn._database.errors import map_errors
from spotconn._database.service_role import BATCH, TIMEOUT, set_timeouts
from spotconn.errors import ConfigurationError, RowSecurityError, StatementRefused

TARGETS = (
    *("user_id", "refresh_token", "access_token", "expires_at", "spotify_user_id"),
    *("display_name", "email", "scope", "connected_at"),
)
"""Columns of public.spotify_connections that a migration fills."""
REQUIRED = ("user_id", "refresh_token")
_TIMES = ("expires_at", "connected_at")

_DESCRIBE = """
select relation.oid, pg_catalog.format('%I.%I', nspname, relname) as name,
    relation.oid = pg_catalog.to_regclass('public.spotify_connections') as own,
    pg_catalog.row_security_active(relation.oid) as is_bound
from pg_catalog.pg_class as relation join pg_catalog.pg_namespace as schema on schema.oid = relnamespace
where relation.oid = pg_catalog.to_regclass($1) and relkind in ('r', 'p', 'v', 'm', 'f')
"""
_COLUMNS = """
select attname as name, pg_catalog.quote_ident(attname) as quoted, typcategory::text as category,
    pg_catalog.format_type(atttypid, null) as type
from pg_catalog.pg_attribute join pg_catalog.pg_type as type on type.oid = atttypid
where attrelid = $1 and attnum > 0 and not attisdropped
"""
# The server has quoted the names.
_READ = """
select *, exists (select from auth.users where users.id = batch.user_id) as is_user
from (
    select {key} as key, {user_id} as user_id, {values} from {table} where {condition}
    order by {key} fetch first {batch} rows with ties
) as batch
order by key
"""
# A text that is a UUID may be that user of auth.users, or a text id that was hashed: another user.
_READINGS = """
with read as not materialized (select {as_uuid} as as_uuid, {as_text} as as_text from {table})
select
    exists (select from read join auth.users on users.id = read.as_uuid) as as_uuid,
    exists (select from read join auth.users on users.id = read.as_text) as as_text
"""
_UUID = "'^[0-9a-fA-F]{8}(-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}$'"
_INTEGERS = ("smallint", "integer", "bigint")


class Column(NamedTuple):
    """A column of the table.

    Attributes:
        quoted: its name, as an identifier of SQL.
        category: of its type, as in pg_type.
        type: its name.
    """

    quoted: str
    category: str
    type: str


class SourceTable(NamedTuple):
    """Another table or view, and which of its columns hold what.

    Attributes:
        name: qualified and quoted.
        columns: by the column of public.spotify_connections; at least those of `REQUIRED`.
        user_id: the user's UUID as SQL, null where there is none.
    """

    name: str
    columns: Mapping[str, Column]
    user_id: str

    @classmethod
    async def describe(cls, pool: BoundPool, name: str, mapping: Mapping[str, str]) -> Self:
        """Look a table up in the catalog.

        Args:
            pool: of the operator's login.
            name: as in SQL: with its schema, and quoted where it has to be.
            mapping: columns of the table by those of ours. One that is not named is taken from the column of the same
                name, if there is one; the empty name leaves it out.

        Raises:
            ValueError: there is no such table or column, or one that is needed is missing; or its ids of users are of
                no type or form that can be mapped.
            ConfigurationError: policies hide rows of the table from the login, or it may not read it.
            DatabaseUnavailable: no answer.
        """
        if unknown := set(mapping) - set(TARGETS):
            raise ValueError(f"map: no column {min(unknown)!r} to fill; expected {', '.join(TARGETS)}")
        async with pool.acquire() as session:
            found = None
            # A schema that it may not use, or a malformed name before Postgres 16.
            with suppress(RowSecurityError, StatementRefused):
                found = await map_errors(session.fetchrow(_DESCRIBE, name, timeout=TIMEOUT))
            if found is None or found["own"]:
                raise ValueError("from: expected the name of another table or view that this login can see")
            if found["is_bound"]:
                raise ConfigurationError(
                    f"policies hide rows of {found['name']} from this login: use that of its owner"
                )
            rows = await map_errors(session.fetch(_COLUMNS, found["oid"], timeout=TIMEOUT))
        columns = {row["name"]: Column(row["quoted"], row["category"], row["type"]) for row in rows}
        chosen = _chosen(columns, mapping)
        return cls(found["name"], chosen, await _user_id(pool, found["name"], chosen["user_id"]))

    def _query(self, condition: str) -> str:
        """Return the SELECT of a batch, which ends with all rows of the last user."""
        key = self.columns["user_id"].quoted
        values = ", ".join(
            f"{_expression(self.columns[name], is_time=name in _TIMES)} as {name}"
            for name in TARGETS
            if name in self.columns and name != "user_id"
        )
        return _READ.format(
            key=key, user_id=self.user_id, values=values, table=self.name, condition=condition, batch=BATCH
        )

    async def batches(self, pool: BoundPool) -> AsyncIterator[list[asyncpg.Record]]:
        """Yield the rows in the order of their users, all of one user in one batch, and those without a user last.

        Args:
            pool: of the operator's login.

        Raises:
            ConfigurationError: the login may not read the table.
            DatabaseUnavailable: no answer.
        """
        key = self.columns["user_id"].quoted
        rows = await _read(pool, self.name, self._query(f"{key} is not null"))
        while rows:
            yield rows
            if len(rows) < BATCH:
                break
            rows = await _read(pool, self.name, self._query(f"{key} > $1"), rows[-1]["key"])
        if rows := await _read(pool, self.name, self._query(f"{key} is null")):
            yield rows


async def _read(pool: BoundPool, name: str, query: str, *args: object) -> list[asyncpg.Record]:
    try:
        async with pool.acquire() as session, session.transaction(readonly=True):
            await map_errors(session.execute(set_timeouts(TIMEOUT), timeout=TIMEOUT))
            return await map_errors(session.fetch(query, *args, timeout=TIMEOUT))
    except RowSecurityError:
        pass
    raise ConfigurationError(f"this login may not read {name}, auth.users or schema spotconn: use that of their owner")


async def _user_id(pool: BoundPool, name: str, column: Column) -> str:
    """Return as SQL the UUID of the user of a row: all of a column are read in one way."""
    if column.type == "uuid":
        return column.quoted
    if column.type in _INTEGERS:
        return f"spotconn.user_id({column.quoted})"
    if column.category != "S":
        raise ValueError(f"map: user_id has to be a column of UUIDs, integers or text, and this one is {column.type}")
    as_uuid = f"case when {column.quoted}::text ~ {_UUID} then {column.quoted}::text::uuid end"
    as_text = f"spotconn.user_id({column.quoted}::text)"
    (found,) = await _read(pool, name, _READINGS.format(table=name, as_uuid=as_uuid, as_text=as_text))
    if found["as_uuid"] and found["as_text"]:
        raise ValueError(
            "map: user_id holds UUIDs of auth.users and text ids, which may be one text: "
            "make a view that has one of the two, as uuid"
        )
    return as_text if found["as_text"] else as_uuid


def _chosen(columns: Mapping[str, Column], mapping: Mapping[str, str]) -> dict[str, Column]:
    names = {target: target for target in TARGETS if target in columns} | dict(mapping)
    for target, name in names.items():
        if name and name not in columns:
            raise ValueError(f"map: the table has no column {name!r} for {target}")
    chosen = {target: columns[name] for target, name in names.items() if name}
    for target in REQUIRED:
        if target not in chosen:
            raise ValueError(f"map: name the column for {target}, such as {target}=its_name")
    return chosen


def _expression(column: Column, *, is_time: bool) -> str:
    """Return a column as SQL: a time of any type as seconds where Postgres knows it as a time, all else as text."""
    if is_time and column.category == "D":
        # A day begins first fourteen hours ahead of UTC.
        ahead = " - 50400" if column.type == "date" else ""
        return f"(extract(epoch from {column.quoted}){ahead})::text"
    if column.category == "A":
        return f"pg_catalog.array_to_string({column.quoted}, ' ')"
    if column.type == "bytea":
        return f"pg_catalog.encode({column.quoted}, 'escape')"
    return f"{column.quoted}::text"
