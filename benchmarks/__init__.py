"""What the library costs, side by side with what a user would pick instead: `make bench`.

Each module measures one thing, through public names only, against a real Postgres and a simulated Spotify.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# The fleet, the crowd of users, the counting proxy and the many rows that the tests have are measured with, too.
sys.path.append(str(ROOT / "tests"))
