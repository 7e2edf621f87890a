"""The embedded PostgreSQL: private while it runs, and gone without a trace however its owner ends."""

import asyncio
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest

from spotconn.testing import _postgres
from spotconn.testing._postgres import EmbeddedPostgres, postgres_binaries
from support.database import SYSTEM_15

SERVERS: list[Path] = list(dict.fromkeys([postgres_binaries(), *([SYSTEM_15] if SYSTEM_15.is_dir() else [])]))

PARENT = """
import sys
from pathlib import Path
from spotconn.testing._postgres import EmbeddedPostgres
with EmbeddedPostgres(binaries=Path(sys.argv[1])):
    print("ready", flush=True)
    sys.stdin.read()
"""


def eventually(holds: Callable[[], object], *, within: float = 20) -> None:
    deadline = time.monotonic() + within
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def processes_of(folder: Path) -> list[int]:
    """The processes that work in a folder or name it in their command."""
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _belongs(entry, folder)]


def _belongs(process: Path, folder: Path) -> bool:
    try:
        return (process / "cwd").readlink().is_relative_to(folder) or (
            os.fsencode(folder) in (process / "cmdline").read_bytes()
        )
    except OSError:
        return False


def nothing_left(folder: Path) -> bool:
    return not any(folder.iterdir()) and not processes_of(folder)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def above(*folders: Path) -> list[tuple[Path, int, int, int]]:
    """Modes and owners of folders and of all folders above them."""
    found = [(path, path.stat()) for folder in folders for path in (folder, *folder.parents)]
    return [(path, status.st_mode, status.st_uid, status.st_gid) for path, status in found]


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files which, unlike tmp_path, the user nobody may enter."""
    folder = Path(tempfile.mkdtemp(prefix="spotconn-base-", dir="/tmp"))
    folder.chmod(0o755)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres() as running:
        yield running


async def value(dsn: str, query: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def start_parent(binaries: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, str(binaries)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )


@pytest.mark.parametrize(
    "binaries",
    [SERVERS[0], *(pytest.param(binaries, marks=pytest.mark.long) for binaries in SERVERS[1:])],
    ids=lambda path: path.parent.name,
)
async def test_it_answers_and_leaves_nothing(binaries: Path, base: Path) -> None:
    """A server answers in UTF-8 from a private folder, leaves the folders above alone, and is gone when stopped."""
    before = above(base, binaries)
    with EmbeddedPostgres(binaries=binaries) as server:
        assert server.folder.parent == base
        assert mode(server.folder) == (0o700 if os.geteuid() else 0o711)
        assert await value(server.dsn(), "select 'é' || current_setting('server_encoding')") == "éUTF8"
        assert above(base, binaries) == before
    assert nothing_left(base)
    assert above(base, binaries) == before


@pytest.mark.parametrize(
    ("binaries", "number"),
    [
        (SERVERS[0], signal.SIGKILL),
        pytest.param(SERVERS[0], signal.SIGTERM, marks=pytest.mark.long),
        pytest.param(SERVERS[0], signal.SIGINT, marks=pytest.mark.long),
        *(pytest.param(binaries, signal.SIGKILL, marks=pytest.mark.long) for binaries in SERVERS[1:]),
    ],
)
def test_a_signal_to_the_group_of_a_running_parent(binaries: Path, number: signal.Signals, base: Path) -> None:
    """Nothing is left when the parent's process group gets a signal while the server runs."""
    with start_parent(binaries) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        os.killpg(parent.pid, number)
        eventually(lambda: nothing_left(base))


@pytest.mark.long
@pytest.mark.parametrize("sign", ["spotconn-*", "*/data/base/1/PG_VERSION"])
def test_a_parent_killed_while_the_server_is_made(sign: str, base: Path) -> None:
    """Nothing is left when the parent gets SIGKILL at any point before the server is ready."""
    with start_parent(SERVERS[0]) as parent:
        eventually(lambda: any(base.glob(sign)))
        parent.kill()
        eventually(lambda: nothing_left(base))


@pytest.mark.long
def test_a_parent_interrupted_while_initdb_runs(base: Path) -> None:
    """Nothing is left when the parent gets SIGINT during initdb."""
    with start_parent(SERVERS[0]) as parent:
        eventually(lambda: any(base.glob("*/data/base")))
        parent.send_signal(signal.SIGINT)
        eventually(lambda: nothing_left(base))


