"""Programs from npm, which `make` puts beside the interpreter, and what runs the Supabase CLI."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NPM = Path(sys.prefix) / "npm" / "node_modules"
"""The folder of the packages."""
REQUIRED = "SPOTCONN_REQUIRE_SUPABASE"
"""Set where a missing Supabase CLI, or what its linter needs, is a failure, as in CI."""
LINTER = Path("/usr/share/postgresql/15/extension/plpgsql_check.control")
_NOWHERE = "http://127.0.0.1:9"
"""A proxy that is not there: the CLI looks for a newer one of itself."""


def require_supabase() -> None:
    """Skip the test where the CLI, Node or plpgsql_check is missing, or fail where they are required."""
    missing = [
        name
        for name, is_there in {
            "npm's supabase (make .venv/npm-installed)": _program().exists(),
            "node": shutil.which("node") is not None,
            "plpgsql_check (Debian: apt-get install postgresql-15-plpgsql-check)": LINTER.exists(),
        }.items()
        if not is_there
    ]
    if missing and os.environ.get(REQUIRED):
        pytest.fail(f"there is no {', '.join(missing)}, and {REQUIRED} is set")
    if missing:
        pytest.skip(f"there is no {', '.join(missing)}")


def run_supabase(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the Supabase CLI in the folder of a project, which is its home, too; it reaches loopback only."""
    command = [str(_program()), *arguments]
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "HTTP_PROXY": _NOWHERE,
        "HTTPS_PROXY": _NOWHERE,
        "DO_NOT_TRACK": "1",
        "SUPABASE_TELEMETRY_DISABLED": "1",
    }
    nothing = subprocess.DEVNULL
    return subprocess.run(
        command, cwd=folder, env=environ, stdin=nothing, capture_output=True, text=True, check=False, timeout=60
    )


def _program() -> Path:
    return NPM / ".bin" / "supabase"
