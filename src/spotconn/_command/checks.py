"""The checks of `spotconn doctor` on an open session, each in a transaction of its own that is rolled back."""

from asyncio import BaseTransport
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from socket import AF_UNIX
from typing import TypeAlias

from spotconn._command.catalog import COUNT_PLAIN_TEXT
from spotconn._command.clients import check_clients
from spotconn._command.clocks import check_clocks
from spotconn._command.comparison import check_catalog
from spotconn._command.finding import Finding
from spotconn._command.isolation import check_isolation
from spotconn._command.notifications import check_notifications
from spotconn._command.probe import TIMEOUT, UNSEEN, Probe
from spotconn._command.read_only import check_writing
from spotconn._command.schema_version import check_schema_version
from spotconn._command.users import check_users
from spotconn._database.pool import is_pooled
from spotconn._database.statements import HIDES_ROWS
from spotconn._database.verification import ENCODING, MAKE_UTF8
from spotconn._printable import counted

OLDEST_SERVER = 150000

Check: TypeAlias = Callable[[Probe], Awaitable[Finding]]
"""A check on a session, within a transaction."""


async def _check_tls(probe: Probe) -> Finding:
    # asyncpg has no public API for the transport.
    transport: BaseTransport | None = getattr(probe.session, "_transport", None)
    ssl = None if transport is None else transport.get_extra_info("ssl_object")
    return tls_finding(
        encrypted=ssl is not None,
        verified=ssl is not None and ssl.context.check_hostname,
        local=transport is not None and is_local(transport),
    )


def is_local(transport: BaseTransport) -> bool:
    """Whether the other end is on this host. A URL does not tell: it may name several hosts, or none."""
    peer: tuple[str, int] | str | None = transport.get_extra_info("peername")
    if isinstance(peer, tuple):
        return ip_address(peer[0].partition("%")[0]).is_loopback
    return getattr(transport.get_extra_info("socket"), "family", None) == AF_UNIX


def tls_finding(*, encrypted: bool, verified: bool, local: bool) -> Finding:
    """Return the finding about the encryption of the connection, which may have been opened on this host."""
    if verified:
        return Finding(state="ok", subject="TLS", text="encrypted, and the server's certificate is verified")
    if local:
        return Finding(state="ok", subject="TLS", text="not needed: the server is on this host")
    return Finding(
        state="warn",
        subject="TLS",
        text="encrypted, but another could pose as the server" if encrypted else "none: all crosses the network openly",
        remedy="add ?sslmode=verify-full&sslrootcert=FILE to DATABASE_URL; on Supabase FILE is its own CA certificate",
    )


async def _check_server_version(probe: Probe) -> Finding:
    version = await probe.value("select pg_catalog.current_setting('server_version')")
    number = int(await probe.value("select pg_catalog.current_setting('server_version_num')"))
    if number < OLDEST_SERVER:
        return Finding(state="fail", subject="server", text=f"PostgreSQL {version}", remedy="use 15 or later")
    return Finding(state="ok", subject="server", text=f"PostgreSQL {version}")


async def _check_encoding(probe: Probe) -> Finding:
    encoding = await probe.value("select pg_catalog.current_setting('server_encoding')")
    if encoding == ENCODING:
        return Finding(state="ok", subject="encoding", text=encoding)
    text = f"{encoding}, which cannot hold every letter of a name"
    return Finding(state="fail", subject="encoding", text=text, remedy=MAKE_UTF8)


async def _check_pooler(probe: Probe) -> Finding:
    return pooler_finding(pooled=await is_pooled(probe.session, seconds=TIMEOUT))


def pooler_finding(*, pooled: bool) -> Finding:
    """Return the finding about a pooler between this host and the server."""
    if not pooled:
        return Finding(state="ok", subject="pooler", text="none in between")
    return Finding(
        state="warn",
        subject="pooler",
        text="one is in between: all works, though the server parses each statement anew, and LISTEN hears nothing "
        "in transaction mode",
        remedy="connect to the server itself where you can (on Supabase, port 5432); "
        "a pool of your own needs statement_cache_size=0",
    )


async def _check_grants(probe: Probe) -> Finding:
    await probe.value("select spotconn.row_security_binds()")
    if hides := await probe.value(f"select {HIDES_ROWS}"):
        text = "service_role, as which the operator's commands act, does not see the rows of all users"
        return Finding(state="fail", subject="grants", text=text, remedy="; ".join(hides))
    operator = await probe.become_service_role()
    return Finding(
        state="ok",
        subject="grants",
        text="complete" if operator else "complete; this login may not become service_role, which rekey and lists need",
    )


async def _check_encryption(probe: Probe) -> Finding:
    subject = "stored tokens"
    if not await probe.become_service_role():
        return Finding(state="skip", subject=subject, text=UNSEEN)
    (row,) = await probe.rows(COUNT_PLAIN_TEXT)
    if not row["plain"]:
        return Finding(state="ok", subject=subject, text=f"{counted(row['all'], 'value')}, none in plain text")
    return Finding(
        state="warn",
        subject=subject,
        text=f"{row['plain']} of {counted(row['all'], 'value')} {'is' if row['plain'] == 1 else 'are'} in plain text, "
        f"among them of user {', '.join(map(str, [*dict.fromkeys(row['users'])][:3]))}",
        remedy="before SPOTCONN_REQUIRE_ENCRYPTED is set: SPOTCONN_ENCRYPTION_KEYS in every process, then `spotconn "
        "rekey`; once it is set, somebody else has written them: delete these rows, and let the users connect again",
    )


CHECKS: dict[str, Check] = {
    "TLS": _check_tls,
    "server": _check_server_version,
    "encoding": _check_encoding,
    "pooler": _check_pooler,
    "writing": check_writing,
    "schema": check_schema_version,
    "isolation": check_isolation,
    "catalog": check_catalog,
    "grants": _check_grants,
    "changes": check_notifications,
    "clients": check_clients,
    "users": check_users,
    "stored tokens": _check_encryption,
    "clocks": check_clocks,
}
"""The checks by the subject of their findings, in the order of the report; those behind "schema" need it."""
