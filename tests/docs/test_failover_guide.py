"""The guide on failover: each URL of it opens a store, and its settings are ones that the programs know.

The hosts are a port of loopback: a server, or a PgBouncer with the settings of the guide, with TLS before it. Where the
guide names several hosts, the first one refuses, as a primary that is gone.
"""

import re
import shutil
import socket
import subprocess
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import asyncpg
import pytest
from markdown_it import MarkdownIt

from spotconn import ConnectionStore
from spotconn._database.dsn import check_dsn
from spotconn._tokens.cache import ConnectionCache
from support.database import Database
from support.guide import GUIDES, sql_blocks
from support.pgbouncer import pgbouncer
from support.tls import certificate, tls_front

PAGE = (GUIDES / "failover.md").read_text(encoding="utf-8")
POOLERS = {":6432/": "transaction", ":6543/": "transaction", "-pooler.": "transaction", ".proxy-": "transaction"}
"""What marks a URL of a pooler, and the mode of it."""
SESSION_POOLER = "pooler.supabase.com:5432/"
_URL = re.compile(r"postgresql://(?P<user>[^:]+):…@(?P<hosts>[^/]+)/(?P<name>\w+)\?(?P<query>\S+)")


class Setting(NamedTuple):
    """A database URL of the guide, and the one to listen at, if it has one."""

    url: str
    listen_url: str | None

    @property
    def mode(self) -> str | None:
        """The mode of the pooler that it names; None where it leads to the server."""
        return mode_of(self.url)


def mode_of(url: str) -> str | None:
    if SESSION_POOLER in url:
        return "session"
    return next((mode for mark, mode in POOLERS.items() if mark in url), None)


def settings() -> Iterator[Setting]:
    """Yield what the blocks of the guide set, one for each DATABASE_URL."""
    lines = re.findall(r"^(DATABASE_URL|SPOTCONN_LISTEN_URL)=(\S+)$", PAGE, re.MULTILINE)
    for (name, url), (next_name, next_url) in zip(lines, [*lines[1:], ("", "")], strict=True):
        if name == "DATABASE_URL":
            yield Setting(url, next_url if next_name == "SPOTCONN_LISTEN_URL" else None)


SETTINGS = [*settings()]


def block_after(heading: str, language: str, start: str) -> str:
    """The first block of a language under a heading that begins with `start`."""
    _, found, rest = PAGE.partition(f"\n## {heading}\n")
    assert found
    for token in MarkdownIt().parse(rest):
        if token.type == "fence" and token.info == language and token.content.startswith(start):
            return token.content
    raise AssertionError(f"no such block under {heading}")


def of_pgbouncer() -> str:
    """The settings of the section [pgbouncer], without the mode."""
    _, _, section = block_after("PgBouncer", "ini", "[databases]").partition("[pgbouncer]\n")
    return section.replace("pool_mode = transaction\n", "")


def test_each_setup_has_a_url() -> None:
    """Each setup in the table at the top has a section with a URL."""
    places = set(re.findall(r"\]\(#([\w-]+)\)", PAGE.partition("\n## ")[0]))
    sections = re.findall(r"^## (.*?)$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    with_urls = {heading.lower().replace(" ", "-") for heading, text in sections if "\nDATABASE_URL=" in text}
    assert len(places) == 7
    assert places == with_urls


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of loopback."""
    return certificate(tmp_path_factory.mktemp("tls"))


@contextmanager
def refusing_port() -> Generator[int]:
    """Give a port at which nothing listens, and that nobody else gets."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@asynccontextmanager
async def on_loopback(url: str, database: Database, pem: Path) -> AsyncGenerator[str]:
    """Give a URL of the guide that leads to the server of the tests, or to a PgBouncer before it."""
    found = _URL.fullmatch(url)
    assert found, url
    async with AsyncExitStack() as stack:
        port = database.server.port
        if mode := mode_of(url):
            port = stack.enter_context(pgbouncer(port, mode=mode, more=of_pgbouncer())).port
        front = await stack.enter_async_context(tls_front(port, pem))
        hosts = [stack.enter_context(refusing_port()) for _ in found["hosts"].split(",")[1:]]
        query = re.sub("sslrootcert=[^&]+", f"sslrootcert={pem}", found["query"])
        named = ",".join(f"127.0.0.1:{port}" for port in [*hosts, front])
        yield f"postgresql://app:app@{named}/spotconn?{query}&sslnegotiation=direct"


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.url.partition("@")[2].partition("/")[0])
def test_each_url_is_one_that_the_library_takes(setting: Setting, pem: Path) -> None:
    """As it stands there, but for the file of the certificate; and each verifies the server."""
    for url in filter(None, setting):
        assert "sslmode=verify-full" in url
        check_dsn(re.sub("sslrootcert=/[^&]+", f"sslrootcert={pem}", url))


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.url.partition("@")[2].partition("/")[0])
async def test_each_url_opens_a_store(setting: Setting, database: Database, pem: Path) -> None:
    """It listens where the guide says so: at the server itself, or at the second URL."""
    async with AsyncExitStack() as stack:
        dsn = await stack.enter_async_context(on_loopback(setting.url, database, pem))
        listen_dsn = setting.listen_url and await stack.enter_async_context(
            on_loopback(setting.listen_url, database, pem)
        )
        store = await stack.enter_async_context(ConnectionStore.open(dsn, listen_dsn=listen_dsn))
        if setting.mode is not None and setting.listen_url is None:
            assert store.changes is None
            return
        assert store.changes is not None
        subscription = await stack.enter_async_context(store.changes.subscribe(ConnectionCache(ttl=1, size=1)))
        await subscription.heartbeat()


def test_haproxy_takes_the_settings(tmp_path: Path) -> None:
    """HAProxy finds no fault in them."""
    program = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if program is None:
        pytest.skip("no HAProxy on this system (Debian: apt-get install haproxy)")
    (tmp_path / "haproxy.cfg").write_text(block_after("Patroni behind HAProxy", "text", "defaults"))
    command = [program, "-c", "-f", str(tmp_path / "haproxy.cfg")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 0, done.stdout + done.stderr


async def test_a_login_takes_the_settings(admin: asyncpg.Connection) -> None:
    """Those of a role, in their order, and the one of a session in read-only mode."""
    in_session, of_role = sql_blocks("failover.md")
    transaction = admin.transaction()
    await transaction.start()
    await admin.execute("create role my_service")
    await admin.execute(of_role)
    settings: list[str] = await admin.fetchval("select rolconfig from pg_roles where rolname = 'my_service'")
    await transaction.rollback()
    assert len(settings) == of_role.count("set ")
    await admin.execute(f"set default_transaction_read_only = on; {in_session}")
    assert await admin.fetchval("show default_transaction_read_only") == "off"
