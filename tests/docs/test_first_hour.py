"""The page of the first hour: its commands print what stands there, here and from a wheel in a fresh environment."""

import importlib.util
import re
import subprocess
import sys
import venv
from configparser import ConfigParser
from pathlib import Path
from zipfile import ZipFile

import pytest

from spotconn.cli import app
from support.first_hour import PAGE, ROOT, as_process, differences, in_process, shell

COMMAND = re.compile(r"^\$ .*\bspotconn ([a-z-]+)", re.MULTILINE)
NO_NETWORK = "http://127.0.0.1:1"
"""As proxy of what would leave this host."""


def test_every_command_has_its_place() -> None:
    """The page shows each command, and all but keygen with an input that is refused."""
    names = {
        str(one.name or one.callback.__name__).replace("_", "-") for one in app.registered_commands if one.callback
    }
    shown, _, refused = PAGE.read_text(encoding="utf-8").partition("## What goes wrong")
    assert names == {*COMMAND.findall(shown), *COMMAND.findall(refused)}
    assert names - {*COMMAND.findall(refused)} == {"keygen"}


def test_the_page_is_what_the_commands_print(tmp_path: Path) -> None:
    """Line by line, from an empty Postgres to the end of a connection, without what differs at each run."""
    python = [sys.executable, "-m", "spotconn"]
    with shell(in_process, {"HOME": str(tmp_path), "HTTPS_PROXY": NO_NETWORK}, python) as opened:
        assert list(differences(opened)) == []


def build_wheel(folder: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=100,
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    """Make an environment of the wheel, over the dependencies of this one. Return its folder of programs."""
    venv.EnvBuilder(symlinks=True).create(folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    with ZipFile(wheel) as archive:
        archive.extractall(packages)
    # As lines of a .pth they come after the wheel, and their own .pth files, as of an editable spotconn, do not count.
    (packages / "dependencies.pth").write_text("\n".join(path for path in sys.path if "site-packages" in path))
    points = ConfigParser()
    points.read(next(packages.glob("spotconn-*.dist-info")) / "entry_points.txt")
    module, _, function = points["console_scripts"]["spotconn"].partition(":")
    script = folder / "bin" / "spotconn"
    script.write_text(f"#!{folder}/bin/python\nfrom {module} import {function}\n{function}()\n")
    script.chmod(0o755)
    return folder / "bin"


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.skipif(not (ROOT / "src").is_dir(), reason="the suite runs on the wheel already")
@pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="hatchling is not installed")
def test_the_page_holds_for_a_wheel_in_a_fresh_environment(tmp_path: Path) -> None:
    """Each command is a process with nothing but the wheel's programs on its path, and no way off this host."""
    programs = install(build_wheel(tmp_path), tmp_path / "environment")
    environ = {"HOME": str(tmp_path), "PATH": str(programs), "HTTPS_PROXY": NO_NETWORK, "PYTHONUTF8": "1"}
    with shell(as_process(str(programs / "spotconn")), environ, [str(programs / "spotconn")]) as opened:
        assert list(differences(opened)) == []
