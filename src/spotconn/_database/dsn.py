"""Database URLs, read before the driver does: what is wrong in one is named, and no part of it is repeated."""

import re
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote

from spotconn._database.dsn_parameters import FOREIGN, IGNORED, IGNORED_IF
from spotconn._database.tls_files import check_tls
from spotconn.errors import ConfigurationError

_FORM = "expected postgresql://user:password@host:port/database"
_ESCAPES = "percent-encode it (@ is %40, / is %2F, # is %23, ? is %3F, % is %25, [ is %5B, ] is %5D)"
_OTHER_SCHEMES = {
    "jdbc:": "jdbc: is Java's: leave it out, and write user and password before the host",
    "postgresql+": "the scheme is SQLAlchemy's: write postgresql://",
    "postgres+": "the scheme is SQLAlchemy's: write postgresql://",
    "prisma": "the scheme is Prisma's own service: write the URL of the database itself, postgresql://",
    "psql": "it begins with psql: leave that and the quotation marks out",
    "'": "leave the quotation marks out",
    '"': "leave the quotation marks out",
}


_ASYNCPG = re.compile(r"postgresql\+asyncpg://", re.IGNORECASE)
_OPTIONS_OF_SQLALCHEMY = frozenset({"async_fallback", "prepared_statement_cache_size", "prepared_statement_name_func"})


class _Parts(NamedTuple):
    """A URL in parts, as they stand there."""

    user: str
    hosts: str
    path: str
    query: str


def check_dsn(dsn: str, options: dict[str, Any] | None = None, *, name: str = "the database URL") -> None:
    """Raise ConfigurationError if a URL cannot be meant as it stands; the text names the part and the remedy.

    Args:
        dsn: a postgresql:// URL, or SQLAlchemy's postgresql+asyncpg://.
        options: of `asyncpg.create_pool`, which go before its parameters.
        name: of the variable that holds it.
    """
    problem = _problem(dsn, options or {})
    if problem:
        raise ConfigurationError(f"{name} cannot be used: {problem}")


def prepare(dsn: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return a URL without the parameters that asyncpg does not know, and the options that take their place.

    Args:
        dsn: as `check_dsn`.
        options: of `asyncpg.create_pool`.

    Raises:
        ConfigurationError: as `check_dsn`.
    """
    check_dsn(dsn, options)
    head, _, query = _without_driver(dsn.strip()).partition("?")
    fields = query.split("&") if query else []
    parameters = dict(parse_qsl(query))
    fields = [field for field in fields if not _is_left_out(field)]
    timeout = int(parameters.get("connect_timeout", 0))
    if timeout > 0:
        options = {"timeout": timeout} | options
    return head + ("?" + "&".join(fields) if fields else ""), options


def _without_driver(dsn: str) -> str:
    """Return SQLAlchemy's URL for asyncpg as a postgresql:// URL: its `ssl` is sslmode, and its own options go."""
    if not _ASYNCPG.match(dsn):
        return dsn
    head, mark, query = _ASYNCPG.sub("postgresql://", dsn, count=1).partition("?")
    fields = [
        f"sslmode={value}" if name == "ssl" else f"{name}{equals}{value}"
        for name, equals, value in (field.partition("=") for field in query.split("&"))
        if name not in _OPTIONS_OF_SQLALCHEMY
    ]
    return f"{head}{mark if any(fields) else ''}{'&'.join(fields)}"


def _is_left_out(field: str) -> bool:
    name = unquote(field.partition("=")[0])
    return name in IGNORED or name in IGNORED_IF or name == "connect_timeout"


def _problem(dsn: object, options: dict[str, Any]) -> str | None:
    """Return what is wrong with a URL and what to do, None if nothing is."""
    if not isinstance(dsn, str):
        return _FORM
    parts = _parts(_without_driver(dsn.strip()))
    if isinstance(parts, str):
        return parts
    fields = parts.query.split("&") if parts.query else []
    if not all("=" in field for field in fields):
        return "its parameters are not of the form name=value, joined by &"
    parameters = dict(parse_qsl(parts.query))
    return _host_problem(parts, parameters) or _parameter_problem(parameters) or check_tls(parameters, options)


def _parts(dsn: str) -> _Parts | str:
    """Return the parts of a URL, or what is wrong with them."""
    scheme, mark, rest = dsn.partition("://")
    if not mark or scheme.lower() not in {"postgresql", "postgres"}:
        return next((problem for start, problem in _OTHER_SCHEMES.items() if dsn.lower().startswith(start)), _FORM)
    if not dsn.isprintable():
        return "it holds a line break, or another character that cannot be printed: leave it out"
    if "#" in rest:
        return f"the password, or the user, holds an unescaped #: {_ESCAPES}"
    authority, mark, query = rest.partition("?")
    authority, slash, path = authority.partition("/")
    *users, hosts = authority.split("@")
    user = users[0] if users else ""
    unescaped = {
        "@": len(users) > 1,
        "/": "@" in path and (not users or not hosts),
        "?": not users and bool(mark) and "@" in query and _is_of_password(hosts, query, slash),
        "bracket": re.search(r"[\[\]]", user) is not None,
    }
    for character, is_there in unescaped.items():
        if is_there:
            return f"the password, or the user, holds an unescaped {character}: {_ESCAPES}"
    return _Parts(user, hosts, path, query)


def _is_of_password(hosts: str, query: str, slash: str) -> bool:
    """Return whether what seems to begin the parameters belongs to a password, with the host after it."""
    _, colon, port = hosts.rpartition(":")
    return "=" not in query.partition("@")[0] or (bool(colon) and not slash and not port.isdigit())


def _host_problem(parts: _Parts, parameters: dict[str, str]) -> str | None:
    if parts.hosts:
        return next((found for one in parts.hosts.split(",") if (found := _one_host_problem(one))), None)
    return _ports_problem(parameters["port"].split(",")) if "port" in parameters else None


def _one_host_problem(host: str) -> str | None:
    if host.startswith("["):
        found = re.fullmatch(r"\[[0-9A-Fa-f:.%\w]+\](?::(.+))?", host)
        return _ports_problem([found[1]] if found[1] else []) if found else "an IPv6 address in it is malformed"
    address, colon, port = host.rpartition(":")
    if not colon:
        address = port
    if not address:
        return f"a host in it is empty; {_FORM}"
    if ":" in address:
        return f"it has a host with several colons: write an IPv6 address in brackets, [::1]; {_FORM}"
    return _ports_problem([unquote(port)]) if colon and port else None


def _ports_problem(ports: list[str]) -> str | None:
    if all(port.isascii() and port.isdigit() and 0 < int(port[:6]) < 2**16 for port in ports):
        return None
    return f"the port is no number from 1 to 65535, or the @ before the host is missing; {_FORM}"


def _parameter_problem(parameters: dict[str, str]) -> str | None:
    for name, value in parameters.items():
        if name in FOREIGN:
            return f"the parameter {name} is {FOREIGN[name]}"
        if name in IGNORED_IF and value.lower() not in IGNORED_IF[name].harmless:
            return f"the parameter {name} has a value that {IGNORED_IF[name].otherwise}"
    timeout = parameters.get("connect_timeout", "0")
    if not re.fullmatch(r"-?\d{1,9}", timeout, re.ASCII):
        return "the parameter connect_timeout is no whole number of seconds"
    return None
