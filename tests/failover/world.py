"""What a run needs of the servers, whichever they are: two, or a cluster behind a proxy and a pooler.

A world is a context manager that starts everything and leaves nothing, also when the run is killed. It serves many
scenarios, one after the other: after each, `heal` brings it back to a primary with its standbys that all stream.

The processes stand for services: they are started once `heal` has returned, and connect by `dsn`. A route, once given,
stays: its address does not change.

Every step returns once its new state is there: a step that changes the primary, once the new one takes a write. What
a real operator or cluster waits for before it promotes is part of the step (`DETECTION` seconds where nobody else
decides). Steps do not block the event loop. A world that cannot do a step leaves it as it is here, and its scenarios
are skipped; `World.can` tells which.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from failover.ways import Way

DETECTION = 3.0
"""Seconds from a fault to the promotion, where the world itself decides; more than `timing.SLOW`, or waits hide it."""


class Missing(Exception):
    """A world lacks programs of the system; the text names them."""


class World(ABC):
    """Servers that replicate.

    Attributes:
        name: in the heading of the table.
        ways: those that lead here. Their logins exist, and the schema and `ways.logins_sql` have been applied.
    """

    name: str
    ways: Sequence[Way]

    @abstractmethod
    def dsn(self, way: Way, login: str) -> str:
        """Return the DSN that a service would have, for one of `way.logins`."""

    def listen_dsn(self, way: Way) -> str | None:  # noqa: ARG002  others need it
        """Return the `listen_dsn` of a service that needs one for notifications; by default None."""
        return None

    @abstractmethod
    def fresh_dsns(self, way: Way) -> Sequence[str]:
        """Return DSNs for `way.fresh`, of one host each: a new connection tries all at once, and one that writes wins.

        Through a proxy or pooler it is that one address; with several hosts it is each of them.
        """

    @abstractmethod
    def primary_dsn(self) -> str:
        """Return the superuser's DSN of the server that takes the writes which last, past proxies and poolers."""

    @abstractmethod
    def server_dsns(self) -> Sequence[str]:
        """Return the superuser's DSN of each server, also of those that are away: sessions are counted there."""

    @abstractmethod
    async def heal(self) -> None:
        """Undo what the last scenario broke: each server streams, no write waits, each route leads to the primary."""

    async def set_synchronous(self, *, on: bool) -> None:
        """Let commits wait for a standby, before a scenario begins; the next primary does where it has one."""
        raise NotImplementedError

    async def switch(self) -> None:
        """Switch over as planned; the old primary comes back as a standby."""
        raise NotImplementedError

    async def kill(self) -> None:
        """Kill the primary, as in a crash; another one takes over."""
        raise NotImplementedError

    async def freeze(self) -> None:
        """Freeze the primary, as a machine that hangs: it accepts connections and says nothing; another takes over."""
        raise NotImplementedError

    async def wake(self, seconds: float) -> None:
        """Freeze the primary, and let it go on after some seconds, when another one has taken over long ago."""
        raise NotImplementedError

    async def isolate(self) -> None:
        """Cut the primary off from what decides who leads: it demotes itself, and another one takes over."""
        raise NotImplementedError

    async def split(self) -> None:
        """Let another take over while the primary goes on, writable, with the sessions that it has.

        It takes no new ones, as one that its peers and proxies no longer reach. Then the sessions of the pools there
        end, and those that listen for changes do not.
        """
        raise NotImplementedError

    async def restart(self) -> None:
        """Restart the primary in its place."""
        raise NotImplementedError

    async def turn_read_only(self) -> None:
        """Let the primary refuse writes (25006) in the sessions that it has, which go on; another one takes over."""
        raise NotImplementedError

    async def demote(self) -> None:
        """Let the primary come back at once as a standby of another, at its address, before routes are turned."""
        raise NotImplementedError

    async def lose_commits(self, seconds: float) -> None:
        """Let nothing be replicated for some seconds, then kill the primary; another takes over without that."""
        raise NotImplementedError

    async def delay_commits(self, seconds: float) -> None:
        """Let every commit wait for a standby that is away for some seconds. The primary stays."""
        raise NotImplementedError

    async def take_away(self, seconds: float) -> None:
        """Stop all servers for some seconds, then start them as they were."""
        raise NotImplementedError

    @classmethod
    def can(cls, step: str) -> bool:
        """Return whether this world has a step."""
        return getattr(cls, step) is not getattr(World, step)
