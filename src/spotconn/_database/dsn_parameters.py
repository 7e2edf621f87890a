"""Parameters of database URLs that asyncpg does not know: it would send them to the server, which refuses them."""

from typing import NamedTuple


class Condition(NamedTuple):
    """When a parameter does no harm.

    Attributes:
        harmless: values with which it asks for nothing that asyncpg does not do.
        otherwise: what to do with any other value.
    """

    harmless: frozenset[str]
    otherwise: str


_PRISMA = "Prisma's: leave it out"
_JDBC = "JDBC's: leave it out"
_SQLALCHEMY = "SQLAlchemy's: leave it out"

FOREIGN: dict[str, str] = {
    "pgbouncer": f"{_PRISMA} (a pooler is found without it)",
    "connection_limit": f"{_PRISMA}, and pass max_size or set SPOTCONN_MAX_SIZE",
    "pool_timeout": f"{_PRISMA}, and pass timeout or set SPOTCONN_TIMEOUT",
    "socket_timeout": f"{_PRISMA}, and pass timeout or set SPOTCONN_TIMEOUT",
    "statement_cache_size": f"{_PRISMA}, and pass statement_cache_size as an argument",
    "schema": f"{_PRISMA} (the library names its schemas)",
    "sslaccept": f"{_PRISMA}, and write sslmode",
    "sslidentity": f"{_PRISMA}, and write sslcert and sslkey",
    "currentSchema": f"{_JDBC} (the library names its schemas)",
    "prepareThreshold": _JDBC,
    "loggerLevel": _JDBC,
    "socketTimeout": f"{_JDBC}, and pass timeout or set SPOTCONN_TIMEOUT",
    "loginTimeout": f"{_JDBC}, and write connect_timeout",
    "connectTimeout": f"{_JDBC}, and write connect_timeout",
    "ApplicationName": "JDBC's: write application_name",
    "sslfactory": f"{_JDBC}, and write sslmode",
    "ssl": "of JDBC and node-postgres: write sslmode=require, or sslmode=verify-full and sslrootcert",
    "uselibpqcompat": "node-postgres's: leave it out",
    "pool_size": f"{_SQLALCHEMY}, and pass max_size or set SPOTCONN_MAX_SIZE",
    "max_overflow": f"{_SQLALCHEMY}, and pass max_size or set SPOTCONN_MAX_SIZE",
    "async_fallback": _SQLALCHEMY,
    "prepared_statement_cache_size": f"{_SQLALCHEMY}, and pass statement_cache_size as an argument",
    "min_size": "no parameter of a URL: pass min_size or set SPOTCONN_MIN_SIZE",
    "max_size": "no parameter of a URL: pass max_size or set SPOTCONN_MAX_SIZE",
    "command_timeout": "no parameter of a URL: pass timeout or set SPOTCONN_TIMEOUT",
    "hostaddr": "of libpq alone: write the address as the host",
    "require_auth": "of libpq alone: leave it out, and write sslmode=verify-full",
    "requirepeer": "of libpq alone: leave it out",
    "requiressl": "of an old libpq: write sslmode=require",
    "sslcertmode": "of libpq alone: leave it out",
    "sslcrldir": "of libpq alone: write sslcrl with one file",
    "min_protocol_version": "of libpq alone: leave it out",
    "max_protocol_version": "of libpq alone: leave it out",
    "replication": "for replication: leave it out",
}
"""By name, whose it is and what to do."""

IGNORED = frozenset(
    {
        "keepalives",
        "keepalives_idle",
        "keepalives_interval",
        "keepalives_count",
        "tcp_user_timeout",
        "fallback_application_name",
        "sslcompression",
        "sslsni",
        "supa",
    }
)
"""Left out: each await of the library has a bound of its own, and the others change nothing that it does."""

IGNORED_IF: dict[str, Condition] = {
    "channel_binding": Condition(
        frozenset({"prefer", "disable"}),
        "asyncpg cannot give: leave it out, and write sslmode=verify-full, which proves the server",
    ),
    "gssencmode": Condition(frozenset({"prefer", "disable"}), "asyncpg cannot give: leave it out, and write sslmode"),
    "client_encoding": Condition(
        frozenset({"utf8", "utf-8", "unicode", "auto"}), "the library cannot use: leave it out, it needs UTF8"
    ),
    "load_balance_hosts": Condition(frozenset({"disable"}), "asyncpg cannot give: leave it out"),
}
"""Left out if the value is harmless."""
