"""A copy of the package without the metadata of an installation, as a zipapp or PyInstaller makes it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args
from zipfile import ZipFile

import httpx
import pytest

import spotconn
from spotconn._database.schema import SqlFile, read_sql

PACKAGE = Path(spotconn.__file__).parent
INSTALLED = Path(httpx.__file__).parents[1]


@pytest.fixture
def zipped(tmp_path: Path) -> dict[str, str]:
    """An environment in which the package comes from a zip file, and everything else from its installation."""
    others = tmp_path / "others"
    others.mkdir()
    for found in INSTALLED.iterdir():
        if "spotconn" not in found.name:
            (others / found.name).symlink_to(found)
    archive = tmp_path / "app.pyz"
    with ZipFile(archive, "w") as app:
        for file in PACKAGE.rglob("*.py"):
            app.write(file, f"spotconn/{file.relative_to(PACKAGE)}")
        for name in get_args(SqlFile):
            app.writestr(f"spotconn/sql/{name}", read_sql(name))
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(archive), str(others)])}


def run(environment: dict[str, str], *arguments: str) -> str:
    # Without site, no .pth file leads to an installed spotconn.
    command = [sys.executable, "-S", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_package_without_metadata_is_imported(zipped: dict[str, str], tmp_path: Path) -> None:
    """It comes from the zip file and knows its version without metadata, which telemetry needs."""
    code = (
        "import importlib.metadata, spotconn, spotconn.telemetry\n"
        "print(spotconn.__file__, spotconn.__version__)\n"
        "try: importlib.metadata.version('spotconn')\n"
        "except importlib.metadata.PackageNotFoundError: print('no metadata')\n"
    )
    where = tmp_path / "app.pyz" / "spotconn" / "__init__.py"
    assert run(zipped, "-c", code).splitlines() == [f"{where} {spotconn.__version__}", "no metadata"]


@pytest.mark.long
def test_the_command_without_metadata_prints_the_schema(zipped: dict[str, str]) -> None:
    """The command runs, with the SQL files of the zip file."""
    assert run(zipped, "-m", "spotconn", "schema") == spotconn.schema_sql()
