"""The Makefile where an installation does not end well: what is there afterwards is not taken for whole."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BROKEN = """#!/bin/sh
# Stands in for Python: venv ends before it has written all, or pip cannot install.
echo "$1 $2" >> calls
case "$1 $2" in
"-m venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python && [ "$VENV" = whole ] && touch .venv/bin/activate ;;
"-m pip") exit 1 ;;
esac
"""


@pytest.mark.skipif(not shutil.which("make"), reason="make is not there")
@pytest.mark.parametrize(("venv", "times"), [("broken", 2), ("whole", 1)])
def test_what_could_not_be_installed_is_tried_again(tmp_path: Path, venv: str, times: int) -> None:
    """An environment that was not finished is made anew, and no mark says that packages are there which are not."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "python"
    python.write_text(BROKEN)
    python.chmod(0o755)
    for _ in range(2):
        done = subprocess.run(
            ["make", "demo", f"PYTHON={python}"],
            cwd=tmp_path,
            env=os.environ | {"VENV": venv, "MAKEFLAGS": ""},
            capture_output=True,
            text=True,
            check=False,
            timeout=50,
        )
        assert done.returncode, done.stdout
        assert not list((tmp_path / ".venv").glob("*-installed"))
    assert (tmp_path / "calls").read_text().split("\n").count("-m venv") == times
