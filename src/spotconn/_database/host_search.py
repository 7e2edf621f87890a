"""Search the hosts of a database URL for one that serves, all of them within one time to connect.

asyncpg asks one after the other: one that hangs takes all of that time, and an answer that refuses may end its search.
Here the next host is asked as soon as one has refused, or after a short delay, in the manner of RFC 8305 (Happy
Eyeballs), section 5. So are the addresses of one name: one of them may accept connections, and be frozen.
"""

import asyncio
import socket
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import lru_cache
from ipaddress import ip_address
from typing import Any

import asyncpg

from spotconn._database.errors import library_error
from spotconn._database.named_hosts import Host
from spotconn._database.protected_loop import Connect
from spotconn._database.unreachable import DRIVER_ERRORS, is_unknown_host, is_without_listener
from spotconn.errors import ConfigurationError, DatabaseUnavailable, SpotconnError

DELAY = 0.5
"""Seconds until the next host is asked while one has not answered: well over the time of a login."""
ADDRESS_DELAY = 1.0
"""The same of the addresses of one name: those of a provider lead to one database, and a login may wake it."""
RETRY_DELAY = 1.0
"""Seconds until the hosts that have refused are asked again, while another one has not answered."""
STOP_TIMEOUT = 1.0
"""Seconds to wait for the end of a login that was cancelled."""
_SHARE = 0.9
"""Of the time to connect: a little before its end, where the pool would end the search without what the hosts say."""
_LATER = "; try again later"

Ask = Callable[[Host, str | None], Coroutine[Any, Any, asyncpg.Connection]]
"""Log in at a host, if it matches a target_session_attrs."""


def search_hosts(connect: Connect, hosts: Sequence[Host], target: str | None, *, seconds: float) -> Connect:
    """Return a function like `asyncpg.connect` for the option `connect` of a pool, which connects to one of the hosts.

    Args:
        connect: connects to one address of one host, as `protected` does.
        hosts: in the order of the database URL.
        target: target_session_attrs; None for read-write where there are several hosts, "" for what asyncpg finds in
            the file of a service.
        seconds: for the search, all hosts together.
    """

    async def connect_to_only(*args: Any, **options: Any) -> asyncpg.Connection:
        return await _connect_to(hosts[0], connect, args, options, seconds=_share(options, seconds))

    if len(hosts) == 1:
        return connect_to_only
    if target is None:
        target = "read-write"  # the library writes
    order = _order(tuple(hosts), target)

    async def connect_to_one(*args: Any, **options: Any) -> asyncpg.Connection:
        share = _share(options, seconds)

        async def ask(host: Host, wanted: str | None) -> asyncpg.Connection:
            place = {"host": host.name, "port": host.port, "target_session_attrs": wanted}
            return await _connect_to(host, connect, args, options | place, seconds=share)

        host, connection = await _Search(ask, hosts, target, seconds=share).run(order.hosts)
        order.move_to_front(host)
        return connection

    return connect_to_one


def _share(options: dict[str, Any], seconds: float) -> float:
    return min(options.get("timeout") or seconds, seconds) * _SHARE


async def _connect_to(
    host: Host, connect: Connect, args: tuple[Any, ...], options: dict[str, Any], *, seconds: float
) -> asyncpg.Connection:
    """Connect to a host; where its name has several addresses, to one that serves."""
    addresses = await _addresses(host)

    async def ask(address: Host, _target: str | None) -> asyncpg.Connection:
        return await connect(*args, **options, addresses={host.name: address.name})

    if len(addresses) == 1:
        return await ask(addresses[0], None)
    order = _order(addresses, "")
    search = _Search(ask, addresses, "", seconds=seconds, of_one_name=True)
    address, connection = await search.run(order.hosts)
    order.move_to_front(address)
    return connection


async def _addresses(host: Host) -> tuple[Host, ...]:
    """Return the addresses of a host, each as a host; a Unix socket, or what is an address, as it is."""
    if host.name.startswith("/"):
        return (host,)
    with suppress(ValueError):
        ip_address(host.name)
        return (host,)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host.name, host.port, type=socket.SOCK_STREAM)
    except OSError:  # the driver finds the same, and a `connect` of the caller's may need no address of this name
        return (host,)
    return tuple(dict.fromkeys(Host(str(info[4][0]), host.port) for info in found))


def prefer_host(host: Host, hosts: Sequence[Host], target: str | None) -> None:
    """Let searches among these hosts, with this target_session_attrs, begin with one of them."""
    _order(tuple(hosts), "read-write" if target is None else target).move_to_front(host)


class _Order:
    """The hosts, the one that has served last first.

    Args:
        hosts: in the order of the database URL.

    Attributes:
        hosts: in the order in which to ask.
    """

    def __init__(self, hosts: tuple[Host, ...]) -> None:
        self._named = hosts
        self.hosts = hosts

    def move_to_front(self, host: Host) -> None:
        """Ask this one first from now on."""
        self.hosts = (host, *(other for other in self._named if other != host))


@lru_cache(maxsize=64)
def _order(hosts: tuple[Host, ...], _target: str) -> _Order:
    """Return the order that all pools of this process have for the same hosts: of a store, and of its listener."""
    return _Order(hosts)


