"""Whether the pool, and new connections, lead to the server that a session listens on.

A failover may leave the old primary running, and the sessions there with it. Nothing on such a session is amiss, so
only another one can show that the service writes elsewhere by now. A session of the pool may be as old as the one that
listens; so a new connection is opened now and then, which goes where the way to the database leads today.
"""

import asyncio
from collections.abc import Awaitable
from typing import Any

import asyncpg

from spotconn._database.bound_pool import BoundPool
from spotconn._database.dsn import prepare
from spotconn._database.host_search import prefer_host
from spotconn._database.named_hosts import Host, named_hosts, named_target
from spotconn._database.pool import keywords, open_single
from spotconn._database.statements import SERVER_LIFE
from spotconn._database.subscription import OTHER_SERVER
from spotconn.errors import DatabaseUnavailable

SHORTEST_PERIOD = 5.0
"""Seconds between two new connections at least, whatever the ttl of a cache is."""
_EARLY = 0.99
"""A timer may be early by so much."""
UNKNOWN = "no new connection shows in time that the one that listens for changes leads where they are made"


class ServerCheck:
    """Compares the server that a session listens on with those that the pool and a new connection lead to.

    Args:
        pool: of the same database.
        dsn: where a new connection leads; of several hosts each is asked, and the one promoted last counts.
        options: of `asyncpg.create_pool`; those of a connection are used.
        since: when the session was opened, as a new connection then, by the clock of the event loop.
    """

    def __init__(self, pool: BoundPool, dsn: str, options: dict[str, Any], *, since: float) -> None:
        self._pool = pool
        self._dsn, self._options = prepare(dsn, options)
        self._hosts: tuple[Host, ...] | None = None
        self._pool_seen = self._looked = since

    def age(self, now: float, *, period: float) -> float:
        """Return the seconds since the older of the two last answers, without what a short `period` is spared."""
        return max(0.0, now - self._pool_seen, now - self._looked - max(0.0, SHORTEST_PERIOD - period))

    async def compare(self, life: str, *, period: float) -> float:
        """Return the age in seconds of what is known, 0 where both answer now.

        Args:
            life: of the server that the session listens on.
            period: seconds from one new connection to the next, and the longest age that is returned.

        Raises:
            DatabaseUnavailable: the pool or a new connection leads to another server (OTHER_SERVER), or what is known
                would be older.
        """
        now = asyncio.get_running_loop().time()
        due = now - self._looked >= max(period, SHORTEST_PERIOD) * _EARLY
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(_answer(self._pool.value(SERVER_LIFE)))
            looking = group.create_task(self._look_everywhere(life)) if due else None
        found = looking.result() if looking else None
        pool_life = asking.result()
        if found not in {None, life} or pool_life not in {None, life}:
            raise DatabaseUnavailable(OTHER_SERVER, answered=True)
        # Where all sessions of the pool are in use, the new connection leads where the pool's next one would.
        self._pool_seen = now if pool_life or found else self._pool_seen
        self._looked = now if found else self._looked
        age = self.age(now, period=period)
        if age * _EARLY > period or (due and not found):
            raise DatabaseUnavailable(UNKNOWN)
        return age

    async def _look_everywhere(self, life: str) -> str | None:
        """Return the life of the server that new connections lead to; of several hosts, the one promoted last.

        That one is asked first from then on.
        """
        if self._hosts is None:
            self._hosts = await named_hosts(self._dsn, self._options, keywords(asyncpg.connect))
        hosts = self._hosts
        if len(hosts) < 2:  # noqa: PLR2004  none is named, or one
            return await _answer(self._look({}))
        any_server = {"target_session_attrs": "any"}
        looks = [self._look({"host": host.name, "port": host.port} | any_server) for host in hosts]
        lives = await asyncio.gather(*map(_answer, looks))
        found = _newest([shown for shown in lives if shown], life)
        if found not in {None, life}:
            prefer_host(hosts[lives.index(found)], hosts, named_target(self._dsn, self._options))
        return found

    async def _look(self, place: dict[str, Any]) -> str | None:
        """Return the life of the server that a new connection leads to; None of a standby."""
        seconds = self._pool.timeout
        pool = await open_single(self._dsn, self._options | place, seconds=seconds)
        bound = BoundPool(pool, name="ConnectionStore", timeout=seconds)
        bound.checked = True
        try:
            life: str | None = await bound.value(SERVER_LIFE)
            await bound.close()
        finally:
            bound.terminate()
        return life


def _newest(lives: list[str], life: str) -> str | None:
    """Return the life that was begun by the last promotion; `life` where no other is newer."""
    newest = max(lives, default=None)
    return life if newest and life in lives and _timeline(newest) <= _timeline(life) else newest


def _timeline(life: str) -> str:
    """Return the timeline in hexadecimal digits, as many for each."""
    return life.partition(" ")[0]


async def _answer(asking: Awaitable[str | None]) -> str | None:
    """Return an answer, or None where there is none: that passes, or shows itself where it matters."""
    try:
        return await asking
    except Exception:  # noqa: BLE001  also of the caller's: a callable for the password
        return None
