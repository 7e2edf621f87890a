"""The hosts of a database URL, each by itself."""

from typing import Any
from urllib.parse import parse_qsl, unquote

from spotconn._database.dsn import prepare

_ANY = {"target_session_attrs": "any"}


def single_hosts(dsn: str, options: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return URL and options for each host of a URL, whatever the server there is; for one host both unchanged.

    Args:
        dsn: a postgresql:// URL.
        options: of `asyncpg.create_pool`; their host goes before that of the URL.
    """
    prepared, with_timeout = prepare(dsn, options)
    hosts, ports = _hosts(prepared, with_timeout)
    if len(hosts) < 2:  # noqa: PLR2004  one, or that of the environment
        return [(dsn, options)]
    ports = ports if len(ports) == len(hosts) else ports[:1] * len(hosts)
    plain = {name: value for name, value in with_timeout.items() if name not in {"host", "port"}} | _ANY
    return [
        (prepared, plain | {"host": host} | ({"port": int(port)} if port else {}))
        for host, port in zip(hosts, ports or [None] * len(hosts), strict=True)
    ]


def _hosts(dsn: str, options: dict[str, Any]) -> tuple[list[str], list[Any]]:
    """Return the hosts and their ports, None for the default."""
    parameters = dict(parse_qsl(dsn.partition("?")[2]))
    ports = options.get("port") or parameters.get("port", "").split(",")
    ports = list(ports) if isinstance(ports, list | tuple) else [ports]
    if given := options.get("host"):
        return (list(given) if isinstance(given, list | tuple) else [given]), [port or None for port in ports]
    authority = dsn.partition("://")[2].partition("?")[0].partition("/")[0].rpartition("@")[2]
    if not authority:
        return parameters.get("host", "").split(","), [port or None for port in ports]
    pairs = [_host_and_port(one) for one in authority.split(",")]
    return [host for host, _ in pairs], [port or ports[0] or None for _, port in pairs]


def _host_and_port(text: str) -> tuple[str, str]:
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        return unquote(host), port.removeprefix(":")
    host, _, port = text.partition(":")
    return unquote(host), unquote(port)
