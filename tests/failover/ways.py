"""Ways of connecting a service to a database that fails over; each with logins and users of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

from support.database import scram_secret


@dataclass(frozen=True)
class Way:
    """A way of connecting.

    Attributes:
        name: in the table, and in the names of the logins.
        route: what the DSN leads to, which a world knows: "hosts", "proxy" or "pooler", or others of its own.
        parameters: of the DSN, such as "target_session_attrs=read-write".
        uvloop: the event loop of the processes.
        long: left out of the short form.
    """

    name: str
    route: str
    parameters: str = ""
    uvloop: bool = False
    long: bool = False

    @property
    def client(self) -> str:
        """Of the library."""
        return f"client_{self._login}"

    @property
    def pool(self) -> str:
        """Of the bare asyncpg pool beside it."""
        return f"pool_{self._login}"

    @property
    def fresh(self) -> str:
        """Of a new connection for each write; ways with one route have one in common."""
        return f"fresh_{self.route}"

    @property
    def logins(self) -> tuple[str, str, str]:
        """Roles that may log in with their name as the password."""
        return self.client, self.pool, self.fresh

    @property
    def _login(self) -> str:
        return self.name.replace("-", "_").replace(" ", "_")


HOSTS = Way("hosts", "hosts")
READ_WRITE = Way("read-write", "hosts", "target_session_attrs=read-write", long=True)
UVLOOP = Way("uvloop", "hosts", uvloop=True, long=True)
PROXY = Way("proxy", "proxy")
POOLER = Way("pgbouncer", "pooler")

TWO_SERVERS = (HOSTS, READ_WRITE, UVLOOP, PROXY, POOLER)
"""Those that a world of two servers has."""


# Tokens of a run end after seconds; Spotify's live an hour, and are no longer young when they are refreshed.
_NOT_YOUNG = (
    """
    create function failover.age() returns trigger language plpgsql as $$
    begin
        new.granted_at := least(new.granted_at, clock_timestamp() - interval '1 minute');
        return new;
    end
    $$
    """,
    """
    create trigger age before insert or update on spotconn.refresh_state
    for each row when (new.granted_at is not null) execute function failover.age()
    """,
)


def logins_sql(ways: Sequence[Way]) -> list[str]:
    """Return statements that make the logins and the table that they write, for the superuser, after the schema."""
    logins = sorted({login for way in ways for login in way.logins})
    return [
        "create schema failover",
        "create table failover.written (at timestamptz not null default clock_timestamp(), writer text not null)",
        *_NOT_YOUNG,
        *(f"create role {login} login password '{scram_secret(login)}'" for login in logins),
        f"grant usage on schema failover to {', '.join(logins)}",
        f"grant insert on failover.written to {', '.join(logins)}",
        f"grant spotconn to {', '.join(way.client for way in ways)}",
    ]
