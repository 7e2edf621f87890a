"""The hosts that a database URL, an option or a variable PG... names, as asyncpg reads them."""

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn
from urllib.parse import parse_qsl, urlsplit

import asyncpg


class Host(NamedTuple):
    """One of the hosts.

    Attributes:
        name: a name, an address, or the path of a Unix socket.
        port: of the server.
    """

    name: str
    port: int


class _Recorder:
    """An event loop that records where asyncpg would connect to, and connects to nothing.

    Args:
        loop: does everything else.

    Attributes:
        hosts: in the order in which asyncpg asks them.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.hosts: list[Host] = []

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the loop itself."""
        return getattr(self._loop, name)

    async def create_connection(self, _factory: object, host: str, port: int, **_options: object) -> NoReturn:
        """Record a host, and refuse as one does that does not listen."""
        self._refuse(Host(host, port))

    async def create_unix_connection(self, _factory: object, path: str, **_options: object) -> NoReturn:
        """Record a socket, whose name ends with the port, and refuse as one does that does not listen."""
        port = path.rpartition(".")[2]
        self._refuse(Host(path, int(port) if port.isdecimal() else 0))

    def _refuse(self, host: Host) -> NoReturn:
        if host not in self.hosts:
            self.hosts.append(host)
        raise ConnectionRefusedError


async def named_hosts(dsn: str, options: Mapping[str, Any], known: set[str]) -> tuple[Host, ...]:
    """Return the hosts that asyncpg would ask, in their order; none where none is named, or something is malformed.

    asyncpg reads the URL, the options, the variables and the file of a service by itself: its rules are many and
    differ between its versions.

    Args:
        dsn: a postgresql:// URL.
        options: of `asyncpg.create_pool`.
        known: the names of those that `asyncpg.connect` takes.
    """
    if not _names_host(dsn, options):
        return ()
    recorder = _Recorder(asyncio.get_running_loop())
    plain: dict[str, Any] = {name: value for name, value in options.items() if name in known}
    # The password is not used, and a callable of the caller's is not called for it. What is malformed is found again
    # by the pool.
    plain |= {"loop": recorder, "password": "unused"}
    with suppress(Exception):
        await asyncpg.connect(dsn, **plain)
    return tuple(recorder.hosts)


def named_target(dsn: str, options: Mapping[str, Any]) -> str | None:
    """Return the target_session_attrs that is set somewhere, "" where only the file of a service may set it."""
    parameters = _parameters(dsn)
    name = "target_session_attrs"
    found = options.get(name) or parameters.get(name)
    if found:
        return str(getattr(found, "value", found))
    return "" if _service(parameters, options) else os.environ.get("PGTARGETSESSIONATTRS")


def _names_host(dsn: str, options: Mapping[str, Any]) -> bool:
    parameters = _parameters(dsn)
    in_url = urlsplit(dsn).netloc.rpartition("@")[2] or parameters.get("host")
    return bool(options.get("host") or in_url or _service(parameters, options) or os.environ.get("PGHOST"))


def _service(parameters: Mapping[str, str], options: Mapping[str, Any]) -> object:
    return options.get("service") or parameters.get("service") or os.environ.get("PGSERVICE")


def _parameters(dsn: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(dsn).query))
