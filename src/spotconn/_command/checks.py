"""The checks of `spotconn doctor` on an open session. What has to be tried is tried and rolled back."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import asyncpg
from pydantic import BaseModel, ConfigDict

from spotconn._database.acquire import within
from spotconn._database.errors import APPLY_SCHEMA, map_errors
from spotconn._database.pool import is_pooled
from spotconn._database.schema import SCHEMA_VERSION
from spotconn.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Session = PoolConnectionProxy[asyncpg.Record]

TIMEOUT = 60.0
"""Seconds for one statement; one of them looks at every row."""
OLDEST_SERVER = 150000
NOTABLE_SKEW = 1.0
"""Seconds between the clocks from which to say so."""
HARMFUL_SKEW = 10.0
"""Seconds between the clocks that are too many: a token is no longer served in its last 30 seconds."""

_OWN = "(( SELECT auth.uid() AS uid) = user_id)"
# Relation, name, command, USING and WITH CHECK, as Postgres writes them.
_POLICIES = {
    ("public.spotify_connections", "Users can view own connections", "r", _OWN, None),
    ("public.spotify_connections", "Users can create own connections", "a", None, _OWN),
    ("public.spotify_connections", "Users can update own connections", "w", _OWN, _OWN),
    ("public.spotify_connections", "Users can delete own connections", "d", _OWN, None),
    ("spotconn.refresh_state", "Own refresh state", "*", _OWN, _OWN),
}
_READ_POLICIES = """
select nspname || '.' || relname, polname::text, polcmd::text,
    pg_catalog.pg_get_expr(polqual, polrelid), pg_catalog.pg_get_expr(polwithcheck, polrelid)
from pg_catalog.pg_policy
join pg_catalog.pg_class as relation on relation.oid = polrelid
join pg_catalog.pg_namespace as namespace on namespace.oid = relnamespace
where polpermissive
    and polrelid in ('public.spotify_connections'::regclass, 'spotconn.refresh_state'::regclass)
"""
_UNPROTECTED = """
select relation.oid::regclass::text as name from pg_catalog.pg_class as relation
where relkind = 'r' and not relrowsecurity
    and (oid = 'public.spotify_connections'::regclass or relnamespace = 'spotconn'::regnamespace)
"""
# Who reads a token column beside the owner, the library and whoever may become one of these.
_WHO_READS = """
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
_PLAIN = """
select count(*) filter (where not starts_with(value, 'spotconn')) as plain, count(*) as all
from public.spotify_connections, lateral (values (access_token), (refresh_token)) as token (value)
"""
_INSERT = (
    "insert into public.spotify_connections (user_id, spotify_user_id, access_token, refresh_token, expires_at) "
    "values ($1, 'doctor', 'doctor', 'doctor', now())"
)


class Finding(BaseModel):
    """One line of the doctor.

    Attributes:
        state: "ok", "warn" (it works, but mind this), "fail" (mend this) or "skip" (not used, or not to be seen).
        subject: what was looked at.
        text: what was found.
        remedy: what to do about it.
    """

    model_config = ConfigDict(frozen=True)

    state: Literal["ok", "warn", "fail", "skip"]
    subject: str
    text: str
    remedy: str | None = None


@dataclass(frozen=True)
class Probe:
    """An open session and where it leads."""

    session: "Session"
    dsn: str

    async def value(self, query: str, *args: object) -> Any:
        """The one value that a query gives."""
        return await map_errors(self.session.fetchval(query, *args, timeout=TIMEOUT))

    async def rows(self, query: str) -> list[asyncpg.Record]:
        """The rows that a query gives."""
        return await map_errors(self.session.fetch(query, timeout=TIMEOUT))

    async def attempt(self, query: str, *args: object) -> str:
        """The SQLSTATE that a statement ends with, or its completion ("UPDATE 0"); it must run in `rolled_back`."""
        savepoint = self.session.transaction()
        try:
            await within(savepoint.start(), seconds=TIMEOUT)
            try:
                done = await self.session.execute(query, *args, timeout=TIMEOUT)
            except asyncpg.PostgresError:
                await within(savepoint.rollback(), seconds=TIMEOUT)
                raise
            await within(savepoint.commit(), seconds=TIMEOUT)
        except asyncpg.PostgresError as error:
            return error.sqlstate or "?"
        except (asyncpg.InterfaceError, OSError, TimeoutError):
            pass
        else:
            return done
        raise DatabaseUnavailable("the database went away; try again later")

    @asynccontextmanager
    async def rolled_back(self) -> AsyncGenerator[None]:
        """A transaction that leaves nothing."""
        transaction = self.session.transaction()
        await map_errors(within(transaction.start(), seconds=TIMEOUT))
        passed_over: tuple[type[Exception], ...] = ()
        try:
            yield
        except asyncio.CancelledError:
            passed_over = (DatabaseUnavailable,)  # or it would end the cancellation
            raise
        finally:
            with suppress(*passed_over):
                await map_errors(within(transaction.rollback(), seconds=TIMEOUT))


