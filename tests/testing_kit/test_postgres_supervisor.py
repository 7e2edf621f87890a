"""The program that supervises an embedded Postgres, run inside the test: its commands, and its errors."""

import asyncio
import io
import json
import os
import signal
import socket
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from spotconn.testing import _postgres_supervisor as program
from spotconn.testing import postgres_binaries
from spotconn.testing._postgres_supervisor import Supervisor, main

SETTINGS = {"binaries": str(postgres_binaries()), "options": {"fsync": "off"}, "password": "hush"}


def unchanged(*_: object) -> None:
    """The signals of the test's own process stay as they are."""


def _run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *lines: str) -> list[dict[str, Any]]:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    main()
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_it_runs_commands_until_its_input_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It writes port and folder at the start and after each restart, and removes the folder at the end."""
    monkeypatch.setattr(signal, "signal", unchanged)
    answers = _run(monkeypatch, capsys, json.dumps(SETTINGS), "restart", "restart-immediate")
    assert len(answers) == 3
    assert len({answer["port"] for answer in answers}) == 1
    assert not Path(answers[0]["folder"]).exists()


def test_it_says_why_the_server_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], open_folder: Path
) -> None:
    """A server that refuses its settings is an answer with the end of its log, and nothing is left."""
    monkeypatch.setattr(signal, "signal", unchanged)
    monkeypatch.setattr(tempfile, "tempdir", str(open_folder))
    [answer] = _run(monkeypatch, capsys, json.dumps(SETTINGS | {"options": {"max_connections": "many"}}))
    assert "max_connections" in answer["error"]
    assert not list(open_folder.iterdir())


def test_without_settings_it_does_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A parent that is gone before it has said anything leaves nothing to do."""
    monkeypatch.setattr(signal, "signal", unchanged)
    assert _run(monkeypatch, capsys) == []


def test_a_taken_port_is_not_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port lost to another program between the probe and the start is given up for another."""
    supervisor = Supervisor(SETTINGS)
    try:
        supervisor.prepare()
        supervisor.initialize()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            ports = iter([taken.getsockname()[1], program._free_port()])
            monkeypatch.setattr(program, "_free_port", lambda: next(ports))
            supervisor.start()
            assert supervisor.port != taken.getsockname()[1]
        assert asyncio.run(_password_works(supervisor.port)) == 1
    finally:
        supervisor.stop()
        supervisor.remove()


async def _password_works(port: int) -> int:
    connection = await asyncpg.connect(f"postgresql://postgres:hush@127.0.0.1:{port}/postgres")
    answer: int = await connection.fetchval("select 1")
    await connection.close()
    return answer


@pytest.mark.skipif(os.geteuid() != 0, reason="only as root does the server run as another account")
def test_unreachable_binaries_are_copied(tmp_path: Path) -> None:
    """Below a folder that it may not enter, they are copied, for a root with a strict umask too; no mode is changed."""
    package = tmp_path / "package"
    binaries = package / "pginstall" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "postgres").touch()
    (tmp_path / "package.libs").mkdir()
    tmp_path.chmod(0o700)
    supervisor = Supervisor(SETTINGS | {"binaries": str(binaries)})
    umask = os.umask(0o077)
    try:
        supervisor.prepare()
        for folder in (supervisor._binaries, *supervisor._binaries.parents):
            assert folder.stat().st_mode & stat.S_IXOTH
        assert supervisor._binaries.is_relative_to(supervisor.folder)
        assert (supervisor._binaries / "postgres").exists()
        assert (supervisor.folder / "package.libs").is_dir()
        assert tmp_path.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(umask)
        supervisor.remove()


@pytest.mark.skipif(os.geteuid() != 0, reason="only as root does the server run as another account")
def test_a_closed_temporary_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the server's account may not enter the temporary folder, the answer says what to set."""
    monkeypatch.setattr(signal, "signal", unchanged)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tmp_path.chmod(0o700)
    [answer] = _run(monkeypatch, capsys, json.dumps(SETTINGS))
    assert "TMPDIR" in answer["error"]
    assert not list(tmp_path.iterdir())
