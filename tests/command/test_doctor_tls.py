"""The doctor's finding about TLS goes by the connection itself, whatever the URL looks like."""

import asyncio
import socket
from urllib.parse import urlsplit

import pytest

from spotconn._command.checks import is_local
from support.database import Database
from support.doctor import look
from support.fault_proxy import FaultProxy


@pytest.fixture
def outward() -> str:
    """An address of this host that is none of loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        try:
            unused.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this host has no other address")
        address: str = unused.getsockname()[0]
    return address


@pytest.mark.parametrize(
    "form", ["postgresql://app:app@{}:{}{}", "postgresql://{2}?user=app&password=app&host={0}&port={1}"]
)
async def test_a_server_elsewhere_is_told_from_one_on_this_host(database: Database, outward: str, form: str) -> None:
    """Also where the host is a parameter of the URL: nothing that crosses the network openly is called local."""
    url = urlsplit(database.dsn)
    async with FaultProxy(database.server.port).serve(outward) as proxy:
        elsewhere = urlsplit(proxy.dsn(database.dsn))
        found = (await look(form.format(outward, elsewhere.port, elsewhere.path)))["TLS"]
    assert (found.state, "openly" in found.text) == ("warn", True)
    found = (await look(form.format("127.0.0.1", url.port, url.path)))["TLS"]
    assert (found.state, found.text) == ("ok", "not needed: the server is on this host")


async def test_the_host_of_the_environment_counts(
    database: Database, outward: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the URL names no host, that of PGHOST is looked at, and none is taken for this one."""
    async with FaultProxy(database.server.port).serve(outward) as proxy:
        elsewhere = urlsplit(proxy.dsn(database.dsn))
        monkeypatch.setenv("PGHOST", outward)
        monkeypatch.setenv("PGPORT", str(elsewhere.port))
        found = (await look(f"postgresql://{elsewhere.path}?user=app&password=app"))["TLS"]
    assert (found.state, "openly" in found.text) == ("warn", True)


async def test_a_name_is_local_where_it_leads_to_this_host(database: Database) -> None:
    """It is looked at where it leads, not how it is spelled."""
    url = urlsplit(database.dsn)
    found = (await look(f"postgresql://app:app@localhost:{url.port}{url.path}"))["TLS"]
    assert (found.state, found.text) == ("ok", "not needed: the server is on this host")


async def test_a_unix_socket_is_local() -> None:
    """It has no address, and another host cannot be at its end; of a transport without a socket nothing is known."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with theirs:
        transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
        assert is_local(transport)
        transport.abort()
        await asyncio.sleep(0)  # the loop closes the socket
    assert not is_local(asyncio.Transport())