class _Search:
    """One search.

    Args:
        ask: as `Ask`.
        named: the hosts in the order of the database URL, which gives their numbers in errors.
        target: target_session_attrs.
        seconds: for all of it.
        of_one_name: whether the hosts are the addresses of one name.
    """

    def __init__(
        self, ask: Ask, named: Sequence[Host], target: str, *, seconds: float, of_one_name: bool = False
    ) -> None:
        self._ask = ask
        self._of_one_name = of_one_name
        self._named = named
        # asyncpg's own prefer-standby takes the only host that it has, whatever that is.
        self._targets = ("standby", "any") if target == "prefer-standby" else (target or None,)
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.time() + seconds
        self._delay = min(ADDRESS_DELAY if of_one_name else DELAY, seconds / (2 * len(named)))
        self._logins: dict[asyncio.Task[asyncpg.Connection], Host] = {}
        self._refusals: dict[Host, Exception] = {}

    async def run(self, hosts: Sequence[Host]) -> tuple[Host, asyncpg.Connection]:
        """Return the first host that serves with a connection to it, and close all others.

        Args:
            hosts: in the order in which to ask.

        Raises:
            DatabaseUnavailable: none serves now; the text has what each of several has answered.
            ConfigurationError: all refuse for a setting.
            TimeoutError: none has answered.
            OSError: the name service knows none of them.
        """
        try:
            found = await self._search(hosts)
        except BaseException:
            await self._stop()
            raise
        try:
            await self._stop()
        except BaseException:
            found[1].terminate()
            raise
        return found

    async def _search(self, hosts: Sequence[Host]) -> tuple[Host, asyncpg.Connection]:
        while True:
            for target in self._targets:
                if found := await self._round(hosts, target):
                    return found
            if self._logins and (found := await self._next(RETRY_DELAY)):
                return found
            if not self._logins or self._remaining() <= 0:
                raise self._failure()

    async def _round(self, hosts: Sequence[Host], target: str | None) -> tuple[Host, asyncpg.Connection] | None:
        """Ask each host that is not being asked, one soon after the other."""
        for host in hosts:
            if host in self._logins.values() or self._is_of_setting(host) or self._remaining() <= 0:
                continue
            self._logins[self._loop.create_task(self._ask(host, target))] = host
            if found := await self._next(self._delay):
                return found
        return None

    async def _next(self, seconds: float) -> tuple[Host, asyncpg.Connection] | None:
        """Return the first host that serves; None once one has refused, or after some seconds."""
        seconds = max(min(seconds, self._remaining()), 0)
        await asyncio.wait(self._logins, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in [task for task in self._logins if task.done()]:
            host = self._logins.pop(task)
            refusal = task.exception()
            if refusal is None:
                return host, task.result()
            if not isinstance(refusal, (SpotconnError, *DRIVER_ERRORS)):
                raise refusal
            self._refusals[host] = refusal
        return None

    def _remaining(self) -> float:
        return self._end - self._loop.time()

    def _is_of_setting(self, host: Host) -> bool:
        """Return whether a host has refused for a setting, which no second login would mend."""
        return host in self._refusals and isinstance(_mapped(self._refusals[host]), ConfigurationError)

    async def _stop(self) -> None:
        """Cancel the logins that are under way, and close what they have opened."""
        for task in self._logins:
            task.cancel()
            task.add_done_callback(_close)
        if self._logins:
            await asyncio.wait(self._logins, timeout=STOP_TIMEOUT)

    def _failure(self) -> Exception:
        hanging = set(self._logins.values())
        refusals = [TimeoutError() if host in hanging else self._refusals[host] for host in self._named]
        if all(isinstance(refusal, TimeoutError) or is_unknown_host(refusal) for refusal in refusals):
            return refusals[-1]
        if self._of_one_name:  # a server rarely listens on all addresses of its name: ::1 beside 127.0.0.1
            refusals = [refusal for refusal in refusals if not is_without_listener(refusal)] or refusals
        errors = [_mapped(refusal) for refusal in refusals]
        if len(set(map(str, errors))) == 1:
            return errors[0]
        kind, of = ("address", "host") if self._of_one_name else ("host", "database URL")
        said = "; ".join(
            f"{kind} {number}: {str(error).removesuffix(_LATER)}" for number, error in enumerate(errors, 1)
        )
        text = f"no {kind} of the {of} serves: {said}"
        if all(isinstance(error, ConfigurationError) for error in errors):
            return ConfigurationError(text)
        return DatabaseUnavailable(text + _LATER, answered=any(getattr(error, "answered", True) for error in errors))


def _mapped(refusal: Exception) -> Exception:
    """Return the error of the library for what a login has raised."""
    if isinstance(refusal, asyncpg.TargetServerAttributeNotMatched):
        return DatabaseUnavailable(
            "the server does not match target_session_attrs, as a standby, or one that is read-only, does not match "
            "read-write; try again later",
            answered=True,
        )
    return refusal if isinstance(refusal, SpotconnError) else library_error(refusal)


def _close(task: "asyncio.Task[asyncpg.Connection]") -> None:
    """Close the connection of a login that has succeeded too late."""
    if not task.cancelled() and task.exception() is None:
        task.result().terminate()
