"""HAProxy before the nodes of a cluster: it leads to the one whose Patroni says that it is the primary."""

import signal
from pathlib import Path

from failover.programs import Program, find, free_port, wait_until

# As in docs/how-to/failover.md.
_PRIMARY = """
defaults
    mode tcp
    timeout connect 4s
    timeout client 30m
    timeout server 30m
    timeout check 2s

listen primary
    bind 127.0.0.1:{port}
    option httpchk OPTIONS /primary
    http-check expect status 200
    default-server inter 1s fall 2 rise 1 on-marked-down shutdown-sessions
{servers}
"""
_RELAY = """
defaults
    mode tcp
    retries 0
    timeout connect 2s
    timeout client 30m
    timeout server 30m

listen relay
    bind 127.0.0.1:{port}
    server target 127.0.0.1:{target}
"""


class HAProxy(Program):
    """A running one, which listens on `port`."""

    def __init__(self, folder: Path, settings: str) -> None:
        super().__init__(folder, find("haproxy") or "haproxy", "-db", "-f", str(folder / "settings"))
        self.port = free_port()
        self.write("settings", settings.replace("{port}", str(self.port)).lstrip())

    def start(self) -> None:
        super().start()
        wait_until(lambda: _listens(self.port), "HAProxy does not listen", within=10)

    @property
    def runs(self) -> bool:
        return super().runs and _listens(self.port)

    def finish(self) -> None:
        """Take no new connections; those that are there stay."""
        assert self._process is not None
        self._process.send_signal(signal.SIGUSR1)
        wait_until(lambda: not _listens(self.port), "HAProxy still listens", within=10)


def to_primary(folder: Path, nodes: dict[str, tuple[int, int]]) -> HAProxy:
    """Start one that leads to the primary.

    Args:
        folder: to be created.
        nodes: for each name the port of Postgres and that of Patroni's REST API.
    """
    servers = [f"    server {name} 127.0.0.1:{port} check port {rest}" for name, (port, rest) in nodes.items()]
    return _started(HAProxy(folder, _PRIMARY.replace("{servers}", "\n".join(servers))))


def relay(folder: Path, target: int) -> HAProxy:
    """Start one that only passes on; frozen it is a network that is cut."""
    return _started(HAProxy(folder, _RELAY.replace("{target}", str(target))))


def _started(made: HAProxy) -> HAProxy:
    made.start()
    return made


def _listens(port: int) -> bool:
    return f":{port:04X} 00000000:0000 0A" in Path("/proc/net/tcp").read_text()