async def _tls(probe: Probe) -> Finding:
    # asyncpg has no public way to ask for it.
    transport = getattr(probe.session, "_transport", None)
    ssl = transport.get_extra_info("ssl_object") if transport is not None else None
    return tls_finding(
        encrypted=ssl is not None,
        verified=ssl is not None and ssl.context.check_hostname,
        host=urlsplit(probe.dsn).hostname,
    )


def tls_finding(*, encrypted: bool, verified: bool, host: str | None) -> Finding:
    """How safe the way to the server is."""
    if verified:
        return Finding(state="ok", subject="TLS", text="encrypted, and the server's certificate is verified")
    if host is None or host in {"localhost", "127.0.0.1", "::1"}:
        return Finding(state="ok", subject="TLS", text="not needed: the server is on this host")
    return Finding(
        state="warn",
        subject="TLS",
        text="encrypted, but another could pose as the server" if encrypted else "none: all crosses the network openly",
        remedy="add ?sslmode=verify-full&sslrootcert=FILE to DATABASE_URL; on Supabase FILE is its own CA certificate",
    )


async def _server(probe: Probe) -> Finding:
    version = await probe.value("select pg_catalog.current_setting('server_version')")
    number = int(await probe.value("select pg_catalog.current_setting('server_version_num')"))
    if number < OLDEST_SERVER:
        return Finding(state="fail", subject="server", text=f"PostgreSQL {version}", remedy="use 15 or later")
    return Finding(state="ok", subject="server", text=f"PostgreSQL {version}")


async def _pooler(probe: Probe) -> Finding:
    return pooler_finding(pooled=await is_pooled(probe.session, seconds=TIMEOUT))


def pooler_finding(*, pooled: bool) -> Finding:
    """What a pooler in between means."""
    if not pooled:
        return Finding(state="ok", subject="pooler", text="none in between")
    return Finding(
        state="warn",
        subject="pooler",
        text="one is in between: all works, with two round trips where the server itself takes one, and LISTEN hears "
        "nothing in transaction mode",
        remedy="connect to the server itself where you can (on Supabase, port 5432); "
        "a pool of your own needs statement_cache_size=0",
    )


async def _schema(probe: Probe) -> Finding:
    version = await probe.value("select spotconn.schema_version()")
    if version == SCHEMA_VERSION:
        return Finding(state="ok", subject="schema", text=f"version {version}")
    remedy = APPLY_SCHEMA if version < SCHEMA_VERSION else "upgrade spotconn"
    text = f"version {version}; this library needs {SCHEMA_VERSION}"
    return Finding(state="fail", subject="schema", text=text, remedy=remedy)


async def _row_security(probe: Probe) -> Finding:
    if names := [row["name"] for row in await probe.rows(_UNPROTECTED)]:
        return Finding(
            state="fail", subject="row security", text=f"disabled on {', '.join(names)}", remedy=APPLY_SCHEMA
        )
    return Finding(state="ok", subject="row security", text="enabled on every table")


async def _binding(probe: Probe) -> Finding:
    """As a user who does not exist: nothing may be seen or changed, and no row made for another."""
    async with probe.rolled_back():
        await probe.value("select spotconn.act_as($1)", uuid4())
        other: UUID = uuid4()
        seen = await probe.value("select pg_catalog.count(*) from public.spotify_connections")
        changed = await probe.attempt("update public.spotify_connections set email = email")
        # A policy is asked before the foreign key is.
        made = await probe.attempt(_INSERT, other)
    if (seen, changed, made) == (0, "UPDATE 0", "42501"):
        return Finding(state="ok", subject="isolation", text="tried: a user sees, changes and makes no row of another")
    return Finding(
        state="fail",
        subject="isolation",
        text=f"a user of this login reaches rows of others (seen {seen}, changed {changed}, made {made})",
        remedy="ALTER ROLE spotconn NOBYPASSRLS NOSUPERUSER, and " + APPLY_SCHEMA,
    )


