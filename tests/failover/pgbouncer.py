"""PgBouncer before HAProxy: a pool of sessions in transaction mode that follows the primary."""

from collections.abc import Iterable
from pathlib import Path

from failover.programs import Program, find, free_port, wait_until

# As in docs/how-to/failover.md. By default `server_login_retry` is 15 s: so long nobody is let in once the database is
# back.
_SETTINGS = """
[databases]
* = host=127.0.0.1 port={server_port}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/users
ignore_startup_parameters = extra_float_digits
default_pool_size = 10
max_client_conn = 500
log_connections = 0
log_disconnections = 0
pool_mode = transaction
server_check_delay = 5
server_login_retry = 1
server_connect_timeout = 5
server_lifetime = 600
query_wait_timeout = 10
dns_max_ttl = 5
tcp_keepalive = 1
tcp_keepidle = 5
tcp_keepintvl = 2
tcp_keepcnt = 3
tcp_user_timeout = 10000
"""


class PgBouncer(Program):
    """A running one, which listens on `port`.

    Args:
        folder: to be created.
        server_port: of what is behind it.
        logins: their passwords are their names.
    """

    def __init__(self, folder: Path, server_port: int, logins: Iterable[str]) -> None:
        super().__init__(folder, find("pgbouncer") or "pgbouncer", str(folder / "settings"))
        self.port = free_port()
        self.write("settings", _SETTINGS.format(server_port=server_port, port=self.port, folder=folder).lstrip())
        self.write("users", "".join(f'"{login}" "{login}"\n' for login in logins))

    def start(self) -> None:
        super().start()
        wait_until(lambda: "process up" in self.log.read_text(), "PgBouncer is not up", within=10)
