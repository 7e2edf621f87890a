"""What PostgREST sends to the database for the requests of a browser, with supabase-js, or of an edge function.

Each request is one transaction of the login `authenticator`: a statement of set_config for the role and the claims,
then one statement that takes its values from the JSON of the request, in the shape that PostgREST's source gives it.
"""

import json
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg

from support.database import Database

REFUSED = "42501"
"""The SQLSTATE of a missing privilege, and of a row that a policy refuses."""
Row = Mapping[str, object]
"""A row as the JSON of a request or of an answer."""

_TABLE = '"public"."spotify_connections"'
_TYPES = {"id": "uuid", "user_id": "uuid"} | dict.fromkeys(("expires_at", "connected_at"), "timestamp with time zone")
_PREPARE = """
    select set_config('search_path', '"public", "public", "extensions"', true), set_config('role', $1, true),
        set_config('request.jwt.claims', $2, true), set_config('request.method', $3, true),
        set_config('request.path', '/spotify_connections', true), set_config('request.headers', '{}', true),
        set_config('request.cookies', '{}', true)
"""
_INSERTED = "coalesce(nullif(current_setting('pgrst.inserted', true), '')::int, 0)"
"""Counts the rows of an upsert that were inserted: one more for each row, one less for each that was there."""
_COUNT_UP = f"set_config('pgrst.inserted', ({_INSERTED} + 1)::text, true) <> '0'"
_COUNT_DOWN = f"set_config('pgrst.inserted', ({_INSERTED} - 1)::text, true) <> '-1'"


class RestClient:
    """Sends requests as one user, or with a secret key.

    Args:
        session: of the login `authenticator`.
        role: `authenticated`, or `service_role` for a request with a secret key.
        user_id: who is signed in; of a request with a secret key, nobody.
    """

    def __init__(self, session: asyncpg.Connection, role: str, user_id: UUID | None) -> None:
        self._session = session
        self._role = role
        self._user_id = user_id

    async def read(self, user_id: UUID, *columns: str) -> dict[str, Any]:
        """GET one row: all columns, or those named."""
        wanted = ", ".join(f"{_TABLE}.{_quoted(name)}" for name in columns) or f"{_TABLE}.*"
        query = f'SELECT {wanted} FROM {_TABLE} WHERE {_TABLE}."user_id" = $1'
        (row,) = await self._send("GET", query, user_id)
        return row

    async def upsert(self, row: Row, *more: Row, on: str = "user_id", select: bool = False) -> list[dict[str, Any]]:
        """POST one row, or an array of several, to be merged; supabase-js goes by the primary key by default."""
        changes = ", ".join(f"{_quoted(name)} = EXCLUDED.{_quoted(name)}" for name in row)
        conflict = f"WHERE {_COUNT_UP} ON CONFLICT({_quoted(on)}) DO UPDATE SET {changes} WHERE {_COUNT_DOWN}"
        return await self._insert([row, *more], conflict, select=select)

    async def insert(self, row: Row, *, select: bool = False) -> list[dict[str, Any]]:
        """POST."""
        return await self._insert([row], "", select=select)

    async def update(self, user_id: UUID, row: Row, *, select: bool = False) -> list[dict[str, Any]]:
        """PATCH the row of a user."""
        changes = ", ".join(f'{_quoted(name)} = "pgrst_body".{_quoted(name)}' for name in row)
        query = f'UPDATE {_TABLE} SET {changes} {_body(row)} WHERE {_TABLE}."user_id" = $2 {_returning(select)}'
        return await self._send("PATCH", query, json.dumps(row), user_id)

    async def delete(self, user_id: UUID, *, select: bool = False) -> list[dict[str, Any]]:
        """DELETE the row of a user."""
        query = f'DELETE FROM {_TABLE} WHERE {_TABLE}."user_id" = $1 {_returning(select)}'
        return await self._send("DELETE", query, user_id)

    async def _insert(self, rows: Sequence[Row], conflict: str, *, select: bool) -> list[dict[str, Any]]:
        row, reader = rows[0], "json_to_record" if len(rows) == 1 else "json_to_recordset"
        values = ", ".join(f'"pgrst_body".{_quoted(name)}' for name in row)
        body = f"SELECT {values} {_body(row, reader)}"
        query = f"INSERT INTO {_TABLE}({_listed(row)}) {body} {conflict} {_returning(select)}"
        return await self._send("POST", query, json.dumps(row if len(rows) == 1 else rows))

    async def _send(self, method: str, query: str, *args: object) -> list[dict[str, Any]]:
        """Send one request. Return the rows of its answer, each as a 1 where the request asks for no columns."""
        claims = {"role": self._role} | ({} if self._user_id is None else {"sub": str(self._user_id)})
        statement = (
            f"WITH pgrst_source AS ({query}) SELECT pg_catalog.count(_postgrest_t) AS page_total, "
            "coalesce(json_agg(_postgrest_t), '[]') AS body, nullif(current_setting('response.headers', true), '') AS "
            "response_headers, nullif(current_setting('response.status', true), '') AS response_status, "
            "nullif(current_setting('pgrst.inserted', true), '')::int AS response_inserted "
            "FROM (SELECT * FROM pgrst_source) _postgrest_t"
        )
        async with self._session.transaction(isolation="read_committed", readonly=method == "GET"):
            await self._session.execute(_PREPARE, self._role, json.dumps(claims), method)
            answer = await self._session.fetchrow(statement, *args)
        assert answer is not None
        rows: list[dict[str, Any]] = json.loads(answer["body"])
        return rows


def _quoted(name: str) -> str:
    return f'"{name}"'


def _listed(row: Row) -> str:
    return ", ".join(map(_quoted, row))


def _body(row: Row, reader: str = "json_to_record") -> str:
    """Return the FROM clause that reads the JSON of the request."""
    typed = ", ".join(f"{_quoted(name)} {_TYPES.get(name, 'text')}" for name in row)
    return (
        "FROM (SELECT $1::json AS json_data) pgrst_payload, "
        f"LATERAL (SELECT {_listed(row)} FROM {reader}(pgrst_payload.json_data) AS _({typed})) pgrst_body"
    )


def _returning(select: bool) -> str:  # noqa: FBT001
    return f"RETURNING {_TABLE}.*" if select else "RETURNING 1"


@asynccontextmanager
async def rest_session(database: Database, admin: asyncpg.Connection) -> AsyncGenerator[asyncpg.Connection]:
    """Context manager: a session of the login `authenticator`, which is none before and after."""
    await admin.execute("alter role authenticator login password 'authenticator'")
    session = await asyncpg.connect(database.login_dsn("authenticator"))
    try:
        yield session
    finally:
        await session.close()
        await admin.execute("alter role authenticator nologin password null")


async def outcome(rows: Awaitable[list[dict[str, Any]]]) -> int | str:
    """Return how many rows a request has changed, or the SQLSTATE of its refusal."""
    try:
        return len(await rows)
    except asyncpg.PostgresError as error:
        return error.sqlstate or "?"