async def _policies(probe: Probe) -> Finding:
    found = {tuple(row) for row in await probe.rows(_READ_POLICIES)}
    if found == _POLICIES:
        return Finding(state="ok", subject="policies", text="present and unaltered")
    altered = {policy[1] for policy in _POLICIES - found}
    added = {policy[1] for policy in found - _POLICIES} - altered
    parts = [("missing or altered", altered), ("added", added)]
    text = "; ".join(f"{what}: {', '.join(sorted(names))}" for what, names in parts if names)
    remedy = "drop the added ones (any one policy is enough to let a row pass)" if added else APPLY_SCHEMA
    return Finding(state="fail" if altered else "warn", subject="policies", text=text, remedy=remedy)


async def _grants(probe: Probe) -> Finding:
    async with probe.rolled_back():
        await probe.value("select spotconn.row_security_binds()")
    operator = await probe.value("select pg_catalog.pg_has_role(session_user, 'service_role', 'member')")
    return Finding(
        state="ok",
        subject="grants",
        text="complete" if operator else "complete; this login may not become service_role, which rekey and lists need",
    )


async def _notifications(probe: Probe) -> Finding:
    if await probe.value("select spotconn.heartbeat('')"):
        return Finding(state="ok", subject="changes", text="told to every process that listens")
    return Finding(
        state="warn",
        subject="changes",
        text="the triggers that tell of changes are gone or disabled: what one process disconnects, others remember "
        "for up to cache_ttl",
        remedy=f"unless that is meant: {APPLY_SCHEMA}",
    )


async def _token_readers(probe: Probe) -> Finding:
    names = [row["name"] for row in await probe.rows(_WHO_READS)]
    if not names:
        return Finding(state="ok", subject="token readers", text="only the library, service_role and the owner")
    return Finding(
        state="fail" if {"anon", "public"} & set(names) else "warn",
        subject="token readers",
        text=f"the token columns may also be read by {', '.join(names)}, as far as the policies let them",
        remedy='take the tokens away from clients: psql "$DATABASE_URL" -f sql/lock_down.sql',
    )


async def _encryption(probe: Probe) -> Finding:
    subject = "stored tokens"
    async with probe.rolled_back():
        if await probe.attempt("set local role service_role") != "SET":
            return Finding(state="skip", subject=subject, text="not to be seen: this login cannot become service_role")
        await probe.value("select pg_catalog.set_config('role', 'service_role', true)")
        (row,) = await probe.rows(_PLAIN)
    if not row["plain"]:
        return Finding(state="ok", subject=subject, text=f"{row['all']} values, none in plain text")
    return Finding(
        state="warn",
        subject=subject,
        text=f"{row['plain']} of {row['all']} values are in plain text",
        remedy="set SPOTCONN_ENCRYPTION_KEYS in every process, then run `spotconn rekey`",
    )


async def _clocks(probe: Probe) -> Finding:
    before = time.time()
    there = await probe.value("select extract(epoch from pg_catalog.clock_timestamp())::float8")
    after = time.time()
    return clock_finding(there - (before + after) / 2, unsure=(after - before) / 2)


def clock_finding(skew: float, *, unsure: float) -> Finding:
    """How far the clocks are apart.

    Args:
        skew: seconds that the database is ahead of this host.
        unsure: seconds that this may be wrong.
    """
    text = f"the database is {abs(skew):.2f} s {'ahead of' if skew > 0 else 'behind'} this host"
    if abs(skew) <= NOTABLE_SKEW + unsure:
        return Finding(state="ok", subject="clocks", text=text)
    state: Literal["warn", "fail"] = "warn" if abs(skew) <= HARMFUL_SKEW else "fail"
    return Finding(state=state, subject="clocks", text=text, remedy="keep both on network time")


CHECKS: dict[str, Callable[[Probe], Awaitable[Finding]]] = {
    "TLS": _tls,
    "server": _server,
    "pooler": _pooler,
    "schema": _schema,
    "row security": _row_security,
    "isolation": _binding,
    "policies": _policies,
    "grants": _grants,
    "changes": _notifications,
    "token readers": _token_readers,
    "stored tokens": _encryption,
    "clocks": _clocks,
}
"""By subject, in the order of their lines."""