@pytest.mark.long
def test_a_forgotten_stop(base: Path) -> None:
    """A server never stopped ends with the interpreter."""
    program = "from spotconn.testing._postgres import EmbeddedPostgres; EmbeddedPostgres().start()"
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], env=os.environ | path, capture_output=True, check=True
    )
    assert ended.stdout + ended.stderr == b""
    eventually(lambda: nothing_left(base))


@pytest.mark.parametrize("immediate", [False, True])
async def test_restart_keeps_port_and_data(*, immediate: bool, server: EmbeddedPostgres) -> None:
    """A restart, even one like a crash, keeps the port and what was committed."""
    port = server.port
    durably = f"{server.dsn()}?synchronous_commit=on"
    await value(durably, "create table if not exists kept as select 42 as answer")
    server.restart(immediate=immediate)
    assert server.port == port
    assert await value(server.dsn(), "select answer from kept") == 42


async def test_two_at_once(server: EmbeddedPostgres, base: Path) -> None:
    """Two servers run side by side, each with its own folder, port, password and settings."""
    with EmbeddedPostgres(durable=True, settings={"work_mem": "5MB", "port": "1"}) as other:
        assert (other.port, other.folder.parent) != (server.port, server.folder.parent)
        assert await value(other.dsn(), "select current_setting('work_mem') || current_setting('fsync')") == "5MBon"
        assert await value(server.dsn(), "select current_setting('fsync')") == "off"
        swapped = other.dsn().replace(str(other.port), str(server.port))
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(swapped)
    assert nothing_left(base)


async def test_a_password_is_needed(server: EmbeddedPostgres) -> None:
    """A wrong password is refused, no socket goes round it, and none lies in the folder."""
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(server.dsn(password="wrong"))
    assert {entry.name for entry in server.folder.iterdir()} == {"data", "log"}


async def test_names_and_passwords_of_any_kind(server: EmbeddedPostgres) -> None:
    """A DSN carries names and passwords with every special character."""
    await value(server.dsn(), """create role "o'hara@x/y" login password 'p@ss:/?#%&é'""")
    assert await value(server.dsn(user="o'hara@x/y", password="p@ss:/?#%&é"), "select current_user") == "o'hara@x/y"


def test_it_listens_on_loopback_only(server: EmbeddedPostgres) -> None:
    """Only 127.0.0.1 accepts connections, not even another loopback address."""
    socket.create_connection(("127.0.0.1", server.port)).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", server.port))


@pytest.mark.long
@pytest.mark.skipif(
    os.geteuid() != 0 or SERVERS[0].parent.name != "pginstall",
    reason="only root runs the server as somebody else, and only a wheel's programs can be moved",
)
def test_programs_in_a_closed_folder_are_copied(base: Path, tmp_path: Path) -> None:
    """Programs that only root may reach are copied for the server, and their folder stays closed."""
    tmp_path.chmod(0o700)
    package = SERVERS[0].parent.parent
    shutil.copytree(SERVERS[0].parent, tmp_path / package.name / "pginstall", ignore=shutil.ignore_patterns("include"))
    libraries = f"{package.name}.libs"
    shutil.copytree(package.with_name(libraries), tmp_path / libraries)
    with EmbeddedPostgres(binaries=tmp_path / package.name / "pginstall" / "bin") as server:
        assert list(server.folder.rglob("initdb"))
        assert asyncio.run(value(server.dsn(), "select 1")) == 1
    assert mode(tmp_path) == 0o700
    assert not processes_of(base)


@pytest.mark.long
def test_a_failed_start_shows_the_log(base: Path) -> None:
    """A server that does not start raises the end of its log and leaves nothing."""
    server = EmbeddedPostgres(settings={"shared_buffers": "nonsense"})
    with pytest.raises(RuntimeError, match='"shared_buffers"'):
        server.start()
    assert nothing_left(base)
    with pytest.raises(RuntimeError, match="not running"):
        server.restart()


def test_no_programs_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any PostgreSQL the error says what to install."""
    monkeypatch.setattr(_postgres, "_candidates", lambda: iter(()))
    with pytest.raises(FileNotFoundError, match=r'pip install "spotconn\[testing\]"'):
        postgres_binaries()


@pytest.mark.long
def test_starting_twice_and_stopping_twice(base: Path) -> None:
    """A second start is refused and a second stop does nothing."""
    server = EmbeddedPostgres().start()
    with pytest.raises(RuntimeError, match="already running"):
        server.start()
    server.stop()
    server.stop()
    assert nothing_left(base)
