"""The embedded server, run by root: a process of its account plants links, and reads what other processes show."""

import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from spotconn.testing import EmbeddedPostgres, postgres_binaries
from spotconn.testing._postgres_supervisor import _read_untrusted

NAMES = ("password", "log", "data", "package", "planted")
INNER = ("data/password", "data/log", "data/planted", "data/base/planted")
"""Of the folder that the account owns. Within it initdb wants to begin alone."""
PRECIOUS = "precious\n"
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only as root does the server run as another account")


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files that every account may write to, as /tmp is."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder)


def _plant(base: Path, targets: list[Path]) -> None:
    """Plant links in the server's folder, over and over."""
    while True:
        for folder in base.glob("spotconn-postgres-*"):
            for name in NAMES + (INNER if os.access(folder / "log", os.F_OK) else ()):
                for target in targets:
                    with suppress(OSError):
                        (folder / name).symlink_to(target)


@contextmanager
def _attacker(base: Path, targets: list[Path]) -> Generator[None]:
    """A process of nobody that plants links for as long as the block runs."""
    nobody = pwd.getpwnam("nobody")
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(nobody.pw_gid)
        os.setuid(nobody.pw_uid)
        try:
            _plant(base, targets)
        finally:
            os._exit(1)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _state(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_mode, status.st_uid, status.st_gid


@pytest.mark.long
@root_only
@pytest.mark.skipif(postgres_binaries().parent.name != "pginstall", reason="only a wheel's programs can be moved")
def test_links_planted_by_the_account_of_the_server_reach_nothing(base: Path, tmp_path: Path) -> None:
    """Links planted all through start, restarts and removal: no file of root is written, handed over or removed."""
    tmp_path.chmod(0o700)
    victims = tmp_path / "of_root"
    victims.mkdir()
    files = [tmp_path / "root.conf", victims / "inner.conf"]
    for file in files:
        file.write_text(PRECIOUS)
        file.chmod(0o600)
    before = [_state(path) for path in (*files, victims)]
    with _attacker(base, [files[0], victims]), EmbeddedPostgres(binaries=_closed_copy(tmp_path)) as server:
        server.restart()
        server.restart(immediate=True)
        names = {entry.name for entry in server.folder.iterdir()}
        planted = (server.folder / "data" / "planted").is_symlink()
    assert planted, "the attacker was too late"
    assert not names & {"password", "planted"}
    assert [file.read_text() for file in files] == [PRECIOUS, PRECIOUS]
    assert [_state(path) for path in (*files, victims)] == before
    assert not list(base.iterdir())


def _closed_copy(private: Path) -> Path:
    """Return programs below a folder of mode 700: root copies them, which gives time to plant links."""
    installed = postgres_binaries().parent
    libraries = installed.parent.with_name(f"{installed.parent.name}.libs")
    copy = private / installed.parent.name / installed.name
    shutil.copytree(installed, copy, ignore=shutil.ignore_patterns("include"))
    shutil.copytree(libraries, private / libraries.name)
    return copy / "bin"


@root_only
def test_only_the_data_belongs_to_the_account_of_the_server(base: Path) -> None:
    """The folder is root's and lists nothing to others, and the log is for root to read."""
    with EmbeddedPostgres() as server:
        nobody = pwd.getpwnam("nobody")
        assert _state(server.folder) == (stat.S_IFDIR | 0o711, 0, 0)
        assert _state(server.folder / "data") == (stat.S_IFDIR | 0o700, nobody.pw_uid, nobody.pw_gid)
        assert _state(server.folder / "log") == (stat.S_IFREG | 0o600, 0, 0)


def test_removal_follows_no_links_on_this_system() -> None:
    """Python removes a tree by descriptors here, so nobody can put a link in the place of a folder meanwhile."""
    assert shutil.rmtree.avoids_symlink_attacks


@pytest.mark.parametrize("pipe", [True, False])
def test_a_state_that_is_no_file_holds_nothing_up(*, pipe: bool, tmp_path: Path) -> None:
    """A pipe or a link in the place of postmaster.pid is neither waited for nor followed."""
    place = tmp_path / "postmaster.pid"
    if pipe:
        os.mkfifo(place)
    else:
        place.symlink_to("/etc/hostname")
    with suppress(OSError):
        assert _read_untrusted(place) == ""


def test_no_process_shows_the_password(base: Path) -> None:
    """No argument, no environment and no file of the programs that are started holds the password."""
    binaries = base / "bin"
    binaries.mkdir()
    for program in ("postgres", "initdb"):
        seen, real = base / f"seen_{program}", postgres_binaries() / program
        script = f'#!/bin/sh\ncat /proc/$$/cmdline /proc/$$/environ > {seen}\nexec {real} "$@"\n'
        (binaries / program).write_text(script)
        (binaries / program).chmod(0o755)
    base.chmod(0o777)  # what the account of the server sees is written here
    with EmbeddedPostgres(binaries=binaries) as server:
        password = server._password.encode()
        shown = [(base / f"seen_{program}").read_bytes() for program in ("postgres", "initdb")]
        shown += [_shown(process) for process in Path("/proc").glob("[0-9]*") if int(process.name) != os.getpid()]
        kept = subprocess.run(["grep", "-rlF", server._password, server.folder], capture_output=True, check=False)
    assert not any(password in text for text in shown)
    assert kept.stdout == b""


def _shown(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
    except OSError:
        return b""


def test_a_failed_start_shows_no_password(base: Path) -> None:
    """The frames of a start that failed have the password in no argument and in no local of their own."""
    server = EmbeddedPostgres(settings={"shared_buffers": "nonsense"})
    with pytest.raises(RuntimeError) as raised:
        server.start()
    report = raised.getrepr(showlocals=True, style="long")
    assert server._password not in str(report)
