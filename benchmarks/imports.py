"""What importing the library takes, in fresh interpreters, beside what it stands on."""

import subprocess
import sys

from benchmarks.rounds import Figure, Round, interleaved
from benchmarks.sizes import Size
from spotconn.testing import EmbeddedPostgres

IMPORTS = {
    "import": "import spotconn",
    "import_bases": "import asyncpg, httpx, pydantic, tenacity",
    # Pydantic loads itself when it is used.
    "import_bases_in_use": "import asyncpg, httpx, tenacity; from pydantic import BaseModel",
}
_TIMED = "import time; begun = time.perf_counter(); {}; print(time.perf_counter() - begun)"


async def measure(_server: EmbeddedPostgres, size: Size) -> list[Figure]:
    """Ratios to the imports of the dependencies, and what each takes."""
    rounds = await interleaved({name: _fresh(code) for name, code in IMPORTS.items()}, size.imports)
    return [
        Figure("import_overhead", rounds.ratio("import", "import_bases")),
        Figure("import_overhead_in_use", rounds.ratio("import", "import_bases_in_use")),
        *rounds.figures(),
    ]


def _fresh(code: str) -> Round:
    command = [sys.executable, "-c", _TIMED.format(code)]

    async def run() -> float:
        # Nothing else runs in this process meanwhile.
        return float(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)  # noqa: ASYNC221

    return run
