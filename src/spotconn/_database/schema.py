"""The SQL files that ship with the library."""

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal

SCHEMA_VERSION = 2
"""What `spotconn.schema_version()` answers in a database that fits this library."""


SqlFile = Literal["schema.sql", "plain_postgres.sql", "lock_down.sql", "lock_down_undo.sql"]


def read_sql(name: SqlFile) -> str:
    """The text of a shipped SQL file; an editable install reads the same file of its checkout."""
    packaged = files("spotconn") / "sql"
    folder: Traversable = packaged if packaged.is_dir() else Path(__file__).parents[3] / "sql"
    return (folder / name).read_text(encoding="utf-8")
