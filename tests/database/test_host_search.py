"""Several hosts in a database URL: whatever one of them says, the one that serves is found within one timeout."""

import asyncio
import gc
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, ClassVar

import asyncpg
import pytest

from spotconn import ConfigurationError, ConnectionAdmin, ConnectionStore, DatabaseUnavailable
from spotconn._database import host_search
from spotconn._database.pool import close_pool, open_pool, open_single
from spotconn.testing import EmbeddedPostgres
from support.database import Database, scram_secret
from support.hosts import Listener, closed_port, dropping_port, frozen, refusal
from support.tls import certificate, tls_front

TIMEOUT = 10.0
SOON = 7.0
"""Well under the time that a host which hangs would take, for a machine that is busy."""


@pytest.fixture(autouse=True)
def _without_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HOST", "PORT", "SSLMODE", "SSLROOTCERT", "TARGETSESSIONATTRS", "SERVICE", "PASSFILE"):
        monkeypatch.delenv(f"PG{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    host_search._order.cache_clear()


@pytest.fixture(scope="module")
def second(request: pytest.FixtureRequest) -> Iterator[EmbeddedPostgres]:
    """Another server, with a login for each way not to serve."""
    roles = {
        "app": "login",
        "standby": "login",  # by a setting, as of a server that was demoted
        "nologin": "nologin",
        "limited": "login connection limit 0",
    }

    async def prepare(server: EmbeddedPostgres) -> None:
        admin = await asyncpg.connect(server.dsn())
        await admin.execute("create database spotconn")
        for name, attributes in roles.items():
            await admin.execute(f"create role {name} {attributes} password '{scram_secret(name)}'")
        await admin.execute("alter role standby set default_transaction_read_only = on")
        await admin.close()

    with EmbeddedPostgres() as server:
        asyncio.run(prepare(server))
        yield server


@pytest.fixture
async def logins(admin: asyncpg.Connection) -> AsyncIterator[None]:
    """The same logins on the first server, where each of them may do all."""
    names = ("standby", "nologin", "limited", "unknown")
    for name in names:
        await admin.execute(f"create role {name} login password '{scram_secret(name)}'")
    yield
    for name in names:
        await admin.execute(f"drop role {name}")


def dsn_of(*ports: int, login: str = "app", password: str | None = None, parameters: str = "") -> str:
    """The DSN of the database on several ports of loopback."""
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    return f"postgresql://{login}:{password or login}@{hosts}/spotconn{parameters}"


async def port_of(dsn: str, **options: Any) -> int:
    """Open a pool and return the port of the server that it has found, in less time than one host may take."""
    begin = time.monotonic()
    pool = await open_pool(dsn, {"statement_cache_size": 0} | options, seconds=TIMEOUT)
    try:
        assert time.monotonic() - begin < SOON
        return int(await pool.fetchval("show port"))
    finally:
        await close_pool(pool)


async def gone(admin: asyncpg.Connection, login: str) -> None:
    """Wait until a login has no session on a server."""
    async with asyncio.timeout(TIMEOUT):
        while await admin.fetchval("select count(*) from pg_stat_activity where usename = $1", login):
            await asyncio.sleep(0.01)


async def test_a_frozen_first_host_costs_no_timeout(database: Database, second: EmbeddedPostgres) -> None:
    """A store opens, and verifies, on the second host; so does an admin."""
    ports = second.port, database.server.port
    with frozen(second):
        begin = time.monotonic()
        async with ConnectionStore.open(dsn_of(*ports), timeout=TIMEOUT):
            assert time.monotonic() - begin < SOON
        begin = time.monotonic()
        async with ConnectionAdmin.open(dsn_of(*ports, login="app_bypass"), timeout=TIMEOUT):
            assert time.monotonic() - begin < SOON


SCRIPTED = {"hung": b"", **{state: refusal(state) for state in ("57P03", "53300", "28000", "28P01", "3D000")}}
"""What a host answers to a login. 28000, 28P01 and 3D000: a role or a database that is not replicated yet."""


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("answer", SCRIPTED)
async def test_no_answer_ends_the_search(database: Database, answer: str, *, first: bool) -> None:
    """Nothing, starting up, too many connections, no such role or database: the other host is found."""
    async with Listener(SCRIPTED[answer]).serve() as other:
        ports = (other.port, database.server.port) if first else (database.server.port, other.port)
        assert await port_of(dsn_of(*ports)) == database.server.port


@pytest.mark.parametrize("login", ["standby", "nologin", "limited", "unknown"])
@pytest.mark.usefixtures("logins")
async def test_no_server_ends_the_search(database: Database, second: EmbeddedPostgres, login: str) -> None:
    """A real one that is read-only, or that does not let this login in."""
    assert await port_of(dsn_of(second.port, database.server.port, login=login)) == database.server.port


async def test_a_way_that_is_closed_or_drops_packets_does_not_end_it(database: Database) -> None:
    """One after the other, in one URL of four hosts; a name that is not known neither."""
    with closed_port() as closed, dropping_port() as dropping:
        dsn = dsn_of(closed, dropping, database.server.port).replace("@", "@unknown.invalid:5432,")
        assert await port_of(dsn) == database.server.port


@pytest.mark.parametrize("answer", ["hung", "57P03"])
def test_the_search_runs_on_uvloop(prepared: Database, answer: str) -> None:
    """As on asyncio."""
    uvloop = pytest.importorskip("uvloop", reason="the extra uvloop is not installed")

    async def search() -> int:
        async with Listener(SCRIPTED[answer]).serve() as other:
            found = await port_of(dsn_of(other.port, prepared.server.port))
            assert not other.open_now
            return found

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(search()) == prepared.server.port


async def test_the_one_that_answered_last_comes_first(database: Database) -> None:
    """A host that hangs is asked once, not by each connection, nor by another pool or a listener."""
    async with Listener().serve() as other:
        dsn = dsn_of(other.port, database.server.port)
        for _ in range(3):
            assert await port_of(dsn, min_size=3) == database.server.port
        await close_pool(await open_single(dsn, {}))
        assert other.opened <= 3  # by the first pool, whose connections opened at once


async def test_hosts_behind_one_that_serves_are_not_asked(database: Database) -> None:
    """A fleet logs in as often as with one host."""
    async with Listener().serve() as other:
        assert await port_of(dsn_of(database.server.port, other.port), min_size=10) == database.server.port
        assert not other.opened


@pytest.mark.usefixtures("logins")
async def test_what_is_not_taken_is_closed(database: Database, second: EmbeddedPostgres) -> None:
    """The socket to a host that hangs, and the session on a server that is read-only."""
    admin = await asyncpg.connect(second.dsn())
    async with Listener().serve() as other:
        ports = other.port, second.port, database.server.port
        assert await port_of(dsn_of(*ports, login="standby")) == database.server.port
        async with asyncio.timeout(TIMEOUT):
            while other.open_now:
                await asyncio.sleep(0.01)
        await gone(admin, "standby")
    await admin.close()


@pytest.mark.long
@pytest.mark.usefixtures("logins")
async def test_a_cancelled_search_leaves_nothing_behind(
    database: Database, admin: asyncpg.Connection, second: EmbeddedPostgres
) -> None:
    """Cancelled after each step: no task, no session on a server, no socket, and no warning of either."""
    other_admin = await asyncpg.connect(second.dsn())
    async with Listener().serve() as hung:
        ports = second.port, hung.port, database.server.port
        dsn = dsn_of(*ports, login="standby")
        before = asyncio.all_tasks()
        steps = finished = 0
        while not finished:
            host_search._order.cache_clear()
            task = asyncio.create_task(open_pool(dsn, {"statement_cache_size": 0}, seconds=TIMEOUT))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                finished = 1
                await close_pool(task.result())
            steps += 1 + steps // 10  # the most happens in the first ones
        gc.collect()
        await gone(admin, "standby")
        await gone(other_admin, "standby")
        async with asyncio.timeout(TIMEOUT):
            while hung.open_now or asyncio.all_tasks() - before - hung.tasks:
                await asyncio.sleep(0.01)
    await other_admin.close()


@pytest.mark.usefixtures("logins")
async def test_a_host_that_is_promoted_while_another_hangs_is_found(
    database: Database, admin: asyncpg.Connection
) -> None:
    """Within the same search: what has refused is asked again."""
    await admin.execute("alter role standby set default_transaction_read_only = on")
    async with Listener().serve() as hung:
        dsn = dsn_of(database.server.port, hung.port, login="standby")
        search = asyncio.create_task(port_of(dsn))
        async with asyncio.timeout(TIMEOUT):
            while not hung.opened:
                await asyncio.sleep(0.01)
        await admin.execute("alter role standby reset default_transaction_read_only")
        assert await search == database.server.port


@pytest.mark.usefixtures("logins")
@pytest.mark.parametrize("by", ["url", "option", "variable"])
@pytest.mark.parametrize(
    ("target", "is_first"),
    [
        ("", False),
        ("read-write", False),
        ("any", True),
        ("primary", True),
        ("read-only", True),
        ("prefer-standby", True),
    ],
)
async def test_target_session_attrs_of_the_caller_holds(
    database: Database,
    second: EmbeddedPostgres,
    monkeypatch: pytest.MonkeyPatch,
    by: str,
    target: str,
    *,
    is_first: bool,
) -> None:
    """Without it the host must be writable; the first is a primary that is read-only by a setting."""
    dsn = dsn_of(second.port, database.server.port, login="standby")
    options = {}
    if target and by == "url":
        dsn += f"?target_session_attrs={target}"
    elif target and by == "variable":
        monkeypatch.setenv("PGTARGETSESSIONATTRS", target)
    elif target:
        options["target_session_attrs"] = target
    assert (await port_of(dsn, **options) == second.port) is is_first


async def test_no_standby_is_an_error_that_says_so(database: Database, second: EmbeddedPostgres) -> None:
    """At once, and of both hosts."""
    dsn = dsn_of(second.port, database.server.port, parameters="?target_session_attrs=standby")
    with pytest.raises(DatabaseUnavailable, match="the server does not match target_session_attrs"):
        await port_of(dsn)


async def test_one_host_may_be_read_only(second: EmbeddedPostgres) -> None:
    """With one host nothing is asked of it, as asyncpg does."""
    assert await port_of(dsn_of(second.port, login="standby")) == second.port


@pytest.mark.parametrize("by", ["lists", "one port", "query", "variables", "sockets"])
async def test_hosts_are_found_wherever_they_are_named(
    database: Database, monkeypatch: pytest.MonkeyPatch, open_folder: Path, by: str
) -> None:
    """In options, in parameters, in variables; a socket beside an address."""
    port = database.server.port
    options: dict[str, Any] = {}
    dsn = "postgresql://app:app@/spotconn"
    async with Listener().serve() as hung:
        match by:
            case "lists":
                options = {"host": ["127.0.0.1", "127.0.0.1"], "port": [hung.port, port]}
            case "one port":
                monkeypatch.setenv("PGPORT", str(port))
                with dropping_port("127.0.0.2", port):
                    assert await port_of("postgresql://app:app@127.0.0.2,127.0.0.1/spotconn") == port
                    return
            case "query":
                dsn += f"?host=127.0.0.1,127.0.0.1&port={hung.port},{port}"
            case "variables":
                monkeypatch.setenv("PGHOST", "127.0.0.1,127.0.0.1")
                monkeypatch.setenv("PGPORT", f"{hung.port},{port}")
            case _:
                dsn = f"postgresql://app:app@/spotconn?host={open_folder},127.0.0.1&port={port},{port}"
        assert await port_of(dsn, **options) == port


async def test_the_connect_of_the_caller_is_asked_for_each_host(database: Database) -> None:
    """With the options host and port; a callable for the password is called once for each host that is asked."""
    asked: list[int] = []
    passwords: list[str] = []

    async def connect(*args: Any, **options: Any) -> asyncpg.Connection:
        asked.append(options["port"])
        return await asyncpg.connect(*args, **options)

    def password() -> str:
        passwords.append("app")
        return "app"

    async with Listener().serve() as hung:
        port = await port_of(dsn_of(hung.port, database.server.port), connect=connect, password=password)
        assert (port, asked) == (database.server.port, [hung.port, port])
        assert len(passwords) == 2


async def test_the_connect_of_the_caller_may_need_no_name(database: Database) -> None:
    """That of the URL may be known to nobody; with one host it is not among the options either."""

    async def connect(*_args: Any, **options: Any) -> asyncpg.Connection:
        assert not {"host", "port", "addresses"} & options.keys()
        return await asyncpg.connect(database.dsn, **options)

    assert await port_of("postgresql://app:app@unknown.invalid/spotconn", connect=connect) == database.server.port


async def test_each_host_has_its_line_in_the_password_file(
    database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As with libpq."""
    file = tmp_path / "passwords"
    async with Listener(refusal("57P03")).serve() as other:
        file.write_text(f"127.0.0.1:{other.port}:*:*:wrong\n127.0.0.1:{database.server.port}:*:*:app\n")
        file.chmod(0o600)
        dsn = f"{dsn_of(other.port, database.server.port)}?passfile={file}".replace("app:app@", "app@")
        assert await port_of(dsn) == database.server.port


@pytest.mark.parametrize("mode", ["require", "verify-full"])
async def test_tls_checks_the_name_of_each_host(database: Database, tmp_path: Path, mode: str) -> None:
    """One that hangs in the handshake is passed over; a certificate counts for the host that shows it."""
    pem = certificate(tmp_path)
    async with tls_front(database.server.port, pem) as front, Listener().serve() as hung:
        dsn = f"{dsn_of(hung.port, front, front)}?sslnegotiation=direct&sslmode={mode}&sslrootcert={pem}"
        hosts = dsn.replace(f",127.0.0.1:{front}", f",localhost:{front}", 1)
        assert await port_of(hosts) == database.server.port
        assert hung.opened == 1


NONE_SERVES: list[tuple[tuple[str, ...], type[Exception], str]] = [
    (("hung", "57P03"), DatabaseUnavailable, r"no host .* serves: host 1: .*did not answer in time; host 2: .*57P03"),
    (
        ("57P03", "hung"),
        DatabaseUnavailable,
        r"host 1: .*57P03.*; host 2: .*did not answer in time.*; try again later$",
    ),
    (("28P01", "hung"), DatabaseUnavailable, r"host 1: .*28P01\).*; host 2: .*did not answer in time"),
    (("28P01", "57P03"), DatabaseUnavailable, r"host 1: .*28P01\).*; host 2: .*57P03"),
    (("28P01", "28P01"), ConfigurationError, r"^the database refused the login or a setting \(.*28P01\)"),
    (("28P01", "3D000"), ConfigurationError, r"^no host .* serves: host 1: .*28P01.*; host 2: .*3D000"),
    (("57P03", "57P03"), DatabaseUnavailable, r"^the database cannot serve now \(.*57P03\)"),
    (("hung", "hung"), DatabaseUnavailable, r"^no connection to the database within 2 s"),
]


@pytest.mark.parametrize(("answers", "kind", "text"), NONE_SERVES)
async def test_where_none_serves_the_error_has_what_each_says(
    answers: tuple[str, ...], kind: type[Exception], text: str
) -> None:
    """By its number in the URL, and nothing of the URL itself; a setting that all refuse is ConfigurationError."""
    async with AsyncExitStack() as stack:
        hosts = [await stack.enter_async_context(Listener(SCRIPTED[answer]).serve()) for answer in answers]
        dsn = dsn_of(*[host.port for host in hosts], password="marked")
        with pytest.raises(kind, match=text) as raised:
            await open_pool(dsn, {"statement_cache_size": 0}, seconds=2.0)
        assert not re.search("marked|127|app:", str(raised.value))
        assert (raised.value.__cause__, raised.value.__context__) == (None, None)


async def test_names_that_are_all_unknown_are_a_setting() -> None:
    """As with one host."""
    dsn = "postgresql://app:app@one.invalid,two.invalid/x"
    with pytest.raises(ConfigurationError, match="the host name of the database URL is not known"):
        await open_pool(dsn, {"statement_cache_size": 0}, seconds=TIMEOUT)


async def test_a_host_of_wrong_settings_is_asked_once(database: Database) -> None:
    """Not again and again while another one hangs: a server may lock a login out."""
    async with Listener().serve() as hung, Listener(refusal("28P01")).serve() as refusing:
        with pytest.raises(DatabaseUnavailable):
            await open_pool(dsn_of(hung.port, refusing.port), {"statement_cache_size": 0}, seconds=4.0)
        assert (hung.opened, refusing.opened) == (1, 1)


class _TwoAddresses:
    """Mixed into a loop: its name service knows two addresses for a name.

    Attributes:
        looked_up: the names that it was asked for.
    """

    looked_up: ClassVar[list[Any]] = []

    async def getaddrinfo(self, host: Any, *args: Any, **options: Any) -> list[Any]:
        self.looked_up.append(host)
        loop: Any = super()
        if host == "slow.invalid":
            await asyncio.sleep(TIMEOUT)
        addresses = ("127.0.0.2", "127.0.0.1") if host == "two.invalid" else (host.replace("one.invalid", "127.0.0.1"),)
        return [info for address in addresses for info in await loop.getaddrinfo(address, *args, **options)]


@pytest.fixture(params=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    """Runs a loop with `_TwoAddresses`."""
    uvloop = pytest.importorskip("uvloop") if request.param == "uvloop" else None
    loop: Any = type("Loop", (_TwoAddresses, uvloop.Loop if uvloop else asyncio.SelectorEventLoop), {})
    _TwoAddresses.looked_up.clear()
    with asyncio.Runner(loop_factory=loop) as runner:
        yield runner


def test_an_address_that_drops_packets_costs_no_timeout(prepared: Database, runner: asyncio.Runner) -> None:
    """One host whose name has two addresses: the second is asked soon."""
    port = prepared.server.port
    with dropping_port("127.0.0.2", port):
        assert runner.run(port_of(f"postgresql://app:app@two.invalid:{port}/spotconn")) == port


@pytest.mark.parametrize("answer", ["hung", "57P03", "28P01"])
@pytest.mark.parametrize("beside", ["", "127.0.0.3:9,"])
def test_an_address_that_accepts_and_does_not_serve_costs_no_timeout(
    prepared: Database, runner: asyncio.Runner, answer: str, beside: str
) -> None:
    """Frozen, or starting up: the other address of the name serves, and is asked first from then on."""
    port = prepared.server.port

    async def search() -> None:
        async with Listener(SCRIPTED[answer]).serve("127.0.0.2", port) as first:
            for _ in range(2):
                assert await port_of(f"postgresql://app:app@{beside}two.invalid:{port}/spotconn") == port
            assert (first.opened, first.open_now) == (1, 0)

    runner.run(search())


def test_a_cancelled_search_of_addresses_leaves_nothing_behind(prepared: Database, runner: asyncio.Runner) -> None:
    """Cancelled after each step, among several hosts: no task, and no socket."""
    port = prepared.server.port

    async def search() -> None:
        async with Listener().serve("127.0.0.2", port) as first, Listener().serve() as hung:
            dsn = f"postgresql://app:app@two.invalid:{port},127.0.0.1:{hung.port}/spotconn"
            before = asyncio.all_tasks()
            steps = 0
            while steps < 150:
                host_search._order.cache_clear()
                task = asyncio.create_task(open_pool(dsn, {"statement_cache_size": 0}, seconds=TIMEOUT))
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                if not task.cancelled():
                    await close_pool(task.result())
                steps += 1 + steps // 10
            gc.collect()
            async with asyncio.timeout(TIMEOUT):
                while first.open_now or hung.open_now or asyncio.all_tasks() - before - first.tasks - hung.tasks:
                    await asyncio.sleep(0.01)

    runner.run(search())


def test_a_name_service_that_hangs_for_one_host_does_not_hold_up_another(
    prepared: Database, runner: asyncio.Runner
) -> None:
    """Its answer is a part of asking that host."""
    port = prepared.server.port
    assert runner.run(port_of(f"postgresql://app:app@slow.invalid:{port},127.0.0.1:{port}/spotconn")) == port


@pytest.mark.parametrize(("host", "times"), [("127.0.0.1", 0), ("one.invalid", 1), ("two.invalid", 1)])
def test_a_name_is_looked_up_once_for_each_connection(
    prepared: Database, runner: asyncio.Runner, host: str, times: int
) -> None:
    """And an address never."""
    port = prepared.server.port
    runner.run(port_of(f"postgresql://app:app@{host}:{port}/spotconn"))
    assert [name for name in _TwoAddresses.looked_up if name.endswith(".invalid")] == [host] * times


def test_where_one_address_listens_its_answer_is_the_error(prepared: Database, runner: asyncio.Runner) -> None:
    """As where ::1 is an address of the name, and the server has 127.0.0.1 only."""
    dsn = f"postgresql://app:wrong@two.invalid:{prepared.server.port}/spotconn"
    with pytest.raises(ConfigurationError, match=r"28P01\)"):
        runner.run(open_pool(dsn, {"statement_cache_size": 0}, seconds=TIMEOUT))


def test_addresses_that_all_refuse_are_named_in_the_error(prepared: Database, runner: asyncio.Runner) -> None:
    """By their numbers."""
    dsn = f"postgresql://app:wrong@two.invalid:{prepared.server.port}/spotconn"

    async def search() -> None:
        async with Listener(refusal("57P03")).serve("127.0.0.2", prepared.server.port):
            text = r"^no address of the host serves: address 1: .*57P03\).*; address 2: .*28P01\)"
            with pytest.raises(DatabaseUnavailable, match=text):
                await open_pool(dsn, {"statement_cache_size": 0}, seconds=TIMEOUT)

    runner.run(search())


def test_tls_checks_the_name_and_not_the_address(prepared: Database, runner: asyncio.Runner, tmp_path: Path) -> None:
    """With verify-full, where the first address hangs; a certificate for the address alone does not do."""

    async def search(pem: Path) -> int:
        async with tls_front(prepared.server.port, pem) as front, Listener().serve("127.0.0.2", front) as hung:
            parameters = f"sslnegotiation=direct&sslmode=verify-full&sslrootcert={pem}"
            found = await port_of(f"postgresql://app:app@two.invalid:{front}/spotconn?{parameters}", timeout=3.0)
            assert hung.opened == 1
            return found

    assert runner.run(search(certificate(tmp_path, "two.invalid"))) == prepared.server.port
    with pytest.raises(DatabaseUnavailable, match="another host name"):
        runner.run(search(certificate(tmp_path, "other.invalid")))
