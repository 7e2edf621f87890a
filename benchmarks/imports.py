"""What importing the library takes, in fresh interpreters, beside what it stands on."""

import os
import subprocess
import sys

from benchmarks.rounds import Figure, Round, interleaved
from benchmarks.sizes import Size
from spotconn.testing import EmbeddedPostgres

IMPORTS = {
    "import": "import spotconn",
    # Pydantic loads itself when it is used, and the last of it with the first model that a program makes.
    "import_bases": """
import asyncpg, httpx, pydantic, tenacity
class Model(pydantic.BaseModel):
    number: int
""",
}
_TIMED = """
import time
begun = time.perf_counter()
{}
print(time.perf_counter() - begun)
"""


async def measure(_server: EmbeddedPostgres, size: Size) -> list[Figure]:
    """The ratio to the imports of the dependencies with one model, and what each takes."""
    rounds = await interleaved({name: fresh(code) for name, code in IMPORTS.items()}, size.imports)
    return [Figure("import_overhead", rounds.ratio("import", "import_bases")), *rounds.figures()]


def fresh(code: str) -> Round:
    """A round of running code once in a new interpreter."""
    command = [sys.executable, "-c", _TIMED.format(code)]
    # A library that is installed has its bytecode, as its dependencies have. The first round, which does not count,
    # writes that of a checkout, also where the environment says otherwise.
    environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}

    async def run() -> float:
        # Nothing else runs in this process meanwhile.
        return float(subprocess.run(command, env=environ, check=True, capture_output=True, timeout=60).stdout)  # noqa: ASYNC221

    return run
